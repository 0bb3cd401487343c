//! `inspect`: what a config or a folder of final weights holds: tensors, owners and their loads, the memory account.

use std::fmt::Write as _;
use std::path::Path;

use lockstep_config::{Method, Precision, RunConfig};
use lockstep_data::{Dataset, rank_lanes};

use crate::error::TrainerError;
use crate::inventory::TensorSpec;
use crate::model::choice::from_config;
use crate::sharding::layout::Layout;
use crate::sharding::owners::{OwnerMap, polar_cost};
use crate::sharding::program::LaneProgram;
use crate::weights_file;

/// What `inspect` prints for a config file or a folder of final weights, for a world of `ranks`.
pub fn inspect(path: &Path, ranks: u32, sets: &[String]) -> Result<String, TrainerError> {
    if path.is_dir() {
        return weights(path);
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
    Ok(describe(&config, vocabulary, ranks))
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

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The whole description of a config.
pub fn describe(config: &RunConfig, vocabulary: u32, ranks: u32) -> String {
    let model = from_config(config, vocabulary);
    let inventory = model.inventory();
    let muon = config.optimizer.method == Method::Muon;
    let layout = Layout::new(inventory, config.run.precision == Precision::Bf16, muon);
    let owners = OwnerMap::new(inventory, &layout, ranks);
    let total: usize = inventory.iter().map(TensorSpec::elements).sum();
    let mut out = String::new();
    let _ = writeln!(
        out,
        "run {}: {total} parameters in {} tensors, {} buckets, {} blocks",
        config.run.name,
        inventory.len(),
        layout.buckets.len(),
        layout.blocks
    );
    let _ = writeln!(
        out,
        "\n{:<24} {:<14} {:<10} {:<9} {:<5} owners (rank: elements)",
        "tensor", "shape", "role", "treated", "copy"
    );
    for (index, (spec, place)) in inventory.iter().zip(&layout.places).enumerate() {
        let owned: Vec<String> = owners
            .pieces
            .iter()
            .filter(|piece| piece.tensor == index)
            .map(|piece| format!("{}: {}", piece.owner, piece.elements.len()))
            .collect();
        let _ = writeln!(
            out,
            "{:<24} {:<14} {:<10} {:<9} {:<5} {}",
            spec.name,
            format!("{:?}", spec.shape),
            spec.role.word(),
            if place.hidden { "muon" } else { "adamw" },
            if place.bf16 { "bf16" } else { "fp32" },
            owned.join(", ")
        );
    }
    let _ = writeln!(
        out,
        "\nrank  lanes   polar cost   share  other elements  master + state"
    );
    let cost: u64 = owners.hidden_cost.iter().sum();
    for rank in 0..ranks {
        let owned: usize = owners
            .pieces
            .iter()
            .filter(|p| p.owner == rank)
            .map(|p| p.elements.len())
            .sum();
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
            mib(12 * owned)
        );
    }
    let buffers = (0..ranks)
        .map(|r| LaneProgram::most_buffers(config.run.lanes, rank_lanes(r, ranks, config.run.lanes)))
        .max()
        .unwrap_or(1);
    let largest = inventory
        .iter()
        .zip(&layout.places)
        .filter(|(_, p)| p.hidden)
        .map(|(s, _)| polar_cost(&s.shape))
        .max();
    let _ = writeln!(out, "\nmemory of each rank, without activations:");
    let _ = writeln!(out, "  working copies            {}", mib(layout.working_bytes));
    let _ = writeln!(
        out,
        "  gradient buffers          {} × {}",
        buffers,
        mib(layout.gradient_elements * 4)
    );
    let _ = writeln!(out, "  masters and state         as above");
    if let Some(largest) = largest {
        let _ = writeln!(
            out,
            "largest polar cost of one matrix: {largest} (loads differ by at most this)"
        );
    }
    out
}
