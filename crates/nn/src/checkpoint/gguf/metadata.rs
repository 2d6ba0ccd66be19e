//! The key-value pairs at the head of a GGUF file.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use crate::error::quote;

/// A GGUF file's metadata: hyperparameters under the architecture's name, the vocabulary under `tokenizer.`.
#[derive(Debug, Default)]
pub struct GgufMetadata {
    pairs: BTreeMap<String, GgufValue>,
}

/// One value. Integers of any width are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(GgufArray),
}

/// An array of one of the element types that models use.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufArray {
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    /// Of another element type; present, but not kept.
    Other,
}

impl GgufMetadata {
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.pairs.get(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.keys().map(String::as_str)
    }

    pub(super) fn parse(cursor: &mut Cursor<'_>, count: u64) -> Result<Self, String> {
        const LEAST_PAIR: usize = 8 + 4 + 1; // an empty key, a type, a one-byte value
        let count = cursor.fitting(count, LEAST_PAIR, "the metadata")?;
        let mut pairs = BTreeMap::new();
        for _ in 0..count {
            let key = cursor.string("a metadata key")?;
            let what = format!("metadata key {key}");
            let kind = cursor.u32(&what)?;
            let value = GgufValue::parse(cursor, kind, &what)?;
            if pairs.insert(key.to_owned(), value).is_some() {
                return Err(format!("has metadata key {} twice", quote(key)));
            }
        }
        Ok(Self { pairs })
    }

    /// The multiple that tensors' offsets are of.
    pub(super) fn alignment(&self) -> Result<usize, String> {
        const KEY: &str = "general.alignment";
        let alignment = match self.get(KEY) {
            None => 32,
            Some(value) => value.as_u64().ok_or_else(|| format!("{KEY} is not an integer"))?,
        };
        match alignment {
            8..=65536 if alignment.is_power_of_two() => Ok(alignment as usize),
            _ => Err(format!("{KEY} is {alignment}; it must be a power of two from 8 to 65536")),
        }
    }
}

impl GgufValue {
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = *self { Some(value) } else { None }
    }

    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(value) = self { Some(value) } else { None }
    }

    pub fn as_strings(&self) -> Option<&[String]> {
        if let Self::Array(GgufArray::String(values)) = self { Some(values) } else { None }
    }

    pub fn as_f32s(&self) -> Option<&[f32]> {
        if let Self::Array(GgufArray::F32(values)) = self { Some(values) } else { None }
    }

    pub fn as_i32s(&self) -> Option<&[i32]> {
        if let Self::Array(GgufArray::I32(values)) = self { Some(values) } else { None }
    }

    pub fn as_bools(&self) -> Option<&[bool]> {
        if let Self::Array(GgufArray::Bool(values)) = self { Some(values) } else { None }
    }

    fn parse(cursor: &mut Cursor<'_>, kind: u32, what: &str) -> Result<Self, String> {
        Ok(match kind {
            0 => Self::Unsigned(cursor.array::<1>(what)?[0].into()),
            1 => Self::Signed(i8::from_le_bytes(cursor.array(what)?).into()),
            2 => Self::Unsigned(u16::from_le_bytes(cursor.array(what)?).into()),
            3 => Self::Signed(i16::from_le_bytes(cursor.array(what)?).into()),
            4 => Self::Unsigned(cursor.u32(what)?.into()),
            5 => Self::Signed(i32::from_le_bytes(cursor.array(what)?).into()),
            6 => Self::Float(f32::from_le_bytes(cursor.array(what)?).into()),
            7 => Self::Bool(parse_bool(cursor.array::<1>(what)?[0], what)?),
            8 => Self::String(cursor.string(what)?.to_owned()),
            9 => Self::Array(GgufArray::parse(cursor, what)?),
            10 => Self::Unsigned(cursor.u64(what)?),
            11 => Self::Signed(i64::from_le_bytes(cursor.array(what)?)),
            12 => Self::Float(f64::from_le_bytes(cursor.array(what)?)),
            other => return Err(format!("{} has unknown type {other}", quote(what))),
        })
    }
}

impl GgufArray {
    fn parse(cursor: &mut Cursor<'_>, what: &str) -> Result<Self, String> {
        let kind = cursor.u32(what)?;
        let count = cursor.u64(what)?;
        Ok(match kind {
            4 => Self::U32(words(cursor, count, what, u32::from_le_bytes)?),
            5 => Self::I32(words(cursor, count, what, i32::from_le_bytes)?),
            6 => Self::F32(words(cursor, count, what, f32::from_le_bytes)?),
            7 => {
                let count = cursor.fitting(count, 1, what)?;
                let bytes = cursor.take(count, what)?;
                Self::Bool(bytes.iter().map(|&byte| parse_bool(byte, what)).collect::<Result<_, _>>()?)
            }
            8 => {
                let count = cursor.fitting(count, 8, what)?;
                let strings = (0..count).map(|_| cursor.string(what).map(str::to_owned));
                Self::String(strings.collect::<Result<_, _>>()?)
            }
            9 => return Err(format!("{} is an array of arrays, which no known model has", quote(what))),
            0..=3 | 10..=12 => {
                let width = [1, 1, 2, 2, 0, 0, 0, 0, 0, 0, 8, 8, 8][kind as usize];
                let count = cursor.fitting(count, width, what)?;
                cursor.take(count * width, what)?;
                Self::Other
            }
            other => return Err(format!("{} has elements of unknown type {other}", quote(what))),
        })
    }
}

/// `count` four-byte elements.
fn words<T>(cursor: &mut Cursor<'_>, count: u64, what: &str, decode: fn([u8; 4]) -> T) -> Result<Vec<T>, String> {
    let count = cursor.fitting(count, 4, what)?;
    let (words, _) = cursor.take(count * 4, what)?.as_chunks::<4>();
    Ok(words.iter().map(|&word| decode(word)).collect())
}

fn parse_bool(byte: u8, what: &str) -> Result<bool, String> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(format!("{} has {other} for a boolean", quote(what))),
    }
}
