//! How long a step takes by the roofline (Williams, Waterman and Patterson, doi:10.1145/1498765.1498785): what it must
//! move over the memory's bandwidth, or what it must compute over the arithmetic's rate, whichever is longer.
//!
//! A step is two phases one after the other, the matrices and attention, each under its own roofline. Weights are read
//! once a step, however many tokens it has; of a mixture of experts those that the step's tokens are expected to choose,
//! as if each chose among all with equal chances. It must never know an architecture's name.

use plimsoll_core::{ScheduledSeq, StepPlan};

use crate::StepCost;

/// What a model moves and computes, in bytes and floating-point operations of a step or a token.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelWork {
    /// Bytes of the weights that every step reads: all but experts and an embedding table that is not the head, too.
    pub dense_bytes: f64,
    /// Operations a token in those, without the head's.
    pub dense_flops: f64,
    /// Operations of the head for each row that is sampled.
    pub head_flops: f64,
    /// None: no layer is a mixture of experts.
    pub experts: Option<Experts>,
    /// One entry a KV group.
    pub attention: Vec<AttentionWork>,
}

/// The experts of all layers together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// Experts of a layer, and how many of them a token goes through.
    pub count: u32,
    pub active: u32,
    /// Bytes of one expert in every layer, and its operations a token.
    pub bytes_each: f64,
    pub flops_each: f64,
}

/// Attention in the layers of one KV group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionWork {
    /// Tokens that a query reaches back, its own included.
    pub window: Option<u32>,
    /// Bytes of keys and values of a token.
    pub bytes_per_token: f64,
    /// Operations for each pair of a query and a token that it reaches.
    pub flops_per_pair: f64,
}

/// What a device really does of what its datasheet says, and what the host adds. Assumptions, to be told with every
/// result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Efficiency {
    /// Share of the published bandwidth, and of the published arithmetic rate.
    pub bandwidth: f64,
    pub compute: f64,
    /// Device time of a step in which nothing is read or computed: launches and what waits between them.
    pub step_overhead_ns: f64,
    /// Host time of a step, and of each sequence in it. Runs beside the device's time.
    pub host_step_ns: f64,
    pub host_seq_ns: f64,
}

impl Efficiency {
    /// The roofline itself: everything as published, and a host that takes no time.
    pub const IDEAL: Self =
        Self { bandwidth: 1.0, compute: 1.0, step_overhead_ns: 0.0, host_step_ns: 0.0, host_seq_ns: 0.0 };
}

impl Default for Efficiency {
    fn default() -> Self {
        Self {
            bandwidth: 0.75,
            compute: 0.5,
            step_overhead_ns: 100_000.0,
            host_step_ns: 100_000.0,
            host_seq_ns: 4_000.0,
        }
    }
}

/// What bounds a part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Reading weights.
    WeightBandwidth,
    /// Reading keys and values.
    KvBandwidth,
    /// Arithmetic.
    Compute,
    /// The device's overhead of a step.
    Overhead,
    /// The host, where it takes longer than the device.
    Host,
}

impl Bound {
    pub const ALL: [Self; 5] = [Self::WeightBandwidth, Self::KvBandwidth, Self::Compute, Self::Overhead, Self::Host];
}

/// A model on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    pub model: ModelWork,
    /// Published bytes a second, and operations a second.
    pub bandwidth: f64,
    pub flops: f64,
    pub efficiency: Efficiency,
}

/// Where the time of a step goes, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// The two phases, each with what bounds it.
    pub matrices: (f64, Bound),
    pub attention: (f64, Bound),
    pub overhead: f64,
    pub host: f64,
}

impl StepTime {
    pub fn device(&self) -> f64 {
        self.matrices.0 + self.attention.0 + self.overhead
    }

    /// Adds each part to the account of what bounds it; all of it to the host's where that takes longer.
    pub fn book(&self, accounts: &mut [f64; Bound::ALL.len()]) {
        if self.host > self.device() {
            accounts[Bound::Host as usize] += self.host;
            return;
        }
        for (ns, bound) in [self.matrices, self.attention, (self.overhead, Bound::Overhead)] {
            accounts[bound as usize] += ns;
        }
    }
}

impl ModelWork {
    /// Bytes of weights that a step of `tokens` tokens is expected to read.
    pub fn weight_bytes(&self, tokens: u64) -> f64 {
        let experts = self.experts.map_or(0.0, |experts| experts.expected_distinct(tokens) * experts.bytes_each);
        self.dense_bytes + experts
    }

    /// Operations of the matrices for `tokens` tokens of which `rows` are sampled.
    pub fn matrix_flops(&self, tokens: u64, rows: u64) -> f64 {
        let experts = self.experts.map_or(0.0, |experts| f64::from(experts.active) * experts.flops_each);
        tokens as f64 * (self.dense_flops + experts) + rows as f64 * self.head_flops
    }
}

impl Experts {
    /// How many experts of a layer `tokens` tokens choose together: each misses one with probability `1 - active/count`.
    pub fn expected_distinct(&self, tokens: u64) -> f64 {
        let count = f64::from(self.count);
        let missed = (1.0 - f64::from(self.active) / count).max(0.0);
        count * (1.0 - missed.powf(tokens as f64))
    }
}

impl AttentionWork {
    /// Tokens whose keys and values a row's queries read between them.
    fn tokens_read(&self, row: &ScheduledSeq) -> u64 {
        let end = u64::from(row.start) + u64::from(row.len);
        self.window.map_or(end, |window| end.min(u64::from(window) + u64::from(row.len) - 1))
    }

    /// Pairs of a query and a token that it reaches: for the queries at `start..start + len`, the sum of
    /// `min(position + 1, window)`.
    fn pairs(&self, row: &ScheduledSeq) -> f64 {
        let (start, len) = (u64::from(row.start), u64::from(row.len));
        let growing = self.window.map_or(len, |window| u64::from(window).saturating_sub(start).min(len));
        let whole = self.window.map_or(0, |window| u64::from(window) * (len - growing));
        (growing * start + growing * (growing + 1) / 2 + whole) as f64
    }
}

impl Roofline {
    /// The time of one step.
    pub fn step(&self, plan: &StepPlan) -> StepTime {
        let efficiency = &self.efficiency;
        let bandwidth = self.bandwidth * efficiency.bandwidth;
        let flops = self.flops * efficiency.compute;
        let phase = |bytes: f64, operations: f64, mover| {
            let (moving, computing) = (1e9 * bytes / bandwidth, 1e9 * operations / flops);
            if moving >= computing { (moving, mover) } else { (computing, Bound::Compute) }
        };
        let tokens = plan.num_tokens() as u64;
        let rows = plan.seqs.iter().filter(|row| row.sample.is_some()).count() as u64;
        let (mut kv_bytes, mut pair_flops) = (0.0, 0.0);
        for group in &self.model.attention {
            for row in &plan.seqs {
                // What is new is written as well.
                kv_bytes += (group.tokens_read(row) + u64::from(row.len)) as f64 * group.bytes_per_token;
                pair_flops += group.pairs(row) * group.flops_per_pair;
            }
        }
        let matrices = self.model.matrix_flops(tokens, rows);
        StepTime {
            matrices: phase(self.model.weight_bytes(tokens), matrices, Bound::WeightBandwidth),
            attention: phase(kv_bytes, pair_flops, Bound::KvBandwidth),
            overhead: efficiency.step_overhead_ns,
            host: efficiency.host_step_ns + efficiency.host_seq_ns * plan.seqs.len() as f64,
        }
    }
}

impl StepCost for Roofline {
    fn device_ns(&self, plan: &StepPlan) -> f64 {
        self.step(plan).device()
    }

    fn host_ns(&self, plan: &StepPlan) -> f64 {
        self.efficiency.host_step_ns + self.efficiency.host_seq_ns * plan.seqs.len() as f64
    }
}

#[cfg(test)]
mod tests;
