//! The fixed set of tasks: what is asked, and what a right answer is. Read from the files in `tasks/`, which stand in the
//! program; a change to any of them is a new [`SET_VERSION`], since reports of different sets must not be compared.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::rules::TextRules;

/// Names the set in reports.
pub const SET_VERSION: u32 = 1;

/// What kind of work a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    Code,
    Reasoning,
    Writing,
}

impl Category {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Code, Self::Reasoning, Self::Writing];

    /// As reports and options write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Reasoning => "reasoning",
            Self::Writing => "writing",
        }
    }
}

/// One question.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) category: Category,
    pub(crate) id: String,
    /// 1 (for the smallest models) to 4.
    pub(crate) level: u8,
    /// Empty where the check's stub says it all.
    pub(crate) prompt: String,
    pub(crate) check: Check,
    /// An answer that passes, where that is not plain from the check.
    #[cfg_attr(not(test), allow(dead_code, reason = "the tests hold the checks to it"))]
    pub(crate) example: Option<String>,
}

/// What a right answer is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Check {
    /// This number.
    Number(f64),
    /// The letter of this choice.
    Choice(char),
    /// One of these, in any case.
    Word(Vec<String>),
    /// An object in which at least these fields have these values.
    Json(Map<String, Value>),
    /// Constraints on a text.
    Text(Box<TextRules>),
    /// A Python definition that begins with `stub` and after which `tests` run without an exception.
    Python { stub: String, tests: String },
}

#[derive(Deserialize)]
struct File {
    task: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    level: u8,
    #[serde(default)]
    prompt: String,
    check: Check,
    example: Option<String>,
}

/// The tasks of the wanted categories, in the order of their files.
///
/// # Panics
/// If the program's own files cannot be read, which a test rules out.
pub(crate) fn tasks(wanted: &[Category]) -> Vec<Task> {
    let text = |category| match category {
        Category::Code => include_str!("../tasks/code.toml"),
        Category::Reasoning => include_str!("../tasks/reasoning.toml"),
        Category::Writing => include_str!("../tasks/writing.toml"),
    };
    let of = |category| {
        let file: File = toml::from_str(text(category)).expect("the program's own tasks are well-formed");
        file.task.into_iter().map(move |Entry { id, level, prompt, check, example }| Task {
            category,
            id,
            level,
            prompt,
            check,
            example,
        })
    };
    Category::ALL.into_iter().filter(|category| wanted.contains(category)).flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::grade::{Verdict, grade};

    #[test]
    fn the_set_has_every_level_of_every_category_and_no_id_twice() {
        let all = tasks(&Category::ALL);
        assert!(all.len() >= 60, "{}", all.len());
        let ids: BTreeSet<_> = all.iter().map(|task| (task.category, &task.id)).collect();
        assert_eq!(ids.len(), all.len());
        for category in Category::ALL {
            for level in 1..=4 {
                let count = all.iter().filter(|task| (task.category, task.level) == (category, level)).count();
                assert!(count >= 5, "{category:?}, level {level}: {count}");
            }
        }
        assert!(all.iter().all(|task| matches!(task.check, Check::Python { .. }) || !task.prompt.is_empty()));
        assert_eq!(tasks(&[Category::Writing]).len(), 20);
    }

    #[test]
    fn right_answers_pass_and_no_answer_does_not() {
        for task in tasks(&[Category::Reasoning, Category::Writing]) {
            let answer = match (&task.check, &task.example) {
                (Check::Number(number), _) => format!("I think so.\nAnswer: {number}"),
                (Check::Choice(letter), _) => format!("Answer: {letter}"),
                (Check::Word(words), _) => format!("**Answer:** {}.", words[0]),
                (Check::Json(fields), _) => format!("```json\n{}\n```", Value::Object(fields.clone())),
                (_, Some(example)) => example.clone(),
                (check, None) => panic!("{}: no example of {check:?}", task.id),
            };
            assert_eq!(grade(&task.check, &answer), Verdict::Pass, "{}: {answer}", task.id);
            assert!(matches!(grade(&task.check, ""), Verdict::Fail(_)), "{}", task.id);
            let idle = "I am sorry, I cannot help with that request.";
            assert!(matches!(grade(&task.check, idle), Verdict::Fail(_)), "{}", task.id);
        }
    }
}
