//! `inspect`: what a config, a folder of final weights or a checkpoint holds: tensors, owners and their loads, the memory
//! account.

use std::fmt::Write as _;
use std::path::Path;

use lockstep_checkpoint::{Depth, Inspection, Limits, Store};
use lockstep_config::{Method, Precision, RunConfig};
use lockstep_data::{Dataset, rank_lanes};
use lockstep_inventory::{TensorSpec, Treatment, Use, treatments_of};

use crate::error::TrainerError;
use crate::memory_account::{MemoryAccount, mib, state_bytes};
use crate::model::choice::from_config;
use crate::sharding::layout::Layout;
use crate::sharding::owners::{OwnerMap, polar_cost};
use crate::weights_file;

/// What `inspect` prints for a config file or a folder of final weights, for a world of `ranks`.
pub fn inspect(path: &Path, ranks: u32, sets: &[String]) -> Result<String, TrainerError> {
    if path.join(weights_file::WEIGHTS).is_file() {
        return weights(path);
    }
    if path.is_dir() {
        return newest_checkpoint(path);
    }
    if let Some(store) = store_of(path) {
        return checkpoint(store, path);
    }
    let config = RunConfig::read(path, sets)?;
    if ranks == 0 || ranks > config.run.lanes {
        return Err(TrainerError::Refused(format!(
            "-n {ranks} is not between 1 and run.lanes, which is {}",
            config.run.lanes
        )));
    }
    let vocabulary = match config.model.vocab {
        Some(vocabulary) => vocabulary,
        None => Dataset::open(&config.data.path)?.vocab(),
    };
    describe(&config, vocabulary, ranks)
}

fn weights(folder: &Path) -> Result<String, TrainerError> {
    let file = weights_file::read(folder)?;
    let mut names: Vec<_> = file.tensors.iter().collect();
    names.sort_by_key(|(name, _)| name.as_str());
    let mut out = format!("weights of run {} after step {}\n\n", file.config.run.name, file.step);
    let mut total = 0;
    for (name, (shape, values)) in names {
        total += values.len();
        let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        let rms = (square / values.len() as f64).sqrt();
        let _ = writeln!(out, "{name:<28} {:<16} root mean square {rms:.4}", format!("{shape:?}"));
    }
    let _ = writeln!(out, "\n{total} parameters");
    Ok(out)
}

/// The folder of checkpoints in which a manifest lies, if its path is one of a manifest.
fn store_of(manifest: &Path) -> Option<&Path> {
    let step = manifest.parent()?;
    let is_manifest = manifest.extension().is_some_and(|extension| extension == "json")
        && step.file_name()?.to_str()?.starts_with("step-");
    is_manifest.then(|| step.parent()).flatten()
}

fn checkpoint(folder: &Path, manifest: &Path) -> Result<String, TrainerError> {
    let store = Store::folder(folder, Limits::default())?;
    let name = store.list()?.into_iter().find(|name| manifest.ends_with(name.file()));
    let name = name
        .ok_or_else(|| TrainerError::Refused(format!("{} is not the manifest of a checkpoint", manifest.display())))?;
    let reader = store.open_checkpoint(name)?;
    reader.verify(Depth::Lengths)?;
    Ok(describe_checkpoint(&lockstep_checkpoint::inspect(&reader)))
}

fn newest_checkpoint(folder: &Path) -> Result<String, TrainerError> {
    let nothing = || {
        TrainerError::Refused(format!(
            "{} holds neither final weights nor a good checkpoint",
            folder.display()
        ))
    };
    if !folder.join("parts").is_dir() {
        return Err(nothing());
    }
    let store = Store::folder(folder, Limits::default())?;
    let newest = store.newest_good(Depth::Lengths, |_| Ok(()))?;
    let mut out = String::new();
    for refused in &newest.refused {
        let _ = writeln!(out, "passed over {}: {}", refused.name, refused.reason);
    }
    let reader = newest.reader.ok_or_else(nothing)?;
    Ok(out + &describe_checkpoint(&lockstep_checkpoint::inspect(&reader)))
}

fn describe_checkpoint(checkpoint: &Inspection) -> String {
    let mut out = format!(
        "checkpoint {} of run {} after step {}\n{} samples consumed, parameter hash {}\n\n",
        checkpoint.checkpoint, checkpoint.run_id, checkpoint.step, checkpoint.cursor, checkpoint.parameter_hash
    );
    for tensor in &checkpoint.tensors {
        let arrays: Vec<&str> = tensor.arrays.iter().map(|array| array.name.as_str()).collect();
        let shape = format!("{:?}", tensor.shape);
        let _ = writeln!(out, "{:<28} {shape:<16} {}", tensor.name, arrays.join(", "));
    }
    for (name, bits) in &checkpoint.words {
        let _ = writeln!(out, "{name:<28} {bits}");
    }
    let _ = writeln!(
        out,
        "\n{} parameters, {} parts, {} MiB",
        checkpoint.parameters,
        checkpoint.parts.len(),
        checkpoint.bytes.div_ceil(1 << 20)
    );
    out
}

/// The whole description of a config.
pub fn describe(config: &RunConfig, vocabulary: u32, ranks: u32) -> Result<String, TrainerError> {
    let model = from_config(config, vocabulary);
    let inventory = model.inventory();
    let treatments = treatments_of(config, vocabulary).map_err(|error| TrainerError::Refused(error.to_string()))?;
    let layout = Layout::new(inventory, &treatments, config.run.precision == Precision::Bf16);
    let owners = OwnerMap::new(&treatments, &layout, ranks);
    let total: usize = inventory.iter().map(TensorSpec::elements).sum();
    let mut out = String::new();
    let _ = writeln!(
        out,
        "run {}: {total} parameters in {} tensors, {} buckets, {} blocks, {} polar factors a step",
        config.run.name,
        inventory.len(),
        layout.buckets.len(),
        layout.blocks,
        layout.factors
    );
    let _ = writeln!(out, "optimizer: {}", method(config));
    let _ = writeln!(
        out,
        "\n{:<24} {:<14} {:<16} {:<6} {:<8} {:<7} {:<5} owners (rank: elements)",
        "tensor", "shape", "treated as", "copy", "lr scale", "decay", "block"
    );
    for (index, (spec, place)) in inventory.iter().zip(&layout.places).enumerate() {
        let owned: Vec<String> = owners
            .pieces
            .iter()
            .filter(|piece| piece.tensor == index)
            .map(|piece| format!("{}: {}", piece.owner, piece.elements.len()))
            .collect();
        let treatment = &treatments[index];
        let _ = writeln!(
            out,
            "{:<24} {:<14} {:<16} {:<6} {:<8} {:<7} {:<5} {}",
            spec.name,
            format!("{:?}", spec.shape),
            treated(treatment),
            if place.bf16 { "bf16" } else { "fp32" },
            treatment.lr_scale,
            treatment.weight_decay,
            place.blocks.len(),
            owned.join(", ")
        );
        let _ = writeln!(out, "{:<24} because {}", "", treatment.reason);
    }
    let _ = writeln!(
        out,
        "\nrank  lanes   polar cost   share  other elements  master + state"
    );
    let cost: u64 = owners.hidden_cost.iter().sum();
    for rank in 0..ranks {
        let state = state_bytes(config, &treatments, &owners, rank);
        let load = owners.hidden_cost[rank as usize];
        let lanes = rank_lanes(rank, ranks, config.run.lanes);
        let _ = writeln!(
            out,
            "{rank:<5} {:<7} {:<12} {:<6} {:<15} {}",
            format!("{}..{}", lanes.start, lanes.end),
            load,
            if cost == 0 {
                "-".to_owned()
            } else {
                format!("{:.1}%", 100.0 * load as f64 / cost as f64)
            },
            owners.other_elements[rank as usize],
            mib(state)
        );
    }
    let accounts = (0..ranks)
        .map(|rank| MemoryAccount::of(config, vocabulary, rank, ranks))
        .collect::<Result<Vec<_>, _>>()?;
    // All ranks have the same but for what they own.
    let account = accounts[0];
    let largest = treatments.iter().map(polar_cost).max().filter(|cost| *cost > 0);
    let _ = writeln!(out, "\nmemory of each rank, without activations:");
    let _ = writeln!(out, "  working copies            {}", mib(account.working_copies));
    let _ = writeln!(
        out,
        "  gradient buffers          {} × {}",
        account.gradient_buffers,
        mib(account.gradients)
    );
    let _ = writeln!(out, "  masters and state         as above");
    if config.backend_name(ranks) == "nccl" {
        let scratch: Vec<String> = accounts.iter().map(|account| mib(account.nccl_scratch)).collect();
        let _ = writeln!(out, "  NCCL's scratch, by rank   {}", scratch.join(", "));
    }
    if let Some(largest) = largest {
        let _ = writeln!(
            out,
            "largest polar cost of one matrix: {largest} (loads differ by at most this)"
        );
    }
    Ok(out)
}

/// The method by its name or its three words, and what it does besides.
fn method(config: &RunConfig) -> String {
    let keys = &config.optimizer;
    let name = match (keys.method.name(), keys.method) {
        (None, Method::Steepest(member)) => format!(
            "descent {}, product {}, other {}",
            member.descent.word(),
            member.product.word(),
            member.other.word()
        ),
        (name, _) => name.unwrap_or_default().to_owned(),
    };
    let others = match keys.method {
        Method::Muon | Method::NorMuon => ", adamw on other tensors",
        _ => "",
    };
    let momo = match keys.momo {
        Some(_) => ", steps truncated by a model of the loss (Momo)",
        None => "",
    };
    format!("{name}{others}{momo}")
}

/// What the optimiser takes a tensor for, in words.
fn treated(treatment: &Treatment) -> String {
    match treatment.kind {
        Use::Hidden { parts: 1, .. } => "hidden matrix".to_owned(),
        Use::Hidden { parts, rows, columns } => format!("{parts} × [{rows}, {columns}]"),
        Use::Other => "other".to_owned(),
    }
}
