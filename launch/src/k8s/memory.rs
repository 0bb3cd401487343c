//! What a trainer's pod asks for: an upper estimate of memory, made without libtorch.
//!
//! What `lockstep plan` predicts is near, and needs the trainer; a pod needs a bound that it never meets. So every part is
//! taken at its worst: the smallest world that the run may shrink to, the largest owner, partial sums of all lanes, two
//! snapshots at once. A fifth is added, for the allocator.

use lockstep_config::{Precision, Reduction, RunConfig};
use lockstep_inventory::{inventory_of, state, treatments_of};

use crate::ending::Ending;

/// One MiB.
pub(crate) const MIB: u64 = 1 << 20;
/// libtorch, its thread pools and kernels, the program itself, and one shard of data.
const RUNTIME: u64 = 640 * MIB;

/// Bytes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    /// Of one trainer, its shared memory left out.
    pub(crate) trainer: u64,
    /// Masters and optimiser state of the whole run: what a checkpoint holds.
    pub(crate) state: u64,
    /// One gradient buffer.
    pub(crate) gradients: u64,
}

/// The account of a run whose world may shrink to `least` ranks.
///
/// # Errors
/// A rule of the optimiser fits no tensor.
pub(crate) fn account(config: &RunConfig, vocabulary: u32, least: u32) -> Result<Account, Ending> {
    let tensors = inventory_of(config, vocabulary);
    let treatments = treatments_of(config, vocabulary).map_err(Ending::bad_input)?;
    let bytes = |elements: usize, size: u64| elements as u64 * size;
    let parameters: u64 = tensors.iter().map(|tensor| bytes(tensor.elements(), 1)).sum();
    let narrow = if config.run.precision == Precision::Bf16 { 2 } else { 4 };
    let working: u64 = tensors
        .iter()
        .map(|tensor| bytes(tensor.elements(), if tensor.role.is_narrow() { narrow } else { 4 }))
        .sum();
    let states: Vec<u64> = tensors
        .iter()
        .zip(&treatments)
        .map(|(tensor, treatment)| {
            let arrays = state::arrays(tensor, treatment, config.optimizer.method);
            arrays.iter().map(|(_, shape)| bytes(shape.iter().product(), 4)).sum()
        })
        .collect();
    let state: u64 = states.iter().sum();
    // Whole matrices have owners, so one may have a matrix more than its share.
    let owned = (state / u64::from(least) + states.iter().max().copied().unwrap_or(0)).min(state);
    let gradients = parameters * 4;
    let lanes = config.run.lanes.div_ceil(least);
    let buffers = match config.run.reduction {
        Reduction::Fast => 1,
        Reduction::Invariant => 1 + u64::from(lanes.next_power_of_two().ilog2()),
    };
    // Its own part and its buddy's, of the snapshot that stands and of the one that is being made.
    let snapshots = if config.fault.snapshot_every == 0 { 0 } else { 4 * owned };
    // What arrives from others before it is added, and polar factors.
    let exchange = gradients + working;
    let sum = working + gradients * buffers + owned + snapshots + exchange + activations(config, vocabulary, narrow);
    Ok(Account {
        trainer: (sum + sum / 5 + RUNTIME).next_multiple_of(64 * MIB),
        state,
        gradients,
    })
}

/// What one micro-batch keeps for its backward pass, with attention's probabilities whole, and what the loss needs.
fn activations(config: &RunConfig, vocabulary: u32, narrow: u64) -> u64 {
    let model = &config.model;
    let sequence = u64::from(config.data.sequence_length);
    let tokens = u64::from(config.batch.micro_batch) * sequence;
    // [tokens, width]: two norms, query, key and value, attention, two residuals, and the four times wider middle, twice.
    let wide = 24 * u64::from(model.width) * narrow.max(2);
    // [tokens, heads, sequence]: scores, probabilities and their gradient.
    let attention = 3 * u64::from(model.heads) * sequence * narrow;
    // [tokens, vocabulary]: logits and their gradient, and the same in float32 on the way.
    let loss = tokens * u64::from(vocabulary) * (2 * narrow + 8);
    u64::from(model.layers) * tokens * (wide + attention) + loss
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn of(sets: &[&str], least: u32) -> Account {
        let text = "[run]\nname = \"a\"\nsteps = 1\nlanes = 8\n[data]\npath = \"unused\"\nsequence_length = 128\n\
                    [model]\nkind = \"gpt2\"\nlayers = 8\nheads = 8\nwidth = 512\n[batch]\nmicro_batch = 4\nschedule = 8\n\
                    [learning_rate]\nschedule = 0.5\n";
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        account(&RunConfig::parse(text, "memory.toml", &sets).unwrap(), 4096, least).unwrap()
    }

    #[test]
    fn every_part_grows_with_what_it_is_for() {
        let plain = of(&[], 4);
        for (sets, why) in [
            (&["model.layers=16"][..], "more parameters"),
            (&["run.precision=fp32"], "wider working copies"),
            (&["batch.micro_batch=32"], "more activations"),
            (&["data.sequence_length=1024"], "longer sequences"),
            (&["run.lanes=64"], "more partial sums"),
        ] {
            assert!(of(sets, 4).trainer > plain.trainer, "{why}");
        }
        assert!(
            of(&[], 1).trainer > plain.trainer,
            "a world of one rank owns everything"
        );
        assert!(
            of(&["fault.snapshot_every=0"], 4).trainer < plain.trainer,
            "no snapshots"
        );
        assert!(of(&["run.reduction=fast"], 4).trainer < plain.trainer, "no lane tree");
        assert!(
            of(&["optimizer.method=sgd"], 4).state < plain.state,
            "no second moments"
        );
        assert_eq!(of(&[], 1).state, plain.state, "a checkpoint is the same on every world");
        assert!(plain.trainer.is_multiple_of(64 * MIB));
    }
}
