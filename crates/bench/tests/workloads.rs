//! Workloads from end to end: what the files and options say is what the server is asked for.

#[allow(dead_code, reason = "each test uses a part of it")]
mod scripted;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll_bench::{
    BenchConfig, Lengths, NullServer, NullServerConfig, PromptSource, RungReport, SharedPrefix, Workload, run,
};

/// A file of its own for each test, removed with it.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("plimsoll-workload-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("a file");
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

async fn measure(workload: Workload, requests: u64) -> Result<RungReport, String> {
    let server = NullServer::start(NullServerConfig::default()).expect("a free port");
    let mut config = BenchConfig::new(server.url());
    config.workload = workload;
    config.requests = requests;
    config.warmup = 0;
    config.ramp = Duration::ZERO;
    config.request_timeout = Duration::from_secs(20);
    run(&config, |_| ()).await.map(|report| report.rung).map_err(|error| error.to_string())
}

fn of(prompts: PromptSource) -> Workload {
    Workload { prompts, ..Workload::default() }
}

#[tokio::test]
async fn replies_have_the_lengths_that_the_workload_gives() {
    let lines = "{\"prompt\": \"a\", \"output_len\": 3}\n{\"prompt\": \"b\", \"output_len\": 5}\n";
    let file = File::new("lengths.jsonl", lines);
    let rung = measure(of(PromptSource::File(file.path().to_owned())), 10).await.expect("a run");
    assert_eq!((rung.summary.outcomes.success, rung.summary.tokens.output), (10, 5 * 3 + 5 * 5));

    let output = Lengths::Given(vec![(7, 1.0)]);
    let random = PromptSource::Random { input: Lengths::Uniform(20, 40), output };
    let rung = measure(of(random), 10).await.expect("a run");
    assert_eq!((rung.summary.outcomes.success, rung.summary.tokens.output), (10, 70));
    assert_eq!(rung.summary.tokens.overlong_replies, 0);
}

#[tokio::test]
async fn conversations_are_sent_turn_by_turn() {
    let talk = r#"[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
        {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}, {"from": "human", "value": "e"}]}]"#;
    let file = File::new("talk.json", talk);
    let workload = Workload { turns: 2, salt: true, ..of(PromptSource::File(file.path().to_owned())) };
    let rung = measure(workload, 6).await.expect("a run");
    assert_eq!((rung.summary.outcomes.success, rung.summary.outcomes.total()), (6, 6), "{:?}", rung.failure_samples);
}

#[tokio::test]
async fn a_shared_prefix_is_sent_along() {
    let shared_prefix = Some(SharedPrefix { tokens: 2000, groups: 2 });
    let rung = measure(Workload { shared_prefix, ..Workload::default() }, 4).await.expect("a run");
    assert_eq!(rung.summary.outcomes.success, 4, "{:?}", rung.failure_samples);
}

#[tokio::test]
async fn a_bad_file_is_refused_by_line_and_field() {
    let cases = [
        ("field.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": 7}\n", "line 2: field `prompt`"),
        ("json.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\"\n", "line 2"),
        ("none.jsonl", "{\"question\": \"a\"}\n", "no prompt"),
        ("bad-talk.json", "[{\"conversations\": [{\"from\": \"human\", \"value\": 1}]}]", "`conversations[0].value`"),
    ];
    for (name, text, named) in cases {
        let file = File::new(name, text);
        let error = measure(of(PromptSource::File(file.path().to_owned())), 1).await.expect_err(name);
        assert!(error.contains(named) && error.contains(name), "{error}");
    }
    let trace = File::new("trace.csv", "timestamp_s,input_length,output_length\n1,5,many\n");
    let source = PromptSource::Trace { path: trace.path().to_owned(), speed: 1.0 };
    let error = measure(of(source), 1).await.expect_err("a bad trace");
    assert!(error.contains("line 2: field `output_length`"), "{error}");
}

/// The prompts that a server is sent by a run of 60 requests.
async fn prompts_of(url: &str, asked: &std::sync::Mutex<Vec<serde_json::Value>>, workload: Workload) -> Vec<String> {
    let mut config = BenchConfig::new(url);
    config.endpoint.model = Some("m".to_owned());
    config.workload = workload;
    (config.concurrency, config.requests, config.warmup) = (8, 60, 0);
    config.connect_timeout = Duration::from_millis(500);
    let rung = run(&config, |_| ()).await.expect("a run").rung;
    assert_eq!(rung.summary.outcomes.success, 60, "{:?}", rung.failure_samples);
    let asked = std::mem::take(&mut *asked.lock().expect("no panic"));
    asked.iter().filter_map(|body| Some(body["messages"][0]["content"].as_str()?.to_owned())).collect()
}

/// A mixture of experts that is sent the same prompt again and again reads fewer experts than it would in earnest.
#[tokio::test]
async fn every_prompt_of_a_run_is_another() {
    let (url, asked) = scripted::recording_server().await;
    let random = PromptSource::Random { input: Lengths::Uniform(20, 40), output: Lengths::Uniform(1, 100) };
    for workload in [Workload::default(), of(random)] {
        let prompts = prompts_of(&url, &asked, workload).await;
        let different: HashSet<&String> = prompts.iter().collect();
        assert_eq!((prompts.len(), different.len()), (60, 60), "{prompts:?}");
    }
}

/// A server that has seen a prompt before answers from its prefix cache, and shows a throughput that it has not.
#[tokio::test]
async fn salted_prompts_are_new_to_a_server_that_has_seen_a_run_before() {
    let (url, asked) = scripted::recording_server().await;
    let salted = || Workload { salt: true, ..Workload::default() };
    let first: HashSet<String> = prompts_of(&url, &asked, salted()).await.into_iter().collect();
    let second: HashSet<String> = prompts_of(&url, &asked, salted()).await.into_iter().collect();
    assert_eq!((first.len(), second.len()), (60, 60));
    // They differ from their beginning on, for a cache goes by what comes first; of 2^24 tags one may come twice.
    let tags = |prompts: &HashSet<String>| prompts.iter().map(|prompt| prompt[..8].to_owned()).collect::<HashSet<_>>();
    assert!(tags(&first).intersection(&tags(&second)).count() <= 1, "{first:?} {second:?}");
}
