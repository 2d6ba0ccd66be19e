//! A plan as a page with charts.

use plimsoll_bench::page::{
    Axis, Bars, Chart, Color, Fact, Line, Page, Part, Point, Rule, Scale, Section, Series, Table, number,
};

use super::curve::Rung;
use super::report::{HEADERS, Plan};
use crate::bytes::ByteSize;

impl Plan {
    pub(super) fn page(&self) -> Page {
        let table = Table {
            title: "All rungs".to_owned(),
            about: "Times in ms; running is the sequences in a step on average; the last column is what bounds most of the \
                    time, and how much of it."
                .to_owned(),
            header: HEADERS.map(str::to_owned).to_vec(),
            rows: self.rungs.iter().map(|rung| rung.cells().to_vec()).collect(),
            best: Vec::new(),
        };
        Page {
            title: self.headline(),
            answer: self.headline(),
            detail: self.detail(),
            subject: format!("{} on {}", self.model, self.gpu.name),
            facts: self.facts(),
            warnings: vec!["this is a prediction. Nothing was run on a GPU.".to_owned()],
            findings: self.findings(),
            sections: vec![
                Section::Chart(self.throughput()),
                Section::Chart(self.latency()),
                Section::Chart(self.trade_off()),
                Section::Bars(self.time()),
                Section::Bars(self.memory()),
                Section::Table(table),
            ],
            notes: self.assumptions(),
        }
    }

    fn facts(&self) -> Vec<Fact> {
        let fact = |name: &str, value: String, unit: &str, detail: String| Fact {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            detail,
        };
        let memory = &self.memory;
        vec![
            fact("Saturation point", self.answer.saturation.to_string(), "concurrent", "predicted".to_owned()),
            fact(
                "Highest throughput",
                number(self.answer.peak_throughput),
                "output tok/s",
                format!("predicted, at N = {}", self.answer.peak),
            ),
            fact("Bound by", self.binds.short().to_owned(), "", self.binds.in_words().to_owned()),
            fact("Weights", ByteSize(memory.weights).to_string(), "", format!("of {}", ByteSize(memory.usable))),
            fact(
                "KV cache",
                ByteSize(memory.kv_cache).to_string(),
                "",
                format!("{} such requests at once", memory.workload_requests),
            ),
        ]
    }

    fn series(&self, name: &str, color: Color, line: Line, value: impl Fn(&Rung) -> f64) -> Series {
        let points = self.rungs.iter().map(|rung| Point::new(rung.concurrency.into(), value(rung))).collect();
        Series { name: name.to_owned(), color, line, points }
    }

    fn marks(&self) -> Vec<Rule> {
        let at = |name: String, n: u32, color| Rule::X { name, at: n.into(), color };
        let n = self.answer.saturation;
        let mut marks = vec![at(format!("saturates at {n}"), n, Color::Aqua)];
        marks.extend(
            self.answer
                .breakpoint
                .map(|found| at(format!("breaks at {}", found.first_fail), found.first_fail, Color::Red)),
        );
        marks
    }

    fn concurrency() -> Axis {
        Axis::new("concurrent requests", Scale::Doubling)
    }

    fn throughput(&self) -> Chart {
        Chart {
            title: "Predicted throughput against concurrency".to_owned(),
            about:
                "The dashed line is the roofline itself: everything as the datasheet says, and a host that takes no \
                    time."
                    .to_owned(),
            x: Self::concurrency(),
            y: Axis::new("output tok/s", Scale::Linear),
            series: vec![
                self.series("predicted", Color::Blue, Line::Solid, |rung| rung.output_tokens_per_s),
                self.series("the roofline", Color::Grey, Line::Dashed, |rung| rung.roofline_tokens_per_s),
            ],
            rules: self.marks(),
            wide: true,
            ..Chart::default()
        }
    }

    fn latency(&self) -> Chart {
        Chart {
            title: "Predicted latency against concurrency".to_owned(),
            about: "Time to the first token, and time a token after it.".to_owned(),
            x: Self::concurrency(),
            y: Axis::new("ms", Scale::Decades),
            series: vec![
                self.series("TTFT p50", Color::Violet, Line::Solid, |rung| rung.ttft_ms.p50),
                self.series("TTFT p99", Color::Violet, Line::Dotted, |rung| rung.ttft_ms.p99),
                self.series("TPOT p50", Color::Orange, Line::Solid, |rung| rung.tpot_ms.p50),
                self.series("TPOT p99", Color::Orange, Line::Dotted, |rung| rung.tpot_ms.p99),
            ],
            rules: self.marks(),
            ..Chart::default()
        }
    }

    fn trade_off(&self) -> Chart {
        let point = |rung: &Rung| Point {
            name: format!("N = {}", rung.concurrency),
            ..Point::new(1e3 / rung.tpot_ms.p50, rung.output_tokens_per_s)
        };
        Chart {
            title: "What all get against what each gets".to_owned(),
            about: "Each dot is a concurrency; up and to the right is better.".to_owned(),
            x: Axis::new("tok/s/user", Scale::Linear),
            y: Axis::new("output tok/s per GPU", Scale::Linear),
            series: vec![Series {
                name: "predicted".to_owned(),
                color: Color::Blue,
                line: Line::Solid,
                points: self.rungs.iter().map(point).collect(),
            }],
            ..Chart::default()
        }
    }

    /// Where a step's time goes.
    fn time(&self) -> Bars {
        let names = ["reading weights", "reading keys and values", "arithmetic", "overhead of a step", "the host"];
        let colors = [Color::Blue, Color::Violet, Color::Orange, Color::Grey, Color::Red];
        let part = |(index, (name, color)): (usize, (&str, Color))| Part {
            name: name.to_owned(),
            color,
            amounts: self.rungs.iter().map(|rung| 100.0 * rung.time_shares[index]).collect(),
        };
        Bars {
            title: "What the time goes to".to_owned(),
            about: "Percent of the time by what bounds each part of a step.".to_owned(),
            x: "concurrent requests".to_owned(),
            categories: self.rungs.iter().map(|rung| rung.concurrency.to_string()).collect(),
            parts: names.into_iter().zip(colors).enumerate().map(part).collect(),
        }
    }

    fn memory(&self) -> Bars {
        let memory = &self.memory;
        let used = [memory.weights, memory.workspace, memory.overhead, memory.kv_cache];
        let left = self.gpu.memory_bytes.saturating_sub(used.iter().sum());
        let names = ["weights", "workspace", "libraries", "KV cache", "not used"];
        let colors = [Color::Blue, Color::Orange, Color::Grey, Color::Violet, Color::Yellow];
        let amounts = used.into_iter().chain([left]);
        let part = |((name, color), bytes): ((&str, Color), u64)| Part {
            name: name.to_owned(),
            color,
            amounts: vec![bytes as f64 / f64::from(1 << 30)],
        };
        Bars {
            title: "Where the memory goes".to_owned(),
            about: "In GiB.".to_owned(),
            x: String::new(),
            categories: vec![self.gpu.name.to_owned()],
            parts: names.into_iter().zip(colors).zip(amounts).map(part).collect(),
        }
    }
}
