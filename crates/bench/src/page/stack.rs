//! Charts above each other over one x axis, so that what happened at the same time stands in one line.

use std::fmt::{self, Write};

use super::chart::Chart;
use super::draw::panel_sizes;

/// Charts over one x axis, of which the last names it. What their y axes are, the names of their series say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stack {
    pub title: String,
    /// What it shows and how to read it, in a sentence or two.
    pub about: String,
    pub panels: Vec<Chart>,
}

impl Stack {
    /// Whether anything can be drawn.
    pub fn is_empty(&self) -> bool {
        self.panels.iter().all(Chart::is_empty)
    }

    pub(super) fn draw(&self, out: &mut impl Write, id: usize) -> fmt::Result {
        let shown: Vec<&Chart> = self.panels.iter().filter(|panel| !panel.is_empty()).collect();
        let places: Vec<f64> = shown.iter().flat_map(|panel| panel.places()).collect();
        for (index, panel) in shown.iter().enumerate() {
            out.write_str("<div class=\"panel\">")?;
            // What is shaded is the same in all of them, so the first one says what it is.
            let spans = if index == 0 { panel.spans.clone() } else { Vec::new() };
            Chart { spans, ..(*panel).clone() }.legend(out)?;
            let sizes = panel_sizes(index + 1 == shown.len());
            let id = format!("{id}p{index}");
            sizes.iter().try_for_each(|size| panel.draw_over(out, size, &id, &places))?;
            out.write_str("</div>\n")?;
        }
        self.table().write_folded(out)
    }

    /// All panels' numbers in one table.
    fn table(&self) -> super::Table {
        let x = self.panels.first().map(|panel| panel.x.clone()).unwrap_or_default();
        let series = self.panels.iter().flat_map(|panel| &panel.series).filter(|series| !series.points.is_empty());
        Chart { x, series: series.cloned().collect(), ..Chart::default() }.table()
    }
}
