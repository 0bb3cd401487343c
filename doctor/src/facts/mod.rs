//! What a machine has. Each gatherer looks at the places that it is told and decides nothing; what cannot be read is absent.
//!
//! - [`processors`], [`memory`], [`limits`]: cores, instructions, binding; memory, `/dev/shm`; what the system lets a process have
//! - [`groups`]: what a control group (a container, a job) takes away from these
//! - [`disk`]: room, speed, whether it can be written
//! - [`gpus`], [`libraries`], [`programs`]: devices and driver; which files the loader finds; what programs say of themselves
//! - [`network`], [`coordinator`], [`certificates`]: names and ports; who answers there, and how; files of `[security]`
//! - [`data`]: prepared data
//! - [`trainer`]: what only the trainer itself can tell, since it needs libtorch

pub mod certificates;
pub mod coordinator;
pub mod data;
pub mod disk;
pub mod gpus;
pub mod groups;
pub mod libraries;
pub mod limits;
pub mod memory;
pub mod network;
pub mod processors;
pub mod programs;
pub mod trainer;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::pairs::Pair;

/// Everything that was gathered; what was not looked at is absent, and no check says anything about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Facts {
    /// This host's name.
    pub host: String,
    /// The version of this build.
    pub build: String,
    /// Cores.
    pub processors: Option<processors::Processors>,
    /// Memory.
    pub memory: Option<memory::Memory>,
    /// Limits.
    pub limits: Option<limits::Limits>,
    /// Disks, by what they are for.
    pub disks: Vec<disk::Disk>,
    /// GPUs and driver.
    pub gpus: Option<gpus::Gpus>,
    /// The trainer.
    pub trainer: Option<programs::Program>,
    /// What it says of itself.
    pub trainer_says: Option<Result<trainer::TrainerFacts, String>>,
    /// The folder of libtorch that it takes, and the version there.
    pub libtorch: Option<(PathBuf, Option<String>)>,
    /// `LIBTORCH`, and whether libtorch is there.
    pub libtorch_folder: Option<(PathBuf, bool)>,
    /// The trainer that is linked with MPI.
    pub mpi_trainer: Option<programs::Program>,
    /// The mpirun that would start it; its path is only a name where it was not found.
    pub mpirun: Option<programs::Program>,
    /// This host's name, asked of the name service.
    pub own_name: Option<network::Name>,
    /// Where the coordinator would listen.
    pub bind: Option<network::Bind>,
    /// The files of `[security]`.
    pub certificates: Option<certificates::Certificates>,
    /// The coordinator that was named.
    pub coordinator: Option<coordinator::Coordinator>,
    /// What it says of its run.
    pub run: Option<Said>,
    /// Data folders.
    pub data: Vec<data::Data>,
    /// Ways between processes.
    pub pairs: Vec<Pair>,
    /// Ranks that did not come to be measured, of how many.
    pub ranks_missing: Option<(Vec<u32>, u32)>,
}

/// What a coordinator says of its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// The run's name and what it does.
    Run {
        /// Its name.
        name: String,
        /// Its phase.
        phase: String,
    },
    /// It does not let this caller in: why.
    Refused(String),
    /// It speaks another protocol: how.
    OtherProtocol(String),
    /// It could not answer: why.
    Failed(String),
}

/// Where the system tells of itself.
#[derive(Clone, Debug)]
pub struct Places {
    /// Of processes and devices.
    pub proc: PathBuf,
    /// Of classes of devices, and control groups.
    pub sys: PathBuf,
    /// Devices.
    pub dev: PathBuf,
    /// What names the folders of libraries.
    pub etc: PathBuf,
}

impl Default for Places {
    fn default() -> Places {
        Places {
            proc: "/proc".into(),
            sys: "/sys".into(),
            dev: "/dev".into(),
            etc: "/etc".into(),
        }
    }
}

/// A whole file as text; nothing where it cannot be read.
pub(crate) fn text_of(path: &Path) -> Option<String> {
    std::fs::read(path)
        .ok()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Names in a folder, in order; none where it is not there.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
