//! Searches against servers that go wrong: each ends within its time, names the cause, and keeps what was measured.

#[allow(dead_code, reason = "each test uses a part of it")]
mod scripted;

use std::time::Duration;

use plimsoll_bench::{
    BenchError, Constraint, FindingKind, NullServer, NullServerConfig, RungRule, SaturateConfig, SaturationReport,
    SearchConfig, Verdict, saturate,
};
use scripted::{
    Act, DONE, END, FAULT, LIE, ROLE, TEXT, USAGE, endless_line, event, good, server, server_by, server_with_tokenizer,
    status, stream, wait,
};

/// So many requests at once are served well.
const WELL: u32 = 2;

fn config(url: String, max_concurrency: u32) -> SaturateConfig {
    let mut config = SaturateConfig::new(url);
    config.endpoint.model = Some("m".to_owned());
    config.search =
        SearchConfig { max_concurrency, offered_shares: Vec::new(), check_drift: false, ..SearchConfig::default() };
    config.rung =
        RungRule { min_time: Duration::from_millis(100), max_time: Duration::from_millis(300), ..RungRule::default() };
    // A good reply takes 20 ms, or much longer where the machine has other work.
    config.request_timeout = Duration::from_secs(10);
    config.connect_timeout = Duration::from_secs(1);
    config.budget = Duration::from_secs(60);
    config
}

/// Searches a server that serves [`WELL`] requests at once and plays `script` for each beyond them.
async fn beyond_well(script: Vec<Act>, timeout: Duration) -> SaturationReport {
    let url = server_by(move |in_flight| if in_flight > WELL { script.clone() } else { good() }).await;
    let config = SaturateConfig { request_timeout: timeout, ..config(url, 8) };
    saturate(&config, |_| ()).await.expect("an answer")
}

/// Checks that the search names what goes wrong beyond [`WELL`], by `cause` and `message`, and keeps what went well.
async fn breaks(script: Vec<Act>, constraint: Constraint, cause: &str, message: &str) {
    breaks_within(Duration::from_secs(10), script, constraint, cause, message).await;
}

/// As [`breaks`], where a request may take no longer than `timeout`.
async fn breaks_within(timeout: Duration, script: Vec<Act>, constraint: Constraint, cause: &str, message: &str) {
    let report = beyond_well(script, timeout).await;
    let (answer, text) = (&report.answer, report.to_string());
    let verdict = match constraint {
        Constraint::Refused => Verdict::AdmissionLimited,
        _ => Verdict::ServiceBroken,
    };
    assert_eq!(answer.verdict, verdict, "{text}");
    let found = answer.breakpoint.expect("a breakpoint");
    assert_eq!((found.last_pass, found.first_fail, found.constraint), (WELL, WELL + 1, constraint), "{text}");
    assert!(text.contains(cause) && text.contains(message), "{cause}, {message}: {text}");
    let well = report.rungs.iter().filter(|rung| rung.summary.concurrency <= WELL);
    assert!(well.clone().count() >= 2 && well.clone().all(|rung| rung.summary.success_rate == 1.0), "{text}");
}

#[tokio::test]
async fn a_server_that_goes_wrong_under_load_is_told_with_the_cause() {
    let refused = status("429 Too Many Requests", "{\"error\":{\"message\":\"slow down\"}}");
    tokio::join!(
        breaks(vec![stream(&[ROLE, TEXT])], Constraint::Success, "truncated", "before [DONE]"),
        breaks(vec![stream(&[ROLE, TEXT, FAULT])], Constraint::Success, "in-band error", "the device is gone"),
        breaks(vec![stream(&[ROLE, "<html>", DONE])], Constraint::Success, "malformed", "<html>"),
        breaks(vec![refused], Constraint::Refused, "429", "slow down"),
    );
}

#[tokio::test]
async fn so_is_one_that_breaks_connections_or_sends_what_is_no_stream() {
    tokio::join!(
        breaks(vec![], Constraint::Success, "connection", "error sending request"),
        breaks(
            vec![Act::Say("garbage\r\n\r\n".to_owned())],
            Constraint::Success,
            "connection",
            "error sending request"
        ),
        breaks(endless_line(), Constraint::Success, "malformed", "too long"),
    );
}

#[tokio::test]
async fn one_that_hangs_under_load_is_told_by_its_timeouts() {
    let hangs = Act::Wait(Duration::from_secs(600));
    // Each of them is waited for, so this is no longer than it must be.
    let (timeout, message) = (Duration::from_secs(2), "not done within 2s");
    tokio::join!(
        breaks_within(timeout, vec![hangs.clone()], Constraint::Success, "timeout", message),
        breaks_within(timeout, vec![stream(&[ROLE, TEXT]), hangs], Constraint::Success, "timeout", message),
    );
}

/// Why a search of a server that plays `script` from the beginning has no answer.
async fn nothing_works(script: Vec<Act>) -> String {
    let mut config = config(server(script).await, 8);
    (config.budget, config.request_timeout) = (Duration::from_secs(2), Duration::from_millis(800));
    let search = tokio::time::timeout(Duration::from_secs(60), saturate(&config, |_| ()));
    match search.await.expect("an end").expect_err("nothing to measure") {
        BenchError::NothingWorks(why) => why,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_server_that_never_serves_is_an_error_that_says_why() {
    let broken = status("500 Internal Server Error", "{\"error\":{\"message\":\"no weights\"}}");
    let (broken, garbage, cut, line, hanging) = tokio::join!(
        nothing_works(vec![broken]),
        nothing_works(vec![stream(&["<html>"])]),
        nothing_works(vec![stream(&[ROLE, TEXT])]),
        nothing_works(endless_line()),
        nothing_works(vec![Act::Wait(Duration::from_secs(600))]),
    );
    assert!(broken.contains("no weights"), "{broken}");
    assert!(garbage.contains("<html>"), "{garbage}");
    assert!(cut.contains("before [DONE]"), "{cut}");
    assert!(line.contains("too long"), "{line}");
    assert!(hanging.contains("not done within") || hanging.contains("before the time was up"), "{hanging}");
}

/// Checks that a search of the server at `url` finds this, and still answers.
async fn finds(url: String, kind: FindingKind) {
    let report = saturate(&config(url, 1), |_| ()).await.expect("an answer");
    let found = report.findings.iter().find(|finding| finding.kind == kind);
    let found = found.unwrap_or_else(|| panic!("{kind:?} is not among {:?}", report.findings));
    assert_eq!(found.invalidates(), kind == FindingKind::UsageWrong);
    assert!(report.to_string().contains(&found.text), "{report}");
    assert!(report.answer.peak_throughput > 0.0, "{report}");
}

#[tokio::test]
async fn figures_that_cannot_be_what_they_seem_are_told() {
    let reply = |last: &str| vec![wait(10), stream(&[ROLE, TEXT]), wait(10), event(TEXT), event(END), event(last)];
    let ended = |last: &str| [reply(last), vec![event(DONE)]].concat();
    let burst = vec![wait(20), stream(&[ROLE, TEXT, TEXT, END, USAGE, DONE])];
    tokio::join!(
        finds(server(ended("{\"choices\":[]}")).await, FindingKind::UsageMissing),
        finds(server(ended(LIE)).await, FindingKind::UsageWrong),
        finds(server_with_tokenizer(good(), "{\"count\": 60}").await, FindingKind::UsageWrong),
        finds(server(good()).await, FindingKind::CachedTokens),
        finds(server(burst).await, FindingKind::Burst),
    );
}

#[tokio::test]
async fn a_client_that_is_no_faster_than_the_server_is_blamed_and_not_the_server() {
    // It sends as fast as it can write, so what bounds the figures is the client.
    let server = NullServer::start(NullServerConfig::default()).expect("a free port");
    let report = saturate(&config(server.url(), 4), |_| ()).await.expect("an answer");
    assert_eq!(report.answer.verdict, Verdict::ClientLimited, "{report}");
    let found = report.findings.iter().find(|finding| finding.kind == FindingKind::ClientLimited);
    assert!(found.is_some_and(|finding| finding.invalidates()), "{:?}", report.findings);
}

#[tokio::test]
async fn a_search_out_of_time_answers_from_what_it_has() {
    let mut config = config(server(good()).await, 4096);
    config.budget = Duration::ZERO;
    let report = saturate(&config, |_| ()).await.expect("one rung");
    assert_eq!((report.rungs.len(), report.answer.verdict, report.answer.saturation), (1, Verdict::OutOfTime, 1));
}
