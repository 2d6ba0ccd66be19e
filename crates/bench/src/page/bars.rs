//! Stacked bars of shares, as plain data and as SVG.

use std::fmt::{self, Write};

use super::Table;
use super::chart::{Color, Scale};
use super::draw::{BOTTOM, LEFT, RIGHT, Size, TOP, open, px};
use super::markup::{is_drawable, number, text};
use super::scale::Projection;

/// For each category a bar from nothing to all, cut by the shares of its parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bars {
    pub title: String,
    pub about: String,
    /// What a category is.
    pub x: String,
    pub categories: Vec<String>,
    /// From the bottom up.
    pub parts: Vec<Part>,
}

/// One part of every bar.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    pub name: String,
    pub color: Color,
    /// One for each category; a bar's parts are taken as shares of their sum.
    pub amounts: Vec<f64>,
}

impl Bars {
    pub(super) fn legend(&self, out: &mut impl Write) -> fmt::Result {
        out.write_str("<ul class=\"legend\">")?;
        for part in &self.parts {
            let class = part.color.class();
            write!(
                out,
                r#"<li><svg class="{class}" viewBox="0 0 24 12" aria-hidden="true"><path class="bar" d="M6 0H18V12H6Z"/></svg>{}</li>"#,
                text(&part.name)
            )?;
        }
        out.write_str("</ul>\n")
    }

    pub(super) fn table(&self) -> Table {
        let names = self.parts.iter().map(|part| part.name.clone());
        let cell = |part: &Part, bar: usize| part.amounts.get(bar).map(|amount| number(*amount)).unwrap_or_default();
        let row = |(bar, category): (usize, &String)| {
            std::iter::once(category.clone()).chain(self.parts.iter().map(|part| cell(part, bar))).collect()
        };
        Table {
            header: std::iter::once(self.x.clone()).chain(names).collect(),
            rows: self.categories.iter().enumerate().map(row).collect(),
            ..Table::default()
        }
    }

    pub(super) fn draw(&self, out: &mut impl Write, size: &Size, id: &str) -> fmt::Result {
        let floor = size.height - BOTTOM;
        let y = Projection::new(Scale::Linear, [0.0, 100.0].into_iter(), floor, TOP, size.ticks_y);
        open(out, size, id, &self.title, &self.summary())?;
        for value in &y.ticks {
            let Some(at) = y.at(*value) else { continue };
            write!(out, r#"<path class="grid" d="M{} {}H{}"/>"#, px(LEFT), px(at), px(size.width - RIGHT))?;
            let (x, base) = (px(LEFT - 6.0), px(at + 4.0));
            writeln!(out, r#"<text class="tick end" x="{x}" y="{base}">{value}%</text>"#)?;
        }
        let step = (size.width - LEFT - RIGHT) / self.categories.len().max(1) as f64;
        for (bar, category) in self.categories.iter().enumerate() {
            let middle = LEFT + step * (bar as f64 + 0.5);
            self.bar(out, bar, (middle, (step * 0.7).min(44.0)), &y)?;
            // Names that would run into each other are left out, all but every so manieth.
            let every = (26.0 / step).ceil().max(1.0) as usize;
            if bar.is_multiple_of(every) {
                let (x, base) = (px(middle), px(floor + 17.0));
                writeln!(out, r#"<text class="tick middle" x="{x}" y="{base}">{}</text>"#, text(category))?;
            }
        }
        let (x, base) = (px((LEFT + size.width - RIGHT) / 2.0), px(size.height - 6.0));
        writeln!(out, r#"<text class="name middle" x="{x}" y="{base}">{}</text></svg>"#, text(&self.x))
    }

    fn bar(&self, out: &mut impl Write, bar: usize, (middle, width): (f64, f64), y: &Projection) -> fmt::Result {
        let amount = |part: &Part| part.amounts.get(bar).copied().filter(|a| is_drawable(*a) && *a > 0.0);
        let total: f64 = self.parts.iter().filter_map(amount).sum();
        let mut below = 0.0;
        for part in &self.parts {
            let Some(share) = amount(part).map(|amount| 100.0 * amount / total) else { continue };
            let (Some(low), Some(high)) = (y.at(below), y.at(below + share)) else { continue };
            below += share;
            let category = self.categories.get(bar).map_or("", String::as_str);
            let tip = format!("{} \u{b7} {category}: {}%", part.name, number(share));
            writeln!(
                out,
                r#"<rect class="bar {}" x="{}" y="{}" width="{}" height="{}" data-tip="{tip}"><title>{tip}</title></rect>"#,
                part.color.class(),
                px(middle - width / 2.0),
                px(high),
                px(width.max(1.0)),
                px(low - high),
                tip = text(&tip)
            )?;
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let parts: Vec<String> = self
            .parts
            .iter()
            .map(|part| {
                let total: f64 = part.amounts.iter().filter(|amount| is_drawable(**amount)).sum();
                format!("{}: {} in all", part.name, number(total))
            })
            .collect();
        format!("Shares by {}. {}.", self.x, parts.join("; "))
    }
}
