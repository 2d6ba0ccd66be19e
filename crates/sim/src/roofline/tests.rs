//! Steps by hand, and what must hold of all.

use plimsoll_core::{SeqSlot, TokenInput};

use super::*;

/// 1 GB of dense weights with 1 GFLOP a token, a head of 0.1 GFLOP, and one full and one windowed group.
fn model() -> ModelWork {
    ModelWork {
        dense_bytes: 1e9,
        dense_flops: 1e9,
        head_flops: 1e8,
        experts: None,
        attention: vec![
            AttentionWork { window: None, bytes_per_token: 1e5, flops_per_pair: 1e6 },
            AttentionWork { window: Some(4), bytes_per_token: 1e5, flops_per_pair: 1e6 },
        ],
    }
}

/// 1 TB/s and 100 TFLOP/s.
fn roofline(model: ModelWork) -> Roofline {
    Roofline { model, bandwidth: 1e12, flops: 1e14, efficiency: Efficiency::IDEAL }
}

fn row(start: u32, len: u32) -> ScheduledSeq {
    ScheduledSeq { slot: SeqSlot(0), start, len, input: TokenInput::Known, sample: Some(0), scores: None }
}

fn plan(rows: &[(u32, u32)]) -> StepPlan {
    let seqs: Vec<_> = rows.iter().map(|&(start, len)| row(start, len)).collect();
    let tokens = vec![0; seqs.iter().map(|seq| seq.len as usize).sum()];
    StepPlan { seqs, tokens, ..StepPlan::default() }
}

#[test]
fn a_step_by_hand() {
    // One token after 9: a millisecond for the weights; 10 + 1 tokens' K/V in full, 4 + 1 in the window.
    let time = roofline(model()).step(&plan(&[(9, 1)]));
    assert_eq!(time.matrices, (1e6, Bound::WeightBandwidth));
    assert_eq!(time.attention, (1e9 * 1.6e6 / 1e12, Bound::KvBandwidth));
    // A prompt of 1000: 1000.1 GFLOP over 100 TFLOP/s.
    let time = roofline(model()).step(&plan(&[(0, 1000)]));
    assert_eq!(time.matrices, (1e9 * 1000.1e9 / 1e14, Bound::Compute));
    // 500,500 pairs in full, 6 + 4 * 997 in the window, a megaflop each.
    assert_eq!(time.attention, (1e9 * (500_500.0 + 6.0 + 3988.0) * 1e6 / 1e14, Bound::Compute));
}

#[test]
fn pairs_are_those_that_counting_one_by_one_finds() {
    for window in [None, Some(1), Some(4), Some(100)] {
        let group = AttentionWork { window, bytes_per_token: 1.0, flops_per_pair: 1.0 };
        for (start, len) in [(0, 1), (0, 9), (2, 5), (3, 1), (4, 7), (50, 60)] {
            let reach = |position: u32| window.map_or(position + 1, |window| window.min(position + 1));
            let counted: u32 = (start..start + len).map(reach).sum();
            assert_eq!(group.pairs(&row(start, len)), f64::from(counted), "{window:?} {start} {len}");
            let oldest = (start..start + len).map(|position| position + 1 - reach(position)).min().unwrap();
            assert_eq!(group.tokens_read(&row(start, len)), u64::from(start + len - oldest));
        }
    }
}

#[test]
fn experts_are_read_as_far_as_they_are_chosen() {
    let experts = Experts { count: 32, active: 4, bytes_each: 1e8, flops_each: 1e8 };
    assert_eq!((experts.expected_distinct(0), experts.expected_distinct(1)), (0.0, 4.0));
    assert!((experts.expected_distinct(2) - 7.5).abs() < 1e-9, "4 + 4 * 28/32");
    assert!((experts.expected_distinct(1000) - 32.0).abs() < 1e-9);
    let model = ModelWork { experts: Some(experts), ..model() };
    assert_eq!(model.weight_bytes(1), 1.4e9);
    assert_eq!(model.matrix_flops(10, 1), 10.0 * 1.4e9 + 1e8);
}

#[test]
fn more_of_anything_never_takes_less_time_and_a_better_device_never_more() {
    let base = roofline(ModelWork {
        experts: Some(Experts { count: 8, active: 2, bytes_each: 1e8, flops_each: 1e8 }),
        ..model()
    });
    let time = |roofline: &Roofline, rows: &[(u32, u32)]| roofline.step(&plan(rows)).device();
    let mut last = 0.0;
    for count in [1, 2, 8, 64, 512] {
        let now = time(&base, &vec![(100, 1); count]);
        assert!(now >= last, "{count} rows");
        assert!(now / count as f64 <= time(&base, &[(100, 1)]), "a batch is no worse than one by one");
        last = now;
    }
    for (start, len) in [(0, 1), (0, 64), (64, 64), (6400, 64)] {
        assert!(time(&base, &[(start + 1, len)]) >= time(&base, &[(start, len)]));
        assert!(time(&base, &[(start, len + 1)]) >= time(&base, &[(start, len)]));
        for better in [
            Roofline { bandwidth: 2e12, ..base.clone() },
            Roofline { flops: 2e14, ..base.clone() },
            Roofline { bandwidth: 2e12, flops: 2e14, ..base.clone() },
        ] {
            assert!(time(&better, &[(start, len)]) <= time(&base, &[(start, len)]));
        }
    }
}

#[test]
fn time_is_booked_on_what_bounds_it() {
    let mut accounts = [0.0; Bound::ALL.len()];
    let busy = Efficiency { host_step_ns: 5e6, step_overhead_ns: 7.0, ..Efficiency::IDEAL };
    let slow_host = Roofline { efficiency: busy, ..roofline(model()) };
    slow_host.step(&plan(&[(9, 1)])).book(&mut accounts);
    assert_eq!(accounts, [0.0, 0.0, 0.0, 0.0, 5e6]);
    slow_host.step(&plan(&[(0, 2000)])).book(&mut accounts);
    assert!(accounts[Bound::Compute as usize] > 5e6 && accounts[Bound::Overhead as usize] == 7.0);
    assert_eq!(Bound::ALL.map(|bound| bound as usize), [0, 1, 2, 3, 4]);
}
