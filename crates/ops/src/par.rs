//! Fork-join over the CPU's threads: the one place that knows how ops run in parallel.

/// Runs `task(0) ..= task(tasks - 1)`, each once, on the pool's threads and the caller's; returns when all are done.
pub fn parallel_for(tasks: usize, task: impl Fn(usize) + Sync + Send) {
    use rayon::prelude::*;
    (0..tasks).into_par_iter().with_max_len(1).for_each(task);
}

/// Threads that [`parallel_for`] uses.
pub fn num_threads() -> usize {
    rayon::current_num_threads()
}
