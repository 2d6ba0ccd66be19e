//! Messages to a prompt, by the model's own Jinja template, as Hugging Face's `apply_chat_template` renders it.
//!
//! Two parties are not trusted here. The request: none of its strings may become a control token, whichever way the
//! template moves, cuts or joins it (`trust`). The template, which comes with the model's file: it may not loop,
//! recurse or grow without bound (`guard` and `meter`).

mod guard;
mod input;
mod meter;
mod python;
mod toolless;
mod trust;
mod writer;

use std::fmt;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, json};

use crate::TextError;
use crate::control_tokens::ControlTokens;
use input::{Arguments, Contents, Forms};
use meter::Meter;
pub(crate) use trust::Piece;
pub use trust::RenderedChat;
use trust::Trust;
pub(crate) use writer::ChatWriter;

/// Instructions a rendering may take. A thousand messages take a few hundred thousand.
const FUEL: u64 = 5_000_000;
/// Macro calls and recursive loops within each other.
const RECURSION_LIMIT: usize = 100;
/// Real templates are below 20 KB.
const MAX_SOURCE_BYTES: usize = 512 * 1024;
const MAX_OUTPUT_BYTES: usize = 64 * 1024 * 1024;
/// Values that a template nests need a stack of that depth to be dropped.
const STACK_BYTES: usize = 256 * 1024 * 1024;

/// What one conversation is made of. All of it is untrusted.
pub struct ChatInput<'a> {
    /// The request's messages, an array of objects with at least a `role`.
    pub messages: &'a serde_json::Value,
    /// The request's tools, an array of OpenAI's tool objects.
    pub tools: Option<&'a serde_json::Value>,
    /// Ends with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Ends in the middle of the last message, for the model to go on with it. Excludes a generation prompt.
    pub continue_final_message: bool,
    /// `chat_template_kwargs`: variables for the template.
    pub extra: &'a Map<String, serde_json::Value>,
    /// What `strftime_now` tells, in seconds since 1970, UTC.
    pub unix_seconds: i64,
}

/// A model's chat template, compiled. Cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate(Arc<Compiled>);

struct Compiled {
    environment: Environment<'static>,
    has_tool_template: bool,
    control: Arc<ControlTokens>,
    bos: String,
    eos: String,
    trust: Trust,
    /// What it reads contents and arguments as.
    forms: Forms,
    /// It shows the tools of a request.
    shows_tools: bool,
    /// It shows calls in messages, and their results.
    shows_calls: bool,
}

impl ChatTemplate {
    /// Compiles named templates, of which `default` (or a single one) is the one for most requests and `tool_use` the
    /// one for requests with tools. `bos` and `eos` are what the templates know by `bos_token` and `eos_token`.
    pub(crate) fn new(
        templates: &[(String, String)],
        control: &Arc<ControlTokens>,
        bos: &str,
        eos: &str,
    ) -> Result<Self, TextError> {
        let default = templates.iter().find(|(name, _)| name == "default").or(templates.first());
        let (_, default) = default.ok_or(TextError::NoChatTemplate)?;
        let tool = templates.iter().find(|(name, _)| name == "tool_use").map(|(_, source)| source.as_str());
        let compile = |trust| compile(default, tool, control, bos, eos, trust);

        let mut compiled = compile(Trust::MarkedTemplate)?;
        if !compiled.marks_are_complete() {
            compiled = compile(Trust::EscapedRequest)?;
        }
        compiled.forms = Forms { contents: compiled.probe_contents(), arguments: compiled.probe_arguments() };
        Ok(Self(Arc::new(compiled)))
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`TextError::InvalidChat`] and [`TextError::TemplateRefused`] where the request is to blame,
    /// [`TextError::TemplateFault`] and [`TextError::TemplateLimit`] where the template may be.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<RenderedChat, TextError> {
        let shows_all =
            (self.0.shows_tools || input.tools.is_none()) && (self.0.shows_calls || !has_calls(input.messages));
        if shows_all {
            return self.0.render(input, self.0.forms);
        }
        let messages = toolless::messages(input.messages, input.tools);
        self.0.render(&ChatInput { messages: &messages, tools: None, ..*input }, self.0.forms)
    }
}

fn has_calls(messages: &serde_json::Value) -> bool {
    let is_of_tools = |message: &serde_json::Value| message["role"] == "tool" || message.get("tool_calls").is_some();
    messages.as_array().is_some_and(|messages| messages.iter().any(is_of_tools))
}

fn compile(
    default: &str,
    tool: Option<&str>,
    control: &Arc<ControlTokens>,
    bos: &str,
    eos: &str,
    trust: Trust,
) -> Result<Compiled, TextError> {
    let mut environment = environment();
    for (name, source) in [("default", Some(default)), ("tool_use", tool)] {
        let Some(source) = source else { continue };
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TextError::TemplateSyntax(format!("it has {} bytes", source.len())));
        }
        let source = trust::prepare_source(source, control, trust)?;
        let source = guard::insert_guards(&source, &syntax()).map_err(syntax_error)?;
        environment.add_template_owned(name, source).map_err(syntax_error)?;
    }
    Ok(Compiled {
        environment,
        has_tool_template: tool.is_some(),
        control: Arc::clone(control),
        bos: trust::prepare_variable(bos, control, trust),
        eos: trust::prepare_variable(eos, control, trust),
        trust,
        forms: Forms { contents: Contents::Text, arguments: Arguments::Object },
        shows_tools: tool.is_some() || default.contains("tools"),
        shows_calls: tool.is_some() || default.contains("tool_calls"),
    })
}

fn syntax_error(error: Error) -> TextError {
    TextError::TemplateSyntax(error.to_string())
}

/// As Hugging Face sets Jinja up.
fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the standard delimiters")
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax());
    environment.set_debug(false);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.add_function("raise_exception", raise_exception);
    meter::install(&mut environment);
    environment
}

/// The message a template gave to `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// `2024-07-26`, of a time in seconds since 1970, UTC.
pub(crate) fn date(unix_seconds: i64) -> String {
    python::strftime(unix_seconds, "%Y-%m-%d").expect("directives that it knows")
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
}

impl Compiled {
    fn render(&self, input: &ChatInput<'_>, forms: Forms) -> Result<RenderedChat, TextError> {
        let (context, last_content) = input::context(input, forms, self.trust, &self.control)?;
        let text = self.run(context, input.tools.is_some())?;
        let chat = RenderedChat::new(text, self.trust);
        match last_content {
            Some(content) => chat.cut_after(&content).ok_or_else(|| {
                TextError::InvalidChat("continue_final_message: the template does not show the last message".into())
            }),
            None => Ok(chat),
        }
    }

    fn run(&self, mut context: input::Context, has_tools: bool) -> Result<String, TextError> {
        context.set("bos_token", Value::from(self.bos.as_str()));
        context.set("eos_token", Value::from(self.eos.as_str()));
        let name = if has_tools && self.has_tool_template { "tool_use" } else { "default" };
        let template = self.environment.get_template(name).map_err(|e| fault(&e))?;
        let mut output = Output(Vec::new());
        let rendering = || {
            let context = context.into_value(Meter::new);
            let rendered = template.render_captured_to(context, &mut output).map(drop);
            rendered.map_err(|e| fault(&e))
        };
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK_BYTES);
            let thread = builder.spawn_scoped(scope, rendering);
            let thread = thread.map_err(|e| TextError::TemplateFault(format!("no thread to render it: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(TextError::TemplateFault("the template engine panicked".to_owned())))
        })?;
        String::from_utf8(output.0).map_err(|e| TextError::TemplateFault(e.to_string()))
    }

    /// Whether, in harmless conversations, every control token of the output was marked: a template that makes its
    /// control tokens out of pieces (`'<|' + role + '|>'`) leaves some unmarked.
    fn marks_are_complete(&self) -> bool {
        let turn = |role: &str| json!({"role": role, "content": "plimsoll"});
        let tools = json!([{"type": "function", "function": {"name": "plimsoll", "description": "plimsoll",
            "parameters": {"type": "object", "properties": {}}}}]);
        let conversations = [
            (json!([turn("user")]), None),
            (json!([turn("system"), turn("user"), turn("assistant"), turn("user")]), None),
            (json!([turn("user")]), Some(&tools)),
        ];
        conversations.iter().all(|(messages, tools)| {
            let Ok(chat) = self.render_plainly(messages, *tools, Arguments::Object) else { return true };
            let marked = chat.pieces(&self.control).iter().filter(|piece| piece.control().is_some()).count();
            marked == self.control.ranges(&chat.text()).len()
        })
    }

    /// Whether the template reads OpenAI's lists of content parts, or only strings.
    fn probe_contents(&self) -> Contents {
        let text = json!([{"role": "user", "content": "plimsoll"}]);
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "plimsoll"}]}]);
        let (text, parts) =
            (self.render_plainly(&text, None, Arguments::Object), self.render_plainly(&parts, None, Arguments::Object));
        match (text, parts) {
            (Ok(text), Ok(parts)) if text.text() == parts.text() => Contents::Parts,
            _ => Contents::Text,
        }
    }

    /// Whether the template writes a call's arguments, or puts them down as the text they are.
    fn probe_arguments(&self) -> Arguments {
        let function = json!({"name": "plimsoll", "arguments": r#"{"plimsoll": "x"}"#});
        let call = json!({"id": "plimsoll1", "type": "function", "function": function});
        let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]);
        let shows_json = |arguments| {
            let chat = self.render_plainly(&messages, None, arguments);
            chat.is_ok_and(|chat| chat.text().replace(' ', "").contains(r#"{"plimsoll":"x"}"#))
        };
        let wants_text = !shows_json(Arguments::Object) && shows_json(Arguments::Text);
        if wants_text { Arguments::Text } else { Arguments::Object }
    }

    fn render_plainly(
        &self,
        messages: &serde_json::Value,
        tools: Option<&serde_json::Value>,
        arguments: Arguments,
    ) -> Result<RenderedChat, TextError> {
        let input = ChatInput {
            messages,
            tools,
            add_generation_prompt: true,
            continue_final_message: false,
            extra: &Map::new(),
            unix_seconds: 0,
        };
        self.render(&input, Forms { contents: Contents::Parts, arguments })
    }
}

/// Where rendered text goes. Refuses to grow beyond its limit.
struct Output(Vec<u8>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other(meter::Exhausted));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn fault(error: &Error) -> TextError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateLimit(format!("it took more than {FUEL} steps"));
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return TextError::TemplateRefused(trust::clean(&refusal.0));
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if error.is::<meter::Exhausted>() || wrapped.is_some_and(|e| e.is::<meter::Exhausted>()) {
            return TextError::TemplateLimit("it made more text than a conversation of this size can need".to_owned());
        }
        cause = error.source();
    }
    let text = trust::clean(&error.to_string());
    if text.contains("recursion limit") {
        return TextError::TemplateLimit(text);
    }
    TextError::TemplateFault(text)
}

#[cfg(test)]
mod tests;
