//! Typed reading of a Hugging Face config.json. The config is untrusted: sizes are bounded here, so that no later
//! product of them overflows and no allocation follows from an absurd one.

use serde_json::{Map, Value};

use crate::CheckpointError;

/// No dimension of a real model comes near; the product of any three fits in 64 bits.
const LARGEST_SIZE: u64 = 1 << 21;

/// Layers, or experts of a layer: a multiple of what any real model has. Loops go over their product.
const LARGEST_COUNT: usize = 1024;

/// One JSON object of a config, read field by field. Every error names its field.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Name of the enclosing field with a dot, for messages; empty at the top.
    parent: &'a str,
}

impl<'a> Fields<'a> {
    /// # Errors
    /// `config` is not an object.
    pub fn new(config: &'a Value) -> Result<Self, CheckpointError> {
        let object = config.as_object().ok_or_else(|| CheckpointError::config("(all)", "is not a JSON object"))?;
        Ok(Self { object, parent: "" })
    }

    /// The object in field `name`; `None` if the field is absent or null.
    ///
    /// # Errors
    /// The field is something else.
    pub fn nested(&self, name: &'a str) -> Result<Option<Fields<'a>>, CheckpointError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { object, parent: name })),
            Some(other) => Err(self.malformed(name, "an object", other)),
        }
    }

    /// The field's value; `None` if absent or null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// A count or dimension: at least 1.
    ///
    /// # Errors
    /// Absent, or not an integer from 1 to 2^21.
    pub fn size(&self, name: &str) -> Result<usize, CheckpointError> {
        self.optional_size(name)?.ok_or_else(|| self.missing(name))
    }

    /// As [`Fields::size`], or `None` if the field is absent or null.
    ///
    /// # Errors
    /// As [`Fields::size`], but for absence.
    pub fn optional_size(&self, name: &str) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(size @ 1..=LARGEST_SIZE) => Ok(Some(size as usize)),
            _ => Err(self.malformed(name, &format!("an integer from 1 to {LARGEST_SIZE}"), value)),
        }
    }

    /// How many layers there are, or experts in each: at least 1.
    ///
    /// # Errors
    /// Absent, or not an integer from 1 to 1024.
    pub fn count(&self, name: &str) -> Result<usize, CheckpointError> {
        self.optional_count(name)?.ok_or_else(|| self.missing(name))
    }

    /// As [`Fields::count`], or `None` if the field is absent or null.
    ///
    /// # Errors
    /// As [`Fields::count`], but for absence.
    pub fn optional_count(&self, name: &str) -> Result<Option<usize>, CheckpointError> {
        let count = self.optional_size(name)?;
        match count.filter(|count| *count > LARGEST_COUNT) {
            Some(count) => Err(self.wrong(name, format!("is {count}; at most {LARGEST_COUNT} are implemented"))),
            None => Ok(count),
        }
    }

    /// A context length: capped, not refused, where it is absurdly large (some configs write 10^30 for "no limit").
    ///
    /// # Errors
    /// Absent, or not a positive number.
    pub fn context_length(&self, name: &str) -> Result<usize, CheckpointError> {
        const LONGEST: f64 = (1u64 << 24) as f64;
        let length = self.positive(name)?.ok_or_else(|| self.missing(name))?;
        Ok(length.clamp(1.0, LONGEST) as usize)
    }

    /// A finite number above 0; `None` if the field is absent or null.
    ///
    /// # Errors
    /// The field is something else.
    pub fn positive(&self, name: &str) -> Result<Option<f64>, CheckpointError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(self.malformed(name, "a number above 0", value)),
        }
    }

    /// As [`Fields::positive`], for a field that must be there.
    ///
    /// # Errors
    /// As [`Fields::positive`], and absence.
    pub fn required_positive(&self, name: &str) -> Result<f64, CheckpointError> {
        self.positive(name)?.ok_or_else(|| self.missing(name))
    }

    /// # Errors
    /// The field is neither a boolean nor absent.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, CheckpointError> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.malformed(name, "true or false", value)),
        }
    }

    /// Refuses a field that says anything but `implemented`; absent, it means that.
    ///
    /// # Errors
    /// It says something else.
    pub fn only(&self, name: &str, implemented: &str) -> Result<(), CheckpointError> {
        match self.text(name)?.unwrap_or(implemented) {
            text if text == implemented => Ok(()),
            other => Err(self.wrong(name, format!("{other:?} is not implemented; only {implemented:?} is"))),
        }
    }

    /// Each layer's attention window in tokens, `None` for full attention: from `layer_types`, or else by a pattern, in which
    /// every `full_every()`th layer is full. The window is `sliding_window`'s.
    ///
    /// # Errors
    /// A layer of another type, more or fewer types than layers, absent sizes, or what `full_every` gives.
    pub fn layer_windows(
        &self,
        full_every: impl FnOnce() -> Result<usize, CheckpointError>,
    ) -> Result<Vec<Option<u32>>, CheckpointError> {
        let layers = self.count("num_hidden_layers")?;
        let window = Some(self.size("sliding_window")? as u32);
        let Some(types) = self.list("layer_types")? else {
            let full_every = full_every()?;
            return Ok((1..=layers).map(|nth| if nth.is_multiple_of(full_every) { None } else { window }).collect());
        };
        if types.len() != layers {
            let problem = format!("lists {} layers, num_hidden_layers is {layers}", types.len());
            return Err(self.wrong("layer_types", problem));
        }
        let of_type = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(window),
            Some("full_attention") => Ok(None),
            _ => Err(self.wrong("layer_types", format!("{kind} is not implemented"))),
        };
        types.iter().map(of_type).collect()
    }

    /// # Errors
    /// The field is neither a string nor absent.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, CheckpointError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => Ok(Some(value.as_str().ok_or_else(|| self.malformed(name, "a string", value))?)),
        }
    }

    /// An array; `None` if the field is absent or null.
    ///
    /// # Errors
    /// The field is something else.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, CheckpointError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => Ok(Some(value.as_array().ok_or_else(|| self.malformed(name, "an array", value))?)),
        }
    }

    /// Refuses a config that sets any of these fields (to something but null, false or nothing): each would change
    /// the result, and none is implemented for this architecture.
    ///
    /// # Errors
    /// The first of the fields that is set.
    pub fn refuse(&self, names: &[&str]) -> Result<(), CheckpointError> {
        let set = |name: &&&str| self.get(name).is_some_and(|value| value != &Value::Bool(false));
        match names.iter().find(set) {
            None => Ok(()),
            Some(name) => Err(self.wrong(name, "is not implemented for this architecture")),
        }
    }

    /// An error about field `name`.
    pub fn wrong(&self, name: &str, problem: impl Into<String>) -> CheckpointError {
        let dot = if self.parent.is_empty() { "" } else { "." };
        CheckpointError::config(format!("{}{dot}{name}", self.parent), problem)
    }

    fn missing(&self, name: &str) -> CheckpointError {
        self.wrong(name, "is missing")
    }

    fn malformed(&self, name: &str, expected: &str, found: &Value) -> CheckpointError {
        let mut found = found.to_string();
        if let Some((cut, _)) = found.char_indices().nth(60) {
            found.truncate(cut);
            found.push_str("...");
        }
        self.wrong(name, format!("must be {expected}, is {found}"))
    }
}
