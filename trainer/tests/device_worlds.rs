//! Whole engines whose weights, gradients and optimiser are tensors, as on a GPU, over real communicators and the
//! communication thread: one hash a step on 1, 2 and 3 ranks, and near the engine that works over slices.
#![allow(clippy::unwrap_used, missing_docs)]

mod engines;
mod meeting;

use lockstep_collective::new_id;
use lockstep_config::RunConfig;
use lockstep_trainer::device::compute::Compute;

use engines::{METHODS, Run, config, one_rank};
use meeting::communicate;

/// Runs a world, whose ranks must all say the same.
fn run(config: &RunConfig, world: u32, compute: &Compute) -> Run {
    let id = new_id(&[9; 32], 1).unwrap();
    let mut ranks: Vec<Run> = std::thread::scope(|scope| {
        let rank = |rank| {
            let id = &id;
            scope.spawn(move || one_rank(config, communicate(id, rank, world), world, compute))
        };
        let ranks: Vec<_> = (0..world).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let first = ranks.remove(0);
    for other in ranks {
        assert_eq!(other, first, "every rank says the same");
    }
    first
}

#[test]
fn engines_over_tensors_make_the_same_hashes_in_every_world_and_follow_the_engine_over_slices() {
    for (precision, wire, near) in [("fp32", "fp32", 1e-4), ("bf16", "fp32", 5e-2), ("fp32", "bf16", 5e-2)] {
        for method in METHODS {
            let config = config(precision, method, wire);
            let place = format!("{precision}, wire {wire}, {method}");
            let alone = run(&config, 1, &Compute::HostTensors);
            for pair in alone.hashes.windows(2) {
                assert_ne!(pair[0], pair[1], "every step changes the parameters: {place}");
            }
            for world in [2, 3] {
                let several = run(&config, world, &Compute::HostTensors);
                assert_eq!(several, alone, "{world} ranks: {place}");
            }
            let host = run(&config, 2, &Compute::Host);
            assert_eq!(host.hashes[0], alone.hashes[0], "initial values are the same: {place}");
            for (step, (ours, theirs)) in alone.numbers.iter().zip(&host.numbers).enumerate() {
                for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                    // A loss is a mean over all tokens, and nearer than a norm of a gradient or of an update.
                    let limit = if index == 0 { near / 10.0 } else { near };
                    assert!(
                        (ours / theirs - 1.0).abs() < limit,
                        "{ours} for {theirs} in step {step}: {place}"
                    );
                }
            }
            for (step, (ours, theirs)) in alone.noise.iter().zip(&host.noise).enumerate() {
                let apart = (ours[0] / theirs[0] - 1.0).abs();
                assert!(
                    apart < near,
                    "the variance {ours:?} for {theirs:?} in step {step}: {place}"
                );
            }
            // All together: the gradient of a key's bias is zero but for rounding, and some methods divide by its size.
            let (mut apart, mut size) = (0.0, 0.0);
            for (name, ours) in &alone.masters {
                for (ours, theirs) in ours.iter().zip(&host.masters[name]) {
                    apart += f64::from(ours - theirs).powi(2);
                    size += f64::from(*theirs).powi(2);
                }
            }
            let apart = f64::sqrt(apart / size);
            println!("masters are {apart:.1e} apart: {place}");
            assert!(apart < near, "masters are {apart} apart: {place}");
        }
    }
}
