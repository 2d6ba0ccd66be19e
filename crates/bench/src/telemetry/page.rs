//! A page of metrics in Prometheus' text format, read by what several servers call the same.

use std::collections::HashMap;

use crate::series::StartPart;

/// Names of one figure; the first that is there counts.
pub(super) type Names = &'static [&'static str];

pub(super) const RUNNING: Names = &[
    "plimsoll:num_requests_running",
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
];
pub(super) const WAITING: Names = &[
    "plimsoll:num_requests_waiting",
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
];
pub(super) const KV_USAGE: Names = &[
    "plimsoll:kv_cache_usage_perc",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "llamacpp:kv_cache_usage_ratio",
];
pub(super) const PREEMPTIONS: Names =
    &["plimsoll:num_preemptions_total", "vllm:num_preemptions_total", "vllm:num_preemptions"];
pub(super) const RESIDENT: Names = &["process_resident_memory_bytes"];
pub(super) const QUEUE_TIME: Names = &["plimsoll:request_queue_time_seconds", "vllm:request_queue_time_seconds"];
pub(super) const PREFILL_TIME: Names = &["plimsoll:request_prefill_time_seconds", "vllm:request_prefill_time_seconds"];
pub(super) const STEPS: Names = &["plimsoll:steps_total"];
pub(super) const STEPPING: Names = &["plimsoll:busy_seconds_total"];
/// By part.
const START_UP: &str = "plimsoll:startup_seconds";

/// The sum over the labels of each name, and the parts of the server's start.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Page {
    sums: HashMap<String, f64>,
    pub(super) start: Vec<StartPart>,
}

impl Page {
    /// Lines that are no metric are left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut page = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            // A label's value may hold spaces and braces; what stands behind the last brace does not.
            let rest = line.rsplit('}').next().unwrap_or(line);
            let value =
                if rest.len() == line.len() { rest.split_whitespace().nth(1) } else { rest.split_whitespace().next() };
            let value = value.and_then(|value| value.parse::<f64>().ok()).filter(|value| value.is_finite());
            let Some(value) = value else { continue };
            *page.sums.entry(name.to_owned()).or_insert(0.0) += value;
            if let Some(part) = label(line, "part").filter(|_| name == START_UP) {
                page.start.push(StartPart { name: part.to_owned(), seconds: value });
            }
        }
        page
    }

    pub(super) fn get(&self, names: Names) -> Option<f64> {
        names.iter().find_map(|name| self.sums.get(*name).copied())
    }

    /// Whether the page says anything of what is looked for.
    pub(super) fn is_known(&self) -> bool {
        [RUNNING, WAITING, KV_USAGE].iter().any(|names| self.get(names).is_some())
            || self.histogram(QUEUE_TIME).is_some()
    }

    /// Sum and count of a histogram.
    fn histogram(&self, names: Names) -> Option<(f64, f64)> {
        let of = |name: &str, part| self.sums.get(&format!("{name}_{part}")).copied();
        names.iter().find_map(|name| of(name, "sum").zip(of(name, "count")))
    }

    /// The mean of what a histogram took in since `before`, in milliseconds.
    pub(super) fn mean_since(&self, before: &Self, names: Names) -> Option<f64> {
        mean_ms(self.histogram(names)?, before.histogram(names)?)
    }

    /// Milliseconds that a step took on average since `before`.
    pub(super) fn step_since(&self, before: &Self) -> Option<f64> {
        let steps = |page: &Self| page.get(STEPPING).zip(page.get(STEPS));
        mean_ms(steps(self)?, steps(before)?)
    }
}

/// Of sums in seconds and their counts.
fn mean_ms((sum, count): (f64, f64), (old_sum, old_count): (f64, f64)) -> Option<f64> {
    // A server that was started anew counts from 0.
    (count > old_count && sum >= old_sum).then(|| 1e3 * (sum - old_sum) / (count - old_count))
}

/// The value of a label that holds no quotes.
fn label<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, value) = line.split_once(&format!("{name}=\""))?;
    value.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_by_the_first_name_that_is_there() {
        let page = Page::parse(
            "# HELP x y\n# TYPE x gauge\nvllm:num_requests_running{model_name=\"a } b\"} 3\n\
             plimsoll:num_requests_running{model_name=\"m\"} 4.0\nplimsoll:num_preemptions_total{a=\"1\"} 1\n\
             plimsoll:num_preemptions_total{a=\"2\"} 2 1700000000\nplimsoll:kv_cache_usage_perc NaN\nnonsense\n",
        );
        assert_eq!((page.get(RUNNING), page.get(PREEMPTIONS), page.get(KV_USAGE)), (Some(4.0), Some(3.0), None));
        assert!(page.is_known() && !Page::parse("go_goroutines 7\n").is_known());
        assert_eq!(Page::parse("vllm:num_requests_running{model_name=\"a } b\"} 3").get(RUNNING), Some(3.0));
    }

    #[test]
    fn a_start_has_parts() {
        let page = Page::parse(
            "plimsoll:startup_seconds{part=\"open\",model_name=\"m\"} 0.5\n\
             plimsoll:startup_seconds{part=\"weights\",model_name=\"m\"} 2\n",
        );
        let parts: Vec<(&str, f64)> = page.start.iter().map(|part| (part.name.as_str(), part.seconds)).collect();
        assert_eq!(parts, [("open", 0.5), ("weights", 2.0)]);
    }

    #[test]
    fn a_step_s_time_is_of_the_steps_between_two_pages() {
        let page = |busy: f64, steps: u32| {
            Page::parse(&format!("plimsoll:busy_seconds_total {busy}\nplimsoll:steps_total {steps}\n"))
        };
        let before = page(4.0, 100);
        assert!(page(5.0, 150).step_since(&before).is_some_and(|step| (step - 20.0).abs() < 1e-9));
        assert_eq!(before.step_since(&before), None, "no step was made");
        assert_eq!(page(0.1, 3).step_since(&before), None, "it was started anew");
        assert_eq!(Page::parse("").step_since(&before), None);
    }
}
