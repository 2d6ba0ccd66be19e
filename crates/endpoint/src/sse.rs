//! Server-sent events, incrementally: bytes in whatever pieces the network gives, whole events out.
//!
//! Follows the WHATWG HTML standard, section 9.2.6: lines end in LF, CRLF or CR; `:` begins a comment; the `data` lines
//! of one event are joined with LF; a byte order mark at the start is skipped. Two deliberate additions: a last event
//! that the end of the stream cuts off before its blank line is still delivered, and a field named `error` is delivered
//! as [`SseEvent::Error`], because llama.cpp's server reports faults that way.
//!
//! It must never know what the payloads mean.

/// The longest event that is taken: a whole reply of 100,000 tokens fits. A longer one is no event of this protocol, and
/// keeping it would let a server fill the client's memory, which may read thousands of replies at once.
const MAX_EVENT_BYTES: usize = 512 << 10;

/// The value of one event, or of a field named `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SseEvent<'a> {
    Data(&'a [u8]),
    Error(&'a [u8]),
}

/// An event is longer than any of this protocol is (512 KiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// The state between two pieces of input.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
    /// The `data` lines of the event so far, each followed by LF.
    data: Vec<u8>,
    /// The last piece ended in CR: a LF that comes next belongs to that line end.
    skip_lf: bool,
    /// The byte order mark can only stand before the first line.
    past_start: bool,
}

impl SseParser {
    /// Takes the next piece and calls `on_event` for each event it completes. A whole event inside one piece is
    /// delivered without being copied.
    ///
    /// # Errors
    /// An event that is too long: nothing more can be read of the stream.
    pub fn push(&mut self, mut input: &[u8], mut on_event: impl FnMut(SseEvent<'_>)) -> Result<(), TooLong> {
        if self.skip_lf && !input.is_empty() {
            self.skip_lf = false;
            input = input.strip_prefix(b"\n").unwrap_or(input);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', input) {
            let (line, rest) = self.split_line(input, end);
            if self.partial.is_empty() {
                input = self.line_with_lookahead(line, rest, &mut on_event);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole, &mut on_event);
                whole.clear();
                self.partial = whole;
                input = rest;
            }
            if self.data.len() > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
        }
        self.partial.extend_from_slice(input);
        if self.partial.len() > MAX_EVENT_BYTES { Err(TooLong) } else { Ok(()) }
    }

    /// The stream has ended: delivers what still stands.
    pub fn finish(&mut self, mut on_event: impl FnMut(SseEvent<'_>)) {
        let last = std::mem::take(&mut self.partial);
        if !last.is_empty() {
            self.line(&last, &mut on_event);
        }
        self.dispatch(&mut on_event);
    }

    /// Splits at the line end that starts at `end`.
    fn split_line<'a>(&mut self, input: &'a [u8], end: usize) -> (&'a [u8], &'a [u8]) {
        let (line, mut rest) = (&input[..end], &input[end + 1..]);
        if input[end] == b'\r' {
            self.skip_lf = rest.is_empty();
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        (line, rest)
    }

    /// Handles a line that lies whole in the input. If it is an event's only `data` line and the blank line follows at
    /// once (what every server sends), the payload is delivered from the input itself. Returns the input after it.
    fn line_with_lookahead<'a>(
        &mut self,
        line: &'a [u8],
        rest: &'a [u8],
        on_event: &mut impl FnMut(SseEvent<'_>),
    ) -> &'a [u8] {
        if self.data.is_empty()
            && let Some(after) = rest.strip_prefix(b"\n").or_else(|| rest.strip_prefix(b"\r\n"))
            && let Some(payload) = field(line, b"data")
        {
            self.past_start = true;
            on_event(SseEvent::Data(payload));
            return after;
        }
        self.line(line, on_event);
        rest
    }

    fn line(&mut self, mut line: &[u8], on_event: &mut impl FnMut(SseEvent<'_>)) {
        if !std::mem::replace(&mut self.past_start, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.dispatch(on_event);
        } else if let Some(payload) = field(line, b"data") {
            self.data.extend_from_slice(payload);
            self.data.push(b'\n');
        } else if let Some(payload) = field(line, b"error") {
            on_event(SseEvent::Error(payload));
        }
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(SseEvent<'_>)) {
        if let Some((_lf, payload)) = self.data.split_last() {
            on_event(SseEvent::Data(payload));
            self.data.clear();
        }
    }
}

/// The value of `line` if it is the field `name`: what follows the colon, less one space.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(name)?;
    match rest.split_first() {
        None => Some(rest),
        Some((b':', value)) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut seen = Vec::new();
        let mut keep = |event: SseEvent<'_>| {
            seen.push(match event {
                SseEvent::Data(bytes) => format!("data {}", String::from_utf8_lossy(bytes)),
                SseEvent::Error(bytes) => format!("error {}", String::from_utf8_lossy(bytes)),
            });
        };
        for piece in pieces {
            parser.push(piece, &mut keep).expect("short events");
        }
        parser.finish(&mut keep);
        seen
    }

    #[test]
    fn line_ends_comments_and_fields() {
        assert_eq!(events(&[b"data: a\n\ndata:b\r\n\r\ndata: c\r\r"]), ["data a", "data b", "data c"]);
        assert_eq!(events(&[b": ping\n\nevent: x\nid: 1\ndata: a\n\n:\n\n"]), ["data a"]);
        assert_eq!(events(&[b"data: a\ndata:  b\n\n"]), ["data a\n b"]);
        assert_eq!(events(&[b"\xef\xbb\xbfdata: a\n\n"]), ["data a"]);
        assert_eq!(events(&[b"database: a\n\n"]), Vec::<String>::new());
    }

    #[test]
    fn a_last_event_without_its_blank_line_is_delivered() {
        assert_eq!(events(&[b"data: a\n\ndata: [DONE]"]), ["data a", "data [DONE]"]);
        assert_eq!(events(&[b"data: a\n\ndata: [DONE]\n"]), ["data a", "data [DONE]"]);
    }

    #[test]
    fn a_field_named_error_is_a_fault() {
        assert_eq!(events(&[b"error: {\"code\":500}\n\n"]), ["error {\"code\":500}"]);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..8).any(|_| parser.push(&piece, |_| ()) == Err(TooLong));
        assert!(refused);
        let mut parser = SseParser::default();
        let line = [b"data: ", piece.as_slice(), b"\n"].concat();
        let refused = (0..8).any(|_| parser.push(&line, |_| ()) == Err(TooLong));
        assert!(refused);
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_events(
            lines in prop::collection::vec((
                prop::sample::select(vec!["data: x", "data:", "data: {\"a\": 1}", ": c", "", "", "event: e", "error: e"]),
                prop::sample::select(vec!["\n", "\r\n", "\r"]),
            ), 0..30),
            tail in prop::sample::select(vec!["", "data: end", ": c"]),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut stream: String = lines.iter().flat_map(|(line, end)| [*line, *end]).collect();
            stream.push_str(tail);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(events(&pieces), events(&[stream.as_bytes()]));
        }
    }
}
