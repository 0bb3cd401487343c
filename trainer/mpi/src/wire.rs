//! A message of float32 values of which every low half is zero travels as bfloat16: half the bytes, and exact. The
//! receiver tells by the message's length. (A lane of one bf16 micro-batch has such gradients.)

/// Values looked at before it is asked again whether to go on: true float32 gives itself away in the first ones.
const LOOK: usize = 1024;

/// Whether every value is a bfloat16.
pub(crate) fn is_bf16(values: &[f32]) -> bool {
    values
        .chunks(LOOK)
        .all(|look| look.iter().fold(0, |all, value| all | value.to_bits()) & 0xffff == 0)
}

/// Moves the high halves of values that are bfloat16 into the first half of their memory.
pub(crate) fn pack(values: &mut [f32]) {
    // Place i is written when the values 2i and 2i + 1 have been read.
    for index in 0..values.len().div_ceil(2) {
        let low = values[2 * index].to_bits() >> 16;
        let high = values
            .get(2 * index + 1)
            .map_or(0, |value| value.to_bits() & 0xffff_0000);
        values[index] = f32::from_bits(high | low);
    }
}

/// The values whose high halves fill the first half of their memory.
pub(crate) fn unpack(values: &mut [f32]) {
    // From the back: place i is written when the places behind it have been, and those that it overwrites were read.
    for index in (0..values.len()).rev() {
        let pair = values[index / 2].to_bits();
        let half = if index % 2 == 0 { pair & 0xffff } else { pair >> 16 };
        values[index] = f32::from_bits(half << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn what_is_packed_comes_back_bit_for_bit() {
        let seed: u64 = rand::rng().random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for length in [0usize, 1, 2, 3, 1023, 1024, 1025, 5000] {
            let values: Vec<f32> = (0..length)
                .map(|_| f32::from_bits(random.random::<u32>() << 16))
                .collect();
            assert!(is_bf16(&values));
            let mut received = values.clone();
            pack(&mut received);
            // Only the first half travels; of an odd number, half of the middle one.
            received[length.div_ceil(2)..].fill(f32::NAN);
            unpack(&mut received);
            assert!(received.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    #[test]
    fn one_low_bit_anywhere_makes_it_float32() {
        let mut values = vec![1.5f32; 3000];
        for place in [0, 1500, 2999] {
            let whole = values[place];
            values[place] = f32::from_bits(whole.to_bits() | 1);
            assert!(!is_bf16(&values));
            values[place] = whole;
        }
    }
}
