//! Which kernels this CPU can run.

use std::mem::MaybeUninit;

use super::packing::Packing;
use super::panel::PANEL;
use super::portable;
use super::quantize::{self, ActBlock};

/// See [`portable::int8`]. Unsafe only in that the CPU must have the instructions.
#[cfg(target_arch = "x86_64")]
pub(super) type Int8Kernel = unsafe fn(usize, &[u8], &[ActBlock], &mut [[f32; PANEL]]);
/// See [`portable::dense`]. Unsafe only in that the CPU must have the instructions.
#[cfg(target_arch = "x86_64")]
pub(super) type DenseKernel = unsafe fn(&[u8], &[f32; PANEL], &[f32], usize, &mut [[f32; PANEL]]);

/// A set of kernels. A value exists only on a CPU that can run them, which is what makes calling them sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The fastest.
    pub(super) fn best() -> Isa {
        Isa::available().last().expect("the portable kernels at least")
    }

    /// All that this CPU can run, slowest first.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn available() -> impl Iterator<Item = Isa> {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let vnni = avx2 && is_x86_feature_detected!("avxvnni");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        [(true, Kind::Portable), (avx2, Kind::Avx2), (vnni, Kind::AvxVnni), (avx512, Kind::Avx512)]
            .into_iter()
            .filter_map(|(has, kind)| has.then_some(Isa(kind)))
    }

    /// All that this CPU can run, slowest first.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn available() -> impl Iterator<Item = Isa> {
        std::iter::once(Isa(Kind::Portable))
    }

    /// Rows of activations that a kernel takes at once, at most.
    pub(super) fn tile_rows(self) -> usize {
        match self.0 {
            Kind::Portable => 4,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::AvxVnni => super::avx2::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => super::avx512::TILE_ROWS,
        }
    }

    /// See [`quantize::quantize_tile`].
    pub(super) fn quantize_tile(self, x: &[f32], cols: usize, out: &mut [MaybeUninit<ActBlock>]) {
        match self.0 {
            Kind::Portable => quantize::quantize_tile(x, cols, out, ActBlock::quantize),
            // SAFETY: this value exists, so the CPU has the instructions.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::AvxVnni => unsafe { super::avx2::quantize_tile(x, cols, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { super::avx512::quantize_tile(x, cols, out) },
        }
    }

    /// See [`portable::int8`]; `out` has at most [`Isa::tile_rows`] rows.
    pub(super) fn int8(self, packing: Packing, every: usize, panel: &[u8], x: &[ActBlock], out: &mut [[f32; PANEL]]) {
        #[cfg(target_arch = "x86_64")]
        {
            let kernel = match self.0 {
                Kind::Portable => return portable::int8(packing, every, panel, x, out),
                Kind::Avx2 => super::avx2::int8_kernel(packing, out.len()),
                Kind::AvxVnni => super::avx2::int8_vnni_kernel(packing, out.len()),
                Kind::Avx512 => super::avx512::int8_kernel(packing, out.len()),
            };
            // SAFETY: this value exists, so the CPU has the instructions.
            unsafe { kernel(every, panel, x, out) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        portable::int8(packing, every, panel, x, out);
    }

    /// See [`portable::dense`]; `acc` has at most [`Isa::tile_rows`] rows.
    pub(super) fn dense(
        self,
        packing: Packing,
        (panel, scales): (&[u8], &[f32; PANEL]),
        x: &[f32],
        stride: usize,
        acc: &mut [[f32; PANEL]],
    ) {
        #[cfg(target_arch = "x86_64")]
        {
            let kernel = match self.0 {
                Kind::Portable => return portable::dense(packing, panel, scales, x, stride, acc),
                Kind::Avx2 | Kind::AvxVnni => super::avx2::dense_kernel(packing, acc.len()),
                Kind::Avx512 => super::avx512::dense_kernel(packing, acc.len()),
            };
            // SAFETY: this value exists, so the CPU has the instructions.
            unsafe { kernel(panel, scales, x, stride, acc) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        portable::dense(packing, panel, scales, x, stride, acc);
    }
}

/// `by_packing!(packing, blocks, kernel, [1, 2, 3])` is the kernels of one packing for 1, 2 and 3 rows: an array of
/// function pointers. A kernel is generic over the packing, as [`Packing::index`], and over the rows.
#[cfg(target_arch = "x86_64")]
macro_rules! by_packing {
    ($packing:expr, blocks, $kernel:ident, $rows:tt) => {
        by_packing!(@ $packing, $kernel, $rows, [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, MXFP4], [Int4, Int8])
    };
    ($packing:expr, floats, $kernel:ident, $rows:tt) => {
        by_packing!(@ $packing, $kernel, $rows, [F32, F16, BF16], [E4M3])
    };
    (@ $packing:expr, $kernel:ident, $rows:tt, [$($ggml:ident),*], [$($other:ident),*]) => {
        match $packing {
            $(Packing::Ggml(GgmlType::$ggml) => by_packing!(@rows $kernel, Packing::Ggml(GgmlType::$ggml), $rows),)*
            $(Packing::$other => by_packing!(@rows $kernel, Packing::$other, $rows),)*
            other => unreachable!("no such kernel for {other:?}"),
        }
    };
    (@rows $kernel:ident, $packing:expr, [$($rows:literal),*]) => {
        [$($kernel::<{ $packing.index() }, $rows> as _),*]
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use by_packing;
