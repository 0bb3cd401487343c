//! Initial values: normal numbers from a stream that depends on (run seed, tensor name) alone.
//!
//! The stream is BLAKE3's extendable output keyed by both; numbers come from pairs of 32-bit words by Box and Muller, in
//! float64. Any rank can make any tensor's values, so nothing is sent at the start.

use lockstep_inventory::{Initial, TensorSpec};

/// The initial values of a tensor, row-major.
pub fn values(spec: &TensorSpec, seed: u64) -> Vec<f32> {
    let count = spec.elements();
    match spec.initial {
        Initial::Zeros => vec![0.0; count],
        Initial::Ones => vec![1.0; count],
        Initial::Normal(deviation) => {
            let mut hasher = blake3::Hasher::new_derive_key("lockstep initial values 1");
            hasher.update(&seed.to_le_bytes());
            hasher.update(spec.name.as_bytes());
            let mut stream = hasher.finalize_xof();
            let mut out = Vec::with_capacity(count + 1);
            let mut bytes = [0u8; 4096];
            while out.len() < count {
                stream.fill(&mut bytes);
                for pair in bytes.chunks_exact(8) {
                    let word =
                        |at: usize| f64::from(u32::from_le_bytes([pair[at], pair[at + 1], pair[at + 2], pair[at + 3]]));
                    let radius = (-2.0 * ((word(0) + 0.5) / 4_294_967_296.0).ln()).sqrt() * deviation;
                    let angle = std::f64::consts::TAU * (word(4) / 4_294_967_296.0);
                    out.push((radius * angle.cos()) as f32);
                    out.push((radius * angle.sin()) as f32);
                    if out.len() >= count {
                        break;
                    }
                }
            }
            out.truncate(count);
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_inventory::Role;

    #[test]
    fn values_depend_on_seed_and_name_and_are_normal() {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            shape: vec![301, 101],
            layer: 0,
            role: Role::Hidden,
            initial: Initial::Normal(0.02),
        };
        let a = values(&spec("a"), 1);
        assert_eq!(a, values(&spec("a"), 1));
        assert_ne!(a, values(&spec("b"), 1));
        assert_ne!(a, values(&spec("a"), 2));
        let n = a.len() as f64;
        let mean = a.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let deviation = (a.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n).sqrt();
        assert!(
            mean.abs() < 5e-4 && (deviation / 0.02 - 1.0).abs() < 0.02,
            "{mean} {deviation}"
        );
    }
}
