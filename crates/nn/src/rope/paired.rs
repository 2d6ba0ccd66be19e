//! The two orders of a head's rows in a query or key projection. Weights come in either; the ops know one
//! ([`plimsoll_ops::rope`]).

/// Puts rows from interleaved-pair order, in which neighbours turn together, into rotate-half order: within each of
/// `heads` heads of `d` rows, stored row `2 i + j` is row `j d/2 + i`. Rows are contiguous bytes, quantized or not. `None`
/// if the rows do not divide so.
pub(crate) fn unpaired_rows(bytes: &[u8], rows: usize, heads: usize) -> Option<Vec<u8>> {
    if !are_paired(rows, heads) {
        return None;
    }
    let (row_bytes, head_dim) = (bytes.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        let stored = head * head_dim + 2 * pair + half;
        out.extend_from_slice(&bytes[stored * row_bytes..(stored + 1) * row_bytes]);
    }
    Some(out)
}

/// Whether so many rows are heads of an even number of them.
pub(crate) fn are_paired(rows: usize, heads: usize) -> bool {
    heads.checked_mul(2).is_some_and(|pairs| pairs > 0 && rows.is_multiple_of(pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_halves() {
        // Two heads of six rows of two bytes.
        let rows: Vec<u8> = (0..24).collect();
        let halves = unpaired_rows(&rows, 12, 2).unwrap();
        let order: Vec<u8> = halves.chunks(2).map(|row| row[0] / 2).collect();
        assert_eq!(order, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert!(halves.chunks(2).all(|row| row[1] == row[0] + 1));
    }

    #[test]
    fn rows_that_do_not_divide_are_refused() {
        assert_eq!(unpaired_rows(&[0; 12], 12, 0), None);
        assert_eq!(unpaired_rows(&[0; 12], 12, 5), None);
        assert_eq!(unpaired_rows(&[0; 12], 12, usize::MAX), None);
    }
}
