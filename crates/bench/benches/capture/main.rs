//! Whether the client's times to the first token are those that a packet capture sees.
//!
//! `cargo bench -p plimsoll-bench --bench capture` (Linux; as root, or with CAP_NET_RAW)
//!
//! A few hundred requests go to the null server, a process of its own, while this machine's loopback device is listened
//! to. Of each request the kernel's time stamps say when its first byte was sent and when the first event with content
//! was received; the client's own time must be within 2% or 1 ms of the time between, for 99 requests of 100. The
//! client's also holds the opening of the connection, where one is opened, which here takes microseconds.

#[cfg(target_os = "linux")]
mod packet;
#[cfg(target_os = "linux")]
mod socket;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("packets are captured on Linux alone: nothing was measured");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, ExitCode, Stdio};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use plimsoll_bench::{NullServer, NullServerConfig, first_content_times, nearest_rank};

    use super::packet::Exchanges;
    use super::socket::Capture;

    const SERVE: &str = "serve";
    const REQUESTS: u32 = 300;
    /// Between the sending of two requests, and between two tokens of a reply: so 50 requests are in flight at once.
    const GAP: Duration = Duration::from_millis(10);
    const PACE: Duration = Duration::from_millis(5);
    const TOLERATED_SHARE: f64 = 0.02;
    const TOLERATED_MS: f64 = 1.0;
    /// The 99th percentile counts: now and then a task of either process waits for a processor.
    const TOLERATED_ONE_IN: usize = 100;

    pub(super) fn main() -> ExitCode {
        if std::env::args().nth(1).as_deref() == Some(SERVE) {
            let server = NullServer::start(NullServerConfig { pace: Some(PACE), ..NullServerConfig::default() });
            let server = server.expect("a free port");
            println!("{}", server.url());
            server.wait();
            return ExitCode::SUCCESS;
        }
        let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
        let mut child = command.arg(SERVE).stdout(Stdio::piped()).spawn().expect("this program again");
        let mut url = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut url).expect("the child's address");
        let code = compare(url.trim());
        child.kill().expect("our own child");
        child.wait().expect("our own child");
        code
    }

    fn compare(url: &str) -> ExitCode {
        let port = url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        let capture = match Capture::of_loopback() {
            Ok(capture) => capture,
            Err(error) => {
                eprintln!("packets cannot be captured ({error}); run this as root, or give it CAP_NET_RAW");
                return ExitCode::FAILURE;
            }
        };
        let over = Arc::new(AtomicBool::new(false));
        let listening = {
            let over = over.clone();
            std::thread::spawn(move || listen(&capture, port, &over))
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let client = runtime.block_on(first_content_times(url, REQUESTS, GAP)).expect("the null server serves");
        over.store(true, Ordering::Relaxed);
        let captured = listening.join().expect("the listener").expect("packets");
        verdict(&client, &captured)
    }

    fn listen(capture: &Capture, port: u16, over: &AtomicBool) -> std::io::Result<Vec<Duration>> {
        let mut exchanges = Exchanges::of_server(port);
        while !over.load(Ordering::Relaxed) {
            if let Some(packet) = capture.next()? {
                exchanges.add(packet.direction, packet.at, &packet.bytes);
            }
        }
        Ok(exchanges.first_content_times())
    }

    fn verdict(client: &[Duration], captured: &[Duration]) -> ExitCode {
        if client.len() != captured.len() {
            eprintln!("{} requests were sent and {} captured", client.len(), captured.len());
            return ExitCode::FAILURE;
        }
        let ms = |time: &Duration| 1e3 * time.as_secs_f64();
        let pairs = || client.iter().map(ms).zip(captured.iter().map(ms));
        let mut differences: Vec<f64> = pairs().map(|(client, captured)| client - captured).collect();
        let tolerated = |captured: f64| (TOLERATED_SHARE * captured).max(TOLERATED_MS);
        let apart = pairs().filter(|(client, captured)| (client - captured).abs() > tolerated(*captured)).count();
        differences.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
        let at = |sorted: &[f64], percent| nearest_rank(sorted, 0, percent).expect("requests");
        let row = |what: &str, sorted: &[f64]| {
            println!("{what:<18} {:>8.3} {:>8.3} {:>8.3}", at(sorted, 50.0), at(sorted, 99.0), at(sorted, 100.0));
        };
        println!("{:<18} {:>8} {:>8} {:>8}", "ms", "p50", "p99", "most");
        row("TTFT, capture", &ascending(captured.iter().map(ms)));
        row("TTFT, client", &ascending(client.iter().map(ms)));
        row("client - capture", &differences);
        println!("{apart} of {} requests apart by more than 2% and 1 ms", client.len());
        if apart * TOLERATED_ONE_IN <= client.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn ascending(values: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        values
    }
}
