//! Whole measurements against the null server: what comes out is what went in.

use std::cell::RefCell;
use std::time::Duration;

use plimsoll_bench::{
    BenchConfig, BenchReport, Constraint, EndpointKind, LengthSource, NullServer, NullServerConfig, Progress,
    PromptSource, RungRule, SaturateConfig, SaturationReport, Slo, Stage, TokenSource, Verdict, run, saturate,
};

fn paced(milliseconds: u64) -> NullServer {
    let pace = Some(Duration::from_millis(milliseconds));
    NullServer::start(NullServerConfig { pace, ..NullServerConfig::default() }).expect("a free port")
}

fn config(server: &NullServer) -> BenchConfig {
    let mut config = BenchConfig::new(server.url());
    config.generation.max_tokens = 10;
    config.concurrency = 4;
    config.requests = 60;
    config.ramp = Duration::from_millis(20);
    config.request_timeout = Duration::from_secs(20);
    config
}

#[tokio::test]
async fn a_run_counts_every_request_and_token() {
    let server = paced(2);
    for kind in [EndpointKind::Chat, EndpointKind::Completions] {
        let mut config = config(&server);
        config.endpoint.kind = kind;
        let report = run(&config, |_| ()).await.expect("a run");
        let summary = &report.rung.summary;
        assert_eq!(report.model, "null");
        assert_eq!((summary.outcomes.success, summary.outcomes.total()), (60, 60), "{:?}", report.rung.failure_samples);
        assert_eq!((summary.tokens.output, summary.tokens.input), (600, 60));
        assert_eq!(summary.tokens.source, TokenSource::Usage);
        assert_eq!(report.workload.lengths, LengthSource::Estimate);
        assert_eq!(summary.itl_requests, summary.e2e_ms.as_ref().map_or(0, |e2e| e2e.count));
        assert_eq!(summary.tokens_per_chunk, Some(1.0));
        // Ten tokens cannot come sooner than the server lets them.
        assert!(summary.e2e_ms.as_ref().is_some_and(|e2e| e2e.min >= 19.9), "{:?}", summary.e2e_ms);
        assert!(summary.tpot_ms.is_some());
        let ttft = summary.ttft_ms.as_ref().expect("successes");
        let scheduled = summary.ttft_from_schedule_ms.as_ref().expect("successes");
        assert!(ttft.min > 0.0 && scheduled.mean >= ttft.mean);
    }
}

#[tokio::test]
async fn a_report_survives_its_json() {
    let server = paced(1);
    let report = run(&config(&server), |_| ()).await.expect("a run");
    let json = serde_json::to_string(&report).expect("JSON");
    let back: BenchReport = serde_json::from_str(&json).expect("the same report");
    assert_eq!(back.to_string(), report.to_string());
    assert_eq!(back.schema, "plimsoll.bench/1");
    let folder = std::env::temp_dir().join(format!("plimsoll-bench-{}", std::process::id()));
    let path = report.write(&folder).expect("a folder that can be written");
    let written: BenchReport = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("the report");
    assert_eq!(written.rung, back.rung);
    std::fs::remove_dir_all(&folder).expect("our own folder");
}

#[tokio::test]
async fn an_api_key_is_in_no_report() {
    let server = paced(1);
    let mut config = config(&server);
    config.endpoint.api_key = Some("sk-secret".to_owned());
    let report = run(&config, |_| ()).await.expect("a run");
    assert!(!serde_json::to_string(&report).expect("JSON").contains("sk-secret"));
}

#[tokio::test]
async fn saturation_is_found_and_reported() {
    // Each token takes a fixed time whatever the load, so throughput doubles with each rung to the highest.
    let server = paced(20);
    let mut config = SaturateConfig::new(server.url());
    config.generation.max_tokens = 10;
    config.search.max_concurrency = 4;
    (config.search.offered_shares, config.search.check_drift) = (Vec::new(), false);
    config.rung =
        RungRule { min_time: Duration::from_millis(300), max_time: Duration::from_secs(2), ..RungRule::default() };
    let seen = RefCell::new(Vec::new());
    let report = saturate(&config, |progress| {
        if let Progress::Rung(Stage::ClosedLoop, rung) = progress {
            seen.borrow_mut().push(rung.summary.concurrency);
        }
    })
    .await
    .expect("a search");
    assert_eq!(seen.into_inner(), [1, 2, 4]);
    assert_eq!((report.answer.verdict, report.answer.saturation), (Verdict::StillScaling, 4), "{report}");
    assert!(report.client_ceiling.events_per_s > 1000.0, "{:?}", report.client_ceiling);
    assert!(report.to_string().starts_with("still scaling at N = 4 concurrent: "), "{report}");
    let json = serde_json::to_string(&report).expect("JSON");
    let back: SaturationReport = serde_json::from_str(&json).expect("the same report");
    assert_eq!(back.to_string(), report.to_string());
}

#[tokio::test]
async fn a_broken_latency_limit_is_reported() {
    // A token takes 20 ms: no request can keep to 5 ms a token, every one keeps to a minute before the first.
    let server = paced(20);
    let mut config = SaturateConfig::new(server.url());
    config.generation.max_tokens = 10;
    config.search.max_concurrency = 2;
    (config.search.offered_shares, config.search.check_drift) = (Vec::new(), false);
    config.search.slo = Slo { ttft_ms: Some(60_000.0), tpot_ms: Some(5.0), ..Slo::default() };
    config.rung =
        RungRule { min_time: Duration::from_millis(300), max_time: Duration::from_secs(2), ..RungRule::default() };
    let report = saturate(&config, |_| ()).await.expect("a search");
    assert_eq!(report.answer.verdict, Verdict::SloBroken, "{report}");
    let found = report.answer.breakpoint.expect("a breakpoint");
    assert_eq!((found.last_pass, found.first_fail, found.constraint), (0, 1, Constraint::Tpot), "{report}");
    let slo = report.rungs[0].summary.slo.expect("limits");
    assert!(slo.requests > 0 && slo.tpot_violations == slo.requests && slo.ttft_violations == 0, "{slo:?}");
    assert_eq!(slo.goodput_per_s, 0.0);
}

#[tokio::test]
async fn what_cannot_start_says_what_to_change() {
    let server = paced(1);
    let with = |change: fn(&mut BenchConfig)| {
        let mut config = config(&server);
        change(&mut config);
        config
    };
    let cases: [(BenchConfig, &str); 6] = [
        (with(|c| c.concurrency = 0), "concurrency"),
        (with(|c| c.requests = 0), "requests"),
        (with(|c| c.endpoint.url = "localhost".to_owned()), "http://127.0.0.1:8000"),
        (with(|c| c.endpoint.url = "http://127.0.0.1:1".to_owned()), "is the server up"),
        (with(|c| c.workload.prompts = PromptSource::File("/nonexistent".into())), "/nonexistent"),
        (with(|c| (c.workload.min_tokens, c.workload.max_tokens) = (900, 901)), "length filter"),
    ];
    for (config, hint) in cases {
        let error = run(&config, |_| ()).await.expect_err(hint);
        assert!(error.to_string().contains(hint), "{error}");
    }
}
