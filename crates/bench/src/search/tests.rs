//! Curves with a known answer.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Published throughputs (tok/s) by concurrency.
const STILL_SCALING: [(u32, f64); 5] = [(4, 260.0), (8, 475.0), (16, 815.0), (32, 1326.0), (64, 2107.0)];
const RETROGRADE: [(u32, f64); 5] = [(4, 151.0), (8, 273.0), (16, 479.0), (32, 781.0), (64, 553.0)];
const PLATEAU_WITH_DIP: [(u32, f64); 9] = [
    (1, 277.0),
    (8, 1881.0),
    (16, 3455.0),
    (32, 3798.0),
    (64, 8120.0),
    (128, 11556.0),
    (256, 15552.0),
    (512, 18746.0),
    (1024, 18829.0),
];

/// Straight lines between the points of a table; proportional below it, flat beyond.
fn between(table: &[(u32, f64)], n: u32) -> f64 {
    let n = f64::from(n);
    let at = |i: usize| (f64::from(table[i].0), table[i].1);
    let (first, last) = (at(0), at(table.len() - 1));
    if n <= first.0 {
        return first.1 * n / first.0;
    }
    for i in 1..table.len() {
        let ((x0, y0), (x1, y1)) = (at(i - 1), at(i));
        if n <= x1 {
            return y0 + (y1 - y0) * (n - x0) / (x1 - x0);
        }
    }
    last.1
}

fn point(concurrency: u32, throughput: f64, half_width: Option<f64>) -> RungPoint {
    RungPoint { concurrency, throughput, half_width, requests: 1000, ..RungPoint::default() }
}

/// Runs the search against a server; returns the answer and the concurrencies measured, in order.
fn search(config: &SearchConfig, mut server: impl FnMut(u32) -> RungPoint) -> (Answer, Vec<u32>) {
    let mut measured = Measured::default();
    loop {
        let rungs = &mut measured.rungs;
        assert!(rungs.len() < 60, "no end: {rungs:?}");
        match next_step(config, &measured).expect("a server that serves") {
            Step::Done(answer) => return (*answer, measured.rungs.iter().map(|rung| rung.concurrency).collect()),
            Step::Recheck(n) => measured.rechecks.push(server(n)),
            Step::Offer { .. } => panic!("the length of a reply is not known"),
            Step::Measure(n) => {
                assert!((1..=config.max_concurrency).contains(&n));
                measured.rungs.push(server(n));
            }
        }
    }
}

fn capped(max_concurrency: u32) -> SearchConfig {
    SearchConfig { max_concurrency, ..SearchConfig::default() }
}

#[test]
fn a_curve_that_still_rises_is_not_given_a_knee() {
    let (answer, measured) = search(&capped(64), |n| point(n, between(&STILL_SCALING, n), Some(5.0)));
    assert_eq!((answer.verdict, answer.saturation, answer.peak), (Verdict::StillScaling, 64, 64));
    assert_eq!(measured, [1, 2, 4, 8, 16, 32, 64]);
}

#[test]
fn a_fall_beyond_the_peak_is_told_from_a_plateau() {
    for cap in [64, 4096] {
        let (answer, _) = search(&capped(cap), |n| point(n, between(&RETROGRADE, n), None));
        assert_eq!((answer.verdict, answer.peak), (Verdict::Retrograde, 32), "cap {cap}");
        // 95% of 781 lies at N = 29.9 on the straight line.
        assert!((29..=31).contains(&answer.saturation), "{answer:?}");
    }
}

#[test]
fn a_dip_on_the_way_up_does_not_end_the_ladder() {
    for cap in [1024, 4096] {
        let (answer, measured) = search(&capped(cap), |n| point(n, between(&PLATEAU_WITH_DIP, n), None));
        assert_eq!(answer.verdict, Verdict::Plateaued, "cap {cap}");
        // 95% of 18829 lies at N = 443 on the straight line.
        assert!((421..=465).contains(&answer.saturation), "{answer:?}");
        assert!(measured.len() <= 20, "{measured:?}");
    }
    // A real dip, below the rung before it, is one flat doubling and no more.
    let dipped = |n| if n == 32 { 3300.0 } else { between(&PLATEAU_WITH_DIP, n) };
    let (answer, _) = search(&capped(4096), |n| point(n, dipped(n), None));
    assert!((421..=465).contains(&answer.saturation), "{answer:?}");
}

#[test]
fn noise_moves_the_answer_little() {
    let mut near = 0;
    const RUNS: u64 = 300;
    for seed in 0..RUNS {
        let mut rng = StdRng::seed_from_u64(seed);
        let knee = rng.random_range(3.0..300.0_f64);
        let noise = rng.random_range(0.002..0.01);
        let server = |n: u32| {
            // Linear up to the knee, flat beyond; the half-width is what a rung of ten batches would show.
            let truth = 50.0 * f64::from(n).min(knee);
            let error: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
            point(n, truth * (1.0 + noise * error), Some(truth * noise * 2.26))
        };
        let (answer, measured) = search(&SearchConfig::default(), server);
        let truth = (0.95 * knee).ceil();
        let off = (f64::from(answer.saturation) - truth).abs();
        near += u64::from(answer.verdict == Verdict::Plateaued && off <= (0.1 * truth).max(1.0));
        assert!(answer.saturation_low <= answer.saturation, "seed {seed}: {answer:?}");
        assert!(answer.saturation_high >= answer.saturation, "seed {seed}: {answer:?}");
        assert!(measured.len() < 30, "seed {seed}: {measured:?}");
    }
    assert!(near >= RUNS * 95 / 100, "{near} of {RUNS} within 10%");
}

#[test]
fn wide_intervals_do_not_drive_the_ladder_up_for_ever() {
    let server = |n: u32| point(n, 100.0 * f64::from(n.min(16)), Some(100.0 * f64::from(n.min(16)) * 0.2));
    let (answer, measured) = search(&SearchConfig { find_breakpoint: false, ..SearchConfig::default() }, server);
    assert_eq!((answer.verdict, answer.saturation), (Verdict::Plateaued, 16));
    assert!(measured.iter().all(|n| *n <= 64), "{measured:?}");
}

/// `point` with some of its 1000 requests bad.
fn failing(point: RungPoint, failed: u64, refused: u64) -> RungPoint {
    RungPoint { failed: failed + refused, refused, ..point }
}

#[test]
fn a_server_that_refuses_ends_the_ladder() {
    let server = |n: u32| {
        let refused = if n > 24 { 500 } else { 0 };
        failing(point(n, 10.0 * f64::from(n.min(24)), None), 0, refused)
    };
    let (answer, measured) = search(&SearchConfig::default(), server);
    assert_eq!((answer.verdict, answer.peak, answer.holds_at), (Verdict::AdmissionLimited, 24, 24));
    let found = answer.breakpoint.expect("refusals");
    assert_eq!((found.last_pass, found.first_fail, found.constraint), (24, 25, Constraint::Refused));
    assert_eq!((found.shown_pass, found.shown_fail, found.fall), (Some(24), Some(25), Some(Fall::Cliff)));
    // 95% of what 24 give.
    assert_eq!(answer.saturation, 23);
    assert!(measured.iter().all(|n| *n <= 32), "{measured:?}");
}

#[test]
fn a_server_that_breaks_ends_the_ladder() {
    let server = |n: u32| failing(point(n, 10.0 * f64::from(n), None), if n >= 8 { 400 } else { 0 }, 0);
    let (answer, _) = search(&SearchConfig::default(), server);
    assert_eq!((answer.verdict, answer.peak, answer.holds_at), (Verdict::ServiceBroken, 7, 7));
    let found = answer.breakpoint.expect("failures");
    assert_eq!((found.last_pass, found.first_fail, found.constraint), (7, 8, Constraint::Success));
}

#[test]
fn the_breakpoint_lies_behind_the_plateau() {
    let config = SearchConfig { slo: Slo { ttft_ms: Some(2000.0), ..Slo::default() }, ..SearchConfig::default() };
    let server = |n: u32| RungPoint {
        slo_requests: 5000,
        // One in a hundred at N = 300.
        ttft_violations: n.saturating_sub(250).into(),
        ..point(n, 10.0 * f64::from(n.min(40)), Some(1.0))
    };
    let (answer, _) = search(&config, server);
    assert_eq!(answer.verdict, Verdict::Plateaued);
    assert!((38..=40).contains(&answer.saturation), "{answer:?}");
    let found = answer.breakpoint.expect("late first tokens");
    assert_eq!((found.constraint, found.fall), (Constraint::Ttft, Some(Fall::Smooth)));
    assert!(found.last_pass <= 300 && found.first_fail >= 300, "{found:?}");
    assert!(f64::from(found.first_fail - found.last_pass) <= 0.05 * 310.0, "{found:?}");
    assert!(found.shown_pass <= Some(found.last_pass) && found.shown_fail >= Some(found.first_fail), "{found:?}");
    let throughput_only = SearchConfig { find_breakpoint: false, ..config };
    let (answer, measured) = search(&throughput_only, server);
    assert_eq!(answer.breakpoint, None);
    assert!((38..=40).contains(&answer.saturation), "{answer:?}");
    assert!(measured.iter().all(|n| *n <= 256), "{measured:?}");
}

#[test]
fn limits_that_break_before_saturation_are_said() {
    let config = SearchConfig { slo: Slo { tpot_ms: Some(30.0), ..Slo::default() }, ..SearchConfig::default() };
    let server = |n: u32| RungPoint {
        slo_requests: 1000,
        tpot_violations: if n > 20 { 1000 } else { 0 },
        ..point(n, 10.0 * f64::from(n.min(200)), Some(1.0))
    };
    let (answer, _) = search(&config, server);
    assert_eq!(answer.verdict, Verdict::SloBroken);
    assert!((190..=200).contains(&answer.saturation), "{answer:?}");
    let found = answer.breakpoint.expect("slow replies");
    assert_eq!((found.last_pass, found.first_fail, found.constraint), (20, 21, Constraint::Tpot));
    assert_eq!(found.fall, Some(Fall::Cliff));
}

#[test]
fn a_straggler_among_few_requests_is_no_breakpoint() {
    let config = SearchConfig { slo: Slo { ttft_ms: Some(500.0), ..Slo::default() }, ..capped(64) };
    let server = |n: u32| RungPoint {
        requests: 20 * u64::from(n),
        failed: u64::from(n == 1),
        slo_requests: 20 * u64::from(n),
        ttft_violations: u64::from(n == 2),
        ..point(n, 10.0 * f64::from(n), None)
    };
    let (answer, measured) = search(&config, server);
    assert_eq!((answer.verdict, answer.holds_at, answer.breakpoint), (Verdict::StillScaling, 64, None));
    assert_eq!(measured, [1, 2, 4, 8, 16, 32, 64]);
}

#[test]
fn an_end_in_doubt_is_measured_again() {
    let config = SearchConfig { slo: Slo { ttft_ms: Some(500.0), ..Slo::default() }, ..capped(2) };
    // 1.2% of 500 requests are late at N = 2: neither within 1% nor beyond it until there are far more.
    let server = |n: u32| RungPoint {
        slo_requests: 500,
        ttft_violations: if n == 2 { 6 } else { 0 },
        ..point(n, 10.0 * f64::from(n), None)
    };
    let (answer, measured) = search(&config, server);
    assert_eq!(measured, [1, 2, 2, 2]);
    let found = answer.breakpoint.expect("more than 1%");
    assert_eq!((found.last_pass, found.first_fail), (1, 2));
    assert_eq!((found.shown_pass, found.shown_fail), (Some(1), None));
}

#[test]
fn a_lucky_rung_is_measured_again_and_does_not_decide() {
    let mut lucky = true;
    let (answer, measured) = search(&capped(256), |n| {
        let luck = if n == 16 && std::mem::take(&mut lucky) { 1.3 } else { 1.0 };
        point(n, luck * 10.0 * f64::from(n.min(40)), Some(1.0))
    });
    assert!((37..=40).contains(&answer.saturation), "{answer:?} {measured:?}");
    let mut lucky = true;
    let (answer, measured) = search(&capped(256), |n| {
        let luck = if n == 64 && std::mem::take(&mut lucky) { 1.3 } else { 1.0 };
        point(n, luck * 10.0 * f64::from(n.min(40)), Some(1.0))
    });
    assert_eq!(measured.iter().filter(|n| **n == 64).count(), 3, "{measured:?}");
    assert!((37..=40).contains(&answer.saturation), "{answer:?} {measured:?}");
}

#[test]
fn a_server_that_does_not_come_back_is_not_searched_further() {
    for comes_back in [true, false] {
        let mut dead = false;
        let (answer, measured) = search(&SearchConfig::default(), |n| {
            dead = n > 24 || dead && !comes_back;
            if dead { failing(point(n, 0.0, None), 1000, 0) } else { point(n, 10.0 * f64::from(n), None) }
        });
        let found = answer.breakpoint.expect("a crash");
        if comes_back {
            assert_eq!((answer.verdict, found.last_pass, found.first_fail), (Verdict::ServiceBroken, 24, 25));
        } else {
            assert_eq!((answer.verdict, found.last_pass, found.first_fail), (Verdict::ServerGone, 16, 32));
            assert_eq!(measured, [1, 2, 4, 8, 16, 32, 1]);
        }
    }
}

#[test]
fn a_client_near_its_ceiling_is_blamed_and_not_the_server() {
    let server = |n: u32| RungPoint { client_limited: n > 8, ..point(n, 10.0 * f64::from(n.min(20)), None) };
    assert_eq!(search(&capped(64), server).0.verdict, Verdict::ClientLimited);
}

#[test]
fn a_server_that_serves_nothing_has_no_answer() {
    let dead = failing(point(1, 0.0, None), 1000, 0);
    let after = |rung, times| {
        let measured = Measured { rungs: vec![rung; times], ..Measured::default() };
        next_step(&SearchConfig::default(), &measured)
    };
    assert_eq!(after(dead, 1), Some(Step::Measure(1)), "it may have been an accident");
    assert_eq!(after(dead, 2), None);
    assert_eq!(after(point(1, 0.0, None), 2), None);
}

#[test]
fn out_of_time_keeps_what_was_measured() {
    let rungs = [point(1, 10.0, None), point(2, 20.0, None)];
    let measured = Measured {
        rungs: rungs.to_vec(),
        no_more_rungs: true,
        no_more_offers: true,
        no_more_rechecks: true,
        ..Measured::default()
    };
    let Some(Step::Done(answer)) = next_step(&SearchConfig::default(), &measured) else { panic!("two rungs") };
    assert_eq!((answer.verdict, answer.saturation, answer.peak), (Verdict::OutOfTime, 2, 2));
    assert_eq!((answer.open_loop, answer.drift), (None, None));
}

#[test]
fn a_highest_concurrency_that_is_no_power_of_two_is_reached() {
    let (answer, measured) = search(&capped(20), |n| point(n, f64::from(n), None));
    assert_eq!((answer.verdict, answer.saturation), (Verdict::StillScaling, 20));
    assert_eq!(measured, [1, 2, 4, 8, 16, 20]);
    let (answer, measured) = search(&capped(1), |n| point(n, f64::from(n), None));
    assert_eq!((answer.verdict, measured), (Verdict::StillScaling, vec![1]));
}

#[test]
fn a_hiccup_on_the_ladder_is_no_cliff() {
    let mut hiccup = true;
    let (answer, measured) = search(&capped(256), |n| {
        let rung = point(n, 10.0 * f64::from(n.min(40)), Some(1.0));
        if n == 8 && std::mem::take(&mut hiccup) { failing(point(n, 50.0, Some(1.0)), 400, 0) } else { rung }
    });
    assert_eq!((answer.verdict, answer.breakpoint), (Verdict::Plateaued, None), "{answer:?}");
    assert!((37..=40).contains(&answer.saturation), "{answer:?}");
    assert_eq!(measured.iter().filter(|n| **n == 8).count(), 3, "one of two decides nothing: {measured:?}");
}

#[test]
fn a_hiccup_within_the_bisection_is_no_cliff() {
    let mut hiccup = true;
    let (answer, measured) = search(&capped(256), |n| {
        let fails = n > 60 || n == 48 && std::mem::take(&mut hiccup);
        failing(point(n, 10.0 * f64::from(n.min(40)), Some(1.0)), if fails { 400 } else { 0 }, 0)
    });
    let found = answer.breakpoint.expect("failures");
    assert!(found.last_pass <= 60 && found.first_fail > 60 && found.first_fail <= 64, "{found:?} {measured:?}");
}

#[test]
fn a_server_that_changed_is_told() {
    for (now, changed) in [(1.0, false), (0.98, false), (0.9, true), (1.1, true)] {
        let at = |n: u32, factor: f64| {
            let throughput = factor * 10.0 * f64::from(n.min(20));
            point(n, throughput, Some(0.01 * throughput))
        };
        let mut measured = Measured::default();
        let answer = loop {
            match next_step(&capped(64), &measured).expect("a server that serves") {
                Step::Measure(n) => measured.rungs.push(at(n, 1.0)),
                Step::Recheck(n) => measured.rechecks.push(at(n, now)),
                Step::Offer { .. } => panic!("the length of a reply is not known"),
                Step::Done(answer) => break *answer,
            }
        };
        let drift = answer.drift.expect("looked at");
        assert_eq!(drift.invalidates(), changed, "{now}: {drift:?}");
        assert_eq!(measured.rechecks.len(), if changed { 4 } else { 2 }, "a change is looked at twice");
        // What happened once happened to the machine.
        let once = RungPoint { throughput: 7.0, ..at(1, 1.0) };
        measured.rechecks = vec![once, at(1, 1.0), at(answer.saturation, 1.0)];
        let Some(Step::Done(answer)) = next_step(&capped(64), &measured) else { panic!("nothing is left") };
        assert!(answer.drift.is_some_and(|drift| !drift.invalidates()), "{answer:?}");
    }
}

#[test]
fn a_throughput_without_an_interval_is_no_exact_one() {
    let config = SearchConfig::default();
    let levels = [(8, 400.0), (16, 412.0), (32, 365.0)];
    let points: Vec<RungPoint> = levels.iter().map(|(n, throughput)| point(*n, *throughput, None)).collect();
    let unsteady = Rungs::new(&config, &points);
    // 400 cannot be told from 412, nor 365 from nine tenths of that.
    let (maximum, width) = unsteady.maximum().expect("rungs");
    assert_eq!(maximum, 406.0);
    assert!(width > 10.0, "{width}");
    assert_eq!(unsteady.shape(), Verdict::Plateaued);
    let exact: Vec<RungPoint> = levels.iter().map(|(n, throughput)| point(*n, *throughput, Some(0.0))).collect();
    let exact = Rungs::new(&config, &exact);
    assert_eq!((exact.maximum(), exact.shape()), (Some((412.0, 0.0)), Verdict::Retrograde));
    // Of several measurements those with an interval say how sure they are together.
    let again = [point(8, 400.0, None), point(8, 400.0, Some(6.0)), point(8, 400.0, Some(8.0))];
    assert_eq!(Rungs::new(&config, &again).all[0].point.half_width, Some(5.0));
    let apart = [point(8, 300.0, Some(1.0)), point(8, 500.0, None)];
    assert!(Rungs::new(&config, &apart).all[0].half_width() > 50.0);
}
