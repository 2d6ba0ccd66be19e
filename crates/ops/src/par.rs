//! Fork-join over the CPU's threads: the one place that knows how ops run in parallel.
//!
//! A step of a small model calls [`parallel_for`] some 200 times for work of 5 to 50 us each, so what a call costs
//! decides how well two threads do. Workers therefore spin for [`SPIN`] after their last job before they sleep, and a
//! job never waits for a worker that has not joined it: if the workers are late, the caller has done the work itself.
//!
//! Measured (`fork_join` in `benches/linear.rs`; 2 cores of a Zen 5 AMD EPYC, 2026-11-21, best and median in quiet
//! moments): 16 tasks of 1 us on two threads, once every 20 us, take 8.3 us if divided at no cost, 8.6 to 8.9 us here,
//! and 22 to 30 us on rayon's pool, more than the 16.6 us of one thread alone. Where more threads want to run than there
//! are cores the order turns: spinning wastes time that others need, and who is preempted in a task holds up its job.
//!
//! It must never know what the tasks compute.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use candle_core::{Result, bail};

/// How long a worker without work keeps a core busy before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// Runs `task(0) ..= task(tasks - 1)`, each once, on the pool's threads and the caller's; returns when all are done.
///
/// Tasks are handed out one at a time, so make a few more of them than there are threads, of at least some
/// microseconds each. A single task, a call from within a task and a call while another thread's is running are run on
/// the calling thread alone.
///
/// # Panics
/// With the panic of a task, once no task is running any more; tasks that had not started are dropped.
pub fn parallel_for(tasks: usize, task: impl Fn(usize) + Sync + Send) {
    let pool = POOL.get_or_init(|| Pool::start(default_threads()));
    if tasks <= 1 || pool.workers.is_empty() || !pool.try_claim() {
        (0..tasks).for_each(task);
        return;
    }
    let next = AtomicUsize::new(0);
    let panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
    let run_tasks = || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    break;
                }
                task(index);
            }
        }));
        if let Err(payload) = outcome {
            next.store(tasks, Ordering::Relaxed);
            panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    };
    pool.run(tasks - 1, &run_tasks);
    if let Some(payload) = panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(payload);
    }
}

/// Threads that [`parallel_for`] uses, the caller's included.
pub fn num_threads() -> usize {
    POOL.get().map_or_else(default_threads, |pool| pool.workers.len() + 1)
}

/// Sets how many threads [`parallel_for`] uses, the caller's included, and starts them. The default is what the
/// operating system says this process may use.
///
/// # Errors
/// If `threads` is 0, or the pool already runs with another number: call this once, before any op.
pub fn set_num_threads(threads: usize) -> Result<()> {
    if threads == 0 {
        bail!("the number of threads must be at least 1");
    }
    let pool = POOL.get_or_init(|| Pool::start(threads));
    if pool.workers.len() + 1 != threads {
        bail!(
            "the compute threads already run ({}): set the number of threads ({threads}) before the first op",
            pool.workers.len() + 1
        );
    }
    Ok(())
}

static POOL: OnceLock<Pool> = OnceLock::new();

/// Asked once: the standard library reads files for the answer.
fn default_threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, |n| n.get()))
}

struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Whether some thread's job has the pool.
    claimed: AtomicBool,
}

struct Worker {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

/// A job without its lifetime: valid while the job is open or someone has joined it (see [`Shared::state`]).
type Job = *const (dyn Fn() + Sync);

struct Shared {
    /// `job number << 32 | OPEN | workers that joined`. A worker joins by one compare-and-swap that requires the job it
    /// saw to be still open, so after the owner closed the job and the count is 0, nobody can reach it any more.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
}

const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;

// SAFETY: `job` is written only by the thread that claimed the pool, while no job is open and nobody has joined one; it
// is read only by workers that joined, which the write to `state` that opened the job happens before.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is to something `Sync`.
unsafe impl Send for Shared {}

impl Pool {
    fn start(threads: usize) -> Pool {
        let shared = Arc::new(Shared { state: AtomicU64::new(0), job: UnsafeCell::new(None) });
        // A thread that the system refuses is one fewer, not a failure: every job can run without workers.
        let workers = (1..threads).filter_map(|index| Worker::spawn(index, &shared).ok()).collect();
        Pool { shared, workers, claimed: AtomicBool::new(false) }
    }

    fn try_claim(&self) -> bool {
        !self.claimed.load(Ordering::Relaxed)
            && self.claimed.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Runs `job` on this thread and on up to `helpers` workers at once, and gives up the claim. `job` must not panic.
    fn run(&self, helpers: usize, job: &(dyn Fn() + Sync)) {
        let state = &self.shared.state;
        // SAFETY: only the lifetime changes; the pointer is dead to everyone when this function returns (`state`).
        let erased = unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + '_), Job>(job) };
        // SAFETY: this thread has the claim, and the last job was closed and left by all before its claim was given up.
        unsafe { *self.shared.job.get() = Some(erased) };
        let number = (state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & u64::from(u32::MAX);
        // Sequentially consistent, as is `asleep`: either a worker sees this job before it sleeps, or it is woken here.
        state.store(number << 32 | OPEN, Ordering::SeqCst);
        for worker in self.workers.iter().take(helpers) {
            worker.wake();
        }
        job();
        state.fetch_and(!OPEN, Ordering::AcqRel);
        wait_until(|| state.load(Ordering::Acquire) & JOINED == 0);
        self.claimed.store(false, Ordering::Release);
    }
}

/// Spins, then yields: what is waited for is at most one task long.
fn wait_until(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        if spins < 1000 {
            spins += 1;
            spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

impl Worker {
    fn spawn(index: usize, shared: &Arc<Shared>) -> std::io::Result<Worker> {
        let asleep = Arc::new(AtomicBool::new(false));
        let (its_shared, its_asleep) = (shared.clone(), asleep.clone());
        let handle = thread::Builder::new()
            .name(format!("plimsoll-op-{index}"))
            .spawn(move || work(&its_shared, &its_asleep))?;
        Ok(Worker { thread: handle.thread().clone(), asleep })
    }

    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

/// A worker's life: it ends with the process.
fn work(shared: &Shared, asleep: &AtomicBool) {
    let mut last = 0;
    loop {
        let number = next_job(shared, asleep, last);
        if let Some(job) = shared.join(number) {
            // SAFETY: a joined job lives until its owner has seen everyone leave.
            unsafe { (*job)() };
            shared.state.fetch_sub(1, Ordering::Release);
        }
        last = number;
    }
}

/// Waits for an open job other than `last`, and returns its number.
fn next_job(shared: &Shared, asleep: &AtomicBool, last: u64) -> u64 {
    let open = || {
        let state = shared.state.load(Ordering::SeqCst);
        (state & OPEN != 0 && state >> 32 != last).then_some(state >> 32)
    };
    let since = Instant::now();
    while since.elapsed() < SPIN {
        for _ in 0..16 {
            if let Some(number) = open() {
                return number;
            }
            spin_loop();
        }
    }
    loop {
        asleep.store(true, Ordering::SeqCst);
        if let Some(number) = open() {
            asleep.store(false, Ordering::SeqCst);
            return number;
        }
        thread::park();
    }
}

impl Shared {
    /// Joins job `number`, unless it was closed meanwhile.
    fn join(&self, number: u64) -> Option<Job> {
        let joined = self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |state| {
            (state >> 32 == number && state & OPEN != 0).then_some(state + 1)
        });
        // SAFETY: having joined, nobody writes `job` until this worker leaves.
        joined.ok().map(|_| unsafe { (*self.job.get()).expect("an open job is set") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_index_runs_once(tasks: usize) {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        parallel_for(tasks, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{tasks} tasks");
    }

    #[test]
    fn every_task_runs_exactly_once() {
        for round in 0..2000 {
            each_index_runs_once(round % 37);
        }
        each_index_runs_once(10_000);
    }

    #[test]
    fn callers_on_many_threads_do_not_disturb_each_other() {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..500).for_each(|round| each_index_runs_once(round % 23)));
            }
        });
    }

    #[test]
    fn nested_calls_run() {
        let sum = AtomicUsize::new(0);
        parallel_for(8, |_| {
            parallel_for(8, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 8 * 28);
    }

    #[test]
    fn sleeping_workers_wake_and_share_the_work() {
        if num_threads() < 2 {
            return;
        }
        // Two tasks that each wait for the other end only if two threads run them. Another test may hold the pool, in
        // which case they would run one after the other, so each waits a bounded time and the job is tried again.
        let met = || {
            let arrived = AtomicUsize::new(0);
            let met = AtomicBool::new(false);
            parallel_for(2, |_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                let since = Instant::now();
                while since.elapsed() < Duration::from_millis(200) {
                    if arrived.load(Ordering::SeqCst) == 2 {
                        met.store(true, Ordering::SeqCst);
                        return;
                    }
                    thread::yield_now();
                }
            });
            met.into_inner()
        };
        let found = (0..50).any(|_| {
            thread::sleep(SPIN * 20);
            met()
        });
        assert!(found, "no worker ever joined");
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for at in [0, 1, 63] {
            let outcome = catch_unwind(|| {
                parallel_for(64, |i| assert!(i != at, "task {i} fails"));
            });
            let payload = outcome.expect_err("the panic is passed on");
            assert_eq!(payload.downcast_ref::<String>().unwrap(), &format!("task {at} fails"));
            each_index_runs_once(64);
        }
    }

    #[test]
    fn the_number_of_threads_cannot_change_under_a_running_pool() {
        assert!(set_num_threads(0).is_err());
        parallel_for(2, |_| ());
        assert!(set_num_threads(num_threads()).is_ok());
        let error = set_num_threads(num_threads() + 1).unwrap_err().to_string();
        assert!(error.contains("before the first op"), "{error}");
    }
}
