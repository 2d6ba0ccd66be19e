//! How much memory a matrix takes once it is loaded, by its format and its size alone. It must never look at a weight.

use plimsoll_kernels::packed::{Format, Ggml, Layout};

use super::panel;
use crate::quant::{Codes, GgmlType, Grouped, RowFormat};

/// Bytes that [`Linear::pack`](super::Linear::pack) makes of so many rows; 0 where the format has no rows of `cols` columns.
pub fn cpu_bytes(format: RowFormat, rows: usize, cols: usize) -> u64 {
    format.row_bytes(cols).map_or(0, |_| panel::packed_bytes(format, rows, cols) as u64)
}

/// Bytes of a GPU's memory that [`Linear::load`](super::Linear::load) makes of parts of these formats and rows: packed where a
/// kernel reads their format, else bf16. (It also widens what has zeros out of the range that kernels keep, which a format
/// does not tell.)
pub fn gpu_bytes(parts: &[(RowFormat, usize)], cols: usize) -> u64 {
    let rows_of = |parts: &[(RowFormat, usize)]| parts.iter().map(|(_, rows)| *rows).fold(0, usize::saturating_add);
    let plain = |rows: usize| 2u64.saturating_mul(rows as u64).saturating_mul(cols as u64);
    let runs = || parts.chunk_by(|(a, _), (b, _)| a == b).map(|run| (run[0].0, rows_of(run)));
    if !runs().all(|(_, rows)| widened(rows, cols).check().is_ok()) {
        return plain(rows_of(parts));
    }
    let packed = |layout: Layout| (layout.code_bytes() + layout.scale_bytes()) as u64;
    let bytes = runs().map(|(format, rows)| layout(format, rows, cols).map_or_else(|| plain(rows), packed));
    bytes.fold(0, u64::saturating_add)
}

/// As [`gpu_bytes`], of what [`Linear::load_alike`](super::Linear::load_alike) makes.
pub fn gpu_bytes_alike(parts: &[(RowFormat, usize)], cols: usize) -> u64 {
    if parts.chunk_by(|(a, _), (b, _)| a == b).count() == 1 {
        return gpu_bytes(parts, cols);
    }
    let widened: Vec<_> = parts.iter().map(|(_, rows)| (GgmlType::BF16.into(), *rows)).collect();
    gpu_bytes(&widened, cols)
}

/// How a kernel wants rows of this format; `None` where there is no kernel for them.
pub(super) fn layout(format: RowFormat, rows: usize, columns: usize) -> Option<Layout> {
    let (format, group) = match format {
        RowFormat::Ggml(GgmlType::MXFP4) => (Format::Mxfp4, 32),
        RowFormat::Ggml(ty) => {
            let ggml = blocks(ty)?;
            (Format::Ggml(ggml), ggml.group())
        }
        RowFormat::Grouped(Grouped { codes, group }) => match codes {
            Codes::Int4 => (Format::Int4, group.min(columns)),
            Codes::Int8 => (Format::Int8, group.min(columns)),
            Codes::E4M3 => (Format::Fp8, group.min(columns)),
        },
    };
    let layout = Layout { format, rows, columns, group };
    layout.check().is_ok().then_some(layout)
}

/// Of rows that are bf16.
pub(super) fn widened(rows: usize, columns: usize) -> Layout {
    Layout { format: Format::Bf16, rows, columns, group: columns }
}

fn blocks(ty: GgmlType) -> Option<Ggml> {
    Some(match ty {
        GgmlType::Q2K => Ggml::Q2K,
        GgmlType::Q3K => Ggml::Q3K,
        GgmlType::Q4_0 => Ggml::Q4_0,
        GgmlType::Q4_1 => Ggml::Q4_1,
        GgmlType::Q4K => Ggml::Q4K,
        GgmlType::Q5_0 => Ggml::Q5_0,
        GgmlType::Q5_1 => Ggml::Q5_1,
        GgmlType::Q5K => Ggml::Q5K,
        GgmlType::Q6K => Ggml::Q6K,
        GgmlType::Q8_0 => Ggml::Q8_0,
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::MXFP4 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::relay::{Laid, lay};
    use super::super::{Activations, Linear, RowSource};
    use super::*;

    const GROUPED: [RowFormat; 4] = [
        RowFormat::Grouped(Grouped { codes: Codes::Int4, group: 32 }),
        RowFormat::Grouped(Grouped { codes: Codes::Int4, group: 256 }),
        RowFormat::Grouped(Grouped { codes: Codes::Int8, group: 64 }),
        RowFormat::Grouped(Grouped { codes: Codes::E4M3, group: 128 }),
    ];

    fn bytes_of(laid: &[Laid]) -> usize {
        laid.iter().map(|laid| laid.codes.len() + laid.scales.len()).sum()
    }

    #[test]
    fn what_is_foretold_is_what_is_taken() {
        let formats: Vec<RowFormat> = GgmlType::ALL.map(RowFormat::from).into_iter().chain(GROUPED).collect();
        for format in formats {
            for (rows, cols) in [(32, 256), (40, 512)] {
                let bytes = vec![0; rows * format.row_bytes(cols).unwrap()];
                let source = RowSource::new(format, rows, cols, &bytes);
                let packed = Linear::pack(&[source], None, Activations::Int8).unwrap();
                assert_eq!(cpu_bytes(format, rows, cols), packed.packed_bytes() as u64, "{format}");
                let laid = lay(&[source]).unwrap().map(|laid| bytes_of(&laid));
                assert_eq!(gpu_bytes(&[(format, rows)], cols), laid.unwrap_or(2 * rows * cols) as u64, "{format}");
                assert_eq!(gpu_bytes_alike(&[(format, rows)], cols), gpu_bytes(&[(format, rows)], cols), "{format}");
            }
        }
        let zeros = |format: RowFormat, rows: usize| vec![0; rows * format.row_bytes(256).unwrap()];
        let parts = [(GROUPED[0], 32), (GROUPED[2], 24), (GgmlType::F16.into(), 8), (GgmlType::Q6K.into(), 16)];
        let bytes = parts.map(|(format, rows)| zeros(format, rows));
        let sources: Vec<_> =
            parts.iter().zip(&bytes).map(|(&(format, rows), b)| RowSource::new(format, rows, 256, b)).collect();
        assert_eq!(gpu_bytes(&parts, 256), bytes_of(&lay(&sources).unwrap().unwrap()) as u64);
        assert_eq!(gpu_bytes_alike(&parts, 256), 2 * 80 * 256);
        // No kernel takes 12 rows.
        assert_eq!(gpu_bytes(&[(GROUPED[0], 20), (GROUPED[2], 12)], 256), 2 * 32 * 256);
        assert_eq!(cpu_bytes(GROUPED[0], 32, 33), 0);
    }
}
