//! Block copies, byte for byte.

use plimsoll_kernels::block_copy::BlockCopy;

use crate::arrays::{Output, expect_same, normals_on, u32_bytes};
use crate::{Case, Random, TestDevice, Timing};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "block_copy/pairs".into(), run: Box::new(pairs) },
        Case { name: "block_copy/sizes refused".into(), run: Box::new(refused) },
    ]
}

fn pairs(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    // One vector; less and more than a round of all threads; a block of 16 tokens, 8 heads of 128, bf16.
    for block_bytes in [16, 4080, 16_400, 32_768] {
        let num_blocks = random.between(6, 12);
        let mut ids: Vec<u32> = (0..num_blocks as u32).collect();
        random.shuffle(&mut ids);
        // The first three are destinations; one block is copied twice.
        let pairs = [[ids[3], ids[0]], [ids[4], ids[1]], [ids[3], ids[2]]];
        let mut cache = || (0..num_blocks * block_bytes).map(|_| random.bits() as u8).collect::<Vec<u8>>();
        let (mut k, mut v) = (cache(), cache());
        let (k_cache, v_cache) = (Output::holding(device, &k), Output::holding(device, &v));
        let op = BlockCopy {
            k_cache: k_cache.at,
            v_cache: v_cache.at,
            pairs: device.upload(&u32_bytes(pairs.as_flattened())),
            count: pairs.len() as u32,
            num_blocks: num_blocks as u32,
            block_bytes: block_bytes as u32,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        for [from, to] in pairs.map(|pair| pair.map(|block| block as usize * block_bytes)) {
            k.copy_within(from..from + block_bytes, to);
            v.copy_within(from..from + block_bytes, to);
        }
        expect_same("k", &k_cache.read(device)?, &k)?;
        expect_same("v", &v_cache.read(device)?, &v)?;
    }
    Ok(())
}

fn refused(device: &dyn TestDevice, _: &mut Random) -> Result<(), String> {
    let cache = device.upload(&[0; 64]);
    let op = BlockCopy { k_cache: cache, v_cache: cache, pairs: cache, count: 1, num_blocks: 2, block_bytes: 24 };
    if op.run(device.queue()).is_ok() {
        return Err("blocks of 24 bytes were not refused".to_owned());
    }
    BlockCopy { count: 0, block_bytes: 16, ..op }.run(device.queue()).map_err(|e| e.to_string())
}

pub(crate) fn timings() -> Vec<Timing> {
    let timing = |count: u32| {
        let (block_bytes, num_blocks) = (16 * 8 * 128 * 2, 2 * count);
        Timing {
            name: format!("block_copy/llama-3.1-8b blocks={count}"),
            bytes: 4 * u64::from(count) * u64::from(block_bytes),
            flops: 0,
            prepare: Box::new(move |device| {
                let cache = || normals_on(device, u64::from(num_blocks) * u64::from(block_bytes) / 2);
                let pairs: Vec<u32> = (0..count).flat_map(|i| [i, count + i]).collect();
                let (k_cache, v_cache, pairs) = (cache(), cache(), device.upload(&u32_bytes(&pairs)));
                let op = BlockCopy { k_cache, v_cache, pairs, count, num_blocks, block_bytes };
                Box::new(move |queue| op.run(queue))
            }),
        }
    };
    [16, 4096].map(timing).into()
}
