//! Every kind of finding: its name, how bad it is, why it matters. `docs/doctor.md` has the same, held against it by a test.

use serde::{Deserialize, Serialize};

use crate::finding::Severity;

/// Makes the enum of all kinds and what is known of each.
macro_rules! catalogue {
    ($($kind:ident = $word:literal, $severity:ident, $why:literal;)+) => {
        /// A kind of finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Id { $(#[doc = $why] #[serde(rename = $word)] $kind),+ }

        impl Id {
            /// All of them.
            pub const ALL: &'static [Id] = &[$(Id::$kind),+];

            /// Its name, for programs and documents. It never changes.
            pub fn word(self) -> &'static str {
                match self { $(Id::$kind => $word),+ }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(Id::$kind => Severity::$severity),+ }
            }

            /// Why it matters: a sentence without capital and full stop.
            pub fn why(self) -> &'static str {
                match self { $(Id::$kind => $why),+ }
            }
        }
    };
}

catalogue! {
    // Processors.
    NoAvx2 = "cpu-no-avx2", Warning, "kernels fall back to plain instructions, and a step takes several times as long";
    NoBf16 = "cpu-no-bf16", Warning, "products in bf16 are emulated, and a step may take longer than in fp32";
    BindingNarrow = "binding-narrow", Warning, "all threads of all ranks share the cores to which this process is bound";
    CpuQuota = "cpu-quota", Warning, "threads above the quota are stopped in every period, and all ranks wait for the one that is";
    CoresFew = "cores-few", Warning, "threads take turns on the cores, and ranks wait for each other at every exchange";
    ThreadsContradict = "threads-contradict", Warning, "a trainer with another number of threads has other bits, and is refused by its fingerprint";
    BindingVariables = "binding-variables", Warning, "every rank binds its threads to the same first cores, and they take turns there";
    // Memory.
    MemoryShort = "memory-short", Error, "the kernel ends a rank when memory runs out";
    MemoryTight = "memory-tight", Warning, "what others use now is missing to the run, and the kernel may end a rank";
    ShmMissing = "shm-missing", Warning, "MPI and NCCL exchange data between ranks of a host through files there, and fail, or take slower ways";
    ShmSmall = "shm-small", Warning, "ranks of MPI and NCCL on one host are ended by SIGBUS, or refused, when it is full";
    // Limits.
    FilesLow = "nofile-low", Error, "connections, shards and logs are open files, and a process that has no more of them fails";
    ProcessesLow = "nproc-low", Error, "threads count as processes, and a rank that gets no thread ends";
    PidsLow = "pids-low", Error, "the group of processes that this one belongs to may not start as many threads as the ranks need";
    MemlockLow = "memlock-low", Warning, "InfiniBand needs locked memory, and without it NCCL and MPI use slow sockets, or fail";
    // Disks.
    DiskFull = "disk-full", Error, "the ledger, the metrics and the final weights of the run find no place";
    DiskLow = "disk-low", Warning, "checkpoints that find no place are dropped, and the alert `disk` is raised";
    DiskUnwritable = "disk-unwritable", Error, "the run keeps its ledger, logs and weights there";
    CheckpointsUnwritable = "checkpoints-unwritable", Warning, "every checkpoint is dropped, and what is resumed begins anew";
    DiskSlow = "disk-slow", Warning, "plans, commits and checkpoints wait until they are on the disk";
    InodesLow = "inodes-low", Warning, "no file can be made when they are used up, even where there is room";
    // GPUs.
    GpuNone = "gpu-none", Error, "every rank needs a GPU";
    GpusFew = "gpus-few", Error, "every rank of a host needs a GPU of its own";
    DriverMissing = "driver-missing", Error, "no process can use a GPU without NVIDIA's driver";
    DriverOld = "driver-old", Error, "libtorch's CUDA libraries refuse to start on it";
    DriverMixed = "driver-mixed", Error, "a library of another version than the kernel module's is refused by it";
    CudaLibrariesMissing = "cuda-libraries-missing", Error, "the trainer computes on a GPU only with libtorch's CUDA libraries";
    CudaMixed = "cuda-mixed", Warning, "libraries of two CUDA installations in one process were never tested together";
    NcclMissing = "nccl-missing", Error, "ranks on GPUs exchange data over NCCL";
    NcclOld = "nccl-old", Error, "the trainer refuses a version that its bindings are not made for";
    GpuEnvironment = "gpu-environment", Warning, "a trainer with another value refuses to start; `lockstep run` sets it by itself";
    // Programs and libraries.
    TrainerMissing = "trainer-missing", Error, "it is the process that trains";
    TrainerVersion = "trainer-version", Error, "launcher and trainer of two builds may not understand each other";
    TrainerBroken = "trainer-broken", Error, "it is the process that trains, and it does not start";
    LibraryMissing = "library-missing", Error, "the dynamic linker ends the trainer before its first line";
    LibtorchVersion = "libtorch-version", Warning, "the trainer is built and tested with another one, and bits may differ between hosts";
    LibtorchFolder = "libtorch-folder", Warning, "builds look for libtorch there";
    MpirunMissing = "mpirun-missing", Error, "it starts the ranks of the mpi backend";
    MpiMismatch = "mpi-mismatch", Error, "an mpirun of another MPI starts worlds of one rank, which never meet";
    // Network and coordinator.
    PortTaken = "port-taken", Error, "the coordinator cannot listen where another process does";
    AddressAbsent = "address-absent", Error, "the coordinator can listen on an address of this machine only";
    PortForbidden = "port-forbidden", Error, "the system does not let this user listen there";
    NameUnresolved = "name-unresolved", Error, "trainers find the coordinator by that name";
    OwnNameUnresolved = "own-name-unresolved", Warning, "MPI and NCCL look for other ranks by the names of their hosts";
    CoordinatorUnreachable = "coordinator-unreachable", Error, "trainers and commands need it";
    CoordinatorNone = "coordinator-none", Error, "something else listens on that port";
    CoordinatorTls = "coordinator-tls", Error, "one side talks TLS and the other one does not, so neither understands the other";
    CoordinatorRefuses = "coordinator-refuses", Error, "who is not let in can neither train nor give orders";
    CoordinatorOtherRun = "coordinator-other-run", Error, "trainers would join a run of another config";
    CoordinatorVersion = "coordinator-version", Error, "another protocol is refused with every call";
    CertificateExpired = "certificate-expired", Error, "nobody believes it any more, and no trainer gets in";
    CertificateEarly = "certificate-not-yet-valid", Error, "nobody believes it before, and often it is a clock that is wrong";
    CertificateName = "certificate-name", Error, "a caller believes only a certificate for the name that it has called";
    CertificateAuthority = "certificate-authority", Error, "a caller believes only the authority that it was told of";
    CertificateSoon = "certificate-expires-soon", Warning, "when it has expired no trainer that lost its connection gets in again";
    CertificateUnusable = "certificate-unusable", Error, "the coordinator cannot talk TLS with it";
    ClockSkew = "clock-skew", Warning, "certificates seem expired or not yet valid, and moments in logs and ledger contradict each other";
    ClockBehind = "clock-behind", Warning, "a clock that is behind makes fresh certificates seem not yet valid, and the ledger's moments wrong";
    // Data.
    DataMissing = "data-missing", Error, "the run trains on it";
    DataVersion = "data-version", Error, "another format is not read";
    DataDamaged = "data-damaged", Error, "a run over other tokens is another run, and the trainer refuses them";
    DataUnfit = "data-unfit", Error, "config and data do not fit together";
    // Between ranks.
    RanksMissing = "ranks-missing", Error, "a run begins when all of its ranks are there";
    PeerUnreachable = "peer-unreachable", Error, "every rank exchanges data with every other one";
    LinkSlow = "link-slow", Warning, "gradients and parameters go over it in every step, and all ranks wait for the slowest";
    LatencyHigh = "latency-high", Warning, "every step makes a few small exchanges that wait for it";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let words: HashSet<_> = Id::ALL.iter().map(|id| id.word()).collect();
        assert_eq!(words.len(), Id::ALL.len());
        let is_plain = |word: &str| {
            word.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        assert!(words.iter().all(|word| is_plain(word)), "{words:?}");
    }

    /// The rows of the table of findings: name, severity, why.
    #[test]
    fn the_page_has_every_finding_and_no_other() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/doctor.md");
        let text = std::fs::read_to_string(page).unwrap();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .filter(|cells: &Vec<&str>| cells.len() == 4)
            .collect();
        for id in Id::ALL {
            let name = format!("`{}`", id.word());
            let row = rows.iter().find(|row| row[0] == name);
            let row = row.unwrap_or_else(|| panic!("docs/doctor.md has no row of {name}"));
            assert_eq!(row[1], id.severity().word(), "{name}");
            assert_eq!(row[2], id.why(), "{name}");
            assert!(!row[3].is_empty(), "{name}: what to do");
        }
        assert_eq!(
            rows.len(),
            Id::ALL.len(),
            "docs/doctor.md has a row of something that is no finding"
        );
    }
}
