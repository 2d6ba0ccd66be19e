//! Which way an expert's products go: the one for few positions, where reading its weights is all that takes time, or one
//! for many, on the tensor cores. The device decides by each expert's own positions; what is decided here, by what a step
//! may bring at most, is which ways are launched at all.
//!
//! What an expert of `w` bytes costs with `p` positions, in reading of weights (from memory once, again from the cache)
//! and in decoding of codes, a multiprocessor's other bottleneck:
//!
//! | way | reads | decodes | products with the tensor cores |
//! |---|---|---|---|
//! | skinny | `w * ceil(p / 8)` | as often | 8 positions each time |
//! | tiled | `w * ceil(p / 64)`, or 128 | as often | eights of positions that are there |
//!
//! So up to 8 positions the ways read alike; skinny has no shared memory to fill first, and 16 rows a block instead of 256,
//! so that few experts still occupy a GPU. From 9 on it reads twice, which tiles do not: that is where experts part. A
//! launch whose list turns out empty costs its start and a look at the list from each block, some microseconds, so:
//!
//! - up to [`FEW_TOKENS`] tokens, or [`FEW_ON_AVERAGE`] positions an expert, no tiles: an expert has 16 positions at most, or
//!   such as do are few;
//! - from [`MANY_ON_AVERAGE`] positions an expert on, tiles alone: of random routing, 1 expert in 50 would have as few as 8.
//!
//! Whatever is launched, every position is worked on: the limits are what seems fastest, not measured yet.

use crate::packed::Way;

/// Of a step.
const FEW_TOKENS: usize = 16;

/// Positions an expert.
const FEW_ON_AVERAGE: usize = 2;
const MANY_ON_AVERAGE: usize = 16;
const VERY_MANY_ON_AVERAGE: usize = 96;

/// Which of a layer's experts go which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Experts of at most so many positions go [`Way::Skinny`].
    pub(super) few: u32,
    /// The way of the others, which has tiles.
    pub(super) many: Way,
}

impl Split {
    /// What should be fastest for so many tokens, each with `top` of so many experts.
    pub fn of(tokens: usize, experts: usize, top: usize) -> Self {
        let average = (tokens * top).div_ceil(experts.max(1));
        if tokens <= FEW_TOKENS || average <= FEW_ON_AVERAGE {
            return Self::only(Way::Skinny);
        }
        match average {
            0..MANY_ON_AVERAGE => Self::at(Way::Skinny.item_rows(), Way::Tiled64),
            MANY_ON_AVERAGE..VERY_MANY_ON_AVERAGE => Self::only(Way::Tiled64),
            _ => Self::only(Way::Tiled128),
        }
    }

    /// All experts one way.
    pub fn only(way: Way) -> Self {
        match way {
            Way::Skinny => Self { few: u32::MAX, many: Way::Tiled64 },
            many => Self { few: 0, many },
        }
    }

    /// Experts of at most `few` positions [`Way::Skinny`], others `many`.
    pub fn at(few: u32, many: Way) -> Self {
        Self { few, many }
    }
}

/// Room for the work of so many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutePlanSize {
    pub tokens: u32,
    pub experts: u32,
    /// Experts a token.
    pub top: u32,
    pub split: Split,
}

/// The items of a plan that go one way: what one launch works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutePlanPart {
    pub way: Way,
    /// u32 words of the plan before them.
    pub offset: u32,
    /// At most so many.
    pub items: u32,
}

impl RoutePlanSize {
    /// Slots: tokens times experts a token.
    pub fn slots(&self) -> u32 {
        self.tokens * self.top
    }

    /// u32 words of the plan.
    pub fn words(&self) -> u32 {
        self.many_offset() + 4 + 4 * self.many_items()
    }

    /// The parts that may have items.
    pub fn parts(&self) -> impl Iterator<Item = RoutePlanPart> {
        let few = RoutePlanPart { way: Way::Skinny, offset: 0, items: self.few_items() };
        let many = RoutePlanPart { way: self.split.many, offset: self.many_offset(), items: self.many_items() };
        [few, many].into_iter().filter(|part| part.items > 0)
    }

    fn many_offset(&self) -> u32 {
        4 + 4 * self.few_items()
    }

    /// The most that any routing makes: each expert with a slot has a last one, and its others are full. No token is
    /// an expert's twice.
    pub(super) fn few_items(&self) -> u32 {
        let most_positions = self.split.few.min(self.tokens);
        let (slots, rows) = (self.slots(), Way::Skinny.item_rows());
        slots.min(self.experts + slots / rows).min(self.experts * most_positions.div_ceil(rows))
    }

    /// Likewise, of experts that have more positions than the few.
    pub(super) fn many_items(&self) -> u32 {
        if self.tokens <= self.split.few {
            return 0;
        }
        let slots = self.slots();
        self.experts.min(slots / (self.split.few + 1)) + slots / self.split.many.item_rows()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_go_by_positions_an_expert() {
        let (few, some, many) = (Split::only(Way::Skinny), Split::at(8, Way::Tiled64), |way| Split::only(way));
        for (tokens, experts, top, split) in [
            (1, 32, 4, few),
            (16, 16, 1, few),
            (16, 8, 8, few),
            (32, 128, 4, few),
            (32, 32, 4, some),
            (100, 32, 4, some),
            (1024, 128, 8, many(Way::Tiled64)),
            (4096, 32, 4, many(Way::Tiled128)),
        ] {
            assert_eq!(Split::of(tokens, experts, top), split, "{tokens} tokens, {top} of {experts}");
        }
    }

    #[test]
    fn there_is_room_for_any_routing_and_little_more() {
        for (tokens, experts, top) in [(1u32, 4, 4), (9, 4, 1), (40, 8, 2), (130, 3, 3), (300, 256, 32)] {
            for split in [Split::only(Way::Skinny), Split::only(Way::Tiled128), Split::at(8, Way::Tiled64)] {
                let size = RoutePlanSize { tokens, experts, top, split };
                // As even as can be; and all tokens the same way.
                let even = |expert: u32| tokens * top / experts + u32::from(expert < tokens * top % experts);
                let same = |expert: u32| if expert < top { tokens } else { 0 };
                let items = |few: bool, of: &dyn Fn(u32) -> u32| -> u32 {
                    let rows = if few { 8 } else { split.many.item_rows() };
                    (0..experts).map(of).filter(|&count| (count <= split.few) == few).map(|n| n.div_ceil(rows)).sum()
                };
                for of in [&even as &dyn Fn(u32) -> u32, &same] {
                    assert!(items(true, of) <= size.few_items(), "{size:?}");
                    assert!(items(false, of) <= size.many_items(), "{size:?}");
                }
                assert!(size.parts().map(|part| part.items).sum::<u32>() <= 2 * size.slots(), "{size:?}");
            }
        }
        let all_few = RoutePlanSize { tokens: 5, experts: 8, top: 2, split: Split::at(8, Way::Tiled64) };
        assert_eq!(all_few.parts().map(|part| part.way).collect::<Vec<_>>(), [Way::Skinny]);
    }
}
