//! Counters and gauges of the scheduler, for metrics and the load line.

/// A snapshot. Counters only grow; gauges are of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Requests that have not begun (gauge).
    pub waiting: u32,
    /// Prompt tokens of those (gauge).
    pub waiting_prompt_tokens: u64,
    /// Sequences that take part in steps (gauge).
    pub running: u32,
    /// Sequences that were preempted and wait to resume (gauge).
    pub preempted: u32,
    /// Steps planned and not committed (gauge).
    pub steps_in_flight: u32,
    /// Blocks of each KV group (gauge).
    pub blocks: Vec<BlockUsage>,
    /// Steps planned.
    pub steps: u64,
    /// Input tokens planned, recomputed ones included.
    pub scheduled_tokens: u64,
    /// Tokens delivered in events.
    pub generated_tokens: u64,
    /// Times that a sequence lost its blocks to another.
    pub preemptions: u64,
    /// Prompt tokens of requests that began, where prefix caching is on.
    pub prefix_queried_tokens: u64,
    /// Of those, tokens that the prefix cache had.
    pub prefix_hit_tokens: u64,
}

/// The blocks of one KV group; `free + cached + used = total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockUsage {
    pub total: u32,
    /// Hold nothing.
    pub free: u32,
    /// Held by no sequence, kept for prefix hits until the space is needed.
    pub cached: u32,
    /// Held by at least one sequence.
    pub used: u32,
}
