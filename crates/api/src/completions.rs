//! The prompt of a text completion, its response, and the chunks of its stream.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{FinishReason, Usage};

/// One prompt or several, as text or as token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

const PROMPT_SHAPES: &str = "a string, a list of strings, a list of token ids or a list of lists of token ids";

// By hand rather than `untagged`, which would first keep every element in a form of eight times its size.
impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct PromptVisitor;
        impl<'de> Visitor<'de> for PromptVisitor {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(PROMPT_SHAPES)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompt, A::Error> {
                let mut prompt = match list.next_element()? {
                    None => return Ok(Prompt::Texts(Vec::new())),
                    Some(Element::Text(text)) => Prompt::Texts(vec![text]),
                    Some(Element::Id(id)) => Prompt::Ids(vec![id]),
                    Some(Element::Ids(ids)) => Prompt::IdLists(vec![ids]),
                };
                while let Some(element) = list.next_element()? {
                    match (&mut prompt, element) {
                        (Prompt::Texts(texts), Element::Text(text)) => texts.push(text),
                        (Prompt::Ids(ids), Element::Id(id)) => ids.push(id),
                        (Prompt::IdLists(lists), Element::Ids(ids)) => lists.push(ids),
                        _ => return Err(de::Error::custom(format!("expected {PROMPT_SHAPES}, not a mixture"))),
                    }
                }
                Ok(prompt)
            }
        }
        from.deserialize_any(PromptVisitor)
    }
}

enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ElementVisitor;
        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
                let not_an_id = || E::invalid_value(de::Unexpected::Unsigned(id), &"a token id");
                u32::try_from(id).map(Element::Id).map_err(|_| not_an_id())
            }

            fn visit_i64<E: de::Error>(self, id: i64) -> Result<Element, E> {
                Err(E::invalid_value(de::Unexpected::Signed(id), &"a token id"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Ids(ids))
            }
        }
        from.deserialize_any(ElementVisitor)
    }
}

/// The response to a completion request, and each event of its stream. It borrows its texts, because one is written
/// for every token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion<'a> {
    #[serde(borrow, default)]
    pub id: Cow<'a, str>,
    /// `text_completion`
    #[serde(borrow, default)]
    pub object: Cow<'a, str>,
    /// Seconds since 1970.
    #[serde(default)]
    pub created: u64,
    #[serde(borrow, default)]
    pub model: Cow<'a, str>,
    #[serde(default)]
    pub choices: Vec<CompletionChoice<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice<'a> {
    pub index: u32,
    #[serde(borrow)]
    pub text: Cow<'a, str>,
    #[serde(default)]
    pub logprobs: Option<CompletionLogprobs>,
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// Where the request's `prompt_logprobs` asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobList>,
}

/// One entry a prompt token, by token id: the token that stands there and the likeliest. The first token has none.
pub type PromptLogprobList = Vec<Option<BTreeMap<u32, PromptLogprob>>>;

/// How likely a token was at its place in the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptLogprob {
    pub logprob: f32,
    /// 1 is the likeliest.
    pub rank: u32,
    pub decoded_token: String,
}

/// Log probabilities in the older shape: parallel lists, one entry a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<Option<f32>>,
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where each token starts in the choice's text, in characters.
    pub text_offset: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(json: &str) -> Result<Prompt, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn every_shape_of_prompt_is_read() {
        assert_eq!(prompt(r#""a""#), Ok(Prompt::Text("a".into())));
        assert_eq!(prompt(r#"["a","b"]"#), Ok(Prompt::Texts(vec!["a".into(), "b".into()])));
        assert_eq!(prompt("[1,2]"), Ok(Prompt::Ids(vec![1, 2])));
        assert_eq!(prompt("[[1],[2,3]]"), Ok(Prompt::IdLists(vec![vec![1], vec![2, 3]])));
        assert_eq!(prompt("[]"), Ok(Prompt::Texts(vec![])));
    }

    #[test]
    fn mixtures_and_other_values_are_refused_with_the_shapes_that_work() {
        assert!(prompt(r#"["a",1]"#).unwrap_err().contains("not a mixture"));
        assert!(prompt("[-1]").unwrap_err().contains("a token id"));
        assert!(prompt("[4294967296]").unwrap_err().contains("a token id"));
        assert!(prompt("5").unwrap_err().contains("a list of lists of token ids"));
    }
}
