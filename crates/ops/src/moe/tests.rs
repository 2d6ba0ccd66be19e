//! Routing and experts against loops in f64, and against themselves in other batches.

use candle_core::DType;

use super::*;
use crate::linear::{Activations, RowSource};
use crate::quant::GgmlType;
use crate::testing::Random;

const ON_INPUT: Weighting = Weighting::SigmoidOfInput;
const CLAMPED: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };

fn tensor(data: &[f32], rows: usize) -> Tensor {
    Tensor::from_slice(data, (rows, data.len() / rows), &Device::Cpu).unwrap()
}

fn floats(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// A matrix and its bias, and the same packed.
struct Matrix {
    weights: Vec<f32>,
    bias: Vec<f32>,
    packed: Linear,
}

impl Matrix {
    fn random(rows: usize, cols: usize, random: &mut Random) -> Matrix {
        let (weights, bias) = (random.normals(rows * cols, 0.3), random.normals(rows, 1.0));
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let source = RowSource::new(GgmlType::F32, rows, cols, &bytes);
        let packed = Linear::pack(&[source], Some(bias.clone()), Activations::F32).unwrap();
        Matrix { weights, bias, packed }
    }

    fn multiply(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.weights.chunks_exact(x.len()).zip(&self.bias);
        rows.map(|(w, b)| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(*b)).collect()
    }
}

fn naive(activation: Activation, gate: f64, up: f64) -> f64 {
    match activation {
        Activation::SiluMul => gate / (1.0 + (-gate).exp()) * up,
        Activation::ClampedSwiglu { alpha, limit } => {
            let (gate, up) = (gate.min(f64::from(limit)), up.clamp(-f64::from(limit), f64::from(limit)));
            (up + 1.0) * gate / (1.0 + (-f64::from(alpha) * gate).exp())
        }
    }
}

/// `hidden` and the inner width of `EXPERTS` experts.
const SHAPE: (usize, usize) = (40, 24);
const EXPERTS: usize = 9;

fn random_experts(random: &mut Random) -> Vec<(Matrix, Matrix)> {
    let (hidden, inner) = SHAPE;
    (0..EXPERTS).map(|_| (Matrix::random(2 * inner, hidden, random), Matrix::random(hidden, inner, random))).collect()
}

fn packed(matrices: &[(Matrix, Matrix)], activation: Activation) -> Experts {
    let expert = |(up, down): &(Matrix, Matrix)| Expert { gate_up: up.packed.clone(), down: down.packed.clone() };
    Experts::new(matrices.iter().map(expert).collect(), activation).unwrap()
}

#[test]
fn experts_are_the_weighted_sum_of_their_layers() {
    let mut random = Random::new(81);
    let matrices = random_experts(&mut random);
    for (activation, weighting) in
        [(Activation::SiluMul, Weighting::AmongAll), (CLAMPED, Weighting::AmongChosen), (Activation::SiluMul, ON_INPUT)]
    {
        let experts = packed(&matrices, activation);
        for (tokens, top) in [(1, 4), (7, 1), (30, 3), (3, EXPERTS)] {
            let (x, scores) = (random.normals(tokens * SHAPE.0, 1.0), random.normals(tokens * EXPERTS, 2.0));
            let routes = route(&tensor(&scores, tokens), top, weighting).unwrap();
            let y = floats(&experts.forward(&tensor(&x, tokens), &routes, None).unwrap());
            for (token, y) in y.chunks_exact(SHAPE.0).enumerate() {
                let x: Vec<f64> = x[token * SHAPE.0..][..SHAPE.0].iter().map(|x| f64::from(*x)).collect();
                let mut want = vec![0.0; SHAPE.0];
                for choice in &routes.choices[token * top..(token + 1) * top] {
                    let (gate_up, down) = &matrices[choice.expert];
                    let weight = f64::from(choice.weight);
                    let (before, after) = if weighting == ON_INPUT { (weight, 1.0) } else { (1.0, weight) };
                    let gate_up = gate_up.multiply(&x.iter().map(|x| before * x).collect::<Vec<_>>());
                    let (gate, up) = gate_up.split_at(SHAPE.1);
                    let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| naive(activation, *g, *u)).collect();
                    let part = down.multiply(&inner);
                    want.iter_mut().zip(part).for_each(|(want, part)| *want += after * part);
                }
                for (y, want) in y.iter().zip(want) {
                    assert!((f64::from(*y) - want).abs() < 1e-4, "{activation:?} {tokens} {top}: {y}, {want}");
                }
            }
        }
    }
}

#[test]
fn routes_are_the_highest_scores_with_their_softmax() {
    let mut random = Random::new(82);
    for (tokens, experts, top) in [(1, 1, 1), (5, 8, 2), (20, 32, 4), (4, 128, 8), (3, 6, 6)] {
        let scores = random.normals(tokens * experts, 3.0);
        for weighting in [Weighting::AmongChosen, Weighting::AmongAll] {
            let routes = route(&tensor(&scores, tokens), top, weighting).unwrap();
            for (scores, choices) in scores.chunks(experts).zip(routes.choices.chunks(top)) {
                let mut order: Vec<usize> = (0..experts).collect();
                order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap());
                let shares: Vec<f64> = scores.iter().map(|s| f64::from(*s).exp()).collect();
                let counted = if weighting == Weighting::AmongAll { &order[..] } else { &order[..top] };
                let total: f64 = counted.iter().map(|&e| shares[e]).sum();
                order.truncate(top);
                order.sort_unstable();
                assert_eq!(choices.iter().map(|c| c.expert).collect::<Vec<_>>(), order);
                for choice in choices {
                    assert!((f64::from(choice.weight) - shares[choice.expert] / total).abs() < 1e-6, "{choice:?}");
                }
            }
        }
    }
    let sigmoids = route(&tensor(&[-1.0, 2.0, 0.0], 1), 2, ON_INPUT).unwrap();
    let [first, second] = &sigmoids.choices[..] else { panic!("{sigmoids:?}") };
    assert_eq!((first.expert, second.expert, second.weight), (1, 2, 0.5));
    assert!((f64::from(first.weight) - 1.0 / (1.0 + (-2f64).exp())).abs() < 1e-6);
    let equal = route(&tensor(&[1.0; 6], 1), 2, Weighting::AmongChosen).unwrap();
    assert_eq!(equal.choices.iter().map(|c| (c.expert, c.weight)).collect::<Vec<_>>(), [(0, 0.5), (1, 0.5)]);
}

#[test]
fn a_row_is_the_same_to_the_bit_alone_and_in_any_batch() {
    let mut random = Random::new(83);
    let experts = packed(&random_experts(&mut random), CLAMPED);
    let (x, scores) = (tensor(&random.normals(33 * SHAPE.0, 1.0), 33), tensor(&random.normals(33 * EXPERTS, 1.0), 33));
    let bits = |from: usize, count: usize| -> Vec<u32> {
        let part = |x: &Tensor| x.narrow(0, from, count).unwrap();
        let routes = route(&part(&scores), 4, Weighting::AmongChosen).unwrap();
        floats(&experts.forward(&part(&x), &routes, None).unwrap()).iter().map(|y| y.to_bits()).collect()
    };
    let whole = bits(0, 33);
    for (from, count) in (0..33).map(|row| (row, 1)).chain([(0, 5), (5, 28), (1, 31)]) {
        assert!(bits(from, count) == whole[from * SHAPE.0..(from + count) * SHAPE.0], "{from}, {count}");
    }
    assert!(bits(0, 0).is_empty());
}

#[test]
fn what_is_not_a_number_stays_in_its_row() {
    let mut random = Random::new(84);
    let experts = packed(&random_experts(&mut random), CLAMPED);
    let (mut x, mut scores) = (random.normals(3 * SHAPE.0, 1.0), random.normals(3 * EXPERTS, 1.0));
    let run = |x: &[f32], scores: &[f32]| {
        let routes = route(&tensor(scores, 3), 2, Weighting::AmongChosen).unwrap();
        floats(&experts.forward(&tensor(x, 3), &routes, None).unwrap())
    };
    let clean = run(&x, &scores);
    x[SHAPE.0 + 3] = f32::NAN;
    scores[EXPERTS..2 * EXPERTS].fill(f32::NAN);
    let dirty = run(&x, &scores);
    assert!(dirty[SHAPE.0..2 * SHAPE.0].iter().all(|y| y.is_nan()));
    assert_eq!(dirty[..SHAPE.0], clean[..SHAPE.0]);
    assert_eq!(dirty[2 * SHAPE.0..], clean[2 * SHAPE.0..]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut random = Random::new(85);
    let matrices = random_experts(&mut random);
    let expert = |up: &Matrix, down: &Matrix| Expert { gate_up: up.packed.clone(), down: down.packed.clone() };
    let (up, down) = &matrices[0];
    let refused = |experts| Experts::new(experts, CLAMPED).unwrap_err().to_string();
    assert!(refused(vec![]).contains("there are none"));
    let wide = Matrix::random(SHAPE.0, SHAPE.1 + 1, &mut random);
    assert!(refused(vec![expert(up, down), expert(up, &wide)]).contains("number 1 is not 40 to 48 / 2 to 40"));

    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let error = |top| route(&zeros((2, 3)), top, Weighting::AmongAll).unwrap_err().to_string();
    assert!(error(0).contains("0 experts a token") && error(4).contains("4 experts a token"));
    let routes = route(&zeros((2, EXPERTS)), 1, Weighting::AmongAll).unwrap();
    let experts = packed(&matrices, CLAMPED);
    let error = experts.forward(&zeros((3, SHAPE.0)), &routes, None).unwrap_err().to_string();
    assert!(error.contains("3 tokens were given routes of 2"), "{error}");
    let mut scores = vec![0.0; EXPERTS + 1];
    scores[EXPERTS] = 1.0;
    let routes = route(&tensor(&scores, 1), 1, Weighting::AmongAll).unwrap();
    let error = experts.forward(&zeros((1, SHAPE.0)), &routes, None).unwrap_err().to_string();
    assert!(error.contains("number 9 of 9"), "{error}");
}
