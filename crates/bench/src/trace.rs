//! Traces of a service's requests: when each came, how long it was and how long its answer.
//!
//! One JSON object a line, with `timestamp` in milliseconds (as in Mooncake's traces) or `timestamp_s` in seconds,
//! `input_length` and `output_length`; or CSV with a header, whose columns have these names or those of the Azure traces
//! (`TIMESTAMP`, a date and time, `ContextTokens`, `GeneratedTokens`). Times count from the first.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::error::{BenchError, Result};
use crate::lengths::{LONGEST, MOST_INPUT_TOKENS};

/// The names of the columns: time (milliseconds, seconds, either as a date), input and output.
const MILLISECONDS: &str = "timestamp";
const SECONDS: &str = "timestamp_s";
const INPUT: [&str; 2] = ["input_length", "contexttokens"];
const OUTPUT: [&str; 2] = ["output_length", "generatedtokens"];

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// After the first.
    pub(crate) at: Duration,
    pub(crate) input: u32,
    pub(crate) output: u32,
}

/// The first `most` requests of a trace, by time, played `speed` times as fast; and how many it has in all.
pub(crate) fn read(path: &Path, speed: f64, most: usize) -> Result<(Vec<Arrival>, usize)> {
    let wrong = |why: String| BenchError::Prompts { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let mut arrivals = parse(&text, speed).map_err(wrong)?;
    let all = arrivals.len();
    arrivals.truncate(most);
    let tokens: u64 = arrivals.iter().map(|arrival| u64::from(arrival.input)).sum();
    if tokens > MOST_INPUT_TOKENS {
        return Err(wrong(format!(
            "its prompts have {tokens} tokens together, more than the {MOST_INPUT_TOKENS} that fit; send fewer --requests"
        )));
    }
    Ok((arrivals, all))
}

fn parse(text: &str, speed: f64) -> std::result::Result<Vec<Arrival>, String> {
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let Some((_, first)) = lines().next() else { return Err("it is empty".to_owned()) };
    let at_line = |i: usize| move |why: String| format!("line {}: {why}", i + 1);
    let mut rows: Vec<(f64, u32, u32)> = if first.trim_start().starts_with('{') {
        lines().map(|(i, line)| json_row(line).map_err(at_line(i))).collect::<std::result::Result<_, String>>()?
    } else {
        let columns = Columns::of(first)?;
        lines().skip(1).map(|(i, line)| columns.row(line).map_err(at_line(i))).collect::<std::result::Result<_, _>>()?
    };
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let start = rows.first().ok_or("it holds no request")?.0;
    let after = |at: f64| Duration::try_from_secs_f64((at - start) / speed);
    rows.iter()
        .map(|&(at, input, output)| {
            let at = after(at).map_err(|_| format!("{} s after the first request is too late", at - start))?;
            Ok(Arrival { at, input, output })
        })
        .collect()
}

/// Seconds, input and output tokens.
fn json_row(line: &str) -> std::result::Result<(f64, u32, u32), String> {
    let row: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let time = |name: &str| match row.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| bad_time(name)),
    };
    let at = match (time(MILLISECONDS)?, time(SECONDS)?) {
        (_, Some(seconds)) => seconds,
        (Some(milliseconds), None) => milliseconds / 1e3,
        (None, None) => return Err(format!("field `{MILLISECONDS}` (milliseconds) or `{SECONDS}` is missing")),
    };
    let length = |name: &str| row.get(name).and_then(Value::as_u64).and_then(in_range).ok_or_else(|| bad_length(name));
    Ok((at, length(INPUT[0])?, length(OUTPUT[0])?))
}

fn in_range(length: u64) -> Option<u32> {
    u32::try_from(length).ok().filter(|length| (1..=LONGEST).contains(length))
}

fn bad_length(name: &str) -> String {
    format!("field `{name}` must be a whole number of tokens from 1 to {LONGEST}")
}

fn bad_time(name: &str) -> String {
    format!("field `{name}` must be a number or a date and time like 2023-11-16 18:15:46.68")
}

/// Where a CSV file has what.
struct Columns {
    time: usize,
    /// What a number in that column is to be divided by.
    unit: f64,
    input: usize,
    output: usize,
}

impl Columns {
    fn of(header: &str) -> std::result::Result<Self, String> {
        let names: Vec<String> = header.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
        let find = |wanted: &[&str]| names.iter().position(|name| wanted.contains(&name.as_str()));
        let need = |wanted: &[&str]| {
            find(wanted).ok_or_else(|| {
                let wanted = wanted.join("` or `");
                format!("line 1: neither JSON nor a CSV header with a column `{wanted}`")
            })
        };
        let (time, unit) = match find(&[SECONDS]) {
            Some(time) => (time, 1.0),
            None => (need(&[MILLISECONDS])?, 1e3),
        };
        Ok(Self { time, unit, input: need(&INPUT)?, output: need(&OUTPUT)? })
    }

    fn row(&self, line: &str) -> std::result::Result<(f64, u32, u32), String> {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let cell = |at: usize| cells.get(at).copied().unwrap_or_default();
        let number = cell(self.time).parse::<f64>().ok().filter(|at| at.is_finite()).map(|at| at / self.unit);
        let at = number.or_else(|| date_time(cell(self.time))).ok_or_else(|| bad_time(MILLISECONDS))?;
        let length = |at: usize, name| cell(at).parse().ok().and_then(in_range).ok_or_else(|| bad_length(name));
        Ok((at, length(self.input, INPUT[0])?, length(self.output, OUTPUT[0])?))
    }
}

/// Seconds since 1970 of `2023-11-16 18:15:46.6805900`, without regard to zones.
fn date_time(text: &str) -> Option<f64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let date: Vec<i64> = date.split('-').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let time: Vec<f64> = time.trim_end_matches('Z').split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let ([year, month, day], [hours, minutes, seconds]) = (date[..].try_into().ok()?, time[..].try_into().ok()?);
    if !(1970..3000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days of the Gregorian calendar, the year beginning in March so that a leap day is its last.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days: i64 = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    let of_day: f64 = 3600.0 * hours + 60.0 * minutes + seconds;
    Some(86_400.0 * days as f64 + of_day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(millis: u64, input: u32, output: u32) -> Arrival {
        Arrival { at: Duration::from_millis(millis), input, output }
    }

    #[test]
    fn each_form_is_read_and_times_count_from_the_first() {
        let forms = [
            "{\"timestamp\": 500, \"input_length\": 9, \"output_length\": 2, \"hash_ids\": [1]}\n\n\
             {\"timestamp\": 2000, \"input_length\": 7, \"output_length\": 1}\n",
            "{\"timestamp_s\": 10.5, \"input_length\": 9, \"output_length\": 2}\n\
             {\"timestamp_s\": 12, \"input_length\": 7, \"output_length\": 1}",
            "timestamp_s,input_length,output_length\r\n3.5, 9, 2\r\n5,7,1\r\n",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-02-28 23:59:59.5000000,9,2\n2024-02-29 00:00:01,7,1\n",
        ];
        for text in forms {
            assert_eq!(parse(text, 1.0).expect(text), [arrival(0, 9, 2), arrival(1500, 7, 1)], "{text}");
        }
        assert_eq!(parse(forms[0], 3.0).expect("a trace")[1].at, Duration::from_millis(500));
        assert_eq!(date_time("1970-01-02 00:00:01"), Some(86_401.0));
        assert_eq!(date_time("2024-03-01 00:00:00"), Some(1_709_251_200.0));
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_field() {
        let cases = [
            ("", "empty"),
            ("{\"timestamp\": 1, \"input_length\": 0, \"output_length\": 2}", "line 1: field `input_length`"),
            ("{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 2}\n{\"timestamp\": 1}", "line 2: field `inp"),
            ("{\"input_length\": 5, \"output_length\": 2}", "line 1: field `timestamp`"),
            ("{\"timestamp\": \"x\", \"input_length\": 5, \"output_length\": 2}", "line 1: field `timestamp`"),
            ("{oops", "line 1"),
            ("a,b\n1,2", "line 1: neither JSON nor"),
            ("timestamp,input_length,output_length\n1,5,2\nlate,5,2", "line 3: field `timestamp`"),
            ("timestamp,input_length,output_length\n1,5", "line 2: field `output_length`"),
            ("timestamp,input_length,output_length\n", "no request"),
        ];
        for (text, named) in cases {
            let error = parse(text, 1.0).expect_err(text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
