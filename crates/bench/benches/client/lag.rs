//! How late the client's runtime is while it is under load, in two ways, each a thousand times a second or as often as
//! the runtime lets it:
//!
//! - timers: a task sleeps until an instant, and notes how long after it it runs. The runtime's timers have a grain of a
//!   millisecond, which is part of it.
//! - reads: a thread of the null server's process writes the time to a connection of its own, by the machine's
//!   monotonic clock, and a task of the client's runtime notes how long ago that was when it has read it. So it is all of
//!   what comes between a server's write and the client's time stamp: the kernel, the poll, and the tasks that were
//!   first.

use std::fmt;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout_at};

const EVERY: Duration = Duration::from_millis(1);

/// How late it was, at the median and the 99th percentile.
#[derive(Clone, Copy)]
pub(crate) struct Late {
    p50: Duration,
    pub(crate) p99: Duration,
}

impl Late {
    fn of(mut samples: Vec<Duration>) -> Self {
        assert!(samples.len() > 100, "{} samples tell nothing", samples.len());
        samples.sort_unstable();
        let at = |share: f64| samples[((samples.len() as f64 * share).ceil() as usize).max(1) - 1];
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

impl fmt::Display for Late {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| 1e3 * time.as_secs_f64();
        write!(out, "{:.2} / {:.2}", ms(self.p50), ms(self.p99))
    }
}

pub(crate) struct Lateness {
    pub(crate) timers: Late,
    pub(crate) reads: Late,
}

/// Watches both from `from` to `until`; `port` is where the stamps come from. To be spawned where the client runs.
pub(crate) async fn watch(port: u16, from: Instant, until: Instant) -> Lateness {
    let (from, until) = (from.into(), until.into());
    sleep_until(from).await;
    let reads = tokio::spawn(reads(port, until));
    let timers = tokio::spawn(timers(until)).await.expect("a probe");
    Lateness { timers: Late::of(timers), reads: Late::of(reads.await.expect("a probe")) }
}

async fn timers(until: tokio::time::Instant) -> Vec<Duration> {
    let mut samples = Vec::new();
    loop {
        let due = tokio::time::Instant::now() + EVERY;
        if due >= until {
            return samples;
        }
        sleep_until(due).await;
        samples.push(due.elapsed());
    }
}

async fn reads(port: u16, until: tokio::time::Instant) -> Vec<Duration> {
    let mut samples = Vec::new();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("the stamps' listener");
    let mut stamp = [0; 8];
    while let Ok(read) = timeout_at(until, stream.read_exact(&mut stamp)).await {
        read.expect("a stamp");
        samples.push(Duration::from_nanos(now_nanos().saturating_sub(u64::from_le_bytes(stamp))));
    }
    samples
}

/// Writes the time to whoever connects, from a thread of its own; returns the port.
pub(crate) fn serve_stamps() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("it listens").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.set_nodelay(true).expect("a connection's option");
            while stream.write_all(&now_nanos().to_le_bytes()).is_ok() {
                std::thread::sleep(EVERY);
            }
        }
    });
    port
}

/// The machine's monotonic clock, the same in all its processes.
fn now_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
