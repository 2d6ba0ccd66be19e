//! What each token id stands for, as bytes, computed once so that turning an id into text is an index, not a decode.

use plimsoll_core::TokenId;

/// How a vocabulary writes bytes as token text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Alphabet {
    /// GPT-2's: each byte is one printable character.
    ByteLevel,
    /// SentencePiece's: U+2581 for a space, `<0xAB>` for a byte that no piece holds.
    SentencePiece,
}

/// The bytes of every token, in one allocation.
pub(crate) struct TokenTable {
    bytes: Vec<u8>,
    /// `[tokens + 1]` offsets into `bytes`.
    ends: Vec<u32>,
    is_control: Vec<bool>,
}

impl TokenTable {
    pub(crate) fn with_capacity(tokens: usize) -> Self {
        let mut ends = Vec::with_capacity(tokens + 1);
        ends.push(0);
        Self { bytes: Vec::with_capacity(tokens * 6), ends, is_control: Vec::with_capacity(tokens) }
    }

    /// Appends the next id's token. Control tokens stand for their own text.
    pub(crate) fn push_control(&mut self, text: &str) {
        self.push(text.as_bytes(), true);
    }

    /// Appends the next id's token, which stands for its text as it is.
    pub(crate) fn push_verbatim(&mut self, text: &str) {
        self.push(text.as_bytes(), false);
    }

    /// Appends the next id's token, written in `alphabet`.
    pub(crate) fn push_encoded(&mut self, text: &str, alphabet: Alphabet) {
        match alphabet {
            Alphabet::ByteLevel => match byte_level_bytes(text) {
                Some(bytes) => self.push(&bytes, false),
                None => self.push(text.as_bytes(), false),
            },
            Alphabet::SentencePiece => match byte_piece(text) {
                Some(byte) => self.push(&[byte], false),
                None => self.push(text.replace(META_SPACE, " ").as_bytes(), false),
            },
        }
    }

    fn push(&mut self, bytes: &[u8], is_control: bool) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(u32::try_from(self.bytes.len()).expect("a vocabulary's text fits 4 GiB"));
        self.is_control.push(is_control);
    }

    pub(crate) fn len(&self) -> usize {
        self.is_control.len()
    }

    /// The token's bytes; none for an id outside the vocabulary.
    pub(crate) fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        if id >= self.len() {
            return &[];
        }
        &self.bytes[self.ends[id] as usize..self.ends[id + 1] as usize]
    }

    pub(crate) fn is_control(&self, id: TokenId) -> bool {
        self.is_control.get(id as usize).copied().unwrap_or(false)
    }
}

/// SentencePiece's visible space.
pub(crate) const META_SPACE: char = '\u{2581}';

/// The byte that a piece like `<0x0A>` stands for.
pub(crate) fn byte_piece(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// The byte that a character stands for in GPT-2's byte-level alphabet: printable Latin-1 characters stand for
/// themselves, the other bytes, in order, for U+0100 and up.
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    if let Ok(byte) = u8::try_from(code) {
        return is_own_character(byte).then_some(byte);
    }
    let nth = code.checked_sub(0x100)?;
    (0..=255u8).filter(|&byte| !is_own_character(byte)).nth(nth as usize)
}

fn is_own_character(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

fn byte_level_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_level_alphabet_is_a_bijection() {
        let mut seen = [false; 256];
        for code in 0..0x200u32 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of) {
                assert!(!seen[usize::from(byte)], "byte {byte} has two characters");
                seen[usize::from(byte)] = true;
            }
        }
        assert!(seen.iter().all(|&s| s));
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('é'), Some(0xE9));
        assert_eq!(byte_of(' '), None);
    }

    #[test]
    fn byte_pieces_are_recognised_exactly() {
        assert_eq!(byte_piece("<0x0A>"), Some(10));
        assert_eq!(byte_piece("<0xff>"), Some(255));
        for text in ["<0x0>", "<0x0AA>", "<0x+1>", "0x0A", "<0xZZ>"] {
            assert_eq!(byte_piece(text), None, "{text}");
        }
    }

    #[test]
    fn an_unknown_id_has_no_bytes() {
        let mut table = TokenTable::with_capacity(2);
        table.push_encoded("Ġhi", Alphabet::ByteLevel);
        table.push_control("<|end|>");
        assert_eq!(table.bytes(0), b" hi");
        assert_eq!(table.bytes(1), b"<|end|>");
        assert_eq!(table.bytes(2), b"");
        assert!(table.is_control(1) && !table.is_control(0) && !table.is_control(2));
    }
}
