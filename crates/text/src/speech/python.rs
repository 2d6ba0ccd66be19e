//! Calls written in Python: `f(a=1, b="x")`, with literals for arguments, as JSON.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::{Map, Number, Value};

/// Literals within each other at most.
const MAX_DEPTH: u32 = 64;

/// The function's name and its arguments as a JSON object. `print(f(...))` is `f(...)`. `None`: it is no such call.
pub(super) fn call(text: &str) -> Option<(String, String)> {
    let mut parser = Parser { chars: text.chars().peekable() };
    parser.skip_space();
    let mut name = parser.name()?;
    parser.expect('(')?;
    let is_printed = name == "print";
    if is_printed {
        parser.skip_space();
        name = parser.name()?;
        parser.expect('(')?;
    }
    let arguments = parser.arguments()?;
    if is_printed {
        parser.expect(')')?;
    }
    parser.skip_space();
    let has_ended = parser.chars.next().is_none();
    has_ended.then(|| (name, Value::Object(arguments).to_string()))
}

/// Whether `c` may be in a function's name.
pub(super) fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

struct Parser<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        while self.chars.next_if(|c| c.is_whitespace()).is_some() {}
    }

    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        while let Some(c) = self.chars.next_if(|&c| is_name_char(c)) {
            name.push(c);
        }
        (!name.is_empty()).then_some(name)
    }

    fn expect(&mut self, expected: char) -> Option<()> {
        self.skip_space();
        self.chars.next_if_eq(&expected).map(drop)
    }

    /// `a=1, b="x")`
    fn arguments(&mut self) -> Option<Map<String, Value>> {
        let mut arguments = Map::new();
        loop {
            self.skip_space();
            if self.chars.next_if_eq(&')').is_some() {
                return Some(arguments);
            }
            let name = self.name()?;
            self.expect('=')?;
            arguments.insert(name, self.value(0)?);
            self.skip_space();
            if self.chars.next_if_eq(&',').is_none() {
                return self.expect(')').map(|()| arguments);
            }
        }
    }

    fn value(&mut self, depth: u32) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.skip_space();
        match *self.chars.peek()? {
            quote @ ('"' | '\'') => {
                self.chars.next();
                self.string(quote).map(Value::String)
            }
            '[' => self.items(']', depth),
            '(' => self.items(')', depth),
            '{' => self.object(depth),
            _ => self.scalar(),
        }
    }

    fn string(&mut self, quote: char) -> Option<String> {
        let mut text = String::new();
        loop {
            match self.chars.next()? {
                c if c == quote => return Some(text),
                '\\' => self.escape(&mut text)?,
                c => text.push(c),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let c = match self.chars.next()? {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '\n' => return Some(()),
            'x' => self.code(2)?,
            'u' => self.code(4)?,
            'U' => self.code(8)?,
            c @ ('\\' | '"' | '\'') => c,
            // As in Python, a backslash before any other character stays.
            c => {
                text.push('\\');
                c
            }
        };
        text.push(c);
        Some(())
    }

    fn code(&mut self, digits: u32) -> Option<char> {
        let mut code = 0u32;
        for _ in 0..digits {
            code = code.checked_mul(16)? + self.chars.next()?.to_digit(16)?;
        }
        Some(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn items(&mut self, close: char, depth: u32) -> Option<Value> {
        self.chars.next();
        let mut items = Vec::new();
        loop {
            self.skip_space();
            if self.chars.next_if_eq(&close).is_some() {
                return Some(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.skip_space();
            if self.chars.next_if_eq(&',').is_none() {
                return self.expect(close).map(|()| Value::Array(items));
            }
        }
    }

    fn object(&mut self, depth: u32) -> Option<Value> {
        self.chars.next();
        let mut fields = Map::new();
        loop {
            self.skip_space();
            if self.chars.next_if_eq(&'}').is_some() {
                return Some(Value::Object(fields));
            }
            let key = match self.value(depth + 1)? {
                Value::String(key) => key,
                // Written as text within text, it would double at each level.
                Value::Array(_) | Value::Object(_) => return None,
                scalar => scalar.to_string(),
            };
            self.expect(':')?;
            fields.insert(key, self.value(depth + 1)?);
            self.skip_space();
            if self.chars.next_if_eq(&',').is_none() {
                return self.expect('}').map(|()| Value::Object(fields));
            }
        }
    }

    /// A number, or a word for a truth value or nothing.
    fn scalar(&mut self) -> Option<Value> {
        let mut word = String::new();
        while let Some(c) = self.chars.next_if(|&c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_')) {
            word.push(c);
        }
        match word.as_str() {
            "True" | "true" => return Some(Value::Bool(true)),
            "False" | "false" => return Some(Value::Bool(false)),
            "None" | "null" => return Some(Value::Null),
            _ => {}
        }
        let is_integer = word.strip_prefix(['-', '+']).unwrap_or(&word).bytes().all(|byte| byte.is_ascii_digit());
        if is_integer {
            // A larger one would lose its last digits.
            let integer = word.parse::<i64>().map(Number::from).or_else(|_| word.parse::<u64>().map(Number::from));
            return integer.ok().map(Value::Number);
        }
        let is_number = word.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
        let number = word.parse::<f64>().ok().filter(|_| is_number).and_then(Number::from_f64);
        number.map(Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_become_json() {
        let text = r#"f(a=1, b="x\"é\n", c=[True, None, -2.5e3], d={'k': (1,), 2: {}}, e='\d\x41',)"#;
        let (name, arguments) = call(text).unwrap();
        assert_eq!(name, "f");
        assert_eq!(arguments, r#"{"a":1,"b":"x\"é\n","c":[true,null,-2500.0],"d":{"k":[1],"2":{}},"e":"\\dA"}"#);
        assert_eq!(call(" print( get.it(x=1) ) "), Some(("get.it".to_owned(), r#"{"x":1}"#.to_owned())));
        assert_eq!(call("f()"), Some(("f".to_owned(), "{}".to_owned())));
        let large = call("f(a=18446744073709551615, b=-9223372036854775808)").unwrap().1;
        assert_eq!(large, r#"{"a":18446744073709551615,"b":-9223372036854775808}"#);
    }

    #[test]
    fn what_is_no_call_of_literals_is_none() {
        let deep = format!("f(a={})", "[".repeat(100_000));
        let keys = |depth| format!("f(a={}{{'x':1}}{})", "{".repeat(depth), ":1}".repeat(depth));
        for text in [
            "",
            "f",
            "f(",
            "f(1)",
            "f(a=g())",
            "f(a=1) + 1",
            "f(a=inf)",
            "f(a='x)",
            "f(a=1 2)",
            "(a=1)",
            "f(a={(1,): 2})",
            "f(a=18446744073709551616)",
            "f(a=-9223372036854775809)",
            "f(a=-)",
            &deep,
            // Few enough levels to end, were they written as text.
            &keys(1),
            &keys(8),
        ] {
            assert_eq!(call(text), None, "{text}");
        }
        assert_eq!(call(&keys(40)), None);
    }
}
