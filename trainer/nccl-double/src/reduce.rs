//! Arithmetic of reductions, in the order of ranks. The half types are widened to float32 and rounded after each step.

use half::{bf16, f16};
use nccl_rs::{DataType, Reduction};

macro_rules! folded {
    ($inputs:expr, $reduction:expr, $kind:ty, $add:expr, $multiply:expr, $share:expr) => {{
        const BYTES: usize = size_of::<$kind>();
        let inputs: &[Vec<u8>] = $inputs;
        let value = |input: &[u8], at: usize| {
            let mut bytes = [0; BYTES];
            bytes.copy_from_slice(&input[at..at + BYTES]);
            <$kind>::from_ne_bytes(bytes)
        };
        let mut out = Vec::with_capacity(inputs[0].len());
        for at in (0..inputs[0].len()).step_by(BYTES) {
            let mut result = value(&inputs[0], at);
            for input in &inputs[1..] {
                let next = value(input, at);
                result = match $reduction {
                    Reduction::Sum | Reduction::Average => $add(result, next),
                    Reduction::Product => $multiply(result, next),
                    Reduction::Max => result.max(next),
                    Reduction::Min => result.min(next),
                };
            }
            if $reduction == Reduction::Average {
                result = $share(result, inputs.len());
            }
            out.extend_from_slice(&result.to_ne_bytes());
        }
        out
    }};
}

macro_rules! whole {
    ($inputs:expr, $reduction:expr, $kind:ty) => {
        folded!(
            $inputs,
            $reduction,
            $kind,
            <$kind>::wrapping_add,
            <$kind>::wrapping_mul,
            |sum: $kind, ranks: usize| sum / ranks as $kind
        )
    };
}

macro_rules! real {
    ($inputs:expr, $reduction:expr, $kind:ty, $of:expr) => {
        folded!(
            $inputs,
            $reduction,
            $kind,
            |a: $kind, b: $kind| a + b,
            |a: $kind, b: $kind| a * b,
            |sum: $kind, ranks: usize| sum / $of(ranks as f32)
        )
    };
}

/// The reduction of equally long inputs, one a rank; `None` for 8-bit floats.
pub(crate) fn reduced(kind: DataType, reduction: Reduction, inputs: &[Vec<u8>]) -> Option<Vec<u8>> {
    Some(match kind {
        DataType::Int8 => whole!(inputs, reduction, i8),
        DataType::Uint8 => whole!(inputs, reduction, u8),
        DataType::Int32 => whole!(inputs, reduction, i32),
        DataType::Uint32 => whole!(inputs, reduction, u32),
        DataType::Int64 => whole!(inputs, reduction, i64),
        DataType::Uint64 => whole!(inputs, reduction, u64),
        DataType::Float16 => real!(inputs, reduction, f16, f16::from_f32),
        DataType::Float32 => real!(inputs, reduction, f32, |ranks: f32| ranks),
        DataType::Float64 => real!(inputs, reduction, f64, f64::from),
        DataType::Bfloat16 => real!(inputs, reduction, bf16, bf16::from_f32),
        DataType::Float8E4M3 | DataType::Float8E5M2 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn singles(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    #[test]
    fn every_kind_of_reduction_gives_its_value() {
        let inputs = [singles(&[1.0, -2.0]), singles(&[3.0, 5.0])];
        for (reduction, expected) in [
            (Reduction::Sum, [4.0, 3.0]),
            (Reduction::Product, [3.0, -10.0]),
            (Reduction::Max, [3.0, 5.0]),
            (Reduction::Min, [1.0, -2.0]),
            (Reduction::Average, [2.0, 1.5]),
        ] {
            assert_eq!(
                reduced(DataType::Float32, reduction, &inputs),
                Some(singles(&expected)),
                "{reduction:?}"
            );
        }
    }

    #[test]
    fn bf16_is_rounded_after_each_step_and_bytes_wrap() {
        let of = |value: f32| bf16::from_f32(value).to_ne_bytes().to_vec();
        // 256 + 1 is 256 in bf16.
        let sum = reduced(DataType::Bfloat16, Reduction::Sum, &[of(256.0), of(1.0), of(1.0)]);
        assert_eq!(sum, Some(of(256.0)));
        let sum = reduced(DataType::Uint8, Reduction::Sum, &[vec![200], vec![100]]);
        assert_eq!(sum, Some(vec![44]));
        assert_eq!(reduced(DataType::Float8E4M3, Reduction::Sum, &[vec![1], vec![1]]), None);
    }
}
