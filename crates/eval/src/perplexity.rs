//! Perplexity of a text, window by window. A window is so many bytes of text; all but the first score only what comes after
//! the half that they share with the one before, so that every token but the very first is scored once, with context.
//!
//! Windows are cut in bytes and before white space, not in tokens: then models with different tokenizers see the same
//! context for the same text, and the bits that they need for a byte can be compared. Perplexity itself, a token's, can
//! not.

use serde::{Deserialize, Serialize};

use crate::client::{Client, ScoredText};
use crate::error::{EvalError, Result};

/// How a text is cut.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Bytes of text that are sent at once.
    pub window: usize,
    /// Bytes from one window's start to the next one's: what each but the first scores.
    pub stride: usize,
}

impl Default for Windows {
    /// About a thousand tokens of English, which every context of today holds.
    fn default() -> Self {
        Self { window: 4096, stride: 2048 }
    }
}

/// How well a model foresees a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// The text's name and size: reports of other texts cannot be compared.
    pub file: String,
    pub file_bytes: usize,
    pub window_bytes: usize,
    pub stride_bytes: usize,
    /// Tokens that were scored, and the bytes that they are.
    pub tokens: usize,
    pub bytes: usize,
    /// `exp` of the mean negative log probability of a token. Depends on the tokenizer.
    pub perplexity: f64,
    /// Negative log probability in bits, a byte. Does not depend on the tokenizer.
    pub bits_per_byte: f64,
    pub windows: Vec<WindowScore>,
}

/// What a window scored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowScore {
    pub tokens: usize,
    pub bytes: usize,
    /// Of its tokens together, in nats.
    pub negative_log_probability: f64,
}

/// Measures `text`, which is called `file`; `progress` is told the windows done and all.
///
/// # Errors
/// The text is too short, the windows make no sense, or the endpoint does not score prompts.
pub(crate) async fn measure(
    client: &Client,
    file: &str,
    text: &str,
    windows: Windows,
    mut progress: impl FnMut(usize, usize),
) -> Result<Perplexity> {
    let Windows { window, stride } = windows;
    if stride == 0 || stride > window {
        return Err(EvalError::Option(format!("a stride of {stride} bytes does not suit a window of {window}")));
    }
    let spans = spans(text, window, stride);
    let mut scores = Vec::with_capacity(spans.len());
    for span in &spans {
        progress(scores.len(), spans.len());
        let scored = client.score(&text[span.start..span.end]).await?;
        scores.push(score(text, *span, &scored));
    }
    progress(spans.len(), spans.len());
    let sum = |of: fn(&WindowScore) -> usize| scores.iter().map(of).sum::<usize>();
    let (tokens, bytes) = (sum(|score| score.tokens), sum(|score| score.bytes));
    if tokens == 0 || bytes == 0 {
        return Err(EvalError::Option(format!("{file} holds too little text to measure")));
    }
    let total: f64 = scores.iter().map(|score| score.negative_log_probability).sum();
    Ok(Perplexity {
        file: file.to_owned(),
        file_bytes: text.len(),
        window_bytes: window,
        stride_bytes: stride,
        tokens,
        bytes,
        perplexity: (total / tokens as f64).exp(),
        bits_per_byte: total / std::f64::consts::LN_2 / bytes as f64,
        windows: scores,
    })
}

/// A window: `start..end` is sent, `scored..end` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: usize,
    scored: usize,
    end: usize,
}

fn spans(text: &str, window: usize, stride: usize) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut end = 0;
    while end < text.len() {
        let scored = end;
        end = match spans.is_empty() {
            true => cut(text, window, 0),
            false => cut(text, scored + stride, scored),
        };
        let start = cut(text, end.saturating_sub(window), 0).min(scored);
        spans.push(Span { start, scored, end });
    }
    spans
}

/// The last place up to `at` where a word begins after white space, which goes with the word as in most tokenizers' tokens;
/// past `after`, else at the next character from `at` on.
fn cut(text: &str, at: usize, after: usize) -> usize {
    if at >= text.len() {
        return text.len();
    }
    let at = (at..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    let mut before = text[after..at].char_indices().rev();
    let follows_word =
        |place: usize| text[after..after + place].chars().next_back().is_some_and(|c| !c.is_whitespace());
    let place = before.find_map(|(place, c)| (c == ' ' && place > 0 && follows_word(place)).then_some(after + place));
    place.unwrap_or(at)
}

/// Sums up what of a window counts.
fn score(text: &str, span: Span, scored: &ScoredText) -> WindowScore {
    let context = text[span.start..span.scored].chars().count();
    let mut counted =
        scored.tokens.iter().filter(|token| token.logprob.is_some() && token.offset >= context).peekable();
    let first = counted.peek().map_or(usize::MAX, |token| token.offset);
    let bytes = text[span.start..span.end].chars().skip(first).map(char::len_utf8).sum();
    let (mut tokens, mut total) = (0, 0.0);
    for token in counted {
        tokens += 1;
        total -= token.logprob.unwrap_or_default();
    }
    WindowScore { tokens, bytes, negative_log_probability: total }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ScoredToken;

    #[test]
    fn windows_cover_a_text_once_and_cut_before_words() {
        let text = "the quick brown fox jumps over the lazy dog. ".repeat(40);
        for (window, stride) in [(100, 50), (64, 64), (4096, 2048), (7, 1)] {
            let spans = spans(&text, window, stride);
            assert_eq!((spans[0].start, spans[0].scored), (0, 0));
            assert_eq!(spans.last().unwrap().end, text.len());
            assert!(spans.windows(2).all(|pair| pair[0].end == pair[1].scored), "{window} {stride}");
            for span in &spans {
                assert!(span.start <= span.scored && span.scored < span.end);
                assert!(span.end - span.start <= window + 12, "{span:?}");
                let is_cut = span.end == text.len() || text[span.end..].starts_with(' ') || window < 20;
                assert!(is_cut, "{:?}", &text[span.start..span.end]);
            }
        }
    }

    #[test]
    fn characters_are_not_cut() {
        let text = "äöü€".repeat(50);
        let spans = spans(&text, 11, 5);
        assert!(spans.iter().all(|span| text.is_char_boundary(span.start) && text.is_char_boundary(span.end)));
        assert_eq!(spans.last().unwrap().end, text.len());
    }

    #[test]
    fn only_what_is_new_counts() {
        let token = |offset, logprob| ScoredToken { offset, logprob };
        let text = "né zwei drei";
        let scored = ScoredText { tokens: vec![token(0, None), token(2, Some(-1.0)), token(7, Some(-2.0))] };
        let whole = score(text, Span { start: 0, scored: 0, end: text.len() }, &scored);
        assert_eq!(whole, WindowScore { tokens: 2, bytes: 10, negative_log_probability: 3.0 });
        let half = score(text, Span { start: 0, scored: 8, end: text.len() }, &scored);
        assert_eq!(half, WindowScore { tokens: 1, bytes: 5, negative_log_probability: 2.0 });
    }
}
