//! The 18 members of the family, Momo and the methods beside them against an independent float64 reference, through the
//! replay of recorded gradients: everything that happens between a gradient and the next parameter.
//!
//! [`reference`] is the family written out from the paper; [`recorded`] makes the gradients, replays them and compares.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod descent;
mod members;
mod methods;
mod recorded;
mod reference;
mod tensors;
mod variants;

use recorded::case::Case;
use reference::Step;

/// Of the recorded gradients.
const SEED: u64 = 1;

/// Part of the first loss that a first step takes, by the model: small, so that the first steps stay above [`BOUND`].
const FALL: f64 = 0.05;

/// Below the losses, near enough to truncate.
const BOUND: f64 = 3.3;

/// Steps at the full rate, truncated ones, and ones of size 0.
fn sorts(effective: impl Iterator<Item = f64>, rate: f64) -> [usize; 3] {
    let mut counts = [0; 3];
    for effective in effective {
        counts[match effective {
            0.0 => 2,
            less if less < rate * (1.0 - 1e-6) => 1,
            _ => 0,
        }] += 1;
    }
    counts
}

fn sorts_of(steps: &[Step], case: &Case) -> [usize; 3] {
    sorts(steps.iter().map(|step| step.effective), case.choices.learning_rate)
}
