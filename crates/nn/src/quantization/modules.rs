//! Lists of modules as quantization configs give them: names, parts of names, and patterns (`re:` and a regular
//! expression, or a name with `*` in it).

use regex_lite::Regex;
use serde_json::Value;

use crate::{CheckpointError, Fields};

/// No config lists more.
const MOST: usize = 1 << 16;

/// Some of a model's modules.
#[derive(Clone, Debug, Default)]
pub(super) struct Modules {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    /// Modules in whose names this is one part, or several that follow each other.
    Name(String),
    /// Of modules whose names begin with a match.
    Pattern(Regex),
}

impl Modules {
    /// The modules that any of these fields list.
    ///
    /// # Errors
    /// A field that is no list of strings, or a pattern (`re:...`) that is malformed.
    pub(super) fn parse(fields: Fields<'_>, names: &[&str]) -> Result<Self, CheckpointError> {
        let mut entries = Vec::new();
        for name in names {
            let list = fields.list(name)?.unwrap_or_default();
            if list.len() > MOST {
                return Err(fields.wrong(name, format!("lists more than {MOST} modules")));
            }
            for entry in list {
                entries.push(Entry::parse(entry).map_err(|problem| fields.wrong(name, problem))?);
            }
        }
        Ok(Self { entries })
    }

    /// Whether `module`, a whole name, is one of them.
    pub(super) fn hold(&self, module: &str) -> bool {
        self.entries.iter().any(|entry| entry.matches(module))
    }
}

impl Entry {
    fn parse(entry: &Value) -> Result<Self, String> {
        let Some(text) = entry.as_str() else { return Err(format!("{entry} is not a string")) };
        let pattern = match text.strip_prefix("re:") {
            Some(pattern) => pattern.to_owned(),
            None if text.contains('*') => text.replace('.', "\\.").replace('*', ".*"),
            None => return Ok(Self::Name(text.to_owned())),
        };
        let regex = Regex::new(&format!("^(?:{pattern})"));
        Ok(Self::Pattern(regex.map_err(|e| format!("the pattern {text:?} is not implemented: {e}"))?))
    }

    fn matches(&self, module: &str) -> bool {
        match self {
            Self::Pattern(regex) => regex.is_match(module),
            Self::Name(name) => format!(".{module}.").contains(&format!(".{name}.")),
        }
    }
}
