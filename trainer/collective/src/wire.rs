//! How partial sums are rounded before others add them.
//!
//! With [`Wire::Bf16`] every node of the lane tree but the whole (one that holds all lanes with work) is rounded to bfloat16
//! when it is complete, on every rank and in every world alike: partials travel as half the bytes, and the bits still do not
//! depend on the world. The whole sum stays float32. A sum of ℓ lanes is then off by at most about log₂ ℓ roundings of 2⁻⁹ of its size.

/// The format of partial sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// float32: nothing is rounded.
    #[default]
    Float32,
    /// Every partial sum but the whole is rounded to bfloat16.
    Bf16,
}

/// Rounds each value to the nearest bfloat16, ties to even; what is not a number stays one.
pub fn round_to_bf16(values: &mut [f32]) {
    for value in values {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        // The carry would turn a NaN of all ones into something else.
        let kept = if value.is_nan() { bits | 0x40_0000 } else { rounded };
        *value = f32::from_bits(kept & 0xffff_0000);
    }
}

#[cfg(test)]
mod tests {
    use super::round_to_bf16;

    fn rounded(value: f32) -> f32 {
        let mut values = [value];
        round_to_bf16(&mut values);
        values[0]
    }

    #[test]
    fn values_go_to_the_nearest_with_eight_bits_and_ties_to_even() {
        for (value, nearest) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (1.0 + 1.1 / 256.0, 1.0 + 2.0 / 256.0),
            (-257.0, -256.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(rounded(value), nearest, "{value}");
        }
        assert_eq!(rounded(-0.0).to_bits(), (-0.0f32).to_bits());
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xffff_ffff] {
            assert!(rounded(f32::from_bits(bits)).is_nan());
        }
        let random = (0..4000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)));
        for value in random.filter(|value| value.is_finite()) {
            assert_eq!(rounded(rounded(value)).to_bits(), rounded(value).to_bits());
            assert!((rounded(value) - value).abs() <= value.abs() / 256.0 + 1e-38 || rounded(value).is_infinite());
        }
    }
}
