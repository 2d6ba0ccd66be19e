//! Routing and the plan it makes against plain loops.

use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::packed::Way;
use plimsoll_kernels::route::{MOST_CHOSEN, MOST_EXPERTS, Route, RoutePlanSize, Split, Weighting};

use crate::arrays::{Output, expect_close, expect_same, f32_bytes, to_f32, to_u32};
use crate::{Case, Random, TestDevice, Timing};

const WEIGHTINGS: [Weighting; 3] = [Weighting::AmongChosen, Weighting::AmongAll, Weighting::Sigmoid];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "route/choices, weights and plan".into(), run: Box::new(routes) },
        Case { name: "route/more tokens than one block has".into(), run: Box::new(in_blocks) },
        Case { name: "route/all tokens to the same experts".into(), run: Box::new(crowds) },
        Case { name: "route/padding makes no work".into(), run: Box::new(padding) },
        Case { name: "route/ties and what is not a number".into(), run: Box::new(strange_scores) },
        Case { name: "route/sizes refused".into(), run: Box::new(refused) },
    ]
}

/// What came of the real tokens; of the others, nothing may have been written.
struct Routed {
    chosen: Vec<u32>,
    weights: Vec<f32>,
    slots: Vec<u32>,
    plan: Vec<u32>,
}

fn run(
    device: &dyn TestDevice,
    scores: &[f32],
    weighting: Weighting,
    size: RoutePlanSize,
    real: Option<u32>,
) -> Result<Routed, String> {
    let slots = size.slots() as usize;
    let words = |count: usize| Output::new(device, 4 * count);
    let (chosen, weights, sorted, plan) = (words(slots), words(slots), words(slots), words(size.words() as usize));
    let counts = words(size.count_words() as usize);
    let op = Route {
        chosen: chosen.at,
        weights: weights.at,
        slots: sorted.at,
        plan: plan.at,
        counts: counts.at,
        scores: device.upload(&f32_bytes(scores)),
        num_tokens: real.map_or(DevicePtr::NULL, |real| device.upload(&real.to_ne_bytes())),
        weighting,
        size,
    };
    op.run(device.queue()).map_err(|e| e.to_string())?;
    counts.read(device)?;
    let (chosen, weights) = (chosen.read(device)?, weights.read(device)?);
    let (sorted, plan) = (to_u32(&sorted.read(device)?), to_u32(&plan.read(device)?));
    let real_slots = real.map_or(slots, |real| (real * size.top) as usize);
    for (name, bytes) in [("chosen", &chosen), ("weights", &weights)] {
        if bytes[4 * real_slots..].iter().any(|byte| *byte != 0xFF) {
            return Err(format!("{name} of padding were written"));
        }
    }
    Ok(Routed {
        chosen: to_u32(&chosen[..4 * real_slots]),
        weights: to_f32(&weights[..4 * real_slots]),
        slots: sorted[..real_slots].to_vec(),
        plan,
    })
}

/// The choice by sorting.
fn choose(scores: &[f32], top: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
    order.truncate(top);
    order.sort_unstable();
    order
}

fn weights(scores: &[f32], chosen: &[u32], weighting: Weighting) -> Vec<f32> {
    let largest = scores.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let share = |score: f32| f64::from(score - largest).exp();
    let of = |expert: &u32| scores[*expert as usize];
    let total: f64 = match weighting {
        Weighting::AmongAll => scores.iter().map(|s| share(*s)).sum(),
        _ => chosen.iter().map(|e| share(of(e))).sum(),
    };
    let weight = |expert: &u32| match weighting {
        Weighting::Sigmoid => 1.0 / (1.0 + (-f64::from(of(expert))).exp()),
        _ => share(of(expert)) / total,
    };
    chosen.iter().map(|expert| weight(expert) as f32).collect()
}

/// Slots lie by expert and then by number, and the plan's items cover each expert's, those of few positions in the
/// one list and those of many in the other.
fn check_plan(routed: &Routed, size: RoutePlanSize, few: u32) -> Result<(), String> {
    let mut order: Vec<u32> = (0..routed.chosen.len() as u32).collect();
    order.sort_by_key(|&slot| (routed.chosen[slot as usize], slot));
    expect_same(&format!("slots of {size:?}"), &routed.slots, &order)?;
    let (mut found, mut wanted) = (Vec::new(), Vec::new());
    for part in size.parts() {
        let list = &routed.plan[part.offset as usize..];
        if list[0] > part.items {
            return Err(format!("{} items, of {} at most", list[0], part.items));
        }
        let items = list[4..4 + 4 * list[0] as usize].as_chunks::<4>().0;
        found.extend(items.iter().map(|&[expert, first, count, _]| (part.way, expert, first, count)));
    }
    let mut first = 0;
    for expert in 0..size.experts {
        let count = routed.chosen.iter().filter(|chosen| **chosen == expert).count() as u32;
        let many = size.parts().last().map_or(Way::Skinny, |part| part.way);
        let way = if count <= few { Way::Skinny } else { many };
        for done in (0..count).step_by(way.item_rows() as usize) {
            wanted.push((way, expert, first + done, (count - done).min(way.item_rows())));
        }
        first += count;
    }
    let key = |&(way, expert, first, count): &(Way, u32, u32, u32)| (way as u32, expert, first, count);
    found.sort_by_key(key);
    wanted.sort_by_key(key);
    match found == wanted {
        true => Ok(()),
        false => Err(format!("the items of {size:?} are {found:?}, expected {wanted:?}")),
    }
}

/// A split and what it has for few.
fn any_split(random: &mut Random) -> (Split, u32) {
    let many = [Way::Tiled64, Way::Tiled128][random.below(2)];
    let few = random.between(1, 20) as u32;
    [(Split::only(Way::Skinny), u32::MAX), (Split::only(many), 0), (Split::at(few, many), few)][random.below(3)]
}

/// Routes random scores and compares all that is found.
fn check(
    device: &dyn TestDevice,
    random: &mut Random,
    [tokens, experts, top]: [usize; 3],
    weighting: Weighting,
    real: Option<usize>,
) -> Result<(), String> {
    let (split, few) = any_split(random);
    let size = RoutePlanSize { tokens: tokens as u32, experts: experts as u32, top: top as u32, split };
    let scores = random.normals(tokens * experts, 3.0);
    let routed = run(device, &scores, weighting, size, real.map(|real| real as u32))?;
    let of_real = &scores[..real.unwrap_or(tokens) * experts];
    let chosen: Vec<Vec<u32>> = of_real.chunks(experts).map(|scores| choose(scores, top)).collect();
    let what = format!("{size:?}, {weighting:?}, {real:?}");
    expect_same(&what, &routed.chosen, &chosen.concat())?;
    let want = of_real.chunks(experts).zip(&chosen).flat_map(|(s, chosen)| weights(s, chosen, weighting));
    expect_close(&what, &routed.weights, &want.collect::<Vec<_>>(), 3e-6, 1e-12)?;
    check_plan(&routed, size, few)
}

fn routes(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let any = (random.between(1, 64), random.between(1, MOST_EXPERTS as usize));
    for (tokens, experts) in [(1, 1), (1, 128), (40, 32), (7, MOST_EXPERTS as usize), (64, 40), any] {
        let top = random.between(1, experts.min(8));
        for weighting in WEIGHTINGS {
            check(device, random, [tokens, experts, top], weighting, None)?;
        }
    }
    Ok(())
}

/// Two launches, of blocks that are not full; warps with one token, and with several.
fn in_blocks(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let any = [random.between(65, 400), random.between(1, 60), 1];
    for sizes in [[65, 33, 3], [130, 128, 8], [4133, 9, 2], any] {
        let weighting = WEIGHTINGS[random.below(3)];
        check(device, random, sizes, weighting, None)?;
    }
    Ok(())
}

/// What makes the longest lists.
fn crowds(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let (experts, top) = (12, 2);
    let scores_of_a_token: Vec<f32> = random.normals(experts, 3.0);
    for tokens in [50, 700] {
        let (split, few) = any_split(random);
        let size = RoutePlanSize { tokens, experts: experts as u32, top, split };
        let scores = scores_of_a_token.repeat(tokens as usize);
        let routed = run(device, &scores, Weighting::AmongAll, size, None)?;
        expect_same("crowds", &routed.chosen, &choose(&scores_of_a_token, top as usize).repeat(tokens as usize))?;
        check_plan(&routed, size, few)?;
    }
    Ok(())
}

/// A captured step's tokens beyond those it was given.
fn padding(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for (tokens, real) in [(8, 0), (48, 33), (64, 64), (256, 130), (256, 3)] {
        check(device, random, [tokens, 32, 4], Weighting::AmongChosen, Some(real))?;
    }
    Ok(())
}

fn strange_scores(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let values = [1.0, 1.0, -0.0, 0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let (tokens, experts, top) = (20, 40, 6);
    let scores: Vec<f32> = (0..tokens * experts).map(|_| values[random.below(values.len())]).collect();
    let (split, few) = any_split(random);
    let size = RoutePlanSize { tokens: tokens as u32, experts: experts as u32, top: top as u32, split };
    let routed = run(device, &scores, Weighting::AmongChosen, size, None)?;
    let chosen: Vec<u32> = scores.chunks(experts).flat_map(|scores| choose(scores, top)).collect();
    expect_same("strange scores", &routed.chosen, &chosen)?;
    check_plan(&routed, size, few)
}

fn refused(device: &dyn TestDevice, _: &mut Random) -> Result<(), String> {
    let at = device.upload(&[0; 4096]);
    for (experts, top) in [(0, 1), (4, 0), (4, 5), (MOST_EXPERTS + 1, 1), (64, MOST_CHOSEN + 1)] {
        let size = RoutePlanSize { tokens: 1, experts, top, split: Split::only(Way::Skinny) };
        let (weighting, num_tokens) = (Weighting::AmongAll, DevicePtr::NULL);
        let (chosen, weights, slots, plan, counts, scores) = (at, at, at, at, at, at);
        let op = Route { chosen, weights, slots, plan, counts, scores, num_tokens, weighting, size };
        if op.run(device.queue()).is_ok() {
            return Err(format!("{top} of {experts} experts were not refused"));
        }
    }
    Ok(())
}

pub(crate) fn timings() -> Vec<Timing> {
    let models = [("gpt-oss-20b", 32, 4), ("qwen3-30b-a3b", 128, 8), ("llama-4-scout", 16, 1)];
    models.iter().flat_map(|model| [1, 32, 256, 4096].map(|tokens| timing(*model, tokens))).collect()
}

fn timing((model, experts, top): (&str, u32, u32), tokens: u32) -> Timing {
    let split = Split::of(tokens as usize, experts as usize, top as usize);
    let size = RoutePlanSize { tokens, experts, top, split };
    Timing {
        name: format!("route/{model} tokens={tokens}"),
        bytes: 4 * u64::from(tokens) * u64::from(experts + 5 * top),
        flops: 0,
        prepare: Box::new(move |device| {
            let words = |count: u32| device.upload(&vec![0; 4 * count as usize]);
            let scores = Random::new(3).normals((tokens * experts) as usize, 1.0);
            let op = Route {
                chosen: words(size.slots()),
                weights: words(size.slots()),
                slots: words(size.slots()),
                plan: words(size.words()),
                counts: words(size.count_words()),
                scores: device.upload(&f32_bytes(&scores)),
                num_tokens: DevicePtr::NULL,
                weighting: Weighting::AmongChosen,
                size,
            };
            Box::new(move |queue| op.run(queue))
        }),
    }
}
