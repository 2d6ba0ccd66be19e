//! One self-contained HTML page: an answer, a few facts, charts and tables, as plain data.
//!
//! The page asks nothing of the network: its style and its one small script stand in it, its charts are SVG that is drawn
//! here. It is well-formed XML as well as HTML, and its policy lets nothing but that script run, so markup in a name that
//! a server gave can do nothing even where it were not escaped. It must never know what is measured.

mod bars;
mod chart;
mod draw;
mod markup;
mod scale;
mod stack;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt::{self, Write};

pub use self::bars::{Bars, Part};
pub use self::chart::{Axis, Chart, Color, Line, Point, Rule, Scale, Series, Span};
use self::draw::sizes;
pub use self::markup::number;
use self::markup::text;
pub use self::stack::Stack;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");
/// SHA-256 of the script, which the page's policy names.
const SCRIPT_HASH: &str = "gql3WJ80L1SBuLvttUKH1S+phShwZtOzBnunnEOuUCQ=";
/// The mark of a load line: a circle, and the line through it.
const LOGO: &str = r#"<svg class="logo" viewBox="0 0 48 32" aria-hidden="true"><circle cx="24" cy="16" r="12"/><path d="M4 16H44"/></svg>"#;

/// A page. `Display` gives its HTML.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// For the browser's tab.
    pub title: String,
    /// The first line.
    pub answer: String,
    /// Beside it, smaller.
    pub detail: String,
    /// What the answer is about: a model's name, say.
    pub subject: String,
    pub facts: Vec<Fact>,
    /// What a reader must not miss.
    pub warnings: Vec<String>,
    /// Sentences that explain the answer.
    pub findings: Vec<String>,
    pub sections: Vec<Section>,
    /// Sentences below everything else.
    pub notes: Vec<String>,
}

/// One figure that stands for much.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fact {
    pub name: String,
    pub value: String,
    pub unit: String,
    /// How sure it is, or where it holds.
    pub detail: String,
}

/// A part of the page.
#[derive(Clone, Debug, PartialEq)]
pub enum Section {
    Chart(Chart),
    Bars(Bars),
    Stack(Stack),
    Table(Table),
}

/// Cells of text; the first column names its row, the others hold numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    pub title: String,
    pub about: String,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// Cells that stand out, as (row, column).
    pub best: Vec<(usize, usize)>,
}

impl fmt::Display for Page {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            r#"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'"/>
<meta name="color-scheme" content="light dark"/>
<title>{}</title><style>{STYLE}</style></head>
<body><header>{LOGO}<div><h1>{}</h1><p class="detail">{}</p><p class="subject"><bdi>{}</bdi></p></div></header>
<main>
"#,
            text(&self.title),
            text(&self.answer),
            text(&self.detail),
            text(&self.subject)
        )?;
        self.warnings.iter().try_for_each(|warning| {
            writeln!(out, r#"<p class="warning" role="alert"><strong>Mind:</strong> {}</p>"#, text(warning))
        })?;
        facts(out, &self.facts)?;
        // The first picture says more than the sentences that explain it.
        let (first, others) = self.sections.split_at(self.sections.len().min(1));
        sections(out, first, 0)?;
        paragraphs(out, "findings", &self.findings)?;
        sections(out, others, first.len())?;
        paragraphs(out, "notes", &self.notes)?;
        writeln!(out, "</main><script>{SCRIPT}</script></body></html>")
    }
}

/// Sections whose ids begin with `from`.
fn sections(out: &mut impl Write, sections: &[Section], from: usize) -> fmt::Result {
    if sections.is_empty() {
        return Ok(());
    }
    out.write_str("<div class=\"sections\">\n")?;
    sections.iter().zip(from..).try_for_each(|(section, id)| section.write(out, id))?;
    out.write_str("</div>\n")
}

fn facts(out: &mut impl Write, facts: &[Fact]) -> fmt::Result {
    if facts.is_empty() {
        return Ok(());
    }
    // A row of them, or two as even as can be.
    let columns = if facts.len() <= 6 { facts.len() } else { facts.len().div_ceil(2) };
    writeln!(out, r#"<dl class="facts of{columns}">"#)?;
    for Fact { name, value, unit, detail } in facts {
        let [name, value, unit, detail] = [name, value, unit, detail].map(|part| text(part));
        writeln!(
            out,
            r#"<div><dt>{name}</dt><dd><span class="value">{value}</span> <span class="unit">{unit}</span><small>{detail}</small></dd></div>"#
        )?;
    }
    out.write_str("</dl>\n")
}

fn paragraphs(out: &mut impl Write, class: &str, sentences: &[String]) -> fmt::Result {
    if sentences.is_empty() {
        return Ok(());
    }
    write!(out, "<div class=\"{class}\">")?;
    sentences.iter().try_for_each(|sentence| writeln!(out, "<p>{}</p>", text(sentence)))?;
    out.write_str("</div>\n")
}

impl Section {
    fn write(&self, out: &mut impl Write, id: usize) -> fmt::Result {
        let (title, about) = match self {
            Self::Chart(Chart { title, about, .. })
            | Self::Bars(Bars { title, about, .. })
            | Self::Stack(Stack { title, about, .. })
            | Self::Table(Table { title, about, .. }) => (title, about),
        };
        let class = if self.is_wide() { "wide" } else { "half" };
        writeln!(out, r#"<section class="{class}" aria-labelledby="s{id}"><h2 id="s{id}">{}</h2>"#, text(title))?;
        if !about.is_empty() {
            writeln!(out, "<p class=\"about\">{}</p>", text(about))?;
        }
        match self {
            Self::Table(table) => table.write(out)?,
            Self::Chart(chart) => {
                chart.legend(out)?;
                sizes(self.is_wide()).iter().try_for_each(|size| chart.draw(out, size, &id.to_string()))?;
                chart.table().write_folded(out)?;
            }
            Self::Bars(bars) => {
                bars.legend(out)?;
                sizes(self.is_wide()).iter().try_for_each(|size| bars.draw(out, size, &id.to_string()))?;
                bars.table().write_folded(out)?;
            }
            Self::Stack(stack) => stack.draw(out, id)?,
        }
        out.write_str("</section>\n")
    }

    fn is_wide(&self) -> bool {
        match self {
            Self::Chart(chart) => chart.wide,
            Self::Bars(_) => false,
            Self::Stack(_) | Self::Table(_) => true,
        }
    }
}

impl Table {
    /// A table that opens when it is asked for: a chart's numbers.
    fn write_folded(&self, out: &mut impl Write) -> fmt::Result {
        out.write_str("<details><summary>The numbers</summary>")?;
        self.write(out)?;
        out.write_str("</details>\n")
    }

    fn write(&self, out: &mut impl Write) -> fmt::Result {
        // Scrolls sideways on a narrow screen; the keyboard must reach it.
        out.write_str("<div class=\"scroll\" tabindex=\"0\"><table><thead><tr>")?;
        self.header.iter().try_for_each(|cell| write!(out, "<th scope=\"col\">{}</th>", text(cell)))?;
        out.write_str("</tr></thead><tbody>\n")?;
        for (row, cells) in self.rows.iter().enumerate() {
            out.write_str("<tr>")?;
            for (column, cell) in cells.iter().enumerate() {
                let (open, close) = match (column, self.best.contains(&(row, column))) {
                    (0, _) => ("<th scope=\"row\">", "</th>"),
                    (_, true) => ("<td class=\"best\">", "</td>"),
                    (_, false) => ("<td>", "</td>"),
                };
                write!(out, "{open}{}{close}", text(cell))?;
            }
            out.write_str("</tr>\n")?;
        }
        out.write_str("</tbody></table></div>\n")
    }
}
