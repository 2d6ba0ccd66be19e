//! GGML's blocks, as the kernels have them: the other side of `include/packed/ggml.cuh`.

use super::layout::{CHUNK, TILE_ROWS};

/// A block type of GGML's that has kernels of its own; MXFP4 is [`super::Format::Mxfp4`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "they are called so")]
pub enum Ggml {
    Q2K,
    /// Codes are 4 more than GGML's, so that 8 stands for zero.
    Q3K,
    Q4_0,
    Q4_1,
    Q4K,
    Q5_0,
    Q5_1,
    Q5K,
    Q6K,
    Q8_0,
}

/// What the words of scales hold; the numbers are the kernels'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scaling {
    /// Of a chunk: two halves, a piece's factor each.
    Halves = 0,
    /// Likewise; of a block, which is a chunk: two halves, a piece's minimum each.
    HalvesAndMinima = 1,
    /// Of a block, which is four chunks: two halves, `d` and `m`. Of a chunk, groups of 32: four bytes, that by which `d` is
    /// the first piece's factor, that by which `m` is its minimum, and the second's; groups of 16: four bytes, a group's two
    /// in its nibbles.
    NestedAndMinima = 2,
    /// Of a block, which is four chunks: a half, `d`. Of a chunk: four signed bytes, by which `d` is a group's factor.
    Nested = 3,
}

impl Ggml {
    /// What its words of scales hold.
    pub fn scaling(self) -> Scaling {
        match self {
            Ggml::Q4_0 | Ggml::Q5_0 | Ggml::Q8_0 => Scaling::Halves,
            Ggml::Q4_1 | Ggml::Q5_1 => Scaling::HalvesAndMinima,
            Ggml::Q2K | Ggml::Q4K | Ggml::Q5K => Scaling::NestedAndMinima,
            Ggml::Q3K | Ggml::Q6K => Scaling::Nested,
        }
    }

    /// Columns that share a factor.
    pub fn group(self) -> usize {
        match self {
            Ggml::Q2K | Ggml::Q3K | Ggml::Q6K => 16,
            _ => 32,
        }
    }

    /// Bits of a code that lie with the others' codes.
    pub(super) fn bits(self) -> usize {
        if self == Ggml::Q8_0 { 8 } else { 4 }
    }

    /// Bits of a code beyond these.
    pub(super) fn tops(self) -> usize {
        match self {
            Ggml::Q5_0 | Ggml::Q5_1 | Ggml::Q5K => 1,
            Ggml::Q6K => 2,
            _ => 0,
        }
    }

    /// `PARTS` of packed/ggml.cuh.
    pub(super) fn scale_parts(self) -> u32 {
        8 + 8 * self.tops() as u32
    }

    /// What a row's columns are a multiple of.
    pub(super) fn column_step(self) -> usize {
        if self.block_chunks() == 1 { 32 } else { 4 * CHUNK }
    }

    fn block_chunks(self) -> usize {
        match self.scaling() {
            Scaling::Halves | Scaling::HalvesAndMinima => 1,
            Scaling::NestedAndMinima | Scaling::Nested => 4,
        }
    }

    /// Words of a block of a row; 0 or 1.
    fn block_words(self) -> usize {
        usize::from(self.scaling() != Scaling::Halves)
    }

    /// Words of a row of so many chunks: the chunks', and then the blocks'.
    pub(super) fn row_words(self, chunks: usize) -> usize {
        chunks + chunks.div_ceil(self.block_chunks()) * self.block_words()
    }

    /// Bytes of a tile's chunk: words, and what lanes hold of codes beyond four bits.
    fn chunk_bytes(self) -> usize {
        TILE_ROWS * size_of::<u32>() + 128 * self.tops()
    }

    fn block_bytes(self) -> usize {
        self.block_words() * TILE_ROWS * size_of::<u32>() + self.block_chunks() * self.chunk_bytes()
    }

    /// Of so many chunks.
    pub(super) fn tile_bytes(self, chunks: usize) -> usize {
        chunks.div_ceil(self.block_chunks()) * self.block_bytes()
    }

    /// Where in a tile a chunk's words begin.
    fn chunk_at(self, chunk: usize) -> usize {
        let (block, of_block) = (chunk / self.block_chunks(), chunk % self.block_chunks());
        block * self.block_bytes() + self.block_words() * TILE_ROWS * size_of::<u32>() + of_block * self.chunk_bytes()
    }

    /// Lays out the words of row `row` of a tile.
    pub(super) fn lay_words(self, row: usize, words: &[u32], chunks: usize, out: &mut [u8]) {
        let of_row = (row % 8 * 2 + row / 8) * size_of::<u32>();
        let mut put = |at: usize, word: u32| out[at..at + size_of::<u32>()].copy_from_slice(&word.to_le_bytes());
        let (of_chunks, of_blocks) = words.split_at(chunks);
        of_chunks.iter().enumerate().for_each(|(chunk, word)| put(self.chunk_at(chunk) + of_row, *word));
        of_blocks.iter().enumerate().for_each(|(block, word)| put(block * self.block_bytes() + of_row, *word));
    }

    /// Adds to a tile's scales what the codes of row `row` have beyond [`Ggml::bits`].
    pub(super) fn lay_tops(self, row: usize, codes: &[u8], out: &mut [u8]) {
        let bits = self.tops();
        for (column, code) in codes.iter().enumerate().filter(|_| bits != 0) {
            let (chunk, piece, t, nth) = (column / CHUNK, column / 32 % 2, column / 8 % 4, column % 8);
            let lane = row % 8 * 4 + t;
            // A word of a piece, or one of both; in its halves, codes with even numbers and odd ones.
            let word = if bits == 2 { lane * 2 + piece } else { lane };
            let of_pieces = if bits == 2 { 0 } else { 8 * piece };
            let bit = 16 * (nth % 2) + of_pieces + bits * (4 * (row / 8) + nth / 2);
            let at = self.chunk_at(chunk) + TILE_ROWS * size_of::<u32>() + word * size_of::<u32>() + bit / 8;
            out[at] |= code >> 4 << (bit % 8);
        }
    }
}
