//! Checks of a run before anything is made: config against data, ranks against lanes.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use lockstep_config::{Device, RunConfig};
use lockstep_data::Dataset;
use lockstep_doctor::facts::Places;
use lockstep_doctor::facts::gpus::usable;
use lockstep_inventory::treatments_of;

use crate::cli::Ranks;
use crate::ending::Ending;

/// A run that may start.
#[derive(Debug)]
pub(crate) struct Checked {
    /// The config as resolved: absolute paths, the vocabulary filled in.
    pub(crate) config: RunConfig,
    /// BLAKE3 of the data manifest.
    pub(crate) data_hash: String,
    /// Training samples of one epoch.
    pub(crate) training_samples: u64,
    /// Size of the vocabulary of the data.
    pub(crate) vocabulary: u32,
    /// Trainer processes.
    pub(crate) ranks: u32,
}

/// Checks a config against its data and the ranks asked for. Reads only.
///
/// # Errors
/// One sentence that says what does not fit and what to do.
pub(crate) fn check(mut config: RunConfig, ranks: Ranks) -> Result<Checked, Ending> {
    let ranks = ranks_of(ranks, &config)?;
    config.data.path = absolute(&config.data.path)?;
    let data = Dataset::open(&config.data.path).map_err(Ending::bad_input)?;
    let path = data.folder().display();
    let vocab = config.model.vocab.unwrap_or(data.vocab());
    if vocab < data.vocab() {
        return Err(Ending::BadInput(format!(
            "model.vocab is {vocab}, but the data in {path} has a vocabulary of {}; raise model.vocab, or leave it out",
            data.vocab()
        )));
    }
    config.model.vocab = Some(vocab);
    treatments_of(&config, vocab).map_err(Ending::bad_input)?;
    let training_samples = data.train().training_samples(config.data.sequence_length);
    if training_samples == 0 {
        return Err(Ending::BadInput(format!(
            "the data in {path} has {} training tokens, too few for one sequence of data.sequence_length = {} and the token after it; prepare more text, or shorten the sequences",
            data.train().tokens(),
            config.data.sequence_length
        )));
    }
    if let Some(validation) = &config.data.validation {
        let validation = absolute(validation)?;
        check_validation(&data, &Dataset::open(&validation).map_err(Ending::bad_input)?)?;
        config.data.validation = Some(validation);
    }
    Ok(Checked {
        data_hash: data.manifest_hash(),
        config,
        training_samples,
        vocabulary: data.vocab(),
        ranks,
    })
}

/// How many ranks a run has on this machine.
///
/// # Errors
/// More than it has lanes.
pub(crate) fn ranks_of(ranks: Ranks, config: &RunConfig) -> Result<u32, Ending> {
    let places = match config.run.device {
        Device::Cpu => cores() / config.run.intra_op_threads,
        Device::Cuda => gpus(),
    };
    choose_ranks(ranks, config, places)
}

/// A loss over other tokens would say nothing.
fn check_validation(data: &Dataset, validation: &Dataset) -> Result<(), Ending> {
    if validation.manifest().tokenizer.blake3 == data.manifest().tokenizer.blake3 {
        return Ok(());
    }
    Err(Ending::BadInput(format!(
        "data.validation ({}) was prepared with another tokenizer than data.path ({}); prepare both with the same one",
        validation.folder().display(),
        data.folder().display()
    )))
}

/// Trainers run elsewhere and read `config.toml` later: their paths may not depend on a current folder.
fn absolute(path: &Path) -> Result<PathBuf, Ending> {
    let absolute =
        std::path::absolute(path).map_err(|error| Ending::BadInput(format!("{}: {error}", path.display())))?;
    match absolute.to_str() {
        Some(_) => Ok(absolute),
        None => Err(Ending::BadInput(format!(
            "the path {} is not UTF-8, which a config cannot hold; move the data elsewhere",
            absolute.display()
        ))),
    }
}

fn cores() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, NonZeroUsize::get)
        .try_into()
        .unwrap_or(u32::MAX)
}

/// The GPUs of this machine that trainers may use. Which are there is the driver's to say; none where there is no driver,
/// and then a trainer says what is missing.
fn gpus() -> u32 {
    usable(&Places::default(), &|name| std::env::var(name).ok())
}

/// As many ranks as asked for; by themselves as many as there are `places` to compute.
fn choose_ranks(ranks: Ranks, config: &RunConfig, places: u32) -> Result<u32, Ending> {
    let lanes = config.run.lanes;
    match ranks {
        Ranks::Auto => Ok(places.clamp(1, lanes)),
        Ranks::Exactly(ranks) if ranks > lanes => Err(Ending::BadInput(format!(
            "-n {ranks} is more than run.lanes, which is {lanes}: every rank needs a lane; lower -n, or raise run.lanes"
        ))),
        Ranks::Exactly(ranks) => Ok(ranks),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn config(lanes: u32, threads: u32) -> RunConfig {
        let text = format!(
            "[run]\nname = \"a\"\nsteps = 1\nlanes = {lanes}\nintra_op_threads = {threads}\n[data]\npath = \"d\"\nsequence_length = 8\n[model]\nlayers = 1\nheads = 1\nwidth = 8\n[batch]\nmicro_batch = 1\nschedule = 8\n[learning_rate]\nschedule = 0.5\n"
        );
        RunConfig::parse(&text, "run.toml", &[]).unwrap()
    }

    #[test]
    fn auto_takes_as_many_ranks_as_places_and_lanes_allow() {
        for (lanes, places, ranks) in [(4, 2, 2), (4, 64, 4), (4, 0, 1), (1, 8, 1)] {
            assert_eq!(choose_ranks(Ranks::Auto, &config(lanes, 1), places), Ok(ranks));
        }
    }

    #[test]
    fn every_rank_needs_a_lane() {
        assert_eq!(choose_ranks(Ranks::Exactly(4), &config(4, 1), 1), Ok(4));
        let ending = choose_ranks(Ranks::Exactly(5), &config(4, 1), 64).unwrap_err();
        assert_eq!(ending.code(), 2);
        assert!(
            ending
                .sentence()
                .unwrap()
                .contains("-n 5 is more than run.lanes, which is 4")
        );
    }
}
