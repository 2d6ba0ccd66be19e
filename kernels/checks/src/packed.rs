//! Products with packed weights, of one matrix and of a mixture's experts, against f64.

pub(crate) mod timings;
mod weights;

use plimsoll_kernels::gemv::Output as Element;
use plimsoll_kernels::packed::{Activation, Format, Ggml, Layout, Order, Packed, Way, Work};
use plimsoll_kernels::route::{Route, RoutePlanPart, RoutePlanSize, Split, Weighting};
use plimsoll_kernels::{DevicePtr, LaunchError};

use crate::arrays::{Output, bf16_bytes, expect_same, f32_bytes, rounded, to_bf16, to_f32, to_u32, u32_bytes};
use crate::{Case, Random, TestDevice};
use weights::Weights;

const FORMATS: [Format; 15] = [
    Format::Bf16,
    Format::Mxfp4,
    Format::Int4,
    Format::Int8,
    Format::Fp8,
    Format::Ggml(Ggml::Q2K),
    Format::Ggml(Ggml::Q3K),
    Format::Ggml(Ggml::Q4_0),
    Format::Ggml(Ggml::Q4_1),
    Format::Ggml(Ggml::Q4K),
    Format::Ggml(Ggml::Q5_0),
    Format::Ggml(Ggml::Q5_1),
    Format::Ggml(Ggml::Q5K),
    Format::Ggml(Ggml::Q6K),
    Format::Ggml(Ggml::Q8_0),
];
const WAYS: [Way; 3] = [Way::Skinny, Way::Tiled64, Way::Tiled128];
const CLAMPED: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in FORMATS {
        for way in WAYS {
            cases.push(Case {
                name: format!("packed/{} {way:?}, one matrix", name(format)),
                run: Box::new(move |device, random| dense(device, random, format, way)),
            });
            cases.push(Case {
                name: format!("packed/{} {way:?}, experts", name(format)),
                run: Box::new(move |device, random| experts(device, random, format, way)),
            });
        }
    }
    cases.push(Case { name: "packed/alone as among others".into(), run: Box::new(alone) });
    cases.push(Case { name: "packed/beside each other".into(), run: Box::new(beside) });
    cases.push(Case { name: "packed/columns in order".into(), run: Box::new(ordered) });
    cases.push(Case { name: "packed/sizes refused".into(), run: Box::new(refused) });
    cases
}

/// As GGML calls its formats.
pub(crate) fn name(format: Format) -> String {
    match format {
        Format::Ggml(ggml) => format!("{ggml:?}"),
        _ => format!("{format:?}"),
    }
}

/// A layout with groups that the format has, and columns of whole blocks.
fn layout(random: &mut Random, format: Format, rows: usize, columns: usize) -> Layout {
    let columns = columns.next_multiple_of(column_step(format));
    let group = match format {
        Format::Bf16 | Format::Mxfp4 => 32,
        Format::Ggml(ggml) => ggml.group(),
        _ => [32, 64, 128, columns][random.below(4)],
    };
    Layout { format, rows, columns, group }
}

fn column_step(format: Format) -> usize {
    match format {
        Format::Ggml(Ggml::Q2K | Ggml::Q3K | Ggml::Q4K | Ggml::Q5K | Ggml::Q6K) => 256,
        _ => 32,
    }
}

/// One product over random operands.
struct Problem {
    weights: Weights,
    /// `[matrices, rows]`
    bias: Option<Vec<f32>>,
    activation: Activation,
}

/// What a row of x should become: value and tolerance of each column.
type Row = Vec<(f64, f64)>;

impl Problem {
    fn new(random: &mut Random, layout: Layout, matrices: usize, bias: bool, activation: Activation) -> Self {
        let weights = Weights::random(random, layout, matrices);
        let bias = bias.then(|| random.normals(matrices * layout.rows, 2.0));
        Self { weights, bias, activation }
    }

    fn width(&self) -> usize {
        if self.activation == Activation::None { self.weights.layout.rows } else { self.weights.layout.rows / 2 }
    }

    fn run(&self, device: &dyn TestDevice, y: DevicePtr, x: DevicePtr, way: Way, work: Work) -> Result<(), String> {
        self.run_to(device, (y, Element::Bf16), x, way, work)
    }

    fn run_to(
        &self,
        device: &dyn TestDevice,
        (y, output): (DevicePtr, Element),
        x: DevicePtr,
        way: Way,
        work: Work,
    ) -> Result<(), String> {
        let (codes, scales) = self.weights.upload(device);
        let bias = self.bias.as_ref().map_or(DevicePtr::NULL, |bias| device.upload(&f32_bytes(bias)));
        let layout = self.weights.layout;
        let op = Packed { y, output, x, codes, scales, bias, layout, activation: self.activation, way, work };
        op.run(device.queue()).map_err(|e: LaunchError| e.to_string())
    }

    /// A sum and its tolerance: of the terms' sizes, where weights are rounded to bf16 and where they are not.
    fn sum(&self, matrix: usize, row: usize, x: &[f32], weight: f64, way: Way) -> (f64, f64) {
        let exact = way == Way::Skinny || matches!(self.weights.layout.format, Format::Bf16 | Format::Mxfp4);
        let weights = self.weights.row(matrix, row).iter().zip(self.weights.row_sizes(matrix, row));
        let (mut sum, mut rounded, mut added) = (0.0, 0.0, 0.0);
        for ((value, size), x) in weights.zip(x) {
            let x = f64::from(*x) * weight;
            sum += f64::from(*value) * x;
            rounded += (f64::from(*value) * x).abs();
            added += f64::from(*size) * x.abs();
        }
        let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[matrix * self.weights.layout.rows + row]));
        let off = if exact { 0.0 } else { rounded * 1.05 / 256.0 };
        (sum + bias, off + added * 2e-6 + 1e-6 * bias.abs())
    }

    fn row(&self, matrix: usize, x: &[f32], weight: f64, way: Way) -> Row {
        let sum = |row| self.sum(matrix, row, x, weight, way);
        let column = |column: usize| match self.activation {
            Activation::None => sum(column),
            _ => self.gated(sum(column), sum(self.width() + column)),
        };
        let bf16_rounding = |(value, tolerance): (f64, f64)| (value, tolerance + 1.01 / 256.0 * value.abs() + 1e-30);
        (0..self.width()).map(column).map(bf16_rounding).collect()
    }

    /// The activation, and what it makes of its operands' tolerances: no slope of `x * logistic(alpha * x)` is above 1.1.
    fn gated(&self, (mut gate, gate_off): (f64, f64), (mut up, up_off): (f64, f64)) -> (f64, f64) {
        let (alpha, added) = match self.activation {
            Activation::ClampedSwiglu { alpha, limit } => {
                let limit = f64::from(limit);
                (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
                (f64::from(alpha), 1.0)
            }
            _ => (1.0, 0.0),
        };
        let act = gate / (1.0 + (-alpha * gate).exp());
        let value = (up + added) * act;
        (value, 1.2 * gate_off * ((up + added).abs() + up_off) + act.abs() * up_off + 1e-5 * value.abs())
    }
}

fn compare(what: &str, got: &[f32], want: impl Iterator<Item = (f64, f64)>) -> Result<(), String> {
    let mut compared = 0;
    for (i, (got, (want, tolerance))) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - want).abs();
        if off > tolerance || off.is_nan() {
            return Err(format!("{what}, element {i}: {got}, expected {want} within {tolerance}"));
        }
        compared += 1;
    }
    if compared == got.len() { Ok(()) } else { Err(format!("{what}: {compared} elements of {}", got.len())) }
}

/// Tokens, rows, columns: less than a block of each; an odd tail of each; more columns than warps or stages; any.
fn dense(device: &dyn TestDevice, random: &mut Random, format: Format, way: Way) -> Result<(), String> {
    let most = way.item_rows() as usize;
    let any = (random.between(1, most + 9), 8 * random.between(1, 40), 32 * random.between(1, 9));
    for (tokens, rows, columns) in [(1, 8, 32), (most + 3, 40, 96), (most / 2 + 1, 24, 1120), (2, 544, 64), any] {
        let layout = layout(random, format, rows, columns);
        let columns = layout.columns;
        let (bias, gated) = (random.below(2) == 0, rows % 32 == 0 && random.below(4) != 0);
        let activation = if gated { CLAMPED } else { Activation::None };
        let problem = Problem::new(random, layout, 1, bias, activation);
        let x = rounded(random.normals(tokens * columns, 1.0));
        let (output, bytes) = [(Element::Bf16, 2), (Element::F32, 4)][random.below(2)];
        let y = Output::new(device, bytes * tokens * problem.width());
        let work = Work::Dense { tokens: tokens as u32, stride: problem.width() as u32 };
        problem.run_to(device, (y.at, output), device.upload(&bf16_bytes(&x)), way, work)?;
        let want = x.chunks(columns).flat_map(|x| problem.row(0, x, 1.0, way));
        let got = y.read(device)?;
        let got = if output == Element::F32 { to_f32(&got) } else { to_bf16(&got) };
        compare(&format!("{tokens} x {layout:?}, {activation:?}, {output:?}"), &got, want)?;
    }
    Ok(())
}

/// Routing, gates and ups, and the way down, each compared with what it should make of its own inputs.
fn experts(device: &dyn TestDevice, random: &mut Random, format: Format, way: Way) -> Result<(), String> {
    let (experts, top) = [(4, 2), (5, 5), (9, 1)][random.below(3)];
    let tokens = if way == Way::Skinny { random.between(1, 24) } else { random.between(20, 150) };
    let step = column_step(format);
    let (hidden, inner) = if step == 256 { (256, 256) } else { (32 * random.between(1, 4), 32 * random.between(1, 3)) };
    let activation = [Activation::SiluMul, CLAMPED][random.below(2)];
    let weighs_inputs = random.below(2) == 0;
    // Some experts are asked more often than others.
    let scores: Vec<f32> = (0..tokens * experts).map(|i| random.normal() + 2.0 / (1 + i % experts) as f32).collect();
    // All of them the one way; or those of few positions the other.
    let few = random.below(2) as u32 * random.between(1, 24) as u32;
    let split = if way == Way::Skinny { Split::only(way) } else { Split::at(few, way) };
    let size = RoutePlanSize { tokens: tokens as u32, experts: experts as u32, top: top as u32, split };
    let slots = tokens * top;
    let chosen = device.upload(&vec![0xFF; 4 * slots]);
    let weights = device.upload(&vec![0xFF; 4 * slots]);
    let (sorted, plan) = (device.upload(&vec![0xFF; 4 * slots]), device.upload(&vec![0xFF; 4 * size.words() as usize]));
    let route = Route {
        chosen,
        weights,
        slots: sorted,
        plan,
        counts: device.upload(&vec![0; 4 * size.count_words() as usize]),
        scores: device.upload(&f32_bytes(&scores)),
        num_tokens: DevicePtr::NULL,
        weighting: Weighting::Sigmoid,
        size,
    };
    route.run(device.queue()).map_err(|e| e.to_string())?;
    let chosen = to_u32(&device.download(chosen, 4 * slots));
    let slot_weights = to_f32(&device.download(weights, 4 * slots));
    let order = to_u32(&device.download(sorted, 4 * slots));

    let input_weights = if weighs_inputs { weights } else { DevicePtr::NULL };
    let each_way = |problem: &Problem, y, x, top, scatters, input_weights| {
        size.parts().try_for_each(|RoutePlanPart { way, offset, items }| {
            let plan = plan.byte_add(4 * offset as usize);
            let work = Work::Experts { plan, slots: sorted, items, top, scatters, input_weights };
            problem.run(device, y, x, way, work)
        })
    };
    let up_layout = layout(random, format, 2 * inner, hidden);
    let up = Problem::new(random, up_layout, experts, true, activation);
    let x = rounded(random.normals(tokens * hidden, 1.0));
    let middle = Output::new(device, 2 * slots * inner);
    each_way(&up, middle.at, device.upload(&bf16_bytes(&x)), top as u32, false, input_weights)?;
    let middle_values = to_bf16(&middle.read(device)?);
    let want = order.iter().flat_map(|&slot| {
        let weight = if weighs_inputs { slot_weights[slot as usize] } else { 1.0 };
        let token = slot as usize / top;
        up.row(chosen[slot as usize] as usize, &x[token * hidden..][..hidden], weight.into(), way)
    });
    compare(&format!("{tokens} tokens, up {up_layout:?}, {activation:?}"), &middle_values, want)?;

    let down_layout = layout(random, format, hidden, inner);
    let has_bias = random.below(2) == 0;
    let down = Problem::new(random, down_layout, experts, has_bias, Activation::None);
    let y = Output::new(device, 2 * slots * hidden);
    each_way(&down, y.at, middle.at, 0, true, DevicePtr::NULL)?;
    let y = to_bf16(&y.read(device)?);
    for (position, &slot) in order.iter().enumerate() {
        let (slot, x) = (slot as usize, &middle_values[position * inner..][..inner]);
        let want = down.row(chosen[slot] as usize, x, 1.0, way);
        compare(&format!("down {down_layout:?}, slot {slot}"), &y[slot * hidden..][..hidden], want.into_iter())?;
    }
    Ok(())
}

/// A token's bits are the same alone, and among as many as an item holds.
fn alone(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for way in WAYS {
        let format = FORMATS[random.below(FORMATS.len())];
        let layout = layout(random, format, 24, 160);
        let columns = layout.columns;
        let problem = Problem::new(random, layout, 1, true, Activation::None);
        let tokens = way.item_rows() as usize;
        let x = rounded(random.normals(tokens * columns, 1.0));
        let run = |x: &[f32]| {
            let count = x.len() / columns;
            let y = Output::new(device, 2 * count * 24);
            let work = Work::Dense { tokens: count as u32, stride: 24 };
            problem.run(device, y.at, device.upload(&bf16_bytes(x)), way, work)?;
            Ok::<_, String>(to_bf16(&y.read(device)?))
        };
        let all = run(&x)?;
        for token in [0, tokens / 2, tokens - 1] {
            let single = run(&x[token * columns..][..columns])?;
            expect_same(&format!("{format:?} {way:?}, token {token}"), &single, &all[token * 24..][..24])?;
        }
    }
    Ok(())
}

/// Two matrices of different formats that share an input, each to its columns of y: as each alone.
fn beside(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for way in WAYS {
        let (tokens, columns) = (random.between(1, 70), 256);
        let problems = [24, 40].map(|rows| {
            let format = FORMATS[random.below(FORMATS.len())];
            let layout = layout(random, format, rows, columns);
            Problem::new(random, layout, 1, true, Activation::None)
        });
        let x = device.upload(&bf16_bytes(&rounded(random.normals(tokens * columns, 1.0))));
        let (output, bytes) = [(Element::Bf16, 2), (Element::F32, 4)][random.below(2)];
        let work = |stride| Work::Dense { tokens: tokens as u32, stride };
        let numbers = |y: &[u8]| if output == Element::F32 { to_f32(y) } else { to_bf16(y) };
        let all = Output::new(device, bytes * tokens * 64);
        let mut alone = Vec::new();
        for (problem, first) in problems.iter().zip([0, 24]) {
            problem.run_to(device, (all.at.byte_add(bytes * first), output), x, way, work(64))?;
            let y = Output::new(device, bytes * tokens * problem.width());
            problem.run_to(device, (y.at, output), x, way, work(problem.width() as u32))?;
            alone.push(numbers(&y.read(device)?));
        }
        let rows = alone[0].chunks(24).zip(alone[1].chunks(40));
        let want: Vec<f32> = rows.flat_map(|(first, second)| [first, second].concat()).collect();
        expect_same(&format!("{way:?}, {tokens} tokens"), &numbers(&all.read(device)?), &want)?;
    }
    Ok(())
}

/// More columns than a block has threads for at once, and fewer.
fn ordered(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for (positions, columns) in [(1, 8), (3, 96), (2, 2336)] {
        let x = rounded(random.normals(positions * columns, 1.0));
        let mut order: Vec<u32> = (0..columns as u32).collect();
        (1..columns).rev().for_each(|i| order.swap(i, random.below(i + 1)));
        let out = Output::new(device, 2 * positions * columns);
        let op = Order {
            out: out.at,
            x: device.upload(&bf16_bytes(&x)),
            order: device.upload(&u32_bytes(&order)),
            positions: positions as u32,
            columns: columns as u32,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        let want: Vec<f32> = x.chunks(columns).flat_map(|x| order.iter().map(|&i| x[i as usize])).collect();
        expect_same(&format!("{positions} x {columns}"), &to_bf16(&out.read(device)?), &want)?;
    }
    Ok(())
}

fn refused(device: &dyn TestDevice, _: &mut Random) -> Result<(), String> {
    for (rows, columns, group, activation) in [
        (12, 64, 32, Activation::None),
        (16, 48, 32, Activation::None),
        (16, 64, 64, Activation::None),
        (48, 64, 32, Activation::SiluMul),
    ] {
        let at = device.upload(&[0; 256]);
        let layout = Layout { format: Format::Mxfp4, rows, columns, group };
        let (way, work) = (Way::Skinny, Work::Dense { tokens: 1, stride: 48 });
        let (output, bias) = (Element::Bf16, DevicePtr::NULL);
        let op = Packed { y: at, output, x: at, codes: at, scales: at, bias, layout, activation, way, work };
        if op.run(device.queue()).is_ok() {
            return Err(format!("{layout:?} with {activation:?} was not refused"));
        }
    }
    Ok(())
}
