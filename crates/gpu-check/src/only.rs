//! Which items of a part are wanted, by their names.

/// Texts, one of which a name must contain; all names where there is none.
#[derive(Clone, Debug, Default)]
pub struct Only(Vec<String>);

impl Only {
    /// Of texts with commas between them.
    pub fn parse(texts: &str) -> Self {
        Self(texts.split(',').filter(|text| !text.is_empty()).map(str::to_owned).collect())
    }

    pub fn names(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|text| name.contains(text))
    }
}

impl std::fmt::Display for Only {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::{FULL, REHEARSAL};

    /// Each text that run.sh passes to a part of whole models names one of them, measured and rehearsed.
    #[test]
    fn run_sh_asks_for_what_there_is() {
        let mut seen = 0;
        for line in include_str!("../run.sh").lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["part", part @ ("models" | "serve"), _, texts] = words[..] else { continue };
            for (scale, text) in
                [&FULL, &REHEARSAL].into_iter().flat_map(|scale| texts.split(',').map(move |t| (scale, t)))
            {
                let mut names: Vec<&str> = scale.models.iter().map(|(name, _)| *name).collect();
                if part == "serve" {
                    names = scale.served.iter().map(|served| served.model).collect();
                }
                assert!(names.into_iter().any(|name| Only::parse(text).names(name)), "{part}: nothing is named {text}");
                seen += 1;
            }
        }
        assert!(seen > 10, "{seen} texts in run.sh");
    }
}
