//! What a run wants of a machine, taken from its config. A pure function: nothing is looked at here.

use std::net::SocketAddr;
use std::path::PathBuf;

use lockstep_config::{Device, Method, Precision, RunConfig};
use lockstep_inventory::{inventory_of, state, treatments_of};
use serde::Serialize;

/// Threads that a trainer has at least besides those of its tensor library: network, the loader, the bearer of collectives.
const OTHER_THREADS: u64 = 6;
/// Those that a launcher with its coordinator has.
const LAUNCHER_THREADS: u64 = 5;

/// What a run wants of the machine that this process is on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Wanted {
    /// The run's name.
    pub run: String,
    /// Ranks on this machine.
    pub ranks: u32,
    /// Ranks on all machines.
    pub world: u32,
    /// Whether this process stands for one rank, and has the cores that this one will have.
    pub is_one_rank: bool,
    /// Threads of each one's tensor library.
    pub threads: u32,
    /// Whether they compute on GPUs.
    pub gpu: bool,
    /// Whether products are made in bf16.
    pub bf16: bool,
    /// What carries data between them.
    pub backend: String,
    /// Memory of all ranks on this machine.
    pub memory: Option<MemoryNeed>,
    /// What is written.
    pub disk: Option<DiskNeed>,
    /// The run's folder.
    pub folder: PathBuf,
    /// The folder of checkpoints, if it is another one.
    pub checkpoints: Option<PathBuf>,
    /// Where the coordinator listens.
    pub bind: SocketAddr,
    /// The data's folders.
    pub data: Vec<PathBuf>,
    /// Tokens that a sequence predicts.
    pub sequence_length: u32,
    /// Rows of the embedding, where the config says.
    pub vocabulary: Option<u32>,
    /// Days before its end at which a certificate is about to expire.
    pub certificate_days: u64,
    /// Whether whoever starts the trainers gives them their environment.
    pub environment_is_set: bool,
}

/// Memory of all ranks on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryNeed {
    /// Bytes.
    pub bytes: u64,
    /// Where the figure is from, as a part of a sentence.
    pub account: String,
}

/// What is written to disks, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DiskNeed {
    /// The final weights.
    pub weights: u64,
    /// One checkpoint.
    pub checkpoint: u64,
    /// How many there are at a time: those that stay, and the one that is being written.
    pub checkpoints: u64,
    /// The alert `disk` is raised below so much free space.
    pub alert: u64,
}

impl Wanted {
    /// What a config wants on a machine with all of its ranks. `vocabulary`: of the data, where it is known.
    pub fn of(config: &RunConfig, ranks: u32, vocabulary: Option<u32>) -> Wanted {
        Wanted::of_some(config, (ranks, ranks), vocabulary)
    }

    /// What it wants on a machine with `ranks` ranks of a world.
    pub fn of_some(config: &RunConfig, (ranks, world): (u32, u32), vocabulary: Option<u32>) -> Wanted {
        let vocabulary = config.model.vocab.or(vocabulary);
        let store = config.checkpoint.store.as_deref();
        Wanted {
            run: config.run.name.clone(),
            ranks,
            world,
            is_one_rank: false,
            threads: config.run.intra_op_threads,
            gpu: config.run.device == Device::Cuda,
            bf16: config.run.precision == Precision::Bf16,
            backend: config.backend_name(world).to_owned(),
            memory: vocabulary.map(|vocabulary| least_memory(config, vocabulary, (ranks, world))),
            disk: vocabulary.map(|vocabulary| disk(config, vocabulary)),
            folder: PathBuf::from("runs").join(&config.run.name),
            checkpoints: store.filter(|store| !store.starts_with("s3://")).map(PathBuf::from),
            bind: config.coordinator.bind,
            data: [Some(&config.data.path), config.data.validation.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            sequence_length: config.data.sequence_length,
            vocabulary: config.model.vocab,
            certificate_days: config.alerts.certificate_days,
            environment_is_set: false,
        }
    }

    /// Threads of all ranks that compute at the same time.
    pub fn computing_threads(&self) -> u64 {
        u64::from(self.ranks) * u64::from(self.threads)
    }

    /// Threads that a run has at least on this machine, those that mostly wait among them.
    pub fn all_threads(&self) -> u64 {
        self.computing_threads() + u64::from(self.ranks) * OTHER_THREADS + LAUNCHER_THREADS
    }

    /// Whether ranks exchange data through files in memory: the host backend's memory has no name in `/dev/shm`.
    pub fn uses_shm(&self) -> bool {
        matches!(self.backend.as_str(), "mpi" | "nccl")
    }
}

/// Elements of all tensors, and of what outlives a step of them.
fn elements(config: &RunConfig, vocabulary: u32) -> (u64, u64, u64) {
    let inventory = inventory_of(config, vocabulary);
    let treatments = treatments_of(config, vocabulary).unwrap_or_default();
    let all: u64 = inventory.iter().map(|spec| spec.elements() as u64).sum();
    let narrow = inventory.iter().filter(|spec| spec.role.is_narrow());
    let narrow: u64 = narrow.map(|spec| spec.elements() as u64).sum();
    let kept = |method: Method| -> u64 {
        let arrays = inventory
            .iter()
            .zip(&treatments)
            .flat_map(|(spec, treatment)| state::arrays(spec, treatment, method));
        arrays.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    };
    (all, narrow, kept(config.optimizer.method))
}

/// What no rank can do without: working copies, one gradient buffer, and masters and moments, which the ranks share. What a
/// process has besides (activations, libraries) comes on top, so a machine that has less than this has too little for sure.
fn least_memory(config: &RunConfig, vocabulary: u32, (ranks, world): (u32, u32)) -> MemoryNeed {
    let (all, narrow, kept) = elements(config, vocabulary);
    let copies = match config.run.precision {
        Precision::Bf16 => all * 4 - narrow * 2,
        Precision::Fp32 => all * 4,
    };
    MemoryNeed {
        bytes: u64::from(ranks) * (copies + all * 4 + kept * 4 / u64::from(world.max(1))),
        account: "copies, gradients and state alone, without activations".to_owned(),
    }
}

fn disk(config: &RunConfig, vocabulary: u32) -> DiskNeed {
    let (all, _, kept) = elements(config, vocabulary);
    DiskNeed {
        weights: all * 4,
        checkpoint: kept * 4,
        checkpoints: config.checkpoint.keep_last + 1,
        alert: config.alerts.disk_mib << 20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(sets: &[&str]) -> RunConfig {
        let text = "[run]\nname = \"a\"\nsteps = 1\nlanes = 6\n[data]\npath = \"d\"\nsequence_length = 16\n[model]\nlayers = 2\n\
                    heads = 2\nwidth = 32\n[batch]\nmicro_batch = 1\nschedule = 6\n[learning_rate]\nschedule = 0.5\n";
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunConfig::parse(text, "wanted.toml", &sets).unwrap()
    }

    #[test]
    fn memory_grows_with_ranks_only_by_what_each_has_for_itself() {
        let need = |ranks| {
            Wanted::of(&config(&["run.precision=fp32"]), ranks, Some(64))
                .memory
                .unwrap()
                .bytes
        };
        let parameters = need(2) - need(1);
        assert_eq!(need(4) - need(2), 2 * parameters);
        let half = Wanted::of(&config(&[]), 1, Some(64)).memory.unwrap().bytes;
        assert!(half < need(1), "bf16 copies are smaller");
        let fp32 = config(&["run.precision=fp32"]);
        let of_four = Wanted::of_some(&fp32, (1, 4), Some(64)).memory.unwrap().bytes;
        assert!(of_four < need(1), "others keep their part of the state");
        assert_eq!(of_four, need(4) / 4);
        assert_eq!(Wanted::of(&config(&[]), 1, None).memory, None);
    }

    #[test]
    fn checkpoints_may_lie_elsewhere_but_a_bucket_is_no_folder() {
        let of = |store: &str| Wanted::of(&config(&[&format!("checkpoint.store={store}")]), 1, None).checkpoints;
        assert_eq!(of("elsewhere"), Some(PathBuf::from("elsewhere")));
        assert_eq!(of("s3://bucket/prefix"), None);
    }
}
