//! Finds a marker in text that comes in pieces.

/// What can be said of held text as to a marker.
pub(super) enum Scan {
    /// The marker begins at this byte.
    Found(usize),
    /// The first so many bytes are no part of it, whatever follows.
    Safe(usize),
}

/// Looks for `marker` in `text`. With `swallows_newline`, one newline before the marker belongs to it, so that it is
/// held back, too.
pub(super) fn scan(text: &str, marker: &str, swallows_newline: bool) -> Scan {
    let before = |at: usize| at - usize::from(swallows_newline && text[..at].ends_with('\n'));
    match text.find(marker) {
        Some(at) => Scan::Found(before(at)),
        None => Scan::Safe(before(text.len() - longest_overlap(text, marker))),
    }
}

/// Bytes of the longest end of `text` that is a proper beginning of `marker`.
fn longest_overlap(text: &str, marker: &str) -> usize {
    let most = text.len().min(marker.len() - 1);
    let ends_with = |length: &usize| text.as_bytes().ends_with(&marker.as_bytes()[..*length]);
    (1..=most).rev().find(ends_with).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_or_held_as_far_as_it_goes() {
        assert!(matches!(scan("ab</x>c", "</x>", false), Scan::Found(2)));
        assert!(matches!(scan("ab\n</x>c", "</x>", true), Scan::Found(2)));
        assert!(matches!(scan("ab</", "</x>", false), Scan::Safe(2)));
        assert!(matches!(scan("ab\n", "</x>", true), Scan::Safe(2)));
        assert!(matches!(scan("ab\n<", "</x>", true), Scan::Safe(2)));
        assert!(matches!(scan("ab<b", "</x>", true), Scan::Safe(4)));
        assert!(matches!(scan("é", "</x>", true), Scan::Safe(2)));
    }
}
