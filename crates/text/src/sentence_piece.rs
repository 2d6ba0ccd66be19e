//! SentencePiece BPE (Kudo and Richardson, 2018), as GGUF stores it: pieces with scores, no list of merges.
//!
//! Characters are merged pairwise, always the pair whose piece scores highest, the leftmost of equals, until no two
//! neighbours make a piece. What is no piece in the end is spelled in byte pieces. Pieces that the vocabulary's
//! author defined are matched first, longest first, and never merged. Text never becomes a control piece.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use ahash::AHashMap;
use aho_corasick::{AhoCorasick, MatchKind};
use plimsoll_core::TokenId;

use crate::TextError;
use crate::token_table::META_SPACE;

/// What is known of a vocabulary before it is used. Piece texts may write a space as U+2581.
#[derive(Default)]
pub(crate) struct Pieces {
    /// Text, id and score of every piece that merges may make.
    pub(crate) ordinary: Vec<(String, TokenId, f32)>,
    /// Text and id of every piece that is matched as a whole.
    pub(crate) user_defined: Vec<(String, TokenId)>,
    /// The id of each byte's piece.
    pub(crate) bytes: HashMap<u8, TokenId>,
    pub(crate) unknown: Option<TokenId>,
    /// Text begins with a space that is not there.
    pub(crate) adds_space_prefix: bool,
}

pub(crate) struct SentencePiece {
    pieces: AHashMap<Box<str>, Piece>,
    longest_piece: usize,
    user_defined: Option<(AhoCorasick, Vec<TokenId>)>,
    bytes: [Option<TokenId>; 256],
    unknown: Option<TokenId>,
    adds_space_prefix: bool,
    /// No piece holds a space after another character, so words can be merged one by one.
    words_are_independent: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    id: TokenId,
    score: f32,
}

impl SentencePiece {
    pub(crate) fn new(vocabulary: Pieces) -> Result<Self, TextError> {
        let mut pieces = AHashMap::with_capacity(vocabulary.ordinary.len());
        for (text, id, score) in vocabulary.ordinary {
            if score.is_nan() {
                return Err(TextError::Vocabulary(format!("the score of token {id} is not a number")));
            }
            pieces.insert(text.replace(META_SPACE, " ").into_boxed_str(), Piece { id, score });
        }
        let mut bytes = [None; 256];
        for (byte, id) in vocabulary.bytes {
            bytes[usize::from(byte)] = Some(id);
        }
        Ok(Self {
            longest_piece: pieces.keys().map(|text| text.len()).max().unwrap_or(0),
            words_are_independent: pieces.keys().all(|text| !has_inner_space(text)),
            pieces,
            user_defined: whole_pieces(vocabulary.user_defined)?,
            bytes,
            unknown: vocabulary.unknown,
            adds_space_prefix: vocabulary.adds_space_prefix,
        })
    }

    /// Appends the ids of `text`, which is a prompt's beginning or follows a control token.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<TokenId>) {
        if text.is_empty() {
            return;
        }
        let mut normalized = String::with_capacity(text.len() + 1);
        if self.adds_space_prefix {
            normalized.push(' ');
        }
        // A visible space in the text is the same piece as a space.
        normalized.extend(text.chars().map(|c| if c == META_SPACE { ' ' } else { c }));

        let mut merger = Merger::default();
        let mut rest = 0;
        if let Some((matcher, ids)) = &self.user_defined {
            for found in matcher.find_iter(&normalized) {
                self.encode_stretch(&normalized[rest..found.start()], &mut merger, out);
                out.push(ids[found.pattern().as_usize()]);
                rest = found.end();
            }
        }
        self.encode_stretch(&normalized[rest..], &mut merger, out);
    }

    fn encode_stretch(&self, text: &str, merger: &mut Merger, out: &mut Vec<TokenId>) {
        let mut rest = text;
        while !rest.is_empty() {
            let end = if self.words_are_independent { word_end(rest) } else { rest.len() };
            merger.merge(&rest[..end], self, out);
            rest = &rest[end..];
        }
    }

    fn piece(&self, text: &str) -> Option<Piece> {
        if text.len() > self.longest_piece {
            return None;
        }
        self.pieces.get(text).copied()
    }

    /// Appends what `symbol`, a piece or a single character, becomes.
    fn push_symbol(&self, symbol: &str, out: &mut Vec<TokenId>) {
        match self.piece(symbol) {
            Some(piece) => out.push(piece.id),
            None => out.extend(symbol.bytes().filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown))),
        }
    }
}

fn whole_pieces(user_defined: Vec<(String, TokenId)>) -> Result<Option<(AhoCorasick, Vec<TokenId>)>, TextError> {
    let (texts, ids): (Vec<String>, Vec<TokenId>) = user_defined
        .into_iter()
        .filter(|(text, _)| !text.is_empty())
        .map(|(text, id)| (text.replace(META_SPACE, " "), id))
        .unzip();
    if texts.is_empty() {
        return Ok(None);
    }
    let matcher = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
    Ok(Some((matcher.map_err(|e| TextError::Vocabulary(e.to_string()))?, ids)))
}

fn has_inner_space(piece: &str) -> bool {
    piece.trim_start_matches(' ').contains(' ')
}

/// The end of the leading spaces and the word after them.
fn word_end(text: &str) -> usize {
    let word = text.len() - text.trim_start_matches(' ').len();
    text[word..].find(' ').map_or(text.len(), |length| word + length)
}

/// A doubly linked list of symbols in place, and the merges that are possible now. Kept between words for its memory.
#[derive(Default)]
struct Merger {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
}

/// Bytes `start..end` of the text; empty once merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    end: u32,
    previous: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;

/// The merge of symbol `left` with its right neighbour into a piece of `length` bytes.
struct Candidate {
    score: f32,
    left: u32,
    right: u32,
    length: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl Merger {
    fn merge(&mut self, text: &str, vocabulary: &SentencePiece, out: &mut Vec<TokenId>) {
        if let Some(piece) = vocabulary.piece(text).filter(|_| text.chars().nth(1).is_none()) {
            out.push(piece.id);
            return;
        }
        self.split_characters(text);
        for left in 1..self.symbols.len() as u32 {
            self.propose(left - 1, left, text, vocabulary);
        }
        while let Some(candidate) = self.candidates.pop() {
            self.apply(&candidate, text, vocabulary);
        }
        for symbol in self.symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            vocabulary.push_symbol(&text[symbol.start as usize..symbol.end as usize], out);
        }
    }

    fn split_characters(&mut self, text: &str) {
        assert!(text.len() < NONE as usize, "a text of 4 GiB reached the tokenizer");
        self.symbols.clear();
        for (start, c) in text.char_indices() {
            let index = self.symbols.len() as u32;
            let (start, end) = (start as u32, (start + c.len_utf8()) as u32);
            let next = if end as usize == text.len() { NONE } else { index + 1 };
            self.symbols.push(Symbol { start, end, previous: index.checked_sub(1).unwrap_or(NONE), next });
        }
    }

    fn propose(&mut self, left: u32, right: u32, text: &str, vocabulary: &SentencePiece) {
        let (start, end) = (self.symbols[left as usize].start, self.symbols[right as usize].end);
        if let Some(piece) = vocabulary.piece(&text[start as usize..end as usize]) {
            self.candidates.push(Candidate { score: piece.score, left, right, length: end - start });
        }
    }

    fn apply(&mut self, candidate: &Candidate, text: &str, vocabulary: &SentencePiece) {
        let (left, right) = (self.symbols[candidate.left as usize], self.symbols[candidate.right as usize]);
        let is_stale = left.start == left.end
            || right.start == right.end
            || left.next != candidate.right
            || right.end - left.start != candidate.length;
        if is_stale {
            return;
        }
        self.symbols[candidate.left as usize] = Symbol { end: right.end, next: right.next, ..left };
        self.symbols[candidate.right as usize].end = right.start;
        if right.next != NONE {
            self.symbols[right.next as usize].previous = candidate.left;
            self.propose(candidate.left, right.next, text, vocabulary);
        }
        if left.previous != NONE {
            self.propose(left.previous, candidate.left, text, vocabulary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids: the pieces in order, from 10; bytes are 1000 + byte.
    fn vocabulary(pieces: &[(&str, f32)], user_defined: &[&str], adds_space_prefix: bool) -> SentencePiece {
        SentencePiece::new(Pieces {
            ordinary: pieces.iter().zip(10..).map(|(&(text, score), id)| (text.to_owned(), id, score)).collect(),
            user_defined: user_defined.iter().zip(100..).map(|(text, id)| ((*text).to_owned(), id)).collect(),
            bytes: (0..=255u8).map(|byte| (byte, 1000 + u32::from(byte))).collect(),
            unknown: Some(0),
            adds_space_prefix,
        })
        .unwrap()
    }

    fn encode(vocabulary: &SentencePiece, text: &str) -> Vec<TokenId> {
        let mut ids = Vec::new();
        vocabulary.encode(text, &mut ids);
        ids
    }

    const ABC: &[(&str, f32)] = &[
        ("a", -10.0),
        ("b", -11.0),
        ("c", -12.0),
        ("ab", -2.0),
        ("bc", -1.0),
        ("abc", -3.0),
        ("▁", -9.0),
        ("▁a", -4.0),
    ];

    #[test]
    fn the_highest_score_merges_first_and_chains() {
        let spm = vocabulary(ABC, &[], false);
        assert_eq!(encode(&spm, "abc"), [15], "bc before ab, then a+bc");
        assert_eq!(encode(&spm, "ab"), [13]);
        assert_eq!(encode(&spm, "aab"), [10, 13]);
    }

    #[test]
    fn of_equal_scores_the_leftmost_merges() {
        let spm = vocabulary(&[("a", -5.0), ("aa", -1.0)], &[], false);
        assert_eq!(encode(&spm, "aaa"), [11, 10]);
        assert_eq!(encode(&spm, "aaaaa"), [11, 11, 10]);
    }

    #[test]
    fn spaces_are_pieces_and_a_prefix_may_be_added() {
        assert_eq!(encode(&vocabulary(ABC, &[], false), "a a"), [10, 17]);
        assert_eq!(encode(&vocabulary(ABC, &[], true), "a"), [17]);
        assert!(encode(&vocabulary(ABC, &[], true), "").is_empty());
        assert_eq!(encode(&vocabulary(ABC, &[], false), "\u{2581}a"), [17], "a visible space is a space");
    }

    #[test]
    fn characters_outside_the_vocabulary_are_spelled_in_bytes() {
        let spm = vocabulary(ABC, &[], false);
        assert_eq!(encode(&spm, "aé"), [10, 1000 + 0xC3, 1000 + 0xA9]);
        let without_bytes = SentencePiece::new(Pieces {
            ordinary: vec![("a".to_owned(), 5, -1.0)],
            unknown: Some(3),
            ..Pieces::default()
        })
        .unwrap();
        assert_eq!(encode(&without_bytes, "az"), [5, 3]);
    }

    #[test]
    fn user_defined_pieces_are_whole_and_longest_first() {
        let spm = vocabulary(ABC, &["\n", "\n\n", "bc"], false);
        assert_eq!(encode(&spm, "\n\n\na"), [101, 100, 10]);
        assert_eq!(encode(&spm, "abc"), [10, 102], "never merged with a neighbour");
    }

    #[test]
    fn words_merge_alike_alone_and_together() {
        let apart = vocabulary(ABC, &[], false);
        let mut together = vocabulary(ABC, &[], false);
        assert!(apart.words_are_independent);
        together.words_are_independent = false;
        for text in ["abc ab  abc", "   a", "a ", " ab c bca abcabc  "] {
            assert_eq!(encode(&apart, text), encode(&together, text), "{text:?}");
        }
        assert!(!vocabulary(&[("a▁b", -1.0)], &[], false).words_are_independent);
    }

    #[test]
    fn a_score_that_is_no_number_is_refused() {
        let pieces = Pieces { ordinary: vec![("a".to_owned(), 0, f32::NAN)], ..Pieces::default() };
        assert!(matches!(SentencePiece::new(pieces), Err(TextError::Vocabulary(_))));
    }
}
