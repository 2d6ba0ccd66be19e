//! The loops around the kernels: which thread does which panel, and where the results go.

use std::marker::PhantomData;
use std::ops::Range;

use super::isa::Isa;
use super::packing::Packing;
use super::panel::{BLOCK, PANEL, Section};
use super::quantize::{ActBlock, quantize};
use super::{Activations, Weights};
use crate::par::{num_threads, parallel_for};
use crate::quant::GgmlType;

/// Columns of a panel that are multiplied with all rows of `x` before the next: what fits the L1 cache as f32.
const SLAB: usize = 256;

/// `x W^T (+ b)` for `x` of whole rows: `[m][out_features]`.
pub(super) fn forward(weights: &Weights, isa: Isa, x: &[f32]) -> Vec<f32> {
    let m = x.len() / weights.in_features;
    let mut y = Vec::with_capacity(m * weights.out_features);
    if m * weights.out_features == 0 {
        return y;
    }
    let gathered: Vec<Vec<f32>> = weights.orders.iter().map(|order| gather(x, order)).collect();
    let inputs = std::iter::once(x).chain(gathered.iter().map(Vec::as_slice));
    let inputs: Vec<Input<'_>> = inputs.enumerate().map(|(index, x)| Input::new(weights, isa, index, x)).collect();
    let output = Output::new(&mut y, m, weights.out_features);
    let panels = weights.sections.iter().map(Section::panels).sum::<usize>();
    // Many tasks a thread, so that one that is held up does not hold up the others.
    let at_once = (panels / (16 * num_threads())).max(1);
    parallel_for(panels.div_ceil(at_once), |task| {
        let range = task * at_once..panels.min((task + 1) * at_once);
        multiply_panels(weights, range, &inputs, &output);
    });
    // SAFETY: the panels cover all outputs, and every panel was multiplied with all rows of `x` and stored.
    unsafe { y.set_len(m * weights.out_features) };
    y
}

fn in_int8(weights: &Weights, section: &Section) -> bool {
    weights.activations == Activations::Int8 && section.packing().block_format().is_some()
}

/// Rows of as many columns as `order` has, each with its columns in that order.
fn gather(x: &[f32], order: &[u32]) -> Vec<f32> {
    x.chunks_exact(order.len()).flat_map(|row| order.iter().map(|&col| row[col as usize])).collect()
}

/// The activations, with their columns in one order.
struct Input<'a> {
    isa: Isa,
    /// `[m][cols]`
    x: &'a [f32],
    cols: usize,
    m: usize,
    /// `[tile][block][row]`; empty if no section wants it.
    quantized: Vec<ActBlock>,
}

impl<'a> Input<'a> {
    /// Of the sections that want input number `index`.
    fn new(weights: &Weights, isa: Isa, index: usize, x: &'a [f32]) -> Self {
        let cols = weights.in_features;
        let mut sections = weights.sections.iter().filter(|section| section.input() == index);
        let int8 = sections.any(|section| in_int8(weights, section));
        let quantized = if int8 { quantize(isa, x, cols, isa.tile_rows()) } else { Vec::new() };
        Self { isa, x, cols, m: x.len() / cols, quantized }
    }
}

/// Multiplies the panels of a range that counts through all sections.
fn multiply_panels(weights: &Weights, range: Range<usize>, inputs: &[Input<'_>], output: &Output<'_>) {
    let (mut first_panel, mut first_row) = (0, 0);
    let mut scratch = Vec::new();
    for section in &weights.sections {
        let start = range.start.clamp(first_panel, first_panel + section.panels()) - first_panel;
        let end = range.end.clamp(first_panel, first_panel + section.panels()) - first_panel;
        for index in start..end {
            let rows = PANEL.min(section.rows() - index * PANEL);
            let target = first_row + index * PANEL;
            let bias = weights.bias.as_ref().map(|bias| &bias[target..target + rows]);
            let column = Column { target, rows, bias, output };
            let input = &inputs[section.input()];
            if in_int8(weights, section) {
                multiply_int8(section, section.panel(index), input, &column);
            } else {
                multiply_f32(section, section.panel(index), input, &mut scratch, &column);
            }
        }
        first_panel += section.panels();
        first_row += section.rows();
    }
}

fn multiply_int8(section: &Section, panel: &[u8], input: &Input<'_>, column: &Column<'_>) {
    let &Input { isa, cols, m, ref quantized, .. } = input;
    let tile_rows = isa.tile_rows();
    let mut out = [[0f32; PANEL]; 8];
    let mut rest = &quantized[..];
    for first in (0..m).step_by(tile_rows) {
        let rows = tile_rows.min(m - first);
        let tile;
        (tile, rest) = rest.split_at(rows * cols / BLOCK);
        isa.int8(section.packing(), section.blocks_per_group(), panel, tile, &mut out[..rows]);
        column.store(first, &out[..rows]);
    }
}

/// In f32: a panel is taken in slabs of columns, and the sums are kept in `acc` (`[m][32]`) between slabs.
fn multiply_f32(section: &Section, panel: &[u8], input: &Input<'_>, acc: &mut Vec<[f32; PANEL]>, column: &Column<'_>) {
    let &Input { isa, x, cols, m, .. } = input;
    acc.clear();
    acc.resize(m, [0.0; PANEL]);
    let mut slab = Slab::new();
    let mut start = 0;
    while start < cols {
        let end = section.float_run_end(start).min(start + SLAB);
        let (packing, weights, scales) = slab.take(section, panel, start..end);
        for (tile, acc) in acc.chunks_mut(isa.tile_rows()).enumerate() {
            let x = &x[tile * isa.tile_rows() * cols + start..];
            isa.dense(packing, (weights, &scales), x, cols, acc);
        }
        start = end;
    }
    column.store(0, acc);
}

/// Some columns of a panel, dequantized if need be.
struct Slab {
    bytes: [u8; SLAB * PANEL * 4],
}

impl Slab {
    fn new() -> Slab {
        Slab { bytes: [0; SLAB * PANEL * 4] }
    }

    /// Floats, and what the rows are to be multiplied with.
    fn take<'a>(
        &'a mut self,
        section: &Section,
        panel: &'a [u8],
        cols: Range<usize>,
    ) -> (Packing, &'a [u8], [f32; PANEL]) {
        if section.packing().block_format().is_none() {
            let (columns, scales) = section.float_columns(panel, cols);
            return (section.packing(), columns, scales);
        }
        let layout = section.layout();
        let length = cols.len() * PANEL * 4;
        let blocks = self.bytes[..length].chunks_exact_mut(BLOCK * PANEL * 4);
        for (index, out) in (cols.start / BLOCK..).zip(blocks) {
            let block = layout.block(panel, index);
            for (value, out) in block.weights().as_flattened().iter().zip(out.as_chunks_mut::<4>().0) {
                *out = value.to_le_bytes();
            }
        }
        (Packing::Ggml(GgmlType::F32), &self.bytes[..length], [1.0; PANEL])
    }
}

/// The output matrix, which the tasks fill in disjoint columns.
struct Output<'a> {
    start: *mut f32,
    m: usize,
    cols: usize,
    exclusive: PhantomData<&'a mut Vec<f32>>,
}

// SAFETY: tasks store to disjoint columns (see `Column::store`), and nothing is read.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// `y` must have room for `m * cols`, which need not be initialized.
    fn new(y: &'a mut Vec<f32>, m: usize, cols: usize) -> Output<'a> {
        assert!(y.capacity() >= m * cols);
        Output { start: y.as_mut_ptr(), m, cols, exclusive: PhantomData }
    }
}

/// The columns of the output that one panel gives.
struct Column<'a> {
    target: usize,
    /// Of the panel's 32, the rows that are not padding.
    rows: usize,
    bias: Option<&'a [f32]>,
    output: &'a Output<'a>,
}

impl Column<'_> {
    /// Stores the panel's results for the rows of `x` from `first` on.
    fn store(&self, first: usize, tile: &[[f32; PANEL]]) {
        let Output { start, m, cols, .. } = *self.output;
        assert!(first + tile.len() <= m && self.target + self.rows <= cols);
        for (row, values) in tile.iter().enumerate() {
            let mut values = *values;
            if let Some(bias) = self.bias {
                values.iter_mut().zip(bias).for_each(|(value, b)| *value += b);
            }
            // SAFETY: in bounds by the assertion; only the task of this panel touches these columns of any row.
            unsafe {
                let at = start.add((first + row) * cols + self.target);
                if self.rows == PANEL {
                    at.cast::<[f32; PANEL]>().write(values);
                } else {
                    std::ptr::copy_nonoverlapping(values.as_ptr(), at, self.rows);
                }
            }
        }
    }
}
