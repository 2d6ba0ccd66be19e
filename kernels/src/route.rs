//! Routing: which experts each token goes to, and the work that makes for them, all of it in device memory, so that it
//! can be captured in a graph.

mod split;

use crate::operands::require;
use crate::{DevicePtr, Launch, LaunchError, Queue};

pub use split::{RoutePlanPart, RoutePlanSize, Split};

/// Of a layer.
pub const MOST_EXPERTS: u32 = 256;

/// Of a token.
pub const MOST_CHOSEN: u32 = 32;

/// Warps of a block.
const WARPS: u32 = 16;

/// Tokens that one block routes and sorts on its own, in one launch.
const MOST_ALONE: u32 = 64;

/// Blocks of more tokens.
const MOST_BLOCKS: u32 = 64;

/// What the weights of a token's experts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighting {
    /// The softmax of the chosen experts' scores.
    AmongChosen,
    /// The softmax of all experts' scores.
    AmongAll,
    /// Each chosen score's logistic function.
    Sigmoid,
}

/// One layer's routing.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// u32 `[tokens, top]`, written: a token's experts in the order of their numbers.
    pub chosen: DevicePtr,
    /// f32 `[tokens, top]`, written.
    pub weights: DevicePtr,
    /// u32 `[tokens * top]`, written: slots (`token * top + place`) by expert, those of one in their own order.
    pub slots: DevicePtr,
    /// u32 `[size.words()]`, written; aligned to 16 bytes.
    pub plan: DevicePtr,
    /// u32 `[size.count_words()]`: for between the launches.
    pub counts: DevicePtr,
    /// f32 `[tokens, experts]`.
    pub scores: DevicePtr,
    /// u32: how many tokens are real, or [`DevicePtr::NULL`]: all. Of those after them nothing is written.
    pub num_tokens: DevicePtr,
    pub weighting: Weighting,
    pub size: RoutePlanSize,
}

/// Blocks of a launch, and tokens of a warp.
fn blocks(tokens: u32) -> (u32, u32) {
    let a_warp = if tokens <= MOST_ALONE { tokens } else { tokens.div_ceil(MOST_BLOCKS) }.div_ceil(WARPS);
    (tokens.div_ceil(WARPS * a_warp.max(1)), a_warp)
}

impl RoutePlanSize {
    /// u32 words of [`Route::counts`].
    pub fn count_words(&self) -> u32 {
        match blocks(self.tokens) {
            (0 | 1, _) => 0,
            (blocks, _) => blocks * self.experts,
        }
    }
}

impl Route {
    /// # Errors
    /// More experts, or more of them a token, than the kernel was made for, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "route_plan";
        let RoutePlanSize { tokens, experts, top, .. } = self.size;
        require(KERNEL, (1..=MOST_EXPERTS).contains(&experts), || {
            format!("{experts} experts, expected 1 to {MOST_EXPERTS}")
        })?;
        require(KERNEL, (1..=experts.min(MOST_CHOSEN)).contains(&top), || {
            format!("{top} experts a token of {experts}, expected 1 to {}", experts.min(MOST_CHOSEN))
        })?;
        require(KERNEL, tokens <= u32::MAX / MOST_CHOSEN, || format!("{tokens} tokens are too many"))?;
        match blocks(tokens) {
            (0, _) => Ok(()),
            (1, a_warp) => self.run_alone(queue, a_warp),
            (blocks, a_warp) => self.run_in_blocks(queue, blocks, a_warp),
        }
    }

    fn run_alone(&self, queue: &dyn Queue, a_warp: u32) -> Result<(), LaunchError> {
        let RoutePlanSize { tokens, experts, top, split } = self.size;
        queue.launch(&Launch {
            kernel: "route_plan",
            grid: [1, 1, 1],
            // Few tokens' experts are sorted by as many warps as look for them, or by some more.
            threads: 32 * tokens.div_ceil(a_warp).max(4),
            shared_bytes: 0,
            args: &[
                self.chosen.into(),
                self.weights.into(),
                self.slots.into(),
                self.plan.into(),
                self.scores.into(),
                self.num_tokens.into(),
                tokens.into(),
                experts.into(),
                top.into(),
                self.weighting_code().into(),
                a_warp.into(),
                split.few.into(),
                split.many.item_rows().into(),
                self.size.few_items().into(),
                self.size.many_items().into(),
            ],
        })
    }

    fn run_in_blocks(&self, queue: &dyn Queue, blocks: u32, a_warp: u32) -> Result<(), LaunchError> {
        let RoutePlanSize { tokens, experts, top, split } = self.size;
        let (grid, threads, shared_bytes) = ([blocks, 1, 1], 32 * WARPS, 0);
        queue.launch(&Launch {
            kernel: "route_count",
            grid,
            threads,
            shared_bytes,
            args: &[
                self.chosen.into(),
                self.weights.into(),
                self.counts.into(),
                self.scores.into(),
                self.num_tokens.into(),
                tokens.into(),
                experts.into(),
                top.into(),
                self.weighting_code().into(),
                a_warp.into(),
            ],
        })?;
        queue.launch(&Launch {
            kernel: "route_place",
            grid,
            threads,
            shared_bytes,
            args: &[
                self.slots.into(),
                self.plan.into(),
                self.chosen.into(),
                self.counts.into(),
                self.num_tokens.into(),
                tokens.into(),
                experts.into(),
                top.into(),
                a_warp.into(),
                split.few.into(),
                split.many.item_rows().into(),
                self.size.few_items().into(),
                self.size.many_items().into(),
            ],
        })
    }

    fn weighting_code(&self) -> u32 {
        match self.weighting {
            Weighting::AmongChosen => 0,
            Weighting::AmongAll => 1,
            Weighting::Sigmoid => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_all_tokens_and_are_few() {
        for tokens in (1..300).chain([1023, 1024, 1025, 4096, 8192, 100_000]) {
            let (blocks, a_warp) = blocks(tokens);
            assert!(blocks * a_warp * WARPS >= tokens && (blocks - 1) * a_warp * WARPS < tokens, "{tokens}");
            assert!(blocks <= MOST_BLOCKS && (blocks == 1) == (tokens <= MOST_ALONE), "{tokens}: {blocks}");
        }
        assert_eq!((blocks(0).0, blocks(32), blocks(65), blocks(4096)), (0, (1, 2), (5, 1), (64, 4)));
    }
}
