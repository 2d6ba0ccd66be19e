//! A chart of series over a common axis, as plain data.

use std::fmt::{self, Write};

use super::Table;
use super::markup::{number, text};

/// Series over a common x axis, with what is marked on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    pub title: String,
    /// What it shows and how to read it, in a sentence or two.
    pub about: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    pub spans: Vec<Span>,
    pub rules: Vec<Rule>,
    /// Over the page's whole width.
    pub wide: bool,
}

/// One of a chart's two axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    pub label: String,
    pub scale: Scale,
}

impl Axis {
    pub fn new(label: impl Into<String>, scale: Scale) -> Self {
        Self { label: label.into(), scale }
    }
}

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// From zero on.
    #[default]
    Linear,
    /// From zero to the last value, where no tick need be.
    Time,
    /// Each doubling as wide as any other, as a ladder of concurrencies goes.
    Doubling,
    /// Each power of ten as wide as any other.
    Decades,
}

impl Scale {
    pub(super) fn is_linear(self) -> bool {
        matches!(self, Self::Linear | Self::Time)
    }
}

/// Points in the order they are joined in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    pub name: String,
    pub color: Color,
    pub line: Line,
    pub points: Vec<Point>,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Line {
    /// A line through dots.
    #[default]
    Solid,
    Dashed,
    Dotted,
    /// A thin line without dots, for very many points.
    Thin,
    /// Dots alone.
    Dots,
}

/// One measurement. What cannot be drawn, as a number that is not finite, is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// The ends of its confidence interval.
    pub interval: Option<(f64, f64)>,
    /// What the point is, if its x does not tell.
    pub name: String,
}

impl Point {
    pub fn new(x: f64, y: f64) -> Self {
        Self { x, y, ..Self::default() }
    }
}

/// A colour with a meaning: the same thing has the same one in every chart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    #[default]
    Blue,
    Orange,
    Aqua,
    Violet,
    Yellow,
    Red,
    Magenta,
    Green,
    Brown,
    Grey,
}

impl Color {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Orange => "orange",
            Self::Aqua => "aqua",
            Self::Violet => "violet",
            Self::Yellow => "yellow",
            Self::Red => "red",
            Self::Magenta => "magenta",
            Self::Green => "green",
            Self::Brown => "brown",
            Self::Grey => "grey",
        }
    }
}

/// A stretch of the x axis that is shaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Span {
    pub name: String,
    pub from: f64,
    pub to: f64,
    pub color: Color,
}

/// A line across the chart, with its name beside it.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// At a value of x. The axis makes room for it.
    X { name: String, at: f64, color: Color },
    /// At a value of y. Drawn where the axis, which it does not stretch, shows it.
    Y { name: String, at: f64, color: Color },
}

impl Chart {
    /// Whether anything can be drawn.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.points.is_empty())
    }

    /// Which colour and line is what.
    pub(super) fn legend(&self, out: &mut impl Write) -> fmt::Result {
        out.write_str("<ul class=\"legend\">")?;
        for series in self.series.iter().filter(|series| !series.points.is_empty()) {
            let (class, line) = (series.color.class(), series.line.class());
            let shape = match series.line {
                Line::Dots => r#"<circle class="dot" cx="12" cy="6" r="3.5"/>"#,
                _ => r#"<path class="line" d="M1 6H23"/>"#,
            };
            write!(
                out,
                r#"<li><svg class="{class} {line}" viewBox="0 0 24 12" aria-hidden="true">{shape}</svg>{}</li>"#,
                text(&series.name)
            )?;
        }
        for span in &self.spans {
            write!(
                out,
                r#"<li><svg class="{}" viewBox="0 0 24 12" aria-hidden="true"><path class="span" d="M1 0H23V12H1Z"/></svg>{}</li>"#,
                span.color.class(),
                text(&span.name)
            )?;
        }
        out.write_str("</ul>\n")
    }

    /// The points as a table: a row for each x, a column for each series. Long series are thinned out.
    pub(super) fn table(&self) -> Table {
        const MOST_ROWS: usize = 200;
        let mut places: Vec<(f64, &str)> = Vec::new();
        for point in self.series.iter().flat_map(|series| &series.points) {
            if !places.iter().rev().take(4096).any(|(x, name)| *x == point.x && *name == point.name) {
                places.push((point.x, &point.name));
            }
        }
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        let every = places.len().div_ceil(MOST_ROWS).max(1);
        let names = self.series.iter().map(|series| series.name.clone());
        let row = |(x, name): &(f64, &str)| {
            let head = if name.is_empty() { number(*x) } else { format!("{name} ({})", number(*x)) };
            let cell = |series: &Series| {
                let point = series.points.iter().find(|point| point.x == *x && point.name == *name);
                point.map(Point::described).unwrap_or_default()
            };
            std::iter::once(head).chain(self.series.iter().map(cell)).collect()
        };
        Table {
            header: std::iter::once(self.x.label.clone()).chain(names).collect(),
            rows: places.iter().step_by(every).map(row).collect(),
            ..Table::default()
        }
    }
}

impl Point {
    /// The value with its interval.
    pub(super) fn described(&self) -> String {
        let interval = self.interval.map(|(low, high)| format!(" ({} to {})", number(low), number(high)));
        format!("{}{}", number(self.y), interval.unwrap_or_default())
    }
}

impl Line {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Solid => "solid",
            Self::Dashed => "dashed",
            Self::Dotted => "dotted",
            Self::Thin => "thin",
            Self::Dots => "dots",
        }
    }
}
