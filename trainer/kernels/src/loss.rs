//! Cross-entropy of rows of logits, with the gradient written over the logits.

use crate::LANES;
use crate::real::{Real, exp, fold};

/// The target of a position that does not count.
pub const IGNORED: i64 = -1;

/// Σ over counted rows of −log softmax(row)[target], in float64, rows in order; nothing is divided.
///
/// `logits` is `[targets.len(), vocabulary]`. With `gradient`, each row is overwritten with softmax(row) − onehot
/// (zeros where the target is [`IGNORED`]).
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn cross_entropy<T: Real>(logits: &mut [T], targets: &[i64], gradient: bool) -> f64 {
    if targets.is_empty() {
        return 0.0;
    }
    let vocabulary = logits.len() / targets.len();
    assert_eq!(logits.len(), vocabulary * targets.len());
    let mut total = 0.0f64;
    for (row, &target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
        if target == IGNORED {
            if gradient {
                row.fill(T::ZERO);
            }
            continue;
        }
        let target = target as usize;
        let whole = vocabulary / LANES * LANES;
        let mut top = [f32::NEG_INFINITY; LANES];
        for chunk in row[..whole].chunks_exact(LANES) {
            for i in 0..LANES {
                top[i] = top[i].max(chunk[i].to_f32());
            }
        }
        for value in &row[whole..] {
            top[0] = top[0].max(value.to_f32());
        }
        let top = top.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let mut sums = [0.0f32; LANES];
        for chunk in row[..whole].chunks_exact(LANES) {
            for i in 0..LANES {
                sums[i] += exp(chunk[i].to_f32() - top);
            }
        }
        for (i, value) in row[whole..].iter().enumerate() {
            sums[i] += exp(value.to_f32() - top);
        }
        let sum = fold(sums.map(f64::from));
        let log_sum = sum.ln() + f64::from(top);
        // max() drops a NaN among the logits: the row's own sum would then look finite, so look at it once more.
        let spoilt = row.iter().any(|v| v.to_f32().is_nan());
        total += if spoilt {
            f64::NAN
        } else {
            log_sum - f64::from(row[target].to_f32())
        };
        if gradient {
            let shift = log_sum as f32;
            let at_target = row[target].to_f32();
            for value in row.iter_mut() {
                *value = T::from_f32(exp(value.to_f32() - shift));
            }
            row[target] = T::from_f32(exp(at_target - shift) - 1.0);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_gradient_match_float64_and_ignored_rows_add_nothing() {
        let vocabulary = 37;
        let logits: Vec<f32> = (0..4 * vocabulary)
            .map(|i| ((i * 29 % 83) as f32 - 41.0) / 9.0)
            .collect();
        let targets = [3i64, IGNORED, 36, 0];
        let mut d = logits.clone();
        let loss = cross_entropy(&mut d, &targets, true);
        let mut expected = 0.0;
        for (r, &target) in targets.iter().enumerate() {
            let row = &logits[r * vocabulary..][..vocabulary];
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            for i in 0..vocabulary {
                let p = f64::from(row[i]).exp() / sum - f64::from(u8::from(i as i64 == target));
                let p = if target == IGNORED { 0.0 } else { p };
                assert!((f64::from(d[r * vocabulary + i]) - p).abs() < 1e-6);
            }
            if target != IGNORED {
                expected += sum.ln() - f64::from(row[target as usize]);
            }
        }
        assert!((loss - expected).abs() < 1e-5 * expected.abs());
    }

    #[test]
    fn a_nan_among_the_logits_makes_the_loss_nan() {
        let mut logits = vec![0.5f32; 40];
        logits[17] = f32::NAN;
        assert!(cross_entropy(&mut logits, &[1, 2], false).is_nan());
    }
}
