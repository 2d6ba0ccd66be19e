//! A saturation report as comma-separated values: one row each time something was measured (RFC 4180).

use std::fmt::Write;

use crate::report::charts::{joules_per_token, mean_in_window};
use crate::report::{RungReport, SaturationReport};
use crate::summary::Distribution;

/// Names of the columns before the latencies.
const COLUMNS: [&str; 22] = [
    "kind",
    "concurrency",
    "offered_requests_per_s",
    "requests_per_s",
    "input_tokens_per_s",
    "output_tokens_per_s",
    "output_tokens_per_s_half_width",
    "goodput_requests_per_s",
    "success_rate",
    "requests",
    "succeeded",
    "http_429",
    "http_503",
    "http_other",
    "timeout",
    "truncated",
    "in_band_error",
    "malformed",
    "empty",
    "connection",
    "steady",
    "joules_per_output_token",
];
/// Latencies, each with its mean and percentiles.
const LATENCIES: [&str; 5] = ["tokens_per_s_per_user", "ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"];
const STATISTICS: [&str; 5] = ["mean", "p50", "p90", "p95", "p99"];

/// What the server said of itself, means over the measured window but for the count of preemptions; behind the latencies.
const SERVER: [&str; 12] = [
    "running",
    "waiting",
    "kv_cache_usage",
    "preemptions",
    "step_ms",
    "queue_ms",
    "prefill_ms",
    "network_ms",
    "rss_bytes",
    "gpu_utilization",
    "gpu_memory_bytes",
    "gpu_power_w",
];

impl SaturationReport {
    /// The rungs of the ladder (`closed`), what was offered to an open loop (`open`), and what was measured again at the
    /// end (`recheck`). What is not known is empty.
    pub fn csv(&self) -> String {
        let mut out = COLUMNS.join(",");
        for latency in LATENCIES {
            STATISTICS.iter().for_each(|statistic| out.push_str(&format!(",{latency}_{statistic}")));
        }
        SERVER.iter().for_each(|column| out.push_str(&format!(",{column}")));
        out.push('\n');
        self.rungs.iter().for_each(|rung| row(&mut out, "closed", None, rung));
        self.offered.iter().for_each(|offered| row(&mut out, "open", Some(offered.rate), &offered.rung));
        self.rechecks.iter().for_each(|rung| row(&mut out, "recheck", None, rung));
        out
    }
}

fn row(out: &mut String, kind: &str, offered: Option<f64>, rung: &RungReport) {
    let summary = &rung.summary;
    let outcomes = &summary.outcomes;
    let mut cells = vec![
        kind.to_owned(),
        summary.concurrency.to_string(),
        number(offered),
        number(Some(summary.rates.requests_per_s)),
        number(Some(summary.rates.input_tokens_per_s)),
        number(Some(summary.rates.output_tokens_per_s)),
        number(summary.output_half_width),
        number(summary.slo.as_ref().map(|slo| slo.goodput_per_s)),
        number(Some(summary.success_rate)),
        outcomes.total().to_string(),
        outcomes.success.to_string(),
        outcomes.http_429.to_string(),
        outcomes.http_503.to_string(),
        outcomes.http_other.to_string(),
        outcomes.timeout.to_string(),
        outcomes.truncated.to_string(),
        outcomes.in_band_error.to_string(),
        outcomes.malformed.to_string(),
        outcomes.empty.to_string(),
        outcomes.connection.to_string(),
        summary.window.steady.to_string(),
        number(joules_per_token(rung)),
    ];
    let latencies =
        [&summary.per_user.one_over_tpot, &summary.ttft_ms, &summary.tpot_ms, &summary.itl_ms, &summary.e2e_ms];
    for latency in latencies {
        let value = |value: fn(&Distribution) -> f64| number(latency.as_ref().map(value));
        cells.extend([value(|d| d.mean), value(|d| d.p50), value(|d| d.p90), value(|d| d.p95), value(|d| d.p99)]);
    }
    cells.extend(server(rung).map(number));
    writeln!(out, "{}", cells.join(",")).expect("a String takes everything");
}

fn number(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map(|value| value.to_string()).unwrap_or_default()
}

/// In the order of [`SERVER`].
fn server(rung: &RungReport) -> [Option<f64>; SERVER.len()] {
    let side = rung.server.as_ref();
    let split = side.and_then(|side| side.ttft_split);
    [
        mean_in_window(rung, |sample| sample.running),
        mean_in_window(rung, |sample| sample.waiting),
        mean_in_window(rung, |sample| sample.kv_cache_usage),
        side.and_then(|side| side.preemptions).map(|count| count as f64),
        mean_in_window(rung, |sample| sample.step_ms),
        split.map(|split| split.queue_ms),
        split.map(|split| split.prefill_ms),
        split.map(|split| split.network_ms),
        mean_in_window(rung, |sample| sample.rss_bytes),
        mean_in_window(rung, |sample| sample.gpu_mean(|gpu| gpu.utilization)),
        mean_in_window(rung, |sample| sample.gpu_sum(|gpu| gpu.memory_bytes)),
        mean_in_window(rung, |sample| sample.gpu_sum(|gpu| gpu.power_w)),
    ]
}
