//! Who begins first, and who gives way when memory runs out. One small function a policy.
//!
//! A policy is a fixed rank given on arrival, lower first, ties broken by arrival. Ageing needs no clock: all waiting
//! requests gain on newcomers at the same rate, so a step-count offset at arrival orders them the same way forever.

use plimsoll_core::Request;

/// The order in which waiting requests begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// In order of arrival.
    #[default]
    Fcfs,
    /// Lower [`Request::priority`] first, strictly: a steady stream of urgent requests starves the others.
    Priority,
    /// Shorter prompts first. A waiting request gains 16 tokens on newcomers with every step, so that a long
    /// prompt is overtaken for a bounded number of steps only.
    ShortestPromptFirst,
}

/// How many tokens shorter a newcomer's prompt must be, for each step that it came later, to overtake.
pub(crate) const AGEING_TOKENS_PER_STEP: i64 = 16;

impl Policy {
    /// Rank among waiting requests of a request that arrived at `step`; the lowest begins first.
    pub(crate) fn waiting_rank(self, request: &Request, step: u64) -> i64 {
        match self {
            Policy::Fcfs => fcfs(),
            Policy::Priority => priority(request),
            Policy::ShortestPromptFirst => shortest_prompt_first(request, step),
        }
    }

    /// Rank among running sequences; the highest is preempted first.
    pub(crate) fn running_rank(self, request: &Request) -> i64 {
        match self {
            Policy::Fcfs | Policy::ShortestPromptFirst => fcfs(),
            Policy::Priority => priority(request),
        }
    }
}

fn fcfs() -> i64 {
    0
}

fn priority(request: &Request) -> i64 {
    i64::from(request.priority)
}

fn shortest_prompt_first(request: &Request, step: u64) -> i64 {
    request.prompt.len() as i64 + AGEING_TOKENS_PER_STEP * step as i64
}
