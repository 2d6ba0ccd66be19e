//! Charts as SVG, drawn twice: for a wide screen and for a phone, where the style shows the one that fits. Text that is
//! scaled down with its picture cannot be read.

use std::fmt::{self, Write};

use super::chart::{Chart, Line, Point, Rule, Series};
use super::markup::{is_drawable, number, text, tick};
use super::scale::Projection;

/// What a picture is drawn for.
pub(super) struct Size {
    pub(super) class: &'static str,
    pub(super) width: f64,
    pub(super) height: f64,
    /// Below the plot, for the x axis.
    pub(super) bottom: f64,
    pub(super) ticks_x: usize,
    pub(super) ticks_y: usize,
}

const SMALL: Size = Size { class: "small", width: 360.0, height: 290.0, bottom: BOTTOM, ticks_x: 5, ticks_y: 5 };
const HALF: Size = Size { class: "large", width: 560.0, height: 300.0, bottom: BOTTOM, ticks_x: 7, ticks_y: 5 };
const WIDE: Size = Size { class: "large", width: 940.0, height: 380.0, bottom: BOTTOM, ticks_x: 13, ticks_y: 6 };

/// The sizes of a picture over the whole width of the page, or half of it.
pub(super) fn sizes(wide: bool) -> [Size; 2] {
    [if wide { WIDE } else { HALF }, SMALL]
}

/// The sizes of one of several pictures above each other, of which the last alone names its x axis.
pub(super) fn panel_sizes(is_last: bool) -> [Size; 2] {
    let (bottom, below) = if is_last { (BOTTOM, BOTTOM - PANEL_BOTTOM) } else { (PANEL_BOTTOM, 0.0) };
    let panel = |size: Size, height: f64| Size { height: height + below, bottom, ticks_y: 3, ..size };
    [panel(WIDE, 96.0), panel(SMALL, 104.0)]
}

/// Room for the ticks of the y axis, beyond the last tick of the x axis, and for the x axis below.
pub(super) const LEFT: f64 = 46.0;
pub(super) const RIGHT: f64 = 14.0;
pub(super) const BOTTOM: f64 = 42.0;
/// Of a panel with another one below; and above one whose y axis has no name.
const PANEL_BOTTOM: f64 = 8.0;
const PANEL_TOP: f64 = 9.0;
/// Room above, for the name of the y axis, and for each rule's.
pub(super) const TOP: f64 = 24.0;
const ROW: f64 = 15.0;
/// An interval may stretch the y axis to so many times the greatest value.
const STRETCH: f64 = 1.3;

/// A chart's axes on a picture.
struct Plot<'a> {
    chart: &'a Chart,
    size: &'a Size,
    x: Projection,
    y: Projection,
    top: f64,
}

impl Chart {
    pub(super) fn draw(&self, out: &mut impl Write, size: &Size, id: &str) -> fmt::Result {
        self.draw_over(out, size, id, &self.places())
    }

    /// The places on the x axis that the chart must show.
    pub(super) fn places(&self) -> Vec<f64> {
        let points = self.series.iter().flat_map(|series| &series.points).map(|point| point.x);
        let vertical = self.rules.iter().filter_map(|rule| match rule {
            Rule::X { at, .. } => Some(*at),
            Rule::Y { .. } => None,
        });
        let spans = self.spans.iter().flat_map(|span| [span.from, span.to]);
        points.chain(vertical).chain(spans).collect()
    }

    /// Over an x axis that shows these places.
    pub(super) fn draw_over(&self, out: &mut impl Write, size: &Size, id: &str, places: &[f64]) -> fmt::Result {
        let plot = Plot::new(self, size, places);
        open(out, size, id, &self.title, &self.summary())?;
        plot.spans(out)?;
        plot.grid(out)?;
        plot.rules(out)?;
        self.series.iter().try_for_each(|series| plot.series(out, series))?;
        out.write_str("</svg>\n")
    }

    /// The chart in words, for who cannot see it.
    fn summary(&self) -> String {
        let series = self.series.iter().filter(|series| !series.points.is_empty()).map(|series| {
            let ends = (series.points.first(), series.points.last());
            let (Some(first), Some(last)) = ends else { return String::new() };
            let at = |point: &Point| format!("{} at {}", number(point.y), number(point.x));
            format!("{}: from {} to {}", series.name, at(first), at(last))
        });
        let rules = self.rules.iter().map(|rule| match rule {
            Rule::X { name, .. } | Rule::Y { name, .. } => name.clone(),
        });
        let parts: Vec<String> = series.chain(rules).collect();
        let what = if self.y.label.is_empty() { "Values" } else { &self.y.label };
        format!("{what} over {}. {}.", self.x.label, parts.join("; "))
    }
}

/// Begins a picture that says in words what it is.
pub(super) fn open(out: &mut impl Write, size: &Size, id: &str, title: &str, about: &str) -> fmt::Result {
    let Size { class, width, height, .. } = size;
    writeln!(
        out,
        r#"<svg class="chart {class}" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t{id}{class} d{id}{class}"><title id="t{id}{class}">{}</title><desc id="d{id}{class}">{}</desc>"#,
        text(title),
        text(about)
    )
}

/// A coordinate: a tenth of a pixel is enough.
pub(super) fn px(value: f64) -> String {
    debug_assert!(value.is_finite(), "a projection gives numbers");
    let rounded = format!("{value:.1}");
    rounded.strip_suffix(".0").map_or(rounded.clone(), str::to_owned)
}

impl<'a> Plot<'a> {
    fn new(chart: &'a Chart, size: &'a Size, places: &[f64]) -> Self {
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let highest = points().map(|point| point.y).filter(|y| is_drawable(*y)).fold(0.0, f64::max) * STRETCH;
        let ends = points().filter_map(|point| point.interval).flat_map(|(low, high)| [low, high.min(highest)]);
        let ys = points().map(|point| point.y).chain(ends.filter(|end| *end > 0.0));
        let above = if chart.y.label.is_empty() { PANEL_TOP } else { TOP };
        let top = above + ROW * chart.rules.iter().filter(|rule| matches!(rule, Rule::X { .. })).count() as f64;
        Self {
            x: Projection::new(chart.x.scale, places.iter().copied(), LEFT, size.width - RIGHT, size.ticks_x),
            y: Projection::new(chart.y.scale, ys, size.height - size.bottom, top, size.ticks_y),
            chart,
            size,
            top,
        }
    }

    fn floor(&self) -> f64 {
        self.size.height - self.size.bottom
    }

    fn grid(&self, out: &mut impl Write) -> fmt::Result {
        let (left, right, floor) = (px(LEFT), px(self.size.width - RIGHT), self.floor());
        for value in &self.y.ticks {
            let Some(y) = self.y.at(*value) else { continue };
            let (line, base) = (px(y), px(y + 4.0));
            write!(out, r#"<path class="grid" d="M{left} {line}H{right}"/>"#)?;
            writeln!(out, r#"<text class="tick end" x="{}" y="{base}">{}</text>"#, px(LEFT - 6.0), tick(*value))?;
        }
        writeln!(out, r#"<path class="axis" d="M{left} {}H{right}"/>"#, px(floor))?;
        for value in &self.x.ticks {
            let Some(x) = self.x.at(*value).map(px) else { continue };
            write!(out, r#"<path class="axis" d="M{x} {}v4"/>"#, px(floor))?;
            if self.size.bottom < BOTTOM {
                continue;
            }
            writeln!(out, r#"<text class="tick middle" x="{x}" y="{}">{}</text>"#, px(floor + 17.0), tick(*value))?;
        }
        let y_name = text(&self.chart.y.label);
        writeln!(out, r#"<text class="name" x="2" y="12">{y_name}</text>"#)?;
        if self.size.bottom < BOTTOM {
            return Ok(());
        }
        let (middle, base) = (px((LEFT + self.size.width - RIGHT) / 2.0), px(self.size.height - 6.0));
        writeln!(out, r#"<text class="name middle" x="{middle}" y="{base}">{}</text>"#, text(&self.chart.x.label))
    }

    fn spans(&self, out: &mut impl Write) -> fmt::Result {
        for span in &self.chart.spans {
            let (Some(from), Some(to)) = (self.x.at(span.from), self.x.at(span.to)) else { continue };
            let (from, width) = (from.min(to), (to - from).abs().max(2.0));
            let (top, height) = (px(self.top), px(self.floor() - self.top));
            writeln!(
                out,
                r#"<rect class="span {}" x="{}" y="{top}" width="{}" height="{height}"><title>{}</title></rect>"#,
                span.color.class(),
                px(from),
                px(width),
                text(&span.name)
            )?;
        }
        Ok(())
    }

    /// Each vertical line's name has a row of its own above the plot, on the side where there is more room.
    fn rules(&self, out: &mut impl Write) -> fmt::Result {
        let mut row = TOP;
        for rule in &self.chart.rules {
            match rule {
                Rule::X { name, at, color } => {
                    let Some(x) = self.x.at(*at) else { continue };
                    let class = color.class();
                    let (side, shift) = if x > self.size.width / 2.0 { ("end", -5.0) } else { ("", 5.0) };
                    let (from, to, base) = (px(row), px(self.floor()), px(row + 11.0));
                    write!(out, r#"<path class="rule {class}" d="M{} {from}V{to}"/>"#, px(x))?;
                    let (x, name) = (px(x + shift), text(name));
                    writeln!(out, r#"<text class="mark {class} {side}" x="{x}" y="{base}">{name}</text>"#)?;
                    row += ROW;
                }
                Rule::Y { name, at, color } => {
                    let Some(y) = self.y.at(*at).filter(|_| self.y.shows(*at)) else { continue };
                    let (class, right) = (color.class(), px(self.size.width - RIGHT));
                    write!(out, r#"<path class="rule {class}" d="M{} {}H{right}"/>"#, px(LEFT), px(y))?;
                    writeln!(
                        out,
                        r#"<text class="mark {class}" x="{}" y="{}">{}</text>"#,
                        px(LEFT + 4.0),
                        px(y - 5.0),
                        text(name)
                    )?;
                }
            }
        }
        Ok(())
    }

    fn series(&self, out: &mut impl Write, series: &Series) -> fmt::Result {
        let placed: Vec<(f64, f64, &Point)> =
            series.points.iter().filter_map(|p| Some((self.x.at(p.x)?, self.y.at(p.y)?, p))).collect();
        writeln!(out, r#"<g class="{} {}">"#, series.color.class(), series.line.class())?;
        self.band(out, &placed)?;
        self.area(out, series, &placed)?;
        if series.line != Line::Dots && placed.len() > 1 {
            out.write_str(r#"<path class="line" d=""#)?;
            for (index, (x, y, _)) in placed.iter().enumerate() {
                write!(out, "{}{} {}", if index == 0 { "M" } else { "L" }, px(*x), px(*y))?;
            }
            out.write_str("\"/>\n")?;
        }
        if series.line != Line::Thin {
            for (x, y, point) in &placed {
                self.dot(out, series, (*x, *y), point)?;
            }
        }
        out.write_str("</g>\n")
    }

    /// What is below a line that has the picture for itself.
    fn area(&self, out: &mut impl Write, series: &Series, placed: &[(f64, f64, &Point)]) -> fmt::Result {
        let shown = self.chart.series.iter().filter(|series| !series.points.is_empty()).count();
        let (Some(first), Some(last)) = (placed.first(), placed.last()) else { return Ok(()) };
        if series.line != Line::Thin || shown > 1 {
            return Ok(());
        }
        let floor = px(self.floor());
        write!(out, r#"<path class="area" d="M{} {floor}"#, px(first.0))?;
        placed.iter().try_for_each(|(x, y, _)| write!(out, "L{} {}", px(*x), px(*y)))?;
        writeln!(out, "L{} {floor}Z\"/>", px(last.0))
    }

    /// The confidence intervals: a band where points are joined, and a whisker at each.
    fn band(&self, out: &mut impl Write, placed: &[(f64, f64, &Point)]) -> fmt::Result {
        let ends = |point: &Point| {
            let (low, high) = point.interval?;
            // On a logarithmic axis an interval that reaches zero reaches the axis.
            Some((self.y.at(low).unwrap_or(self.floor()), self.y.at(high).unwrap_or(self.top)))
        };
        let known: Vec<(f64, f64, f64)> =
            placed.iter().filter_map(|(x, _, point)| ends(point).map(|(low, high)| (*x, low, high))).collect();
        if known.len() > 1 {
            out.write_str(r#"<path class="band" d=""#)?;
            let upper = known.iter().map(|(x, _, high)| (x, high));
            let lower = known.iter().rev().map(|(x, low, _)| (x, low));
            for (index, (x, y)) in upper.chain(lower).enumerate() {
                write!(out, "{}{} {}", if index == 0 { "M" } else { "L" }, px(*x), px(*y))?;
            }
            out.write_str("Z\"/>\n")?;
        }
        known.iter().try_for_each(|(x, low, high)| {
            writeln!(out, r#"<path class="whisker" d="M{} {}V{}"/>"#, px(*x), px(*low), px(*high))
        })
    }

    fn dot(&self, out: &mut impl Write, series: &Series, (x, y): (f64, f64), point: &Point) -> fmt::Result {
        let place = if point.name.is_empty() { number(point.x) } else { point.name.clone() };
        let tip = format!("{} \u{b7} {}: {}", series.name, place, point.described());
        let tip = text(&tip);
        let (x, y) = (px(x), px(y));
        writeln!(out, r#"<circle class="dot" cx="{x}" cy="{y}" r="3.2" data-tip="{tip}"><title>{tip}</title></circle>"#)
    }
}
