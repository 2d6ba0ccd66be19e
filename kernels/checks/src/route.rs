//! Routing and the plan it makes against plain loops, and the sums of experts' parts.

use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::combine::Combine;
use plimsoll_kernels::route::{MOST_CHOSEN, MOST_EXPERTS, Route, RoutePlanSize, Weighting};

use crate::arrays::{
    Output, bf16_bytes, expect_close, expect_rounded, expect_same, f32_bytes, normals_on, rounded, to_bf16, to_f32,
    to_u32,
};
use crate::{Case, Random, TestDevice, Timing};

const WEIGHTINGS: [Weighting; 3] = [Weighting::AmongChosen, Weighting::AmongAll, Weighting::Sigmoid];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "route/choices, weights and plan".into(), run: Box::new(routes) },
        Case { name: "route/ties and what is not a number".into(), run: Box::new(strange_scores) },
        Case { name: "route/sizes refused".into(), run: Box::new(refused) },
        Case { name: "combine/sums".into(), run: Box::new(sums) },
    ]
}

struct Routed {
    chosen: Vec<u32>,
    weights: Vec<f32>,
    slots: Vec<u32>,
    plan: Vec<u32>,
}

/// Runs twice, since the first run must leave the ticket as it was.
fn run(device: &dyn TestDevice, scores: &[f32], weighting: Weighting, size: RoutePlanSize) -> Result<Routed, String> {
    let slots = size.slots() as usize;
    let words = |count: usize| Output::new(device, 4 * count);
    let (ticket, scores) = (device.upload(&[0; 4]), device.upload(&f32_bytes(scores)));
    let mut last = None;
    for _ in 0..2 {
        let (chosen, weights, sorted, plan) = (words(slots), words(slots), words(slots), words(size.words() as usize));
        let op = Route {
            chosen: chosen.at,
            weights: weights.at,
            slots: sorted.at,
            plan: plan.at,
            ticket,
            scores,
            weighting,
            size,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        last = Some(Routed {
            chosen: to_u32(&chosen.read(device)?),
            weights: to_f32(&weights.read(device)?),
            slots: to_u32(&sorted.read(device)?),
            plan: to_u32(&plan.read(device)?),
        });
    }
    last.ok_or_else(|| "it did not run".to_owned())
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

/// Every slot is in one item of its expert, and items are no larger than asked.
fn check_plan(routed: &Routed, size: RoutePlanSize) -> Result<(), String> {
    let mut seen = vec![false; size.slots() as usize];
    let items = routed.plan[0] as usize;
    if items > size.capacity() as usize {
        return Err(format!("{items} items, of {} at most", size.capacity()));
    }
    for item in routed.plan[4..4 + 4 * items].as_chunks::<4>().0 {
        let [expert, first, count, _] = *item;
        if count == 0 || count > size.item_rows {
            return Err(format!("an item of {count} positions, of 1 to {}", size.item_rows));
        }
        for position in first..first + count {
            let slot = routed.slots[position as usize] as usize;
            if routed.chosen[slot] != expert || std::mem::replace(&mut seen[slot], true) {
                return Err(format!(
                    "slot {slot} of expert {} is in an item of {expert}, or twice",
                    routed.chosen[slot]
                ));
            }
        }
    }
    match seen.iter().position(|seen| !seen) {
        Some(slot) => Err(format!("slot {slot} is in no item")),
        None => Ok(()),
    }
}

fn routes(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let any = (random.between(1, 60), random.between(1, MOST_EXPERTS as usize));
    for (tokens, experts) in [(1, 1), (1, 128), (40, 32), (7, MOST_EXPERTS as usize), any] {
        let top = random.between(1, experts.min(8));
        let item_rows = [1, 8, 64][random.below(3)];
        let size = RoutePlanSize { tokens: tokens as u32, experts: experts as u32, top: top as u32, item_rows };
        let scores = random.normals(tokens * experts, 3.0);
        for weighting in WEIGHTINGS {
            let routed = run(device, &scores, weighting, size)?;
            let chosen: Vec<Vec<u32>> = scores.chunks(experts).map(|scores| choose(scores, top)).collect();
            let what = format!("{size:?}, {weighting:?}");
            expect_same(&what, &routed.chosen, &chosen.concat())?;
            let want = scores.chunks(experts).zip(&chosen).flat_map(|(s, chosen)| weights(s, chosen, weighting));
            expect_close(&what, &routed.weights, &want.collect::<Vec<_>>(), 3e-6, 1e-12)?;
            check_plan(&routed, size)?;
        }
    }
    Ok(())
}

fn strange_scores(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let values = [1.0, 1.0, -0.0, 0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let (tokens, experts, top) = (20, 40, 6);
    let scores: Vec<f32> = (0..tokens * experts).map(|_| values[random.below(values.len())]).collect();
    let size = RoutePlanSize { tokens: tokens as u32, experts: experts as u32, top: top as u32, item_rows: 8 };
    let routed = run(device, &scores, Weighting::AmongChosen, size)?;
    let chosen: Vec<u32> = scores.chunks(experts).flat_map(|scores| choose(scores, top)).collect();
    expect_same("strange scores", &routed.chosen, &chosen)?;
    check_plan(&routed, size)
}

fn refused(device: &dyn TestDevice, _: &mut Random) -> Result<(), String> {
    let at = device.upload(&[0; 4096]);
    for (experts, top) in [(0, 1), (4, 0), (4, 5), (MOST_EXPERTS + 1, 1), (64, MOST_CHOSEN + 1)] {
        let size = RoutePlanSize { tokens: 1, experts, top, item_rows: 8 };
        let weighting = Weighting::AmongAll;
        let op = Route { chosen: at, weights: at, slots: at, plan: at, ticket: at, scores: at, weighting, size };
        if op.run(device.queue()).is_ok() {
            return Err(format!("{top} of {experts} experts were not refused"));
        }
    }
    Ok(())
}

fn sums(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let any = (random.between(1, 9), random.between(1, 9), 8 * random.between(1, 300));
    for (tokens, top, hidden) in [(1, 1, 8), (3, 4, 2056), any] {
        let parts = rounded(random.normals(tokens * top * hidden, 1.0));
        for weighs in [true, false] {
            let weights = if weighs { random.normals(tokens * top, 1.0) } else { vec![1.0; tokens * top] };
            let out = Output::new(device, 2 * tokens * hidden);
            let op = Combine {
                out: out.at,
                parts: device.upload(&bf16_bytes(&parts)),
                weights: if weighs { device.upload(&f32_bytes(&weights)) } else { DevicePtr::NULL },
                tokens: tokens as u32,
                top: top as u32,
                hidden: hidden as u32,
            };
            op.run(device.queue()).map_err(|e| e.to_string())?;
            let sum = |i: usize| {
                let (token, column) = (i / hidden, i % hidden);
                let part = |j: usize| parts[(token * top + j) * hidden + column];
                (0..top).fold(0.0f32, |sum, j| weights[token * top + j].mul_add(part(j), sum))
            };
            let want: Vec<f32> = (0..tokens * hidden).map(sum).collect();
            expect_rounded(&format!("{tokens} x {top} x {hidden}"), &to_bf16(&out.read(device)?), &want)?;
        }
    }
    Ok(())
}

pub(crate) fn timings() -> Vec<Timing> {
    let models = [("gpt-oss-20b", 32, 4, 2880), ("qwen3-30b-a3b", 128, 8, 2048), ("llama-4-scout", 16, 1, 5120)];
    let shapes = models.iter().flat_map(|model| [1, 256, 4096].map(|tokens| (*model, tokens)));
    shapes.flat_map(|(model, tokens)| [route_timing(model, tokens), combine_timing(model, tokens)]).collect()
}

fn route_timing((model, experts, top, _): (&str, u32, u32, u32), tokens: u32) -> Timing {
    let size = RoutePlanSize { tokens, experts, top, item_rows: 8 };
    Timing {
        name: format!("route/{model} tokens={tokens}"),
        bytes: 4 * u64::from(tokens) * u64::from(experts + 4 * top),
        flops: 0,
        prepare: Box::new(move |device| {
            let words = |count: u32| device.upload(&vec![0; 4 * count as usize]);
            let scores = Random::new(3).normals((tokens * experts) as usize, 1.0);
            let op = Route {
                chosen: words(size.slots()),
                weights: words(size.slots()),
                slots: words(size.slots()),
                plan: words(size.words()),
                ticket: words(1),
                scores: device.upload(&f32_bytes(&scores)),
                weighting: Weighting::AmongChosen,
                size,
            };
            Box::new(move |queue| op.run(queue))
        }),
    }
}

fn combine_timing((model, _, top, hidden): (&str, u32, u32, u32), tokens: u32) -> Timing {
    let row = u64::from(tokens) * u64::from(hidden);
    Timing {
        name: format!("combine/{model} tokens={tokens}"),
        bytes: 2 * row * u64::from(top + 1),
        flops: 0,
        prepare: Box::new(move |device| {
            let op = Combine {
                out: normals_on(device, row),
                parts: normals_on(device, row * u64::from(top)),
                weights: device.upload(&vec![0; 4 * (tokens * top) as usize]),
                tokens,
                top,
                hidden,
            };
            Box::new(move |queue| op.run(queue))
        }),
    }
}
