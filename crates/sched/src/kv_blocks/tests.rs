//! Windows and prefixes over several groups, against what follows from the definitions.

use std::collections::HashMap;

use plimsoll_core::BlockId;
use proptest::prelude::*;

use super::*;

const BLOCK: u32 = 4;

fn kv(groups: &[(Option<u32>, u32)]) -> KvBlocks {
    let group = |&(window, num_blocks): &(Option<u32>, u32)| KvGroup { window, num_blocks };
    KvBlocks::new(&CacheConfig { block_size: BLOCK, groups: groups.iter().map(group).collect() }, true)
}

fn used(kv: &KvBlocks) -> Vec<u32> {
    kv.usage().iter().map(|blocks| blocks.used).collect()
}

/// Begins a sequence and computes it in steps of `chunk`, everything committed at once.
fn run(kv: &mut KvBlocks, tokens: &[TokenId], chunk: u32) -> SeqBlocks {
    let mut blocks = kv.nothing();
    let mut computed = kv.try_begin(&mut blocks, tokens, usize::MAX, 0).expect("the pools are large enough");
    while computed < tokens.len() as u32 {
        computed = (computed + chunk).min(tokens.len() as u32);
        kv.grow(&mut blocks, computed);
        kv.advance(&mut blocks, tokens, computed);
    }
    blocks
}

#[test]
fn working_set_covers_a_window_at_any_alignment() {
    // (window, tokens, blocks needed)
    let cases = [
        (None, 9, 3),
        (Some(1), 9, 1),
        (Some(2), 9, 2),
        (Some(4), 9, 2),
        (Some(5), 9, 2),
        (Some(6), 100, 3),
        (Some(9), 100, 3),
        (Some(9), 3, 1),
    ];
    for (window, tokens, needed) in cases {
        let roomy = kv(&[(window, needed)]);
        assert_eq!(roomy.check_fits(tokens), Ok(()), "window {window:?}, {tokens} tokens");
        if needed > 1 {
            let tight = kv(&[(None, 100), (window, needed - 1)]);
            let error = NeverFits { group: 1, needed, total: needed - 1 };
            assert_eq!(tight.check_fits(tokens), Err(error), "window {window:?}, {tokens} tokens");
        }
    }
}

#[test]
fn a_windowed_group_lets_go_of_what_no_later_query_reaches() {
    // (window, computed, first block kept): the next query at `computed` sees `computed - window + 1` and later.
    let cases = [(1, 8, 2), (1, 7, 1), (4, 7, 1), (4, 6, 0), (5, 8, 1), (5, 7, 0), (6, 9, 1), (100, 40, 0)];
    for (window, computed, first) in cases {
        let mut kv = kv(&[(None, 32), (Some(window), 32)]);
        let tokens: Vec<TokenId> = (0..computed).collect();
        let blocks = run(&mut kv, &tokens, 1);
        assert_eq!(blocks.tables[0].first(), 0);
        assert_eq!(blocks.tables[1].first(), first, "window {window}, {computed} computed");
        assert_eq!(used(&kv), [computed.div_ceil(BLOCK), computed.div_ceil(BLOCK) - first]);
        kv.check(std::iter::once(&blocks));
    }
}

#[test]
fn a_prefix_is_found_in_whole_blocks_and_never_whole() {
    let tokens: Vec<TokenId> = (0..14).collect();
    let diverging = |at: usize| {
        let mut tokens = tokens.clone();
        tokens[at] = 99;
        tokens
    };
    // (second prompt, tokens found)
    let cases = [
        (tokens.clone(), 12),
        (tokens[..13].to_vec(), 12),
        (tokens[..12].to_vec(), 8),
        (tokens[..5].to_vec(), 4),
        (tokens[..4].to_vec(), 0),
        (diverging(12), 12),
        (diverging(11), 8),
        (diverging(0), 0),
        ((0..30).collect(), 12),
    ];
    for (second, found) in cases {
        let mut kv = kv(&[(None, 32)]);
        let first = run(&mut kv, &tokens, 5);
        let mut blocks = kv.nothing();
        assert_eq!(kv.try_begin(&mut blocks, &second, usize::MAX, 0), Some(found), "after {tokens:?}, {second:?}");
        kv.check([&first, &blocks].into_iter());
    }
}

#[test]
fn a_prefix_needs_the_window_before_its_end_in_windowed_groups() {
    let tokens: Vec<TokenId> = (0..24).collect();
    let mut kv = kv(&[(None, 32), (Some(5), 32)]);
    let mut first = run(&mut kv, &tokens, 24);
    kv.release(&mut first);
    // All blocks of the windowed group are cached still: use the early ones up.
    let mut other = run(&mut kv, &(100..100 + 4 * 28).collect::<Vec<_>>()[..4 * 26], 4 * 26);
    let mut again = kv.nothing();
    assert_eq!(
        kv.try_begin(&mut again, &tokens, usize::MAX, 0),
        Some(20),
        "block 4, the last before position 20, is left"
    );
    assert_eq!((again.tables[1].first(), again.tables[0].first()), (4, 0));
    kv.release(&mut other);
    kv.release(&mut again);
    kv.check(std::iter::empty());
}

#[test]
fn distrusted_prefixes_are_not_found_again() {
    let tokens: Vec<TokenId> = (0..14).collect();
    let mut kv = kv(&[(None, 32), (Some(6), 32)]);
    let mut blocks = run(&mut kv, &tokens, 3);
    kv.distrust(&blocks);
    kv.release(&mut blocks);
    assert!(kv.usage().iter().all(|blocks| blocks.free == 32), "{:?}", kv.usage());
    assert_eq!(kv.try_begin(&mut blocks, &tokens, usize::MAX, 0), Some(0));
}

#[test]
fn beginning_leaves_the_reserve() {
    let tokens: Vec<TokenId> = (0..16).collect();
    let mut kv = kv(&[(None, 6)]);
    let mut blocks = kv.nothing();
    assert_eq!(kv.try_begin(&mut blocks, &tokens, usize::MAX, 3), None);
    assert_eq!(used(&kv), [0]);
    assert_eq!(kv.try_begin(&mut blocks, &tokens, usize::MAX, 2), Some(0));
    assert_eq!(used(&kv), [4]);
}

/// The longest prefix that may be used, straight from the definition; it must be known, even where a window of one
/// token asks for no block of it.
fn oracle(kv: &mut KvBlocks, tokens: &[TokenId]) -> u32 {
    let mut nodes = Vec::new();
    for chunk in tokens.chunks_exact(BLOCK as usize) {
        match kv.prefixes.as_mut().and_then(|prefixes| prefixes.child(nodes.last().copied(), chunk)) {
            Some(node) => nodes.push(node),
            None => break,
        }
    }
    let has = |group: usize, at: u32| {
        let prefixes = kv.prefixes.as_ref().expect("caching is on");
        nodes.get(at as usize).is_some_and(|&node| prefixes.block(node, group).is_some())
    };
    let usable = |len: &u32| {
        kv.groups.iter().enumerate().all(|(index, group)| {
            let mut seen = (0..*len).filter(|position| group.window.is_none_or(|window| position + window > *len));
            seen.all(|position| has(index, position / BLOCK))
        })
    };
    let lens = (0..tokens.len() as u32).filter(|len| len % BLOCK == 0 && len / BLOCK <= nodes.len() as u32);
    lens.filter(usable).max().expect("0 is usable")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Random sequences over few tokens come and go in small pools. What is found is just what the definition says,
    /// and each found block holds what the sequence would have computed.
    #[test]
    fn finds_the_longest_prefix_and_only_right_blocks(
        groups in prop::collection::vec((prop::option::of(1..20u32), 14..30u32), 1..4),
        prompts in prop::collection::vec((prop::collection::vec(0..2u32, 1..40), 1..12u32, any::<prop::sample::Index>()), 1..25),
    ) {
        let mut kv = kv(&groups);
        let mut live: Vec<SeqBlocks> = Vec::new();
        let mut content: HashMap<(usize, BlockId), Vec<TokenId>> = HashMap::new();
        for (tokens, chunk, victim) in prompts {
            let expected = oracle(&mut kv, &tokens);
            let mut blocks = kv.nothing();
            let Some(cached) = kv.try_begin(&mut blocks, &tokens, usize::MAX, 0) else {
                prop_assert!(!live.is_empty(), "a lone sequence always fits");
                let at = victim.index(live.len());
                kv.release(&mut live.swap_remove(at));
                continue;
            };
            prop_assert_eq!(cached, expected);
            for (group, table) in blocks.tables.iter().enumerate() {
                for at in table.first()..cached / BLOCK {
                    let block = table.get(at).expect("the prefix is in the table");
                    prop_assert_eq!(&content[&(group, block)], &tokens[..((at + 1) * BLOCK) as usize]);
                }
            }
            let mut computed = cached;
            while computed < tokens.len() as u32 {
                let room = kv.reach(&blocks, 0).saturating_sub(u64::from(computed)) as u32;
                let len = room.min(chunk).min(tokens.len() as u32 - computed);
                if len == 0 {
                    break;
                }
                kv.grow(&mut blocks, computed + len);
                for (group, table) in blocks.tables.iter().enumerate() {
                    for position in computed..computed + len {
                        let block = table.get(position / BLOCK).expect("covered");
                        content.insert((group, block), tokens[..=position as usize].to_vec());
                    }
                }
                computed += len;
                kv.advance(&mut blocks, &tokens, computed);
            }
            live.push(blocks);
            kv.check(live.iter());
        }
        live.iter_mut().for_each(|blocks| kv.release(blocks));
        kv.check(std::iter::empty());
        prop_assert!(used(&kv).iter().all(|&used| used == 0));
    }
}
