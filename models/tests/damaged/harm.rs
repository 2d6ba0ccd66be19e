//! What is done to a file: a few changes, at places and of kinds that a seed decides.

/// SplitMix64 (doi:10.1145/2660193.2660195).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Changes a few things; most of them near the front, where the claims are.
pub(super) fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    // Among them the largest sizes that a config may have, and the least beyond.
    const INTERESTING: [u64; 12] =
        [0, 1, 7, 32, 1 << 16, 1 << 20, 1 << 21, u64::MAX, 1 << 31, 1 << 40, 1 << 62, 1 << 63];
    for _ in 0..1 + random.below(3) {
        let front = [64, 4096, bytes.len()][random.below(3)].min(bytes.len());
        let at = random.below(front);
        let rest = bytes.len() - at;
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = b"0123456789[]{},:\"-e"[random.below(19)],
            3 => bytes.truncate(at.max(1)),
            4 => {
                let value = INTERESTING[random.below(INTERESTING.len())].to_le_bytes();
                let len = rest.min(8);
                bytes[at..at + len].copy_from_slice(&value[..len]);
            }
            5 => {
                let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                bytes.splice(at..at + digits, INTERESTING[random.below(INTERESTING.len())].to_string().into_bytes());
            }
            6 => {
                let from = random.below(bytes.len());
                let len = random.below(40).min(rest).min(bytes.len() - from);
                bytes.copy_within(from..from + len, at);
            }
            // Infinities and numbers that are none, of halves, of floats of 8 bits and of exponents.
            7 => {
                let value = [[0x00, 0x7c], [0x01, 0xfe], [0xff, 0x7f], [0xff, 0xff]][random.below(4)];
                bytes[at..at + rest.min(2)].copy_from_slice(&value[..rest.min(2)]);
            }
            _ => drop(bytes.drain(at..at + random.below(40).min(rest - 1))),
        }
    }
}
