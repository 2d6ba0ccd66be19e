//! The public tokenizer: one vocabulary, its control tokens and its chat template.

use std::path::Path;
use std::sync::Arc;

use plimsoll_core::TokenId;

use crate::byte_pair::BytePair;
use crate::chat_template::{ChatTemplate, Piece, RenderedChat};
use crate::control_tokens::{ControlToken, ControlTokens, Segment};
use crate::sentence_piece::SentencePiece;
use crate::speech::{Dialect, ToolSyntax, forced_call, opens_thoughts};
use crate::token_table::TokenTable;
use crate::{ChatInput, GgufVocab, TextError, from_files, from_gguf, harmony_prompt};

/// What becomes of text that reads like a control token, such as `<|im_end|>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// It becomes the control token. For prompts whose author may frame a conversation (raw completions).
    Parse,
    /// It stays text, spelled out in ordinary tokens. For everything that comes from someone else.
    AsText,
}

/// Text to ids and back. Cheap to clone; all clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    encoder: Encoder,
    table: TokenTable,
    control: Arc<ControlTokens>,
    bos: Option<TokenId>,
    eos: Vec<TokenId>,
    prefix: Vec<TokenId>,
    strips_first_space: bool,
    bos_text: Option<String>,
    eos_text: Option<String>,
    template: Option<ChatTemplate>,
    dialect: Dialect,
}

pub(crate) enum Encoder {
    BytePair(Box<BytePair>),
    SentencePiece(Box<SentencePiece>),
}

/// What a vocabulary's file tells, before its chat template is compiled.
pub(crate) struct Vocabulary {
    pub(crate) encoder: Encoder,
    pub(crate) table: TokenTable,
    pub(crate) control: Vec<ControlToken>,
    pub(crate) bos: Option<TokenId>,
    pub(crate) eos: Vec<TokenId>,
    pub(crate) bos_text: Option<String>,
    pub(crate) eos_text: Option<String>,
    /// What every prompt begins with.
    pub(crate) prefix: Vec<TokenId>,
    /// Decoding drops the one space that encoding put before the first word.
    pub(crate) strips_first_space: bool,
}

impl Tokenizer {
    /// The tokenizer of a GGUF file.
    ///
    /// # Errors
    /// [`TextError::Vocabulary`] and [`TextError::UnknownPreTokenizer`]; [`TextError::TemplateSyntax`] for a chat
    /// template that does not compile.
    pub fn from_gguf(gguf: &GgufVocab) -> Result<Self, TextError> {
        let vocabulary = from_gguf::vocabulary(gguf)?;
        let templates = gguf.chat_template.iter().map(|source| ("default".to_owned(), source.clone()));
        Self::new(vocabulary, &templates.collect::<Vec<_>>())
    }

    /// The tokenizer of a model folder: tokenizer.json and, where they are there, tokenizer_config.json,
    /// generation_config.json, config.json (for `eos_token_id`) and chat_template.jinja.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`], and [`TextError::Read`] and [`TextError::Json`].
    pub fn from_files(dir: &Path) -> Result<Self, TextError> {
        let (vocabulary, templates) = from_files::vocabulary(dir)?;
        Self::new(vocabulary, &templates)
    }

    fn new(vocabulary: Vocabulary, templates: &[(String, String)]) -> Result<Self, TextError> {
        let inner = Inner {
            encoder: vocabulary.encoder,
            table: vocabulary.table,
            control: Arc::new(ControlTokens::new(vocabulary.control)?),
            bos: vocabulary.bos,
            eos: vocabulary.eos,
            prefix: vocabulary.prefix,
            strips_first_space: vocabulary.strips_first_space,
            bos_text: vocabulary.bos_text,
            eos_text: vocabulary.eos_text,
            template: None,
            dialect: Dialect::default(),
        };
        inner.with_templates(templates)
    }

    /// The same vocabulary with another chat template (Jinja source).
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`]; [`TextError::Vocabulary`] if a clone of this tokenizer is in use already.
    pub fn with_chat_template(self, source: &str) -> Result<Self, TextError> {
        let inner = Arc::into_inner(self.0)
            .ok_or_else(|| TextError::Vocabulary("its chat template must be set before it is shared".to_owned()))?;
        inner.with_templates(&[("default".to_owned(), source.to_owned())])
    }

    /// The ids of `text`, after the ids that every prompt of this model begins with (BOS, for most that have one)
    /// if `add_bos`. Takes time linear in `text`, but for the logarithm of its longest word.
    ///
    /// An EOS is never appended: generation goes on from the prompt.
    ///
    /// # Errors
    /// [`TextError::Encode`] where a tokenizer.json's own rules fail on this text.
    pub fn encode(&self, text: &str, specials: SpecialTokens, add_bos: bool) -> Result<Vec<TokenId>, TextError> {
        let mut ids = if add_bos { self.0.prefix.clone() } else { Vec::new() };
        match specials {
            SpecialTokens::Parse => self.encode_segments(&self.0.control.split(text), &mut ids)?,
            SpecialTokens::AsText => self.encode_segments(&[Segment::Text(text)], &mut ids)?,
        }
        Ok(ids)
    }

    /// The ids of a rendered conversation. The template's own control tokens are parsed, and no string of the
    /// request ever becomes one. BOS is there if the template wrote it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_chat(&self, chat: &RenderedChat) -> Result<Vec<TokenId>, TextError> {
        let pieces = chat.pieces(&self.0.control);
        let mut segments = Vec::with_capacity(pieces.len());
        let mut next = pieces.iter().peekable();
        while let Some(piece) = next.next() {
            match piece {
                Piece::Control(token) => segments.push(Segment::Control(token.id)),
                Piece::Text(text) => {
                    let after = next.peek().and_then(|piece| piece.control());
                    self.0.control.push_text(&mut segments, text, after);
                }
            }
        }
        let mut ids = Vec::new();
        self.encode_segments(&segments, &mut ids)?;
        Ok(ids)
    }

    fn encode_segments(&self, segments: &[Segment<'_>], ids: &mut Vec<TokenId>) -> Result<(), TextError> {
        for (index, segment) in segments.iter().enumerate() {
            match (segment, &self.0.encoder) {
                (Segment::Control(id), _) => ids.push(*id),
                (Segment::Text(text), Encoder::BytePair(encoder)) => encoder.encode(text, index == 0, ids)?,
                (Segment::Text(text), Encoder::SentencePiece(encoder)) => encoder.encode(text, ids),
            }
        }
        Ok(())
    }

    /// The text of `ids`, control tokens left out if `skip_special`. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut bytes: Vec<u8> = Vec::with_capacity(ids.len() * 4);
        for &id in ids.iter().filter(|&&id| !(skip_special && self.is_special(id))) {
            bytes.extend_from_slice(self.token_bytes(id));
        }
        let skipped = usize::from(self.0.strips_first_space && bytes.first() == Some(&b' '));
        String::from_utf8_lossy(&bytes[skipped..]).into_owned()
    }

    /// The bytes that `id` stands for, which need not be UTF-8 by themselves; none for an id outside the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.0.table.bytes(id)
    }

    /// One more than the largest id that has a token. A model's logits may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.0.table.len()
    }

    /// The id of BOS, whether or not prompts begin with it.
    pub fn bos_id(&self) -> Option<TokenId> {
        self.0.bos
    }

    /// The tokens that end generation, ascending.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.0.eos
    }

    /// Whether `id` is a control token, which has no place in visible text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.0.table.is_control(id)
    }

    /// The id of the control token that reads `text`.
    pub fn special_id(&self, text: &str) -> Option<TokenId> {
        self.0.control.iter().find(|token| token.text == text).map(|token| token.id)
    }

    /// The model's chat template.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`].
    pub fn chat_template(&self) -> Result<&ChatTemplate, TextError> {
        self.0.template.as_ref().ok_or(TextError::NoChatTemplate)
    }

    /// How the model thinks and calls tools, as its control tokens and its chat template tell.
    pub fn dialect(&self) -> Dialect {
        self.0.dialect
    }

    /// Renders a conversation: by the model's chat template, or as harmony where the vocabulary is harmony's and there
    /// is no template.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; [`TextError::NoChatTemplate`].
    pub fn render_chat(&self, input: &ChatInput<'_>) -> Result<RenderedChat, TextError> {
        match self.chat_template() {
            template if !self.0.dialect.is_harmony() => template?.render(input),
            Err(_) => harmony_prompt::render(input, &self.0.control),
            Ok(template) => {
                let (messages, extra) = harmony_prompt::for_template(input.messages, input.extra);
                template.render(&ChatInput { messages: &messages, extra: &extra, ..*input })
            }
        }
    }

    /// Begins, at the end of `chat`, a call of the function `name`, so that the reply is one, if the syntax allows that.
    /// Its transcript is to be told ([`crate::TranscriptOptions::forced`]). Returns whether it was begun.
    ///
    /// `name` must be of letters, digits, `_`, `-` and `.`; `chat` must end with a generation prompt.
    pub fn force_call(&self, chat: &mut RenderedChat, syntax: ToolSyntax, name: &str) -> bool {
        let thinks = syntax == ToolSyntax::Hermes && opens_thoughts(chat);
        let Some(beginning) = forced_call(syntax, name) else { return false };
        if thinks {
            chat.push("\n</think>\n\n", &self.0.control);
        }
        chat.push(&beginning, &self.0.control);
        true
    }

    pub(crate) fn strips_first_space(&self) -> bool {
        self.0.strips_first_space
    }
}

impl Inner {
    fn with_templates(self, templates: &[(String, String)]) -> Result<Tokenizer, TextError> {
        let sources: String = templates.iter().map(|(_, source)| source.as_str()).collect();
        let control = |text: &str| self.control.iter().find(|token| token.text == text).map(|token| token.id);
        let dialect = Dialect::detect(|text| control(text).is_some(), &sources);
        let mut eos = self.eos.clone();
        if dialect.is_harmony() {
            // A message ends with `<|end|>`, a reply with one of the others.
            eos.retain(|&id| Some(id) != control("<|end|>"));
            eos.extend(["<|return|>", "<|call|>"].iter().filter_map(|text| control(text)));
            eos.sort_unstable();
            eos.dedup();
        }
        let template = self.compile(templates)?;
        Ok(Tokenizer(Arc::new(Self { template, dialect, eos, ..self })))
    }

    fn compile(&self, templates: &[(String, String)]) -> Result<Option<ChatTemplate>, TextError> {
        if templates.is_empty() {
            return Ok(None);
        }
        let bos = self.bos_text.as_deref().unwrap_or("");
        let eos = self.eos_text.as_deref().unwrap_or("");
        ChatTemplate::new(templates, &self.control, bos, eos).map(Some)
    }
}
