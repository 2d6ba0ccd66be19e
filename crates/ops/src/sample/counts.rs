//! Which tokens a sequence has seen, for the penalties.

use std::collections::BTreeMap;

/// A sequence's tokens: which its prompt had, and how often each was generated. Takes no memory while empty, so slots
/// without penalties need not fill it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// How often each token seen was generated; 0 for those of the prompt alone.
    generated: BTreeMap<u32, u32>,
}

impl TokenCounts {
    pub const fn new() -> Self {
        Self { generated: BTreeMap::new() }
    }

    pub fn add_prompt(&mut self, tokens: &[u32]) {
        for token in tokens {
            self.generated.entry(*token).or_insert(0);
        }
    }

    pub fn add_output(&mut self, token: u32) {
        let count = self.generated.entry(token).or_insert(0);
        *count = count.saturating_add(1);
    }

    pub fn clear(&mut self) {
        self.generated.clear();
    }

    /// Every token seen and how often it was generated, by rising id.
    pub(super) fn seen(&self) -> impl Iterator<Item = (u32, u32)> {
        self.generated.iter().map(|(token, count)| (*token, *count))
    }
}
