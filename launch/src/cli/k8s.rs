//! What can be typed after `lockstep k8s`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `lockstep k8s …`.
#[derive(Debug, Subcommand)]
pub enum K8sCommand {
    /// Print the run's objects as one YAML stream; needs no cluster
    Render(K8sArguments),
    /// Make the run's objects in the cluster, or bring them up to date (`kubectl apply`)
    Apply(K8sArguments),
    /// Show what the run's pods say (`kubectl logs`)
    Logs {
        /// Which run.
        #[command(flatten)]
        of: K8sArguments,
        /// Go on showing
        #[arg(short = 'f', long)]
        follow: bool,
    },
    /// Delete the run's objects (`kubectl delete`); its volumes stay
    Delete {
        /// Which run.
        #[command(flatten)]
        of: K8sArguments,
        /// Delete the volumes too: ledger, checkpoints, final weights and the copy of the data
        #[arg(long)]
        volumes: bool,
    },
    /// Write a kustomize base with every overlay, and the components gpu and tls
    Kustomize {
        /// The config of the run, a TOML file
        config: PathBuf,
        /// Trainers that the run begins with
        #[arg(short = 'n', long = "ranks", value_name = "RANKS", value_parser = clap::value_parser!(u32).range(1..))]
        ranks: Option<u32>,
        /// The image, with a tag or a digest
        #[arg(long)]
        image: Option<String>,
        /// Set a value of the config: section.key=value (may be repeated)
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
        /// The folder for base, overlays and components; files of these names are written over
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Which run, and how it is laid over a cluster.
#[derive(Debug, Clone, Args)]
pub struct K8sArguments {
    /// The config of the run, a TOML file
    pub config: PathBuf,
    /// What starts and replaces the trainers
    #[arg(long, value_enum)]
    pub overlay: Overlay,
    /// One NVIDIA GPU for each trainer (by itself where run.device is "cuda")
    #[arg(long)]
    pub gpu: bool,
    /// Encrypt what passes between coordinator and trainers, and know both by certificates
    #[arg(long)]
    pub tls: bool,
    /// The image, with a tag or a digest [default: lockstep:VERSION, with -cuda or -mpi after it where that is needed]
    #[arg(long)]
    pub image: Option<String>,
    /// The namespace [default: kubectl's own]. With it the coordinator holds a Lease, and has the right to that one
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Trainers that the run begins with [default: 2, or 1 where there is one lane]
    #[arg(short = 'n', long = "ranks", value_name = "RANKS", value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks: Option<u32>,
    /// Set a value of the config: section.key=value (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// What starts and replaces the trainers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Overlay {
    /// A Job for the coordinator and an Indexed Job of so many trainers
    IndexedJob,
    /// A StatefulSet for the coordinator, and a Job whose trainers come and go as its parallelism is changed
    Elastic,
    /// A JobSet of both; needs the JobSet controller
    Jobset,
    /// An MPIJob: mpirun starts the trainers; needs the MPI operator
    Mpijob,
    /// A TrainJob with its runtime; needs Kubeflow Trainer
    Trainjob,
}

impl Overlay {
    /// All of them.
    pub const ALL: [Overlay; 5] = [
        Overlay::IndexedJob,
        Overlay::Elastic,
        Overlay::Jobset,
        Overlay::Mpijob,
        Overlay::Trainjob,
    ];

    /// The word on the command line, and the name of the folder.
    pub fn word(self) -> &'static str {
        match self {
            Overlay::IndexedJob => "indexed-job",
            Overlay::Elastic => "elastic",
            Overlay::Jobset => "jobset",
            Overlay::Mpijob => "mpijob",
            Overlay::Trainjob => "trainjob",
        }
    }
}
