//! The header of a safetensors file, untrusted: eight bytes of length, then JSON that says of each tensor its dtype, its
//! shape, and where in the rest of the file it lies.
//!
//! Every claim is checked here against the file's size and against the other tensors', and every message names the
//! tensor. It must never know what a tensor is for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;

use ::safetensors::Dtype;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{Error as _, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::quote;

/// By name.
pub(super) type TensorTable = BTreeMap<String, TensorEntry>;

#[derive(Debug, PartialEq)]
pub(super) struct TensorEntry {
    pub(super) dtype: Dtype,
    /// Outermost first.
    pub(super) shape: Vec<usize>,
    /// Where in the file; inside it, exactly what dtype and shape take, and overlapping no other tensor's.
    pub(super) bytes: Range<usize>,
}

/// Reads and checks the header of `file`, a whole safetensors file.
pub(super) fn parse(file: &[u8]) -> Result<TensorTable, String> {
    const LARGEST: u64 = 100_000_000; // the format's own limit
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("has {} bytes, less than a header's length: truncated or empty", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|_| length <= LARGEST).and_then(|length| rest.get(..length));
    let Some(header) = header else {
        let room = rest.len();
        return Err(format!("claims a header of {length} bytes, {room} follow: truncated, or not a safetensors file"));
    };
    let Header(mut table) = serde_json::from_slice(header).map_err(|e| format!("has a damaged header: {e}"))?;
    place(&mut table, 8 + header.len(), file.len())?;
    Ok(table)
}

/// Moves the entries' ranges to where the data begins, and checks that they fill it without overlap or hole: bytes that
/// nothing names would be carried along unseen.
fn place(table: &mut TensorTable, data: usize, file_len: usize) -> Result<(), String> {
    let room = file_len - data;
    let mut by_start: Vec<_> = table.iter_mut().collect();
    by_start.sort_by_key(|(_, entry)| (entry.bytes.start, entry.bytes.end));
    let mut filled = 0;
    for (name, entry) in by_start {
        let Range { start, end } = entry.bytes;
        let problem = |problem: String| Err(format!("tensor {}: {problem}", quote(name)));
        if end > room {
            return problem(format!("ends {end} bytes into the data, which has {room}: truncated?"));
        }
        if start < filled {
            return problem(format!("begins {start} bytes into the data, where another tensor lies up to {filled}"));
        }
        if start > filled {
            return problem(format!("begins {start} bytes into the data, of which nothing names {filled}..{start}"));
        }
        filled = end;
        entry.bytes = data + start..data + end;
    }
    if filled < room {
        return Err(format!("has {room} bytes of data, of which no tensor names the last {}", room - filled));
    }
    Ok(())
}

struct Header(TensorTable);

/// A tensor as the header has it.
#[derive(Deserialize)]
struct Claim {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Claim {
    /// The bytes of the entry are still relative to the start of the data.
    fn check(self) -> Result<TensorEntry, String> {
        let known: StrDeserializer<'_, ValueError> = self.dtype.as_str().into_deserializer();
        let dtype = Dtype::deserialize(known).map_err(|_| format!("has the unknown dtype {}", quote(&self.dtype)))?;
        let size = |&size: &u64| usize::try_from(size).map_err(|_| format!("has a dimension of {size}"));
        let shape = self.shape.iter().map(size).collect::<Result<Vec<_>, _>>()?;
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize()));
        let bits = bits.ok_or_else(|| format!("has the shape {:?}, which is larger than memory", self.shape))?;
        let [begin, end] = self.data_offsets;
        let offset = |at: u64| usize::try_from(at).map_err(|_| format!("has the offset {at}"));
        let (begin, end) = (offset(begin)?, offset(end)?);
        match end.checked_sub(begin) {
            Some(length) if length.checked_mul(8) == Some(bits) => Ok(TensorEntry { dtype, shape, bytes: begin..end }),
            _ => Err(format!("lies at {begin}..{end}, but {dtype:?} {shape:?} takes {} bytes", bits.div_ceil(8))),
        }
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut table = TensorTable::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let shown = quote(&name);
            let problem = |problem: &dyn fmt::Display| A::Error::custom(format!("tensor {shown}: {problem}"));
            let claim: Claim = map.next_value().map_err(|e| problem(&e))?;
            match table.entry(name) {
                Entry::Occupied(_) => return Err(problem(&"is named twice")),
                Entry::Vacant(vacant) => vacant.insert(claim.check().map_err(|e| problem(&e))?),
            };
        }
        Ok(Header(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn tensor(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    /// `b` after `a`, which is F32 `[2, 4]` and fills 32 bytes; 16 more follow.
    fn with(b: String) -> Vec<u8> {
        file(&format!("{{{},{b}}}", tensor("a", "F32", "[2,4]", 0, 32)), 48)
    }

    #[track_caller]
    fn check(file: &[u8], expected: &[&str]) {
        let problem = parse(file).expect_err("must be refused");
        for part in expected {
            assert!(problem.contains(part), "{part:?} is not in {problem:?}");
        }
    }

    #[test]
    fn a_valid_header_is_read() {
        let b = tensor("b", "BF16", "[8]", 32, 48) + r#","__metadata__":{"format":"pt"},"#;
        let bytes = with(b + &tensor("empty", "I64", "[0,3]", 32, 32));
        let table = parse(&bytes).unwrap();
        let data = bytes.len() - 48;
        let b = TensorEntry { dtype: Dtype::BF16, shape: vec![8], bytes: data + 32..data + 48 };
        assert_eq!((&table["b"], table["a"].bytes.clone()), (&b, data..data + 32));
        assert_eq!((table["empty"].shape.as_slice(), table.len()), (&[0, 3][..], 3));
        assert_eq!(parse(&file("{}", 0)), Ok(TensorTable::new()));
        assert!(parse(&with(tensor("s", "F64", "[]", 32, 40) + "," + &tensor("t", "F8_E4M3", "[8]", 40, 48))).is_ok());
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = with(tensor("b", "BF16", "[8]", 32, 48));
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "cut to {length} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        check(&[], &["0 bytes", "empty"]);
        for length in [u64::MAX, 1 << 62, 100_000_001, 3] {
            check(&[&length.to_le_bytes()[..], b"{}"].concat(), &[&format!("{length} bytes"), "2 follow"]);
        }
        check(&file("", 0), &["damaged header"]);
        check(&file("[1, 2]", 0), &["damaged header", "an object of tensors"]);
        check(&file(&"[".repeat(5000), 0), &["damaged header"]);
        check(&file(&format!(r#"{{"__metadata__":{}"#, "[".repeat(5000)), 0), &["damaged header"]);
        check(&file("{}", 5), &["5 bytes of data", "no tensor names the last 5"]);
    }

    #[test]
    fn tensors_that_lie_are_refused_by_name() {
        let b = |dtype: &str, shape: &str, begin, end| with(tensor("b", dtype, shape, begin, end));
        check(&b("BF16", "[8]", 16, 32), &["tensor b", "another tensor lies up to 32"]);
        check(&b("BF16", "[4]", 40, 48), &["tensor b", "nothing names 32..40"]);
        check(&b("BF16", "[4]", 32, 40), &["no tensor names the last 8"]);
        check(&b("BF16", "[16]", 32, 64), &["tensor b", "ends 64 bytes into the data, which has 48"]);
        check(&b("BF16", "[7]", 32, 48), &["tensor b", "32..48", "BF16 [7] takes 14 bytes"]);
        check(&b("BF16", "[8]", 48, 32), &["tensor b", "48..32"]);
        check(&b("BF16", "[8]", u64::MAX - 15, u64::MAX), &["tensor b"]);
        check(&b("BF16", "[4294967296,4294967296,2]", 32, 48), &["tensor b", "larger than memory"]);
        check(&b("F64", "[4611686018427387904]", 32, 48), &["tensor b", "larger than memory"]);
        check(&b("F4", "[31]", 32, 48), &["tensor b", "takes 16 bytes"]);
        check(&b("Q4_0", "[8]", 32, 48), &["tensor b", "unknown dtype Q4_0"]);
        check(&b("BF16", "[-8]", 32, 48), &["tensor b"]);
        check(&b("BF16", "[8.5]", 32, 48), &["tensor b"]);
        check(&b("BF16", "8", 32, 48), &["tensor b"]);
        check(&b("BF16", "[18446744073709551616]", 32, 48), &["tensor b"]);
        check(&with(tensor("a", "I32", "[2,4]", 0, 32)), &["tensor a", "twice"]);
        check(&with(r#""b":{"dtype":"F32","shape":[4]}"#.into()), &["tensor b", "data_offsets"]);
        check(&with(r#""b":{"dtype":"F32","shape":[4],"data_offsets":[32]}"#.into()), &["tensor b"]);
        check(&with(r#""b":7"#.into()), &["tensor b"]);
        check(&with(tensor(&"n".repeat(1000), "BF16", "[4]", 40, 48)), &["tensor nnn", "..."]);
        check(&with(tensor("n\\u001b[2J", "BF16", "[4]", 40, 48)), &["tensor n\\u{1b}[2J"]);
    }
}
