//! Routing: which experts each token goes to, and the work that makes for them, all of it in device memory, so that it
//! can be captured in a graph.

use crate::operands::require;
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// Of a layer.
pub const MOST_EXPERTS: u32 = 256;

/// Of a token.
pub const MOST_CHOSEN: u32 = 32;

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

/// Room for the work of so many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutePlanSize {
    pub tokens: u32,
    pub experts: u32,
    /// Experts a token.
    pub top: u32,
    /// The most positions of an item.
    pub item_rows: u32,
}

impl RoutePlanSize {
    /// Slots: tokens times experts a token.
    pub fn slots(&self) -> u32 {
        self.tokens * self.top
    }

    /// The most items that any routing makes: each expert with a slot has a last one, and the others are full.
    pub fn capacity(&self) -> u32 {
        let slots = self.slots();
        slots.min(self.experts + slots / self.item_rows.max(1))
    }

    /// u32 words of the plan.
    pub fn words(&self) -> u32 {
        4 + 4 * self.capacity()
    }
}

/// One layer's routing.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// u32 `[tokens, top]`, written: a token's experts in the order of their numbers.
    pub chosen: DevicePtr,
    /// f32 `[tokens, top]`, written.
    pub weights: DevicePtr,
    /// u32 `[tokens * top]`, written: slots (`token * top + place`) by expert.
    pub slots: DevicePtr,
    /// u32 `[size.words()]`, written; aligned to 16 bytes.
    pub plan: DevicePtr,
    /// u32: 0 before and after.
    pub ticket: DevicePtr,
    /// f32 `[tokens, experts]`.
    pub scores: DevicePtr,
    pub weighting: Weighting,
    pub size: RoutePlanSize,
}

impl Route {
    /// # Errors
    /// More experts, or more of them a token, than the kernel was made for, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "route_plan";
        const MOST_WARPS: u32 = 16;
        let RoutePlanSize { tokens, experts, top, item_rows } = self.size;
        require(KERNEL, (1..=MOST_EXPERTS).contains(&experts), || {
            format!("{experts} experts, expected 1 to {MOST_EXPERTS}")
        })?;
        require(KERNEL, (1..=experts.min(MOST_CHOSEN)).contains(&top), || {
            format!("{top} experts a token of {experts}, expected 1 to {}", experts.min(MOST_CHOSEN))
        })?;
        require(KERNEL, item_rows > 0, || "items of no positions".to_owned())?;
        if tokens == 0 {
            return Ok(());
        }
        // Few tokens make one block, all of whose threads sort.
        let warps = (tokens * top).div_ceil(32).max(tokens).clamp(1, MOST_WARPS);
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [tokens.div_ceil(warps), 1, 1],
            threads: 32 * warps,
            shared_bytes: 0,
            args: &[
                self.chosen.into(),
                self.weights.into(),
                self.slots.into(),
                self.plan.into(),
                self.ticket.into(),
                self.scores.into(),
                tokens.into(),
                experts.into(),
                top.into(),
                match self.weighting {
                    Weighting::AmongChosen => 0u32,
                    Weighting::AmongAll => 1,
                    Weighting::Sigmoid => 2,
                }
                .into(),
                item_rows.into(),
                self.size.capacity().into(),
            ],
        })
    }
}
