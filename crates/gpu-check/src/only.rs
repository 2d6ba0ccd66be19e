//! Which items of a part are wanted, by their names.

/// Texts, one of which a name must contain; all names where there is none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Only(Vec<String>);

impl Only {
    /// Of texts with commas between them.
    pub(crate) fn parse(texts: &str) -> Self {
        Self(texts.split(',').filter(|text| !text.is_empty()).map(str::to_owned).collect())
    }

    pub(crate) fn names(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|text| name.contains(text))
    }
}

impl std::fmt::Display for Only {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0.join(","))
    }
}
