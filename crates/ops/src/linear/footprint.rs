//! How much memory a matrix takes once it is loaded, by its format and its size alone. It must never look at a weight.

use plimsoll_kernels::packed::{Format, Layout};

use super::panel;
use crate::quant::{Codes, GgmlType, Grouped, RowFormat};

/// Bytes that [`Linear::pack`](super::Linear::pack) makes of so many rows; 0 where the format has no rows of `cols` columns.
pub fn cpu_bytes(format: RowFormat, rows: usize, cols: usize) -> u64 {
    format.row_bytes(cols).map_or(0, |_| panel::packed_bytes(format, rows, cols) as u64)
}

/// Bytes of a GPU's memory that [`Linear::load`](super::Linear::load) makes of parts of these formats and rows, in the
/// order of their columns: packed where a kernel reads their one format, else bf16. (It also widens what has zeros out of
/// the range that kernels keep, which a format does not tell.)
pub fn gpu_bytes(parts: &[(RowFormat, usize)], cols: usize) -> u64 {
    let rows = parts.iter().map(|(_, rows)| rows).sum();
    let alike = parts.first().filter(|(first, _)| parts.iter().all(|(format, _)| format == first));
    match alike.and_then(|(format, _)| layout(*format, rows, cols)) {
        Some(layout) => (layout.code_bytes() + layout.scale_bytes()) as u64,
        None => 2 * (rows as u64) * (cols as u64),
    }
}

/// How a kernel wants rows of this format; `None` where there is no kernel for them.
pub(super) fn layout(format: RowFormat, rows: usize, columns: usize) -> Option<Layout> {
    let (format, group) = match format {
        RowFormat::Ggml(GgmlType::MXFP4) => (Format::Mxfp4, 32),
        RowFormat::Ggml(_) => return None,
        RowFormat::Grouped(Grouped { codes, group }) => match codes {
            Codes::Int4 => (Format::Int4, group),
            Codes::Int8 => (Format::Int8, group),
            Codes::E4M3 => (Format::Fp8, group),
        },
    };
    let layout = Layout { format, rows, columns, group: group.min(columns) };
    layout.check().is_ok().then_some(layout)
}

#[cfg(test)]
mod tests {
    use super::super::relay::lay;
    use super::super::{Activations, Linear, RowSource};
    use super::*;

    const GROUPED: [RowFormat; 4] = [
        RowFormat::Grouped(Grouped { codes: Codes::Int4, group: 32 }),
        RowFormat::Grouped(Grouped { codes: Codes::Int4, group: 256 }),
        RowFormat::Grouped(Grouped { codes: Codes::Int8, group: 64 }),
        RowFormat::Grouped(Grouped { codes: Codes::E4M3, group: 128 }),
    ];

    #[test]
    fn what_is_foretold_is_what_is_taken() {
        let formats: Vec<RowFormat> = GgmlType::ALL.map(RowFormat::from).into_iter().chain(GROUPED).collect();
        for format in formats {
            for (rows, cols) in [(32, 256), (40, 512)] {
                let bytes = vec![0; rows * format.row_bytes(cols).unwrap()];
                let source = RowSource::new(format, rows, cols, &bytes);
                let packed = Linear::pack(&[source], None, Activations::Int8).unwrap();
                assert_eq!(cpu_bytes(format, rows, cols), packed.packed_bytes() as u64, "{format}");
                let laid = lay(&[source]).unwrap().map(|laid| laid.codes.len() + laid.scales.len());
                assert_eq!(gpu_bytes(&[(format, rows)], cols), laid.unwrap_or(2 * rows * cols) as u64, "{format}");
            }
        }
        assert_eq!(gpu_bytes(&[(GROUPED[0], 32), (GROUPED[2], 32)], 256), 2 * 64 * 256);
        assert_eq!(cpu_bytes(GROUPED[0], 32, 33), 0);
    }
}
