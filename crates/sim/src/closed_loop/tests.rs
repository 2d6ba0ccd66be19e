//! Loads whose throughput is known beforehand.

use plimsoll_core::{CacheConfig, KvGroup};
use plimsoll_sched::{Policy, SchedulerConfig, WaitingLimits};

use super::*;
use crate::roofline::{AttentionWork, Efficiency, ModelWork};

fn roofline(efficiency: Efficiency) -> Roofline {
    let attention = vec![AttentionWork { window: None, bytes_per_token: 1e5, flops_per_pair: 1e6 }];
    let model = ModelWork { dense_bytes: 1e10, dense_flops: 1e10, head_flops: 0.0, experts: None, attention };
    Roofline { model, bandwidth: 1e12, flops: 1e14, efficiency }
}

fn scheduler(max_num_seqs: u32, num_blocks: u32) -> Scheduler {
    Scheduler::new(SchedulerConfig {
        cache: CacheConfig { block_size: 16, groups: vec![KvGroup { window: None, num_blocks }] },
        max_num_seqs,
        max_num_batched_tokens: 8192,
        max_model_len: 2048,
        max_waiting: WaitingLimits { requests: 10_000, prompt_tokens: 1 << 30 },
        policy: Policy::Fcfs,
        prefix_caching: false,
    })
    .expect("a valid configuration")
}

fn run(clients: u32, max_num_seqs: u32, num_blocks: u32, efficiency: Efficiency) -> ClosedLoopReport {
    let load = ClosedLoop { clients, prompt: 1..=63, output: 100..=100, seed: 1 };
    load.run(&mut scheduler(max_num_seqs, num_blocks), &roofline(efficiency)).expect("no faults")
}

#[test]
fn one_client_gets_what_the_bandwidth_gives() {
    // 10 GB at 1 TB/s: 100 tokens a second, less what attention reads.
    let report = run(1, 1024, 10_000, Efficiency::IDEAL);
    let rate = report.output_tokens_per_s();
    assert!((98.0..=100.0).contains(&rate), "{rate}");
    assert_eq!(report.bound(), Bound::WeightBandwidth);
    assert!((report.mean_running - 1.0).abs() < 0.01, "{}", report.mean_running);
    assert!((report.tpot_ms[0] - 10.0).abs() < 0.1, "{}", report.tpot_ms[0]);
}

#[test]
fn throughput_rises_with_clients_until_arithmetic_binds() {
    let rates: Vec<f64> =
        [1, 2, 8, 32, 128, 512].map(|n| run(n, 1024, 100_000, Efficiency::IDEAL).output_tokens_per_s()).to_vec();
    assert!(rates.is_sorted(), "{rates:?}");
    assert!(rates[3] > 25.0 * rates[0], "32 requests share the reading of weights: {rates:?}");
    // A token costs 1e10 operations at 1e14 a second, and a prompt of 32 more for 100 of output.
    let ceiling = 1e14 / 1e10 / 1.32;
    assert!(rates[5] <= 1.02 * ceiling && rates[5] > 0.8 * ceiling, "{rates:?}, at most {ceiling}");
    assert_eq!(run(512, 1024, 100_000, Efficiency::IDEAL).bound(), Bound::Compute);
}

#[test]
fn places_and_blocks_hold_the_batch_down() {
    let held = run(64, 16, 100_000, Efficiency::IDEAL);
    assert!((held.mean_running - 16.0).abs() < 0.5, "{}", held.mean_running);
    assert!(held.ttft_ms[held.ttft_ms.len() / 2] > 1000.0, "three quarters of the requests wait for a place");
    // Each sequence needs up to 11 blocks of 16.
    let short = run(64, 1024, 110, Efficiency::IDEAL);
    assert!(short.mean_running < 20.0, "{}", short.mean_running);
    assert!(short.most_kv_usage > 0.9, "{}", short.most_kv_usage);
}

#[test]
fn a_slow_host_binds() {
    let slow = Efficiency { host_step_ns: 2e7, ..Efficiency::IDEAL };
    let report = run(1, 1024, 10_000, slow);
    assert_eq!(report.bound(), Bound::Host);
    assert!((report.output_tokens_per_s() - 50.0).abs() < 1.0, "{}", report.output_tokens_per_s());
}

#[test]
fn the_same_load_gives_the_same_report() {
    assert_eq!(run(8, 1024, 1000, Efficiency::default()), run(8, 1024, 1000, Efficiency::default()));
}
