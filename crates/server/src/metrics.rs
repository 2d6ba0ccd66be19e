//! Counters for Prometheus. Each is kept once, under `plimsoll:`; those that vLLM's dashboards know are written a
//! second time, under vLLM's name, when they are asked for.

use std::time::Duration;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

use crate::ServerState;

/// What is counted as it happens. What the engine and the door know already is asked of them at each scrape.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) inter_token_latency: Histogram,
    pub(crate) e2e_latency: Histogram,
    pub(crate) queue_time: Histogram,
    pub(crate) prefill_time: Histogram,
    pub(crate) decode_time: Histogram,
    pub(crate) prompt_tokens: IntCounter,
    pub(crate) connections_refused: IntCounter,
    finished: IntCounterVec,
    responses: IntCounterVec,
    errors: IntCounterVec,
    startup: GaugeVec,
}

/// Names under `plimsoll:` and what vLLM calls the same.
const VLLM_NAMES: &[(&str, &str)] = &[
    ("num_requests_running", "num_requests_running"),
    ("num_requests_waiting", "num_requests_waiting"),
    ("kv_cache_usage_perc", "kv_cache_usage_perc"),
    ("prefix_cache_queries_total", "prefix_cache_queries"),
    ("prefix_cache_queries_total", "prefix_cache_queries_total"),
    ("prefix_cache_hits_total", "prefix_cache_hits"),
    ("prefix_cache_hits_total", "prefix_cache_hits_total"),
    ("num_preemptions_total", "num_preemptions_total"),
    ("prompt_tokens_total", "prompt_tokens_total"),
    ("generation_tokens_total", "generation_tokens_total"),
    ("request_success_total", "request_success_total"),
    ("time_to_first_token_seconds", "time_to_first_token_seconds"),
    ("inter_token_latency_seconds", "inter_token_latency_seconds"),
    ("e2e_request_latency_seconds", "e2e_request_latency_seconds"),
    ("request_queue_time_seconds", "request_queue_time_seconds"),
    ("request_prefill_time_seconds", "request_prefill_time_seconds"),
    ("request_decode_time_seconds", "request_decode_time_seconds"),
];

/// Seconds, for times between tokens.
const TOKEN_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0];
/// Seconds, for times of whole requests and their phases.
const REQUEST_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0,
    300.0, 600.0,
];

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(opts).expect("a valid name and ascending buckets");
            registry.register(Box::new(histogram.clone())).expect("a name of its own");
            histogram
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("a name of its own");
            counter
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("valid names");
            registry.register(Box::new(counters.clone())).expect("a name of its own");
            counters
        };
        let startup = Opts::new("startup_seconds", "Time that each part of the start took.");
        let startup = GaugeVec::new(startup, &["part"]).expect("valid names");
        registry.register(Box::new(startup.clone())).expect("a name of its own");
        let finished = counters("request_success_total", "Choices by how they ended.", &["finished_reason"]);
        for reason in ["stop", "length", "abort", "error"] {
            finished.with_label_values(&[reason]);
        }
        Self {
            time_to_first_token: histogram(
                "time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                REQUEST_BUCKETS,
            ),
            inter_token_latency: histogram("inter_token_latency_seconds", "From one token to the next.", TOKEN_BUCKETS),
            e2e_latency: histogram(
                "e2e_request_latency_seconds",
                "From a request's arrival to its last token.",
                REQUEST_BUCKETS,
            ),
            queue_time: histogram(
                "request_queue_time_seconds",
                "From a request's arrival to its first step.",
                REQUEST_BUCKETS,
            ),
            prefill_time: histogram(
                "request_prefill_time_seconds",
                "From a request's first step to its first token.",
                REQUEST_BUCKETS,
            ),
            decode_time: histogram(
                "request_decode_time_seconds",
                "From a request's first token to its last.",
                REQUEST_BUCKETS,
            ),
            prompt_tokens: counter("prompt_tokens_total", "Prompt tokens of choices that began."),
            connections_refused: counter("connections_refused_total", "Connections refused because of their number."),
            responses: counters("http_responses_total", "Responses by path and status.", &["path", "status"]),
            errors: counters("request_errors_total", "Failed requests by the error's code.", &["code"]),
            finished,
            startup,
            registry,
        }
    }

    /// A part of the start took so long.
    pub(crate) fn note_startup(&self, part: &str, time: Duration) {
        self.startup.with_label_values(&[part]).set(time.as_secs_f64());
    }

    /// A choice ended.
    pub(crate) fn note_finished(&self, reason: &str) {
        self.finished.with_label_values(&[reason]).inc();
    }

    /// A response was sent, or its client left (status 499). `path` is one of the router's own.
    pub(crate) fn note_response(&self, path: &str, status: u16, error_code: Option<&str>) {
        self.responses.with_label_values(&[path, &status.to_string()]).inc();
        if let Some(code) = error_code {
            self.errors.with_label_values(&[code]).inc();
        }
    }

    /// All of it, in Prometheus' text format.
    pub(crate) fn render(&self, state: &ServerState) -> String {
        let mut families = self.registry.gather();
        families.extend(sampled(state));
        families.sort_by(|a, b| a.name().cmp(b.name()));
        if let Ok(model) = state.model() {
            families.iter_mut().for_each(|family| add_label(family, "model_name", &model.name));
        }
        let mut all = Vec::with_capacity(2 * families.len());
        if state.config.vllm_metrics {
            for (own, theirs) in VLLM_NAMES {
                let named_so = families.iter().filter(|family| family.name() == *own);
                all.extend(named_so.map(|family| renamed(family, "vllm", theirs)));
            }
        }
        all.extend(families.iter().map(|family| renamed(family, "plimsoll", family.name())));
        TextEncoder::new().encode_to_string(&all).expect("families with names and metrics")
    }
}

/// What the engine and the door say now.
fn sampled(state: &ServerState) -> Vec<MetricFamily> {
    let load = state.admission.load();
    let (max_sequences, _) = state.admission.limits();
    let mut families = vec![
        gauge("sequences", "Sequences in the server, running and waiting.", load.sequences as f64),
        gauge("sequences_limit", "Sequences that may be in the server.", max_sequences as f64),
        gauge("queued_prompt_tokens", "Prompt tokens that no step has taken up.", load.queued_tokens as f64),
        gauge("is_draining", "1 once the server takes no new requests.", f64::from(u8::from(state.is_draining()))),
        gauge("is_model_loaded", "1 once the model is loaded.", f64::from(u8::from(state.model().is_ok()))),
    ];
    if let Some(line) = state.admission.load_line() {
        let help = "Sequences that the server was measured to carry well.";
        families.push(gauge("load_line_sequences", help, line.sequences as f64));
        let help = "Requests that ended in a second at the load line when it was measured.";
        families.push(gauge("load_line_requests_per_second", help, line.requests_per_s));
    }
    let Ok(model) = state.model() else { return families };
    let stats = model.engine.stats();
    let (steps, scheduler) = (&stats.steps, &stats.scheduler);
    let (used, total) = scheduler
        .blocks
        .iter()
        .fold((0, 0), |(used, total), group| (used + u64::from(group.used), total + u64::from(group.total)));
    let running = u64::from(scheduler.running);
    families.extend([
        gauge("num_requests_running", "Sequences in the batch.", running as f64),
        gauge(
            "num_requests_waiting",
            "Sequences waiting for a place in the batch.",
            (stats.live_requests as u64).saturating_sub(running) as f64,
        ),
        gauge("kv_cache_usage_perc", "Used part of the KV cache; 1 is all of it.", used as f64 / total.max(1) as f64),
        gauge("is_engine_alive", "1 while the engine runs.", f64::from(u8::from(stats.is_alive))),
        gauge("last_step_seconds", "Time of the last step.", steps.last_step_time.as_secs_f64()),
        gauge("last_step_sequences", "Sequences in the last step.", steps.last_step_seqs as f64),
        gauge("last_step_tokens", "Input tokens of the last step.", steps.last_step_tokens as f64),
        counter("prefix_cache_queries_total", "Prompt tokens looked up.", scheduler.prefix_queried_tokens as f64),
        counter("prefix_cache_hits_total", "Prompt tokens found in the cache.", scheduler.prefix_hit_tokens as f64),
        counter("num_preemptions_total", "Sequences that lost their blocks to others.", scheduler.preemptions as f64),
        counter("generation_tokens_total", "Tokens generated.", steps.generated_tokens as f64),
        counter("computed_tokens_total", "Input tokens computed.", steps.computed_tokens as f64),
        counter("steps_total", "Steps of the engine.", steps.steps as f64),
        counter("busy_seconds_total", "Time that the device was busy.", steps.busy_time.as_secs_f64()),
        counter("cancelled_requests_total", "Sequences whose client left.", steps.cancelled_requests as f64),
        counter("overrun_requests_total", "Sequences whose client read too slowly.", steps.overrun_requests as f64),
    ]);
    families
}

fn gauge(name: &str, help: &str, value: f64) -> MetricFamily {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    family(name, help, MetricType::GAUGE, Metric::from_gauge(gauge))
}

fn counter(name: &str, help: &str, value: f64) -> MetricFamily {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::default();
    metric.set_counter(counter);
    family(name, help, MetricType::COUNTER, metric)
}

fn family(name: &str, help: &str, kind: MetricType, metric: Metric) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

fn add_label(family: &mut MetricFamily, name: &str, value: &str) {
    for metric in family.mut_metric() {
        let mut label = LabelPair::default();
        label.set_name(name.to_owned());
        label.set_value(value.to_owned());
        let mut labels = metric.take_label();
        labels.push(label);
        metric.set_label(labels);
    }
}

fn renamed(family: &MetricFamily, prefix: &str, name: &str) -> MetricFamily {
    let mut family = family.clone();
    family.set_name(format!("{prefix}:{name}"));
    family
}
