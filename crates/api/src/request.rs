//! The bodies of `POST /v1/chat/completions` and `POST /v1/completions`. Every field may be absent, and `null` is
//! absent; fields of type [`Value`] are known, and are kept as they came because no part of them is served yet or
//! because they change nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Message, Prompt, StreamOptions, StringOrList, Tool, ToolChoice};

/// Declares the request types. All fields are optional; the shared ones stand in every type, and in a type of their
/// own, into which they can be taken out.
macro_rules! requests {
    (shared $shared:tt $($(#[$meta:meta])* struct $name:ident $own:tt)*) => {
        shared_fields! { $shared }
        $(request! { $(#[$meta])* struct $name $own $shared })*
    };
}

macro_rules! shared_fields {
    ({ $($(#[$meta:meta])* $field:ident: $type:ty,)* }) => {
        /// The fields that both kinds of request have, taken out of either.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct SharedFields {
            $($(#[$meta])* pub $field: Option<$type>,)*
        }
    };
}

macro_rules! request {
    (
        $(#[$meta:meta])* struct $name:ident
        { $($(#[$own_meta:meta])* $own:ident: $own_type:ty,)* }
        { $($(#[$shared_meta:meta])* $shared:ident: $shared_type:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$own_meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $own: Option<$own_type>,)*
            $(
                $(#[$shared_meta])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $shared: Option<$shared_type>,
            )*
        }

        impl $name {
            /// Moves the shared fields out, and leaves `None`s behind.
            pub fn take_shared(&mut self) -> SharedFields {
                SharedFields { $($shared: self.$shared.take(),)* }
            }
        }
    };
}

requests! {
    shared {
        model: String,
        /// Generated tokens at most.
        max_tokens: u32,
        temperature: f32,
        top_p: f32,
        /// Choices a prompt.
        n: u32,
        /// Texts that end a choice.
        stop: StringOrList,
        seed: i64,
        stream: bool,
        stream_options: StreamOptions,
        /// Added to the logits of these token ids (written as strings in JSON).
        logit_bias: BTreeMap<u32, f32>,
        frequency_penalty: f32,
        presence_penalty: f32,
        /// Below 1: all tokens.
        top_k: i64,
        min_p: f32,
        repetition_penalty: f32,
        /// Generated tokens at least, before a stop token may come.
        min_tokens: u32,
        stop_token_ids: Vec<u32>,
        include_stop_str_in_output: bool,
        ignore_eos: bool,
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
        allowed_token_ids: Vec<u32>,
        echo: bool,
        /// Lower is sooner, where the scheduler's policy is priority.
        priority: i32,
        /// Used in the response's id.
        request_id: String,
        add_special_tokens: bool,

        response_format: Value,
        structured_outputs: Value,
        guided_json: Value,
        guided_regex: Value,
        guided_choice: Value,
        guided_grammar: Value,
        guided_decoding_backend: Value,
        guided_whitespace_pattern: Value,
        structural_tag: Value,
        truncate_prompt_tokens: Value,
        prompt_logprobs: Value,
        bad_words: Value,
        best_of: u32,
        use_beam_search: Value,
        length_penalty: Value,
        logits_processors: Value,
        return_tokens_as_token_ids: Value,
        return_token_ids: Value,
        cache_salt: Value,
        kv_transfer_params: Value,
        vllm_xargs: Value,

        user: Value,
        metadata: Value,
        store: Value,
        service_tier: Value,
        verbosity: Value,
        prompt_cache_key: Value,
        prompt_cache_retention: Value,
        safety_identifier: Value,
    }

    /// `POST /v1/chat/completions`
    struct ChatRequest {
        messages: Vec<Message>,
        /// `max_tokens` under its newer name.
        max_completion_tokens: u32,
        logprobs: bool,
        /// Likeliest alternatives a position, beside the chosen token.
        top_logprobs: u32,
        add_generation_prompt: bool,
        /// The last message is the start of the reply.
        continue_final_message: bool,
        /// Variables for the chat template.
        chat_template_kwargs: Map<String, Value>,
        /// What the model may call.
        tools: Vec<Tool>,
        /// Whether it may, must or must not call. Default: it may, where there are tools.
        tool_choice: ToolChoice,
        /// Several calls in one message. Default: true.
        parallel_tool_calls: bool,
        /// How long to think: `none`, `minimal`, `low`, `medium`, `high` or `xhigh`, as far as the model knows them.
        reasoning_effort: String,
        /// Whether the response shows what the model thought. Default: true.
        include_reasoning: bool,

        chat_template: Value,
        documents: Value,
        mm_processor_kwargs: Value,
        media_io_kwargs: Value,
        functions: Value,
        function_call: Value,
        thinking_token_budget: Value,
        modalities: Value,
        audio: Value,
        prediction: Value,
        web_search_options: Value,
    }

    /// `POST /v1/completions`
    struct CompletionRequest {
        prompt: Prompt,
        /// Likeliest alternatives a position, beside the chosen token.
        logprobs: u32,
        suffix: Value,
        prompt_embeds: Value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MessageContent, Role};

    #[test]
    fn a_request_survives_the_round_trip_and_writes_only_what_is_set() {
        let request = ChatRequest {
            messages: Some(vec![Message::new(Role::User, "hi")]),
            max_tokens: Some(5),
            stop: Some(StringOrList(vec!["a".into(), "b".into()])),
            logit_bias: Some(BTreeMap::from([(7, -1.5)])),
            ..ChatRequest::default()
        };
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(
            json,
            r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":5,"stop":["a","b"],"logit_bias":{"7":-1.5}}"#
        );
        assert_eq!(serde_json::from_str::<ChatRequest>(&json).unwrap(), request);
    }

    #[test]
    fn null_is_absent_and_a_lone_stop_is_a_list() {
        let mut request: ChatRequest = serde_json::from_str(
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"n":null,"tools":null,"stop":"."}"#,
        )
        .unwrap();
        assert_eq!((request.n, &request.tools), (None, &None));
        assert!(
            matches!(&request.messages.as_ref().unwrap()[0].content, Some(MessageContent::Parts(p)) if p.len() == 1)
        );
        let shared = request.take_shared();
        assert_eq!(shared.stop, Some(StringOrList(vec![".".into()])));
        assert_eq!(request.stop, None);
    }

    #[test]
    fn unknown_fields_and_wrong_types_are_refused() {
        for body in [r#"{"max_token":5}"#, r#"{"n":-1}"#, r#"{"n":1.5}"#, r#"{"stream":"yes"}"#, r#"{"seed":1e40}"#] {
            assert!(serde_json::from_str::<CompletionRequest>(body).is_err(), "{body}");
        }
    }
}
