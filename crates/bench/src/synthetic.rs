//! Texts of a wanted length in tokens that mean nothing: words of the bundled prompts in random order.
//!
//! Random words, because a prompt that is sent again and again is kinder to a mixture of experts than real ones are.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::selection::Counter;

/// A text is lengthened or shortened so often until its length is right.
const ROUNDS: usize = 4;
/// Words whose tokens are counted to know how many tokens a word has.
const SAMPLE: usize = 200;

/// Makes texts.
pub(crate) struct Writer {
    words: Vec<&'static str>,
    tokens_a_word: f64,
}

impl Writer {
    pub(crate) async fn new(counter: &Counter<'_>, rng: &mut StdRng) -> Self {
        let mut words: Vec<&str> = crate::prompts::BUNDLED
            .split(|c: char| !c.is_ascii_lowercase())
            .filter(|word| (3..=9).contains(&word.len()))
            .collect();
        words.sort_unstable();
        words.dedup();
        let mut writer = Self { words, tokens_a_word: 1.0 };
        let sample = writer.some(SAMPLE, rng).join(" ");
        writer.tokens_a_word = f64::from(counter.count(&sample).await.max(1)) / SAMPLE as f64;
        writer
    }

    /// A text of as many tokens as its length says it should have.
    pub(crate) fn rough(&self, tokens: u32, rng: &mut StdRng) -> String {
        self.some(self.words_for(f64::from(tokens)).max(1), rng).join(" ")
    }

    /// A text of `tokens` tokens, or as near as can be come with whole words, and its length. `dress` is what is done
    /// to it before it is sent.
    pub(crate) async fn exact(
        &self,
        tokens: u32,
        counter: &Counter<'_>,
        dress: impl Fn(&str) -> String,
        rng: &mut StdRng,
    ) -> (String, u32) {
        let mut words = self.some(self.words_for(f64::from(tokens)).max(1), rng);
        let mut best: Option<(String, u32)> = None;
        for _ in 0..ROUNDS {
            let text = words.join(" ");
            let counted = counter.count(&dress(&text)).await;
            if best.as_ref().is_none_or(|(_, length)| counted.abs_diff(tokens) < length.abs_diff(tokens)) {
                best = Some((text, counted));
            }
            let missing = f64::from(tokens) - f64::from(counted);
            let change = self.words_for(missing.abs()).max(1);
            match () {
                () if missing == 0.0 => break,
                () if missing > 0.0 => words.extend(self.some(change, rng)),
                () => words.truncate(words.len().saturating_sub(change).max(1)),
            }
        }
        best.expect("there is at least one round")
    }

    fn words_for(&self, tokens: f64) -> usize {
        (tokens / self.tokens_a_word).round() as usize
    }

    fn some(&self, count: usize, rng: &mut StdRng) -> Vec<&'static str> {
        (0..count).filter_map(|_| self.words.choose(rng).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[tokio::test]
    async fn texts_have_their_length_and_differ() {
        let (counter, mut rng) = (Counter::new(None), StdRng::seed_from_u64(1));
        let writer = Writer::new(&counter, &mut rng).await;
        for tokens in [1, 7, 63, 512, 5000] {
            let (text, length) = writer.exact(tokens, &counter, str::to_owned, &mut rng).await;
            assert!(length.abs_diff(tokens) <= 2 + tokens / 100, "{length} for {tokens}");
            assert_eq!(counter.count(&text).await, length);
            let rough = counter.count(&writer.rough(tokens, &mut rng)).await;
            assert!(rough.abs_diff(tokens) <= 3 + tokens / 10, "{rough} for {tokens}");
        }
        assert_ne!(writer.rough(50, &mut rng), writer.rough(50, &mut rng));
        assert!(writer.words.len() > 300, "{} words", writer.words.len());
    }
}
