//! Which fields a request type has, and which keys a body has: enough to name a misspelt field and its nearest kin.

use std::fmt;

use serde::de::value::Error;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The wire names of `T`'s fields, in the order of its declaration. `T` is a struct without flattened parts.
pub fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // The probe hands serde's own list out and then fails: nothing is read.
    let _ = T::deserialize(Probe(&mut names));
    names
}

struct Probe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(de::Error::custom("only the names were wanted"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Why a body's keys could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not JSON at all.
    #[error("the body is not valid JSON: {0}")]
    Malformed(#[source] serde_json::Error),
    /// JSON, but a list, a string, a number ...
    #[error("the body must be a JSON object")]
    NotAnObject,
}

/// The keys of a JSON object, in order, without keeping any value. The whole body is checked to be JSON.
///
/// # Errors
/// [`KeyError`] as it says.
pub fn top_level_keys(body: &[u8]) -> Result<Vec<String>, KeyError> {
    match serde_json::from_slice::<Keys>(body) {
        Ok(keys) => Ok(keys.0),
        Err(error) if error.is_data() => Err(KeyError::NotAnObject),
        Err(error) => Err(KeyError::Malformed(error)),
    }
}

struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct KeysVisitor;
        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        from.deserialize_map(KeysVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_type_with_their_wire_spelling() {
        assert_eq!(field_names::<crate::DetokenizeRequest>(), ["model", "tokens"]);
        assert!(field_names::<crate::ErrorObject>().contains(&"type"));
        assert!(field_names::<crate::ChatRequest>().contains(&"max_completion_tokens"));
        assert_eq!(field_names::<Vec<u8>>(), [] as [&str; 0]);
    }

    #[test]
    fn keys_are_listed_and_other_json_is_refused() {
        assert_eq!(top_level_keys(br#"{"a": [1, {"b": 2}], "c": null}"#).unwrap(), ["a", "c"]);
        assert!(matches!(top_level_keys(b"[1]"), Err(KeyError::NotAnObject)));
        assert!(matches!(top_level_keys(b"{\"a\": NaN}"), Err(KeyError::Malformed(_))));
        assert!(matches!(top_level_keys(b"{} {}"), Err(KeyError::Malformed(_))));
        assert!(matches!(top_level_keys(b""), Err(KeyError::Malformed(_))));
    }
}
