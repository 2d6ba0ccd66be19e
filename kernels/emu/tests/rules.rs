//! CUDA's rules: a kernel that keeps them runs, whatever the order of its threads; one that breaks a rule fails, with a
//! message that says which, where and by whom.

#![cfg(target_os = "linux")]

use plimsoll_kernels::{Arg, DevicePtr, Launch, LaunchError, Queue};
use plimsoll_kernels_emu::{Emulator, EmulatorConfig};

fn emulators() -> impl Iterator<Item = Emulator> {
    (0..8).map(|seed| Emulator::new(EmulatorConfig { seed, ..EmulatorConfig::default() }))
}

fn launch(
    on: &Emulator,
    kernel: &'static str,
    blocks: u32,
    threads: u32,
    shared: u32,
    args: &[Arg],
) -> Result<(), LaunchError> {
    on.launch(&Launch { kernel, grid: [blocks, 1, 1], threads, shared_bytes: shared, args })
}

fn bytes<T: Copy, const N: usize>(values: &[T], to_bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| to_bytes(value)).collect()
}

fn ints(on: &Emulator, at: DevicePtr, count: usize) -> Vec<i32> {
    let bytes = on.download(at, 4 * count);
    bytes.as_chunks().0.iter().map(|&b| i32::from_ne_bytes(b)).collect()
}

fn floats(on: &Emulator, at: DevicePtr, count: usize) -> Vec<f32> {
    let bytes = on.download(at, 4 * count);
    bytes.as_chunks().0.iter().map(|&b| f32::from_ne_bytes(b)).collect()
}

/// The launch fails with every seed, and the message has all of these words.
fn fails(kernel: &'static str, blocks: u32, threads: u32, words: &[&str], args: impl Fn(&Emulator) -> Vec<Arg>) {
    for emulator in emulators() {
        let error = launch(&emulator, kernel, blocks, threads, 512, &args(&emulator))
            .expect_err(&format!("{words:?}"))
            .to_string();
        for word in words.iter().chain(&[kernel]) {
            assert!(error.contains(word), "no '{word}' in: {error}");
        }
    }
}

fn out(emulator: &Emulator) -> Vec<Arg> {
    vec![emulator.alloc(4096).into()]
}

#[test]
fn launches_have_arguments_bounds_and_names() {
    let emulator = Emulator::new(EmulatorConfig::default());
    let input: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let from = emulator.upload(&bytes(&input, f32::to_ne_bytes));
    let to = emulator.alloc(4000);
    let args: [Arg; 3] = [to.into(), from.into(), 1000i32.into()];
    launch(&emulator, "selftest_double", 4, 256, 0, &args).unwrap();
    assert_eq!(floats(&emulator, to, 1000), input.iter().map(|v| 2.0 * v).collect::<Vec<f32>>());

    let error = launch(&emulator, "selftest_double", 4, 256, 0, &args[..2]).unwrap_err();
    assert!(error.to_string().contains("2 arguments for 3 parameters"), "{error}");
    let error = launch(&emulator, "selftest_double", 4, 512, 0, &args).unwrap_err();
    assert!(error.to_string().contains("__launch_bounds__ promised at most 256"), "{error}");
    let error = launch(&emulator, "selftest_double", 4, 256, 228 << 10, &args).unwrap_err();
    assert!(error.to_string().contains("227 KiB"), "{error}");
    assert_eq!(launch(&emulator, "none", 1, 1, 0, &[]), Err(LaunchError::NoSuchKernel("none".to_owned())));
}

#[test]
fn barriers_order_shared_memory() {
    for emulator in emulators() {
        let to = emulator.alloc(4096);
        launch(&emulator, "selftest_rotate", 1, 256, 0, &[to.into()]).unwrap();
        assert_eq!(ints(&emulator, to, 256), (0..256).map(|i| (i + 1) % 256).collect::<Vec<i32>>());
        launch(&emulator, "selftest_rounds", 1, 128, 512, &[to.into()]).unwrap();
        assert_eq!(ints(&emulator, to, 128), (0..128).map(|i| (i + 33) % 128 * 3).collect::<Vec<i32>>());
        launch(&emulator, "selftest_syncwarp", 1, 64, 0, &[to.into()]).unwrap();
        assert_eq!(ints(&emulator, to, 64), (0..64).map(|i| i ^ 1).collect::<Vec<i32>>());
        launch(&emulator, "selftest_named_barrier", 1, 128, 0, &[to.into()]).unwrap();
        assert_eq!(ints(&emulator, to, 64), (0..64).map(|i| 63 - i).collect::<Vec<i32>>());
    }
    fails("selftest_rotate_broken", 1, 256, &["race", "static shared memory", "no barrier between", "rules.cu:1"], out);
    fails("selftest_rounds_broken", 1, 128, &["race", "dynamic shared memory", "rules.cu:2"], out);
    fails("selftest_syncwarp_broken", 1, 64, &["race", "static shared memory", "rules.cu:"], out);
}

#[test]
fn warp_functions_need_the_lanes_they_name() {
    for emulator in emulators() {
        let to = emulator.alloc(4096);
        launch(&emulator, "selftest_mask", 1, 32, 0, &[to.into()]).unwrap();
        assert_eq!(ints(&emulator, to, 16), (0..16).map(|i| i ^ 1).collect::<Vec<i32>>());
        launch(&emulator, "selftest_ragged_warp", 1, 48, 0, &[to.into()]).unwrap();
        assert_eq!(ints(&emulator, to, 2), [32, 16]);
    }
    fails("selftest_mask_broken", 1, 32, &["mask 0x000000ff", "does not name it", "rules.cu:"], out);
    fails("selftest_ragged_warp_broken", 1, 48, &["takes the value of lane", "does not take part"], out);
}

#[test]
fn bounds_are_exact() {
    fails("selftest_bounds_broken", 1, 32, &["reads 4 bytes 0 bytes past the end of the allocation of 400"], |on| {
        vec![on.alloc(400).into(), on.upload(&[0; 400]).into(), 100i32.into()]
    });
    fails("selftest_shared_bounds_broken", 1, 128, &["offset 512 of 512 bytes of dynamic shared memory"], |on| {
        vec![on.alloc(4).into(), 128i32.into()]
    });
    fails("selftest_double", 1, 32, &["reads 4 bytes a null pointer, plus"], |on| {
        vec![on.alloc(400).into(), DevicePtr::NULL.into(), 100i32.into()]
    });
    fails("selftest_double", 1, 32, &["in an allocation of 400 bytes that was freed"], |on| {
        let gone = on.alloc(400);
        on.free(gone);
        vec![on.alloc(400).into(), gone.into(), 100i32.into()]
    });
    fails("selftest_misaligned_broken", 1, 1, &["16-byte loads need an address", "memory.cuh:"], |on| {
        vec![on.alloc(16).into(), on.upload(&[0; 32]).into()]
    });
}

#[test]
fn memory_holds_nans_until_it_is_written() {
    for emulator in emulators() {
        let to = emulator.alloc(4096);
        launch(&emulator, "selftest_poison", 3, 64, 256, &[to.into()]).unwrap_err();
        launch(&emulator, "selftest_poison", 1, 64, 256, &[to.into()]).unwrap();
        for half in floats(&emulator, to, 128).chunks(64) {
            assert!(half[..32].iter().all(|&v| v == 1.0));
            assert!(half[32..].iter().all(|v| v.is_nan()));
        }
    }
    fails("selftest_unwritten_broken", 1, 1, &["nobody has written", "0 bytes within the allocation of 400"], |on| {
        vec![on.alloc(400).into(), on.alloc(400).into()]
    });
}

#[test]
fn async_copies_land_when_they_are_waited_for() {
    let input: Vec<f32> = (0..512).map(|i| i as f32).collect();
    let args = |on: &Emulator| {
        vec![on.alloc(2048).into(), on.upload(&bytes(&input, f32::to_ne_bytes)).into(), Arg::from(4i32)]
    };
    for emulator in emulators() {
        let to = emulator.alloc(2048);
        let args = [&[to.into()], &args(&emulator)[1..]].concat();
        launch(&emulator, "selftest_cp_async", 1, 32, 0, &args).unwrap();
        assert_eq!(floats(&emulator, to, 512), input);
    }
    fails("selftest_cp_async_broken", 1, 32, &["cp_async_16 of thread", "no cp_async_wait", "rules.cu:"], args);
}

#[test]
fn deadlocks_are_told() {
    for emulator in emulators() {
        let to = emulator.alloc(4096);
        launch(&emulator, "selftest_early_exit", 1, 64, 0, &[to.into(), 40i32.into()]).unwrap();
        assert_eq!(ints(&emulator, to, 40), [20; 40]);
    }
    fails("selftest_divergent_broken", 1, 64, &["waits in __syncthreads at", "while other threads"], out);
    fails("selftest_deadlock_broken", 1, 64, &["deadlock", "32 in __syncthreads at", "32 in __syncwarp at"], out);
    fails("selftest_spin_broken", 1, 1, &["spins without end"], |on| vec![on.upload(&[0; 4]).into()]);
}

#[test]
fn blocks_are_ordered_by_fences_and_atomics_alone() {
    let args = |on: &Emulator| vec![on.alloc(4).into(), on.alloc(64).into(), on.upload(&[0; 4]).into()];
    for emulator in emulators() {
        let to = emulator.alloc(4);
        let args: Vec<Arg> = [&[to.into()], &args(&emulator)[1..]].concat();
        launch(&emulator, "selftest_last_block", 16, 64, 0, &args).unwrap();
        assert_eq!(ints(&emulator, to, 1), [136]);
        let to = emulator.alloc(256);
        launch(&emulator, "selftest_bytes", 2, 128, 0, &[to.into()]).unwrap();
        assert_eq!(emulator.download(to, 256)[128..], (0..128).collect::<Vec<u8>>());
    }
    fails("selftest_last_block_broken", 16, 64, &["race", "of another block wrote"], args);
    fails("selftest_block_race_broken", 3, 32, &["race", "writes 4 bytes of global memory"], out);
    fails("selftest_halo_broken", 3, 32, &["race", "global memory"], |on| vec![on.upload(&[0; 388]).into()]);
}

#[test]
fn votes_reductions_and_atomics_count() {
    for emulator in emulators() {
        let (to, table) = (emulator.alloc(1024), emulator.upload(&[0; 20]));
        launch(&emulator, "selftest_counts", 1, 64, 0, &[to.into(), table.into()]).unwrap();
        let found = ints(&emulator, to, 192);
        for i in 0..64 {
            let lanes_of_warp = i / 32;
            assert_eq!(found[i], 8 + 31 + 32 * lanes_of_warp as i32);
            assert_eq!(found[64 + i], if lanes_of_warp == 0 { 2 } else { 1 });
            assert_eq!(found[128 + i], 1 + (i % 32) as i32 + 100);
        }
        assert_eq!(ints(&emulator, table, 5), [16, 16, 16, 16, 63]);
    }
}

#[test]
fn assertions_name_their_line() {
    fails("selftest_assert_broken", 1, 1, &["n is small (n < 10)", "rules.cu:"], |on| {
        vec![on.alloc(4).into(), 10i32.into()]
    });
}

#[test]
fn a_seed_repeats_a_run() {
    let run = |seed| {
        let emulator = Emulator::new(EmulatorConfig { seed, ..EmulatorConfig::default() });
        launch(&emulator, "selftest_rotate_broken", 1, 256, 0, &out(&emulator)).unwrap_err().to_string()
    };
    assert_eq!(run(5), run(5));
    assert!((0..8).any(|seed| run(seed) != run(8)));
}
