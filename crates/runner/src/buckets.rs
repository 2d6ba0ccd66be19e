//! The batch sizes at which decode steps are captured.

/// Sizes up to `most`, dense where a padded sequence costs most. A step of `n` sequences runs at the smallest size that
/// is not below `n`.
pub(crate) fn buckets(most: usize) -> Vec<usize> {
    let step = |size: usize| match size {
        0..4 => 1,
        4..8 => 4,
        8..128 => 8,
        128..256 => 16,
        256..512 => 32,
        512..1024 => 64,
        _ => 256,
    };
    let mut sizes: Vec<usize> = std::iter::successors(Some(1), |&size| Some(size + step(size)))
        .take_while(|&size| size < most)
        .filter(|&size| size != 3)
        .collect();
    sizes.push(most.max(1));
    sizes
}

#[cfg(test)]
mod tests {
    use super::buckets;

    #[test]
    fn sizes_rise_to_the_largest_batch() {
        for most in [1, 2, 5, 8, 100, 512, 4096] {
            let sizes = buckets(most);
            assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
            assert_eq!(sizes.last(), Some(&most));
        }
        assert_eq!(buckets(20), [1, 2, 4, 8, 16, 20]);
        assert!(buckets(4096).len() < 70);
    }

    #[test]
    fn at_most_a_third_of_a_large_batch_is_padding() {
        let sizes = buckets(4096);
        for pair in sizes.windows(2).filter(|pair| pair[0] >= 16) {
            assert!((pair[1] - pair[0]) * 3 <= pair[1], "{pair:?}");
        }
    }
}
