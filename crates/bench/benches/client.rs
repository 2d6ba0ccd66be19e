//! How many events a second the client takes in, from a null server in a process of its own on the same machine.
//!
//! `cargo bench -p plimsoll-bench --bench client [-- CONCURRENCY ...]`
//!
//! First as fast as the server writes, where one read brings many events; then with a pause between the tokens of a
//! reply, where each event is a read of its own, as with a real server.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plimsoll_bench::{BenchConfig, NullServer, NullServerConfig, run};

const SERVE: &str = "serve";
const PACE: Duration = Duration::from_millis(5);
const TIME: Duration = Duration::from_secs(5);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, pace] = arguments.as_slice()
        && first == SERVE
    {
        return serve(pace.parse().expect("milliseconds"));
    }
    let mut concurrencies: Vec<u32> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    if concurrencies.is_empty() {
        concurrencies = vec![1, 16, 64, 256];
    }
    for pace in [Duration::ZERO, PACE] {
        println!("{pace:?} between the tokens of a reply:");
        let (mut child, url) = null_server(pace);
        for &concurrency in &concurrencies {
            measure(&url, concurrency);
        }
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }
}

fn serve(milliseconds: u64) {
    let pace = (milliseconds > 0).then(|| Duration::from_millis(milliseconds));
    let server = NullServer::start(NullServerConfig { pace, ..NullServerConfig::default() }).expect("a free port");
    println!("{}", server.url());
    server.wait();
}

fn null_server(pace: Duration) -> (Child, String) {
    let this = std::env::current_exe().expect("the path of this program");
    let milliseconds = pace.as_millis().to_string();
    let mut command = Command::new(this);
    let mut child = command.args([SERVE, &milliseconds]).stdout(Stdio::piped()).spawn().expect("this program again");
    let mut url = String::new();
    let output = child.stdout.take().expect("piped");
    BufReader::new(output).read_line(&mut url).expect("the child's address");
    (child, url.trim().to_owned())
}

fn measure(url: &str, concurrency: u32) {
    let mut config = BenchConfig::new(url);
    config.concurrency = concurrency;
    config.requests = u64::MAX;
    config.max_duration = TIME;
    config.ramp = Duration::from_millis(100);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (cpu, began) = (cpu_seconds(), Instant::now());
    let report = runtime.block_on(run(&config, |_| ())).expect("the null server serves");
    let cores = (cpu_seconds() - cpu) / began.elapsed().as_secs_f64();
    let summary = report.rung.summary;
    println!(
        "{concurrency:>5} connections: {:>8.0} events/s on {cores:.2} cores of CPU time, TTFT p50 {:.2} ms, success {:.1}%",
        summary.chunks_per_s,
        summary.ttft_ms.map_or(f64::NAN, |ttft| ttft.p50),
        summary.success_rate * 100.0
    );
}

/// CPU time of this process so far, by /proc; NaN where there is none.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, in ticks of 10 ms; the second field, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}
