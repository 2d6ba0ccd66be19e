//! What templates expect of Python: `json.dumps`, `strftime`.

use minijinja::value::{Kwargs, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::trust::is_own;

/// The `tojson` filter as Hugging Face defines it: `json.dumps` without HTML escapes, non-ASCII as it is.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(pair) => Some((pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string())),
        None => None,
    };
    let mut writer = JsonWriter {
        out: String::new(),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorts_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent: indent.map(|width| width.min(64)),
        item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
        key_separator: ": ".to_owned(),
    };
    if let Some((items, keys)) = separators {
        (writer.item_separator, writer.key_separator) = (items, keys);
    }
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// Longer than any conversation that a server takes.
const MAX_JSON_BYTES: usize = 64 * 1024 * 1024;
const MAX_JSON_DEPTH: usize = 200;

struct JsonWriter {
    out: String,
    ascii: bool,
    sorts_keys: bool,
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_JSON_DEPTH || self.out.len() > MAX_JSON_BYTES {
            return Err(Error::new(ErrorKind::InvalidOperation, "the value is too large for tojson"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or("")),
            ValueKind::Map => self.map(value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            other => {
                let text = format!("a value of type {other} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, text));
            }
        }
        Ok(())
    }

    fn list(&mut self, list: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut is_empty = true;
        for item in list.try_iter()? {
            self.separate(std::mem::take(&mut is_empty), depth + 1);
            self.value(&item, depth + 1)?;
        }
        self.close(is_empty, depth, ']');
        Ok(())
    }

    fn map(&mut self, map: &Value, depth: usize) -> Result<(), Error> {
        let object = map.as_object().filter(|object| object.repr() == ObjectRepr::Map);
        let mut fields: Vec<(Value, Value)> =
            object.and_then(|map| map.try_iter_pairs()).into_iter().flatten().collect();
        if self.sorts_keys {
            fields.sort_by(|(left, _), (right, _)| left.cmp(right));
        }
        self.out.push('{');
        for (index, (key, value)) in fields.iter().enumerate() {
            self.separate(index == 0, depth + 1);
            match key.as_str() {
                Some(key) => self.string(key),
                None => self.string(&key.to_string()),
            }
            self.out.push_str(&self.key_separator);
            self.value(value, depth + 1)?;
        }
        self.close(fields.is_empty(), depth, '}');
        Ok(())
    }

    fn separate(&mut self, is_first: bool, depth: usize) {
        if !is_first {
            self.out.push_str(&self.item_separator);
        }
        self.new_line(depth);
    }

    fn close(&mut self, is_empty: bool, depth: usize, bracket: char) {
        if !is_empty {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }

    fn number(&mut self, number: &Value) {
        let float = (!number.is_integer()).then(|| f64::try_from(number.clone()).ok()).flatten();
        match float {
            Some(float) => self.out.push_str(&python_float(float)),
            None => self.out.push_str(&number.to_string()),
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if u32::from(c) < 0x20 || (self.ascii && !c.is_ascii() && !is_own(c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// As Python's `repr` writes a float.
fn python_float(float: f64) -> String {
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let text = format!("{float:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `strftime_now`: the time, in seconds since 1970 in UTC, in the format that Python's `strftime` reads.
pub(super) fn strftime(unix_seconds: i64, format: &str) -> Result<String, Error> {
    let days = unix_seconds.div_euclid(86_400);
    let second_of_day = unix_seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let day_of_year = days - days_from_civil(year, 1, 1) + 1;
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[days.rem_euclid(7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let is_bare = directive == Some('-');
        if is_bare {
            directive = chars.next();
        }
        let two = |number: i64| if is_bare { number.to_string() } else { format!("{number:02}") };
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => two(year.rem_euclid(100)),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two((hour + 11) % 12 + 1),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('f') => "000000".to_owned(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('j') if is_bare => day_of_year.to_string(),
            Some('j') => format!("{day_of_year:03}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('s') => unix_seconds.to_string(),
            Some('%') => "%".to_owned(),
            _ => {
                let text = format!("strftime_now does not know {format:?}");
                return Err(Error::new(ErrorKind::InvalidOperation, text));
            }
        });
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // A leap day ends a year that begins in March, and 400 years have the same number of days always.
    let since = days + 719_468;
    let era = since.div_euclid(146_097);
    let day_of_era = since.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;
    use serde_json::json;

    use super::*;

    fn render(source: &str, value: &serde_json::Value) -> String {
        fn read(value: &serde_json::Value) -> Value {
            match value {
                serde_json::Value::Null => Value::from(()),
                serde_json::Value::Bool(flag) => Value::from(*flag),
                serde_json::Value::Number(n) => n.as_i64().map_or_else(|| Value::from(n.as_f64()), Value::from),
                serde_json::Value::String(text) => Value::from(text.as_str()),
                serde_json::Value::Array(items) => Value::from(items.iter().map(read).collect::<Vec<_>>()),
                serde_json::Value::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.clone(), read(v)))),
            }
        }
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        let context: Value = Value::from_pairs([("x", read(value))]);
        environment.render_str(source, context).unwrap()
    }

    #[test]
    fn tojson_writes_what_json_dumps_writes() {
        let value = json!({"b": [1, 2.5, null, true], "a": {"é\n\"<x>": []}, "e": {}});
        assert_eq!(
            render("{{ x | tojson }}", &value),
            r#"{"b": [1, 2.5, null, true], "a": {"é\n\"<x>": []}, "e": {}}"#
        );
        assert_eq!(
            render("{{ x | tojson(ensure_ascii=True, sort_keys=True) }}", &json!({"b": "é🦀", "a": 1})),
            r#"{"a": 1, "b": "\u00e9\ud83e\udd80"}"#
        );
        assert_eq!(render("{{ x | tojson(separators=(',', ':')) }}", &json!({"a": [1, 2]})), r#"{"a":[1,2]}"#);
        assert_eq!(
            render("{{ x | tojson(indent=2) }}", &json!({"a": [1], "b": []})),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}"
        );
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (float, text) in
            [(1.0, "1.0"), (0.1, "0.1"), (1e16, "1e+16"), (1e15, "1000000000000000.0"), (1e-7, "1e-07"), (-0.0, "-0.0")]
        {
            assert_eq!(python_float(float), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, format, text) in [
            (0, "%Y-%m-%d %H:%M:%S %A", "1970-01-01 00:00:00 Thursday"),
            (951_782_400, "%d %b %Y %j", "29 Feb 2000 060"),
            (1_721_990_096, "%-d %B %y, %I:%M %p, %a", "26 July 24, 10:34 AM, Fri"),
            (-1, "%F %T", "1969-12-31 23:59:59"),
            (4_102_444_799, "100%% %F %-j", "100% 2099-12-31 365"),
        ] {
            assert_eq!(strftime(seconds, format).unwrap(), text);
        }
        assert!(strftime(0, "%Q").is_err());
        assert!(strftime(0, "%").is_err());
    }
}
