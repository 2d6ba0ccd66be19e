//! How a task is put to a model: as a chat, or to a base model as a text that it goes on with.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::task::{Category, Check, Task};

/// The two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `/v1/chat/completions`, through the model's chat template.
    Chat,
    /// `/v1/completions`, with examples before the question; for base models.
    Completions,
}

impl Form {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "v1/chat/completions",
            Self::Completions => "v1/completions",
        }
    }
}

/// Draws do not matter at temperature 0; servers that draw nevertheless draw the same each time.
const SEED: u32 = 20_26;

/// The text that the model is given, and what ends its answer.
pub(crate) struct Asked {
    pub(crate) prompt: String,
    stop: &'static [&'static str],
    max_tokens: u32,
}

pub(crate) fn ask(task: &Task, form: Form, max_tokens: u32) -> Asked {
    match form {
        Form::Chat => Asked { prompt: as_chat(task), stop: &[], max_tokens },
        Form::Completions => {
            let (prompt, stop, most) = as_text(task);
            Asked { prompt, stop, max_tokens: max_tokens.min(most) }
        }
    }
}

impl Asked {
    /// The request, but for the model.
    pub(crate) fn body(&self, form: Form) -> Value {
        let mut body = json!({"max_tokens": self.max_tokens, "temperature": 0, "seed": SEED});
        match form {
            Form::Chat => body["messages"] = json!([{"role": "user", "content": self.prompt}]),
            Form::Completions => {
                body["prompt"] = json!(self.prompt);
                body["stop"] = json!(self.stop);
            }
        }
        body
    }
}

/// What is graded: the reply, and for a program that goes on from its stub the stub before it.
pub(crate) fn answer(task: &Task, form: Form, reply: &str) -> String {
    match (&task.check, form) {
        (Check::Python { stub, .. }, Form::Completions) => format!("{}{reply}", stub.trim_start()),
        _ => reply.to_owned(),
    }
}

fn as_chat(task: &Task) -> String {
    let prompt = &task.prompt;
    let ending = match &task.check {
        Check::Number(_) => "End your reply with a line of the form: Answer: NUMBER",
        Check::Choice(_) => "End your reply with a line of the form: Answer: LETTER",
        Check::Word(_) => "End your reply with a line of the form: Answer: WORD",
        Check::Json(_) => "Reply with the JSON object only.",
        Check::Text(_) => return prompt.clone(),
        Check::Python { stub, .. } => {
            let stub = stub.trim();
            return format!(
                "Complete this Python code. Reply with the complete definition in one code block, without tests.\n\n\
                 ```python\n{stub}\n```"
            );
        }
    };
    format!("{prompt}\n{ending}")
}

/// The examples are no tasks of the set.
fn as_text(task: &Task) -> (String, &'static [&'static str], u32) {
    match task.category {
        Category::Reasoning => {
            let examples = "Question: What is 5 + 1?\nAnswer: 6\n\nQuestion: Which of these is a colour? A) table B) blue \
                            C) run D) seven\nAnswer: B\n\nQuestion: What is the capital of Japan?\nAnswer: Tokyo\n\n\
                            Question: Write a JSON object with the key animal for a dog.\nAnswer: {\"animal\": \"dog\"}\n\n";
            (format!("{examples}Question: {}\nAnswer:", task.prompt), &["\n\n", "\nQuestion:"], 96)
        }
        Category::Writing => {
            let examples = "Task: Write one sentence about a dog.\nText: The dog slept in front of the fire.\n\nTask: Name \
                            two colours. Write one colour per line.\nText: Red\nBlue\n\n";
            (format!("{examples}Task: {}\nText:", task.prompt), &["\nTask:"], 200)
        }
        Category::Code => {
            let Check::Python { stub, .. } = &task.check else { return (task.prompt.clone(), &["\n\n"], 256) };
            let stop = &["\ndef ", "\nclass ", "\nif __name__", "\nprint(", "\n```", "\n#", "\nassert "];
            (stub.trim_start().to_owned(), stop, 320)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::tasks;

    #[test]
    fn every_task_is_asked_in_both_forms() {
        for task in tasks(&Category::ALL) {
            for form in [Form::Chat, Form::Completions] {
                let asked = ask(&task, form, 512);
                assert!(asked.prompt.len() > 20, "{}", task.id);
                let body = asked.body(form);
                assert_eq!((&body["temperature"], body["seed"].is_u64()), (&json!(0), true));
                assert_eq!(body.get("messages").is_some(), form == Form::Chat);
            }
        }
    }

    #[test]
    fn a_stub_that_is_gone_on_with_is_part_of_the_answer() {
        let code = &tasks(&[Category::Code])[0];
        assert!(answer(code, Form::Completions, "    return a + b\n").starts_with("def add(a, b):"));
        assert_eq!(answer(code, Form::Chat, "x"), "x");
    }
}
