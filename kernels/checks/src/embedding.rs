//! Embedding lookup against a loop.

use plimsoll_kernels::embedding::{Embedding, FROM_SLOT};

use crate::arrays::{Output, bf16_bytes, expect_same, normals_on, rounded, to_bf16, u32_bytes};
use crate::{Case, Random, TestDevice, Timing};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case { name: "embedding/ids and slots".into(), run: Box::new(lookup) }]
}

fn lookup(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for (tokens, hidden) in [(1, 8), (7, 64), (3, 2056), (random.between(1, 20), 8 * random.between(1, 300))] {
        let (vocab, slots) = (random.between(1, 50), random.between(1, 9));
        let table = rounded(random.normals(vocab * hidden, 1.0));
        let last: Vec<u32> = (0..slots).map(|_| random.below(vocab) as u32).collect();
        let ids: Vec<u32> = (0..tokens)
            .map(|i| match i % 3 {
                0 => FROM_SLOT | random.below(slots) as u32,
                _ => random.below(vocab) as u32,
            })
            .collect();
        let scale = [1.0, 62.0, 0.37][random.below(3)];
        let out = Output::new(device, 2 * tokens * hidden);
        let op = Embedding {
            out: out.at,
            table: device.upload(&bf16_bytes(&table)),
            ids: device.upload(&u32_bytes(&ids)),
            last_tokens: device.upload(&u32_bytes(&last)),
            tokens: tokens as u32,
            hidden: hidden as u32,
            vocab: vocab as u32,
            slots: slots as u32,
            scale,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        let token = |id: u32| if id & FROM_SLOT == 0 { id } else { last[(id & !FROM_SLOT) as usize] };
        let rows = ids.iter().flat_map(|id| &table[token(*id) as usize * hidden..][..hidden]);
        let want = rounded(rows.map(|v| v * scale).collect());
        expect_same(&format!("{tokens} x {hidden}"), &to_bf16(&out.read(device)?), &want)?;
    }
    Ok(())
}

pub(crate) fn timings() -> Vec<Timing> {
    let shapes = [("llama-3.1-8b", 4096, 128_256), ("gemma-3-27b", 5376, 262_208)];
    let shapes = shapes.iter().flat_map(|shape| [1, 8192].map(|tokens| (*shape, tokens)));
    shapes
        .map(|((model, hidden, vocab), tokens)| Timing {
            name: format!("embedding/{model} tokens={tokens}"),
            bytes: 4 * u64::from(tokens) * u64::from(hidden),
            flops: 0,
            prepare: Box::new(move |device| {
                let mut random = Random::new(1);
                let ids: Vec<u32> = (0..tokens).map(|_| random.below(vocab as usize) as u32).collect();
                let op = Embedding {
                    out: normals_on(device, u64::from(tokens) * u64::from(hidden)),
                    table: normals_on(device, u64::from(vocab) * u64::from(hidden)),
                    ids: device.upload(&u32_bytes(&ids)),
                    last_tokens: device.upload(&u32_bytes(&[0])),
                    tokens,
                    hidden,
                    vocab,
                    slots: 1,
                    scale: 1.0,
                };
                Box::new(move |queue| op.run(queue))
            }),
        })
        .collect()
}
