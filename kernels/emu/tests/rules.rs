//! CUDA's rules: a kernel that keeps them runs, one that breaks a rule fails with a message that says which.
use plimsoll_kernels::{Launch, Queue};
use plimsoll_kernels_emu::{Emulator, EmulatorConfig};

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

#[test]
fn doubles() {
    let emulator = Emulator::new(EmulatorConfig::default());
    let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let input = emulator.upload(&floats(&values));
    let out = emulator.alloc(4000);
    let args = [out.into(), input.into(), 1000i32.into()];
    let launch = Launch { kernel: "selftest_double", grid: [4, 1, 1], threads: 256, shared_bytes: 0, args: &args };
    emulator.launch(&launch).unwrap();
    let expected: Vec<f32> = values.iter().map(|v| 2.0 * v).collect();
    assert_eq!(emulator.download(out, 4000), floats(&expected));
    let args = [out.into(), input.into(), 1001i32.into()];
    let launch = Launch { kernel: "selftest_double", grid: [4, 1, 1], threads: 256, shared_bytes: 0, args: &args };
    println!("{}", emulator.launch(&launch).unwrap_err());
}
