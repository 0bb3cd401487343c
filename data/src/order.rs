//! The order of samples: a seeded bijection per epoch, so that any rank finds sample i by arithmetic.
//!
//! A Feistel network permutes 0 … 4^k − 1, the smallest such range that holds all windows; values beyond the last
//! window are sent through again (cycle walking), which keeps it a bijection on the windows. The round keys come
//! from BLAKE3 over (seed, epoch). The order is part of what a seed means: a test holds it fixed.

/// Rounds of the network; four make a good permutation, two more cost nothing here.
const ROUNDS: usize = 6;

/// The order in which a run goes through `samples` windows, epoch after epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    seed: u64,
    samples: u64,
    half_bits: u32,
}

impl Order {
    /// The order for a seed and a number of windows in an epoch.
    ///
    /// # Panics
    /// When `samples` is 0: there is nothing to order.
    pub fn new(seed: u64, samples: u64) -> Order {
        assert!(samples > 0, "an order needs at least one sample");
        let bits = u64::BITS - (samples - 1).leading_zeros();
        Order {
            seed,
            samples,
            half_bits: bits.div_ceil(2).max(1),
        }
    }

    /// Windows in an epoch.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The window, in `0..samples`, of the sample with global index `index`; its epoch is `index / samples`.
    pub fn sample(&self, index: u64) -> u64 {
        let keys = self.round_keys(index / self.samples);
        let mut window = index % self.samples;
        loop {
            window = self.permute(window, &keys);
            if window < self.samples {
                return window;
            }
        }
    }

    fn round_keys(&self, epoch: u64) -> [u64; ROUNDS] {
        let mut hasher = blake3::Hasher::new_derive_key("lockstep sample order 1");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&epoch.to_le_bytes());
        let mut bytes = [0; ROUNDS * 8];
        hasher.finalize_xof().fill(&mut bytes);
        let mut keys = [0; ROUNDS];
        for (key, bytes) in keys.iter_mut().zip(bytes.chunks_exact(8)) {
            *key = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        keys
    }

    fn permute(&self, value: u64, keys: &[u64; ROUNDS]) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of MurmurHash3, which spreads every bit of its input over its output.
fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    word = (word ^ word >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ word >> 33
}
