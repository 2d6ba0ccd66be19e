//! Open loops and early ends against servers that are slow, hang or die: what is due counts from when it was due, and
//! nothing is lost from the count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use plimsoll_bench::{
    Arrivals, BenchConfig, FindingKind, NullServer, NullServerConfig, Progress, PromptSource, RungRule, SaturateConfig,
    SearchConfig, Stage, Stop, Verdict, run, run_until, saturate, saturate_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const REPLY: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n\
    data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word\"},\"finish_reason\":null}]}\n\n";
const END: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n";

fn paced(milliseconds: u64) -> NullServer {
    let pace = Some(Duration::from_millis(milliseconds));
    NullServer::start(NullServerConfig { pace, ..NullServerConfig::default() }).expect("a free port")
}

/// A server that calls `answer` with the number of each request; true: reply, false: hang.
async fn server(answer: impl Fn(u32) -> bool + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (count, answer) = (Arc::new(AtomicU32::new(0)), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (count, answer) = (count.clone(), answer.clone());
            tokio::spawn(async move { serve(connection, &count, &*answer).await });
        }
    });
    format!("http://{address}")
}

async fn serve(mut connection: TcpStream, count: &AtomicU32, answer: &(dyn Fn(u32) -> bool + Send + Sync)) {
    let (mut received, mut length) = (vec![0; 64 << 10], 0);
    while !received[..length].ends_with(b"}") {
        match connection.read(&mut received[length..]).await {
            Ok(more @ 1..) => length += more,
            _ => return,
        }
    }
    let reply = answer(count.fetch_add(1, Ordering::Relaxed));
    if connection.write_all(REPLY.as_bytes()).await.is_ok() {
        match reply {
            true => drop(connection.write_all(END.as_bytes()).await),
            false => std::future::pending().await,
        }
    }
}

fn config(url: String, arrivals: Arrivals) -> BenchConfig {
    let mut config = BenchConfig::new(url);
    config.endpoint.model = Some("m".to_owned());
    config.generation.max_tokens = 5;
    config.arrivals = arrivals;
    config.concurrency = 64;
    config.warmup = 0;
    config.request_timeout = Duration::from_secs(20);
    config.connect_timeout = Duration::from_millis(500);
    config
}

fn search(url: String) -> SaturateConfig {
    let mut config = SaturateConfig::new(url);
    config.endpoint.model = Some("m".to_owned());
    config.generation.max_tokens = 10;
    config.search = SearchConfig { max_concurrency: 2, offered_shares: vec![0.5], ..SearchConfig::default() };
    config.rung =
        RungRule { min_time: Duration::from_millis(200), max_time: Duration::from_secs(1), ..RungRule::default() };
    config.connect_timeout = Duration::from_millis(500);
    config
}

#[tokio::test]
async fn every_kind_of_arrival_is_sent_in_full() {
    let server = paced(2);
    let kinds = [
        Arrivals::Constant { rate: 100.0 },
        Arrivals::Poisson { rate: 100.0 },
        Arrivals::Gamma { rate: 100.0, shape: 0.3 },
        Arrivals::Ramp { rate: 100.0 },
    ];
    for arrivals in kinds {
        let mut config = config(server.url(), arrivals);
        config.requests = 40;
        config.max_duration = Duration::from_secs(5);
        let rung = run(&config, |_| ()).await.expect("a run").rung;
        let summary = &rung.summary;
        assert_eq!((summary.outcomes.success, summary.outcomes.total()), (40, 40), "{arrivals:?}");
        let facts = summary.open_loop.expect("an open loop");
        assert_eq!(facts.arrivals, arrivals);
        assert_eq!(rung.series.iter().map(|slice| slice.succeeded).sum::<u32>(), 40);
    }
}

/// A server that answers one request at a time, each in `time`.
async fn one_at_a_time(time: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let count = AtomicU32::new(0);
        while let Ok((connection, _)) = listener.accept().await {
            tokio::time::sleep(time).await;
            serve(connection, &count, &|_| true).await;
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn latency_counts_from_when_a_request_was_due() {
    // Twenty requests within 0.1 s at a server that needs 0.6 s for them: a client that waits sees 30 ms each time.
    const TIME: Duration = Duration::from_millis(30);
    let mut open = config(one_at_a_time(TIME).await, Arrivals::Constant { rate: 200.0 });
    open.requests = 20;
    let summary = run(&open, |_| ()).await.expect("a run").rung.summary;
    assert_eq!(summary.outcomes.success, 20);
    let due = summary.ttft_from_schedule_ms.expect("successes");
    assert!(due.max >= 490.0 && due.mean > 200.0, "{due:?}");
    assert!(summary.schedule_lag_ms.is_some_and(|lag| lag.min >= 0.0));
    let (e2e, from_due) = (summary.e2e_ms.expect("successes"), summary.e2e_from_schedule_ms.expect("successes"));
    assert!(from_due.mean >= e2e.mean, "{e2e:?} {from_due:?}");
}

#[tokio::test]
async fn what_does_not_fit_is_dropped_and_counts_as_failed() {
    let mut config = config(server(|_| false).await, Arrivals::Constant { rate: 100.0 });
    (config.concurrency, config.requests) = (3, 20);
    config.request_timeout = Duration::from_secs(2);
    let report = run(&config, |_| ()).await.expect("a run");
    let outcomes = report.rung.summary.outcomes;
    assert_eq!((outcomes.total(), outcomes.timeout, outcomes.dropped), (20, 3, 17), "{outcomes:?}");
    assert_eq!(outcomes.success_rate(), 0.0);
    assert!(report.findings.iter().any(|finding| finding.kind == FindingKind::Dropped), "{:?}", report.findings);
}

#[tokio::test]
async fn a_trace_keeps_to_its_times() {
    let path = std::env::temp_dir().join(format!("plimsoll-replay-{}.jsonl", std::process::id()));
    let line = |i: u32| format!("{{\"timestamp\": {}, \"input_length\": {}, \"output_length\": 4}}\n", i * 100, 10 + i);
    std::fs::write(&path, (0..12).map(line).collect::<String>()).expect("a file");
    let server = paced(1);
    let mut config = config(server.url(), Arrivals::Trace);
    config.workload.prompts = PromptSource::Trace { path: path.clone(), speed: 2.0 };
    let summary = run(&config, |_| ()).await.expect("a run").rung.summary;
    assert_eq!((summary.outcomes.success, summary.outcomes.total(), summary.tokens.output), (12, 12, 48));
    assert!(summary.duration_s >= 0.55, "the last is due after 0.55 s: {}", summary.duration_s);
    std::fs::remove_file(path).expect("our own file");
    config.workload.prompts = PromptSource::Bundled;
    let error = run(&config, |_| ()).await.expect_err("no trace");
    assert!(error.to_string().contains("trace"), "{error}");
}

#[tokio::test]
async fn a_run_that_is_stopped_reports_what_there_was() {
    // Every second request hangs: the others must be in the report, and those cut off.
    let config = config(server(|i| i % 2 == 0).await, Arrivals::Poisson { rate: 50.0 });
    let stop = Stop::default();
    let report = run_until(&config, &stop, |news| {
        if let Progress::Running(running) = news
            && running.done >= 5
        {
            stop.now();
        }
    });
    let report = tokio::time::timeout(Duration::from_secs(60), report).await.expect("an end").expect("a report");
    let outcomes = report.rung.summary.outcomes;
    assert!(outcomes.success >= 5 && outcomes.cut > 0, "{outcomes:?}");
    assert_eq!((outcomes.failed(), outcomes.success_rate()), (0, 1.0), "what was cut has not failed");
    let kinds: Vec<FindingKind> = report.findings.iter().map(|finding| finding.kind).collect();
    assert!(kinds.contains(&FindingKind::Interrupted) && kinds.contains(&FindingKind::Cut), "{kinds:?}");
}

#[tokio::test]
async fn a_search_that_is_stopped_answers_from_what_it_has() {
    let server = paced(10);
    let stop = Stop::default();
    let config = search(server.url());
    let report = saturate_until(&config, &stop, |news| {
        if let Progress::Rung(..) = news {
            stop.now();
        }
    });
    let report = report.await.expect("one rung");
    assert_eq!((report.rungs.len(), report.answer.verdict), (1, Verdict::OutOfTime));
    assert!(report.findings.iter().any(|finding| finding.kind == FindingKind::Interrupted));
    assert!(report.findings.iter().any(|finding| finding.kind == FindingKind::NotConfirmed));
}

#[tokio::test]
async fn the_budget_cuts_what_is_in_flight() {
    // The first replies come, all others hang for ever: without a cut each rung would last for the request timeout.
    let mut config = search(server(|i| i < 30).await);
    config.warmup = 0;
    config.budget = Duration::from_secs(5);
    let report = saturate(&config, |_| ());
    let report = tokio::time::timeout(Duration::from_secs(60), report).await.expect("an end").expect("a report");
    let cut: u64 = report.rungs.iter().map(|rung| rung.summary.outcomes.cut).sum();
    let failed: u64 = report.rungs.iter().map(|rung| rung.summary.outcomes.failed()).sum();
    assert!(cut > 0 && failed == 0, "{cut} cut, {failed} failed");
}

#[tokio::test]
async fn a_whole_search_is_confirmed_and_checked() {
    let server = paced(10);
    let stages = std::cell::RefCell::new(Vec::new());
    let config = search(server.url());
    let report = saturate(&config, |news| {
        if let Progress::Rung(stage, _) = news {
            stages.borrow_mut().push(*stage);
        }
    });
    let report = report.await.expect("a search");
    let found = report.answer.open_loop.expect("an open loop");
    assert_eq!(report.offered[0].share, 0.5);
    assert!((report.offered[0].rate - 0.5 * found.max_rate).abs() < 1e-9);
    assert!(report.offered[0].rung.summary.open_loop.is_some_and(|facts| facts.offered_per_s > 0.0));
    assert!(report.answer.drift.is_some() && report.rechecks.len() >= 2, "{:?}", report.answer.drift);
    let stages = stages.into_inner();
    assert!(matches!(stages[..], [Stage::ClosedLoop, Stage::ClosedLoop, ..]), "{stages:?}");
    assert_eq!(stages.last(), Some(&Stage::Recheck));
    assert_eq!(stages.len(), report.rungs.len() + report.offered.len() + report.rechecks.len());
}

#[tokio::test]
async fn a_server_that_dies_within_a_rung_is_told_and_what_came_before_is_kept() {
    let server = std::cell::RefCell::new(Some(paced(5)));
    let config = search(server.borrow().as_ref().map(NullServer::url).expect("a server"));
    let report = saturate(&config, |news| {
        if let Progress::Running(running) = news
            && running.concurrency == 2
        {
            drop(server.borrow_mut().take());
        }
    });
    let report = report.await.expect("the first rung was served");
    assert_eq!(report.answer.peak, 1, "{report}");
    assert!(matches!(report.answer.verdict, Verdict::ServerGone | Verdict::ServiceBroken), "{report}");
    let broken = &report.rungs.iter().find(|rung| rung.summary.concurrency == 2).expect("the second rung");
    let outcomes = broken.summary.outcomes;
    assert!(outcomes.connection + outcomes.truncated > 0, "{outcomes:?}");
}
