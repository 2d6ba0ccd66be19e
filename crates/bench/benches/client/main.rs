//! How much the client takes in: events a second over thousands of connections, how late it is meanwhile, and its
//! memory. The null server is a process of its own on the same machine, and writes each event by itself.
//!
//! `cargo bench -p plimsoll-bench --bench client [-- CONNECTIONS]`; it fails where a limit is missed.
//!
//! The first row is a closed loop as fast as both go. The others offer requests at a constant rate to a server that
//! pauses between the tokens, so that each event is a read of its own, as with a real server, and as many requests are
//! in flight as there are connections in the first row, or a few more. Lag is looked at in these alone: where there is
//! always more to do, everything is late.

mod lag;
mod process;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use plimsoll_bench::{Arrivals, BenchConfig, NullServer, NullServerConfig, RungReport, run};

use lag::{Late, Lateness};

const SERVE: &str = "serve";
const CONNECTIONS: u32 = 4096;
const TOKENS: u32 = 50;
/// Events a second that the client is held to.
const LEAST_EVENTS: f64 = 100_000.0;
/// At half of them the 99th percentile of how late it is.
const LONGEST_LAG: Duration = Duration::from_millis(5);
/// Bytes that are resident at most.
const MOST_MEMORY: f64 = 512e6;
const TIME: Duration = Duration::from_secs(12);
/// In flight in the open loops for each connection of the closed one: arrivals are even, but their ends are not.
const SPARE: f64 = 1.02;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, pace] = arguments.as_slice()
        && first == SERVE
    {
        serve(pace.parse().expect("microseconds"));
        return ExitCode::SUCCESS;
    }
    let connections = arguments.iter().find_map(|text| text.parse().ok()).unwrap_or(CONNECTIONS);
    println!("{connections} connections, {TOKENS} events a reply, each a write of its own");
    println!(
        "{:>10} {:>9} {:>7} {:>9} {:>7} {:>16} {:>16} {:>8} {:>8}",
        "offered/s", "events/s", "cores", "µs/event", "flight", "timers p50/p99", "reads p50/p99", "peak MB", "success"
    );
    let most = measure(connections, None);
    let half = measure(connections, Some(LEAST_EVENTS / 2.0));
    measure(connections, Some(LEAST_EVENTS));
    println!(
        "cores, µs/event: CPU time of the client; timers, reads: ms late; peak MB: resident, of the client so far"
    );
    let lag = half.lag.unwrap_or(Duration::MAX);
    let limits = [
        (format!("at least {LEAST_EVENTS:.0} events/s"), most.events_per_s >= LEAST_EVENTS),
        (format!("lag p99 below {LONGEST_LAG:?} at half of them"), lag < LONGEST_LAG),
        (format!("below {:.0} MB", MOST_MEMORY / 1e6), process::peak_bytes() < MOST_MEMORY),
    ];
    let told = limits.iter().map(|(limit, kept)| format!("{limit}: {}", if *kept { "kept" } else { "MISSED" }));
    println!("limits: {}", told.collect::<Vec<_>>().join("; "));
    if limits.iter().all(|(_, kept)| *kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a row is held to.
struct Row {
    events_per_s: f64,
    /// The 99th percentile of the worse kind. None: it was not looked at.
    lag: Option<Duration>,
}

/// One row: as fast as it goes, or at so many events a second.
fn measure(connections: u32, rate: Option<f64>) -> Row {
    let in_flight = f64::from(connections) * SPARE;
    let pace = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(in_flight / rate));
    let server = Server::start(pace);
    let mut config = BenchConfig::new(&server.url);
    config.generation.max_tokens = TOKENS;
    config.requests = u64::MAX;
    config.concurrency = connections;
    config.ramp = Duration::from_secs(1);
    // The requests of an open loop pile up first, for as long as a reply takes.
    let filling = pace * TOKENS;
    config.max_duration = TIME + filling;
    if let Some(rate) = rate {
        config.arrivals = Arrivals::Constant { rate: rate / f64::from(TOKENS) };
        config.concurrency = 2 * connections;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (cpu, began) = (process::cpu_seconds(), Instant::now());
    let (report, lateness) = runtime.block_on(async {
        let watched =
            rate.map(|_| tokio::spawn(lag::watch(server.stamps, began + filling, began + config.max_duration)));
        let report = run(&config, |_| ()).await.expect("the null server serves");
        let lateness = match watched {
            Some(watched) => Some(watched.await.expect("lag is watched to the end")),
            None => None,
        };
        (report, lateness)
    });
    let spent = process::cpu_seconds() - cpu;
    print_row(rate, connections, &report.rung, spent, began.elapsed(), lateness.as_ref());
    let lag = lateness.map(|lateness| lateness.timers.p99.max(lateness.reads.p99));
    Row { events_per_s: report.rung.summary.chunks_per_s, lag }
}

fn print_row(
    rate: Option<f64>,
    connections: u32,
    rung: &RungReport,
    cpu: f64,
    wall: Duration,
    lateness: Option<&Lateness>,
) {
    let summary = &rung.summary;
    let events = summary.outcomes.success as f64 * f64::from(TOKENS);
    let in_flight = summary.open_loop.map_or(f64::from(connections), |facts| facts.in_flight_mean);
    let late = |which: fn(&Lateness) -> Late| match lateness {
        Some(lateness) => which(lateness).to_string(),
        None => "-".to_owned(),
    };
    println!(
        "{:>10} {:>9.0} {:>7.2} {:>9.2} {in_flight:>7.0} {:>16} {:>16} {:>8.0} {:>7.1}%{}",
        rate.map_or("most".to_owned(), |rate| format!("{rate:.0}")),
        summary.chunks_per_s,
        cpu / wall.as_secs_f64(),
        1e6 * cpu / events,
        late(|lateness| lateness.timers),
        late(|lateness| lateness.reads),
        process::peak_bytes() / 1e6,
        100.0 * summary.success_rate,
        if summary.window.steady { "" } else { " (not steady)" }
    );
}

fn serve(microseconds: u64) {
    let pace = (microseconds > 0).then(|| Duration::from_micros(microseconds));
    let server = NullServer::start(NullServerConfig { pace, ..NullServerConfig::default() }).expect("a free port");
    println!("{} {}", server.url(), lag::serve_stamps());
    server.wait();
}

/// The null server, and beside it what the reads are timed with. Ends when dropped.
struct Server {
    child: Child,
    url: String,
    stamps: u16,
}

impl Server {
    fn start(pace: Duration) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
        command.args([SERVE, &pace.as_micros().to_string()]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program again");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the child's addresses");
        let (url, stamps) = line.trim().split_once(' ').expect("two addresses");
        Self { url: url.to_owned(), stamps: stamps.parse().expect("a port"), child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }
}
