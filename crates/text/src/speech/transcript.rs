//! One sequence's tokens to what they say.

use std::sync::Arc;

use plimsoll_core::TokenId;

use super::harmony::{Harmony, Mark};
use super::hermes::Hermes;
use super::leading::{Leading, Shapes};
use super::think::Think;
use super::{Dialect, Opening, Reader, ReasoningSyntax, Said, ToolSyntax, forced_call};
use crate::{Detokenizer, StopStrings, Tokenizer};

/// How a sequence is read.
#[derive(Clone, Debug, Default)]
pub struct TranscriptOptions {
    pub dialect: Dialect,
    pub opening: Opening,
    /// The functions that may be called. What looks like a call of another is content.
    pub functions: Arc<[String]>,
    /// The function that the prompt began to call ([`Tokenizer::force_call`]).
    pub forced: Option<String>,
    /// Control tokens that mean nothing to the dialect are left out of the text.
    pub skip_special: bool,
}

/// One sequence's way from ids to [`Said`].
pub struct Transcript {
    detokenizer: Detokenizer,
    marks: Vec<(TokenId, Mark)>,
    /// Control tokens that the dialect reads as text.
    shown: Vec<(TokenId, &'static str)>,
    reader: Speech,
    /// The beginning of a call that the prompt holds.
    begun: Said,
    text: String,
}

enum Speech {
    Harmony(Harmony),
    Tagged { think: Option<Think>, answer: String, tools: Option<Box<dyn Reader>> },
}

/// Control tokens in some vocabularies, ordinary ones in others: they count as the text that they read.
const TAGS: [&str; 7] =
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "<|python_start|>", "<|python_end|>"];

impl Transcript {
    /// Of a sequence of `tokenizer`'s.
    pub fn new(tokenizer: &Tokenizer, options: &TranscriptOptions) -> Self {
        let dialect = options.dialect;
        let has_tools = !options.functions.is_empty();
        let mut begun = Said::default();
        let forced = options.forced.as_deref();
        let reader = if dialect.is_harmony() {
            let mut harmony = Harmony::new(options.opening, Arc::clone(&options.functions));
            if let Some(name) = forced {
                harmony.begin_forced(name, &mut begun);
            }
            Speech::Harmony(harmony)
        } else {
            let may_think = forced.is_none() && options.opening != Opening::Content;
            let think = (dialect.reasoning == ReasoningSyntax::Think && may_think)
                .then(|| Think::new(options.opening == Opening::Reasoning));
            let mut tools = if has_tools { tool_reader(dialect.tools, &options.functions) } else { None };
            let beginning = forced.and_then(|name| forced_call(dialect.tools, name));
            if let (Some(beginning), Some(tools)) = (beginning, &mut tools) {
                tools.push(&beginning, &mut begun);
            }
            Speech::Tagged { think, answer: String::new(), tools }
        };
        let detokenizer = Detokenizer::new(tokenizer, options.skip_special, &StopStrings::default());
        let continues = options.opening == Opening::Content || forced.is_some();
        let marks = Mark::ALL.iter().filter_map(|&mark| Some((tokenizer.special_id(mark.text())?, mark)));
        let shown = TAGS.iter().filter_map(|&tag| Some((tokenizer.special_id(tag)?, tag)));
        let is_harmony = dialect.is_harmony();
        Self {
            detokenizer: if continues { detokenizer.continuing() } else { detokenizer },
            marks: if is_harmony { marks.collect() } else { Vec::new() },
            shown: if is_harmony { Vec::new() } else { shown.collect() },
            reader,
            begun,
            text: String::new(),
        }
    }

    /// Takes the next token.
    pub fn push(&mut self, token: TokenId, said: &mut Said) {
        said.append(std::mem::take(&mut self.begun));
        self.text.clear();
        if let Some(&(_, mark)) = self.marks.iter().find(|(id, _)| *id == token) {
            self.detokenizer.finish(&mut self.text);
            self.read(said);
            if let Speech::Harmony(harmony) = &mut self.reader {
                harmony.mark(mark, said);
            }
            return;
        }
        match self.shown.iter().find(|(id, _)| *id == token) {
            Some(&(_, tag)) => {
                self.detokenizer.finish(&mut self.text);
                self.text.push_str(tag);
            }
            None => {
                self.detokenizer.push(token, &mut self.text);
            }
        }
        self.read(said);
    }

    /// The sequence ended: gives what was held back.
    pub fn finish(&mut self, said: &mut Said) {
        said.append(std::mem::take(&mut self.begun));
        self.text.clear();
        self.detokenizer.finish(&mut self.text);
        self.read(said);
        match &mut self.reader {
            Speech::Harmony(harmony) => harmony.finish(said),
            Speech::Tagged { think, answer, tools } => {
                if let Some(think) = think {
                    think.finish(said, answer);
                }
                read_answer(answer, tools, said);
                if let Some(tools) = tools {
                    tools.finish(said);
                }
            }
        }
    }

    /// Whether the model is thinking.
    pub fn is_reasoning(&self) -> bool {
        match &self.reader {
            Speech::Harmony(harmony) => harmony.is_reasoning(),
            Speech::Tagged { think, .. } => think.as_ref().is_some_and(Think::is_thinking),
        }
    }

    /// Whether a character waits for its last byte.
    pub fn holds_bytes(&self) -> bool {
        self.detokenizer.holds_text()
    }

    fn read(&mut self, said: &mut Said) {
        if self.text.is_empty() {
            return;
        }
        match &mut self.reader {
            Speech::Harmony(harmony) => harmony.push(&self.text, said),
            Speech::Tagged { think, answer, tools } => {
                match think {
                    Some(think) => think.push(&self.text, said, answer),
                    None => answer.push_str(&self.text),
                }
                read_answer(answer, tools, said);
            }
        }
    }
}

fn read_answer(answer: &mut String, tools: &mut Option<Box<dyn Reader>>, said: &mut Said) {
    match tools {
        Some(tools) if !answer.is_empty() => tools.push(answer, said),
        Some(_) => {}
        None => said.content.push_str(answer),
    }
    answer.clear();
}

fn tool_reader(syntax: ToolSyntax, functions: &Arc<[String]>) -> Option<Box<dyn Reader>> {
    let leading = |python, fences| Box::new(Leading::new(Shapes { python, fences }, Arc::clone(functions)));
    match syntax {
        ToolSyntax::None | ToolSyntax::Harmony => None,
        ToolSyntax::Hermes => Some(Box::new(Hermes::new(Arc::clone(functions)))),
        ToolSyntax::LlamaJson => Some(leading(false, false)),
        ToolSyntax::Pythonic => Some(leading(true, false)),
        ToolSyntax::Gemma => Some(leading(true, true)),
    }
}
