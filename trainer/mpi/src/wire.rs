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

/// Packs values if all are bfloat16; if not, what `words` has then means nothing. One pass over memory.
pub(crate) fn pack_if_bf16(values: &[f32], words: &mut [f32]) -> bool {
    values
        .chunks(LOOK)
        .zip(words.chunks_mut(LOOK / 2))
        .all(|(values, words)| {
            let all = is_bf16(values);
            if all {
                pack(values, words);
            }
            all
        })
}

/// The high halves of values that are bfloat16, two to a word; an odd one at the end has a word for itself.
fn pack(values: &[f32], words: &mut [f32]) {
    let (pairs, last) = values.as_chunks::<2>();
    for (word, [low, high]) in words.iter_mut().zip(pairs) {
        *word = f32::from_bits(low.to_bits() >> 16 | high.to_bits() & 0xffff_0000);
    }
    if let ([last], Some(word)) = (last, words.get_mut(pairs.len())) {
        *word = f32::from_bits(last.to_bits() >> 16);
    }
}

/// Packs values where they lie: into the first half of their memory.
pub(crate) fn pack_in_place(values: &mut [f32]) {
    let mut block = [0.0; LOOK];
    for start in (0..values.len()).step_by(LOOK) {
        let end = values.len().min(start + LOOK);
        let taken = &mut block[..end - start];
        taken.copy_from_slice(&values[start..end]);
        pack(taken, &mut values[start / 2..]);
    }
}

/// The values whose high halves fill the first half of their memory.
pub(crate) fn unpack(values: &mut [f32]) {
    let mut block = [0.0; LOOK / 2];
    // From the back, so that what is written was read before.
    for start in (0..values.len()).step_by(LOOK).rev() {
        let end = values.len().min(start + LOOK);
        let words = &mut block[..(end - start).div_ceil(2)];
        words.copy_from_slice(&values[start / 2..end.div_ceil(2)]);
        let (pairs, last) = values[start..end].as_chunks_mut::<2>();
        for ([low, high], word) in pairs.iter_mut().zip(&*words) {
            *low = f32::from_bits(word.to_bits() << 16);
            *high = f32::from_bits(word.to_bits() & 0xffff_0000);
        }
        if let ([last], Some(word)) = (last, words.last()) {
            *last = f32::from_bits(word.to_bits() << 16);
        }
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
            pack_in_place(&mut received);
            let mut words = vec![0.0; length.div_ceil(2)];
            assert!(pack_if_bf16(&values, &mut words));
            assert!(words.iter().zip(&received).all(|(a, b)| a.to_bits() == b.to_bits()));
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
            assert!(!is_bf16(&values) && !pack_if_bf16(&values, &mut [0.0; 1500]));
            values[place] = whole;
        }
    }
}
