//! Text and numbers as markup may hold them.

use std::fmt;

/// Beyond this a number is an accident, and a coordinate made from it would not be one.
const LARGEST: f64 = 1e15;
/// A name longer than this is cut.
const LONGEST: usize = 2000;

/// Text that was written by anybody, as the content of an element or a quoted attribute: it cannot end it, and holds
/// neither control characters, which XML forbids, nor those that turn the direction of what comes after.
pub(crate) fn text(raw: &str) -> Text<'_> {
    Text(raw)
}

pub(crate) struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, char) in self.0.chars().enumerate() {
            if index == LONGEST {
                return out.write_str("\u{2026}");
            }
            match char {
                '&' => out.write_str("&amp;")?,
                '<' => out.write_str("&lt;")?,
                '>' => out.write_str("&gt;")?,
                '"' => out.write_str("&quot;")?,
                '\'' => out.write_str("&#39;")?,
                '\n' | '\t' => out.write_str(" ")?,
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => {
                    out.write_str("\u{fffd}")?;
                }
                control if control.is_control() => out.write_str("\u{fffd}")?,
                other => write!(out, "{other}")?,
            }
        }
        Ok(())
    }
}

/// Whether a number can be drawn.
pub(crate) fn is_drawable(value: f64) -> bool {
    value.is_finite() && value.abs() <= LARGEST
}

/// A number for a person, to about three digits, its thousands apart: `0.123`, `12.3`, `1,234`.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "\u{2013}".to_owned();
    }
    let size = value.abs();
    if size >= LARGEST || size > 0.0 && size < 1e-4 {
        return format!("{value:.2e}");
    }
    let decimals = match size {
        0.0 => 0,
        size if size < 1.0 => 3,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    thousands(&format!("{value:.decimals$}"))
}

/// A number on an axis: `0.5`, `200`, `1,024`, `12k`, `3M`.
pub(crate) fn tick(value: f64) -> String {
    // A power of two is not known by its first digits.
    if value.fract() == 0.0 && (1e3..1e6).contains(&value) && value % 100.0 != 0.0 {
        return thousands(&format!("{value}"));
    }
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (scaled, unit) =
        units.iter().find(|(size, _)| value.abs() >= *size).map_or((value, ""), |(size, unit)| (value / size, unit));
    let trimmed = format!("{scaled:.4}");
    let trimmed = trimmed.trim_end_matches('0').trim_end_matches('.');
    format!("{}{unit}", if trimmed == "-0" { "0" } else { trimmed })
}

fn thousands(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("-", rest));
    let (whole, fraction) = digits.split_once('.').map_or((digits, None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let fraction = fraction.map(|rest| format!(".{rest}")).unwrap_or_default();
    format!("{sign}{grouped}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_a_name_stays_text() {
        let hostile = "a<script>alert(1)</script>&\"'\u{0}\u{202e}\n]]>";
        let safe = text(hostile).to_string();
        assert_eq!(safe, "a&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#39;\u{fffd}\u{fffd} ]]&gt;");
        assert_eq!(text(&"x".repeat(5000)).to_string().chars().count(), LONGEST + 1);
    }

    #[test]
    fn numbers_are_short_and_their_thousands_stand_apart() {
        let cases = [(0.0, "0"), (0.12345, "0.123"), (12.34, "12.3"), (1234.5, "1,234"), (-1_234_567.0, "-1,234,567")];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
        assert_eq!(number(f64::NAN), "\u{2013}");
        assert_eq!(number(1e300), "1.00e300");
        let ticks = [
            (0.0, "0"),
            (0.5, "0.5"),
            (200.0, "200"),
            (12_000.0, "12k"),
            (1_500_000.0, "1.5M"),
            (1024.0, "1,024"),
            (-0.0, "0"),
        ];
        for (value, expected) in ticks {
            assert_eq!(tick(value), expected);
        }
    }
}
