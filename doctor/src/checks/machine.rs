//! Cores, memory and limits.

use crate::catalogue::Id;
use crate::checks::{bytes, counted};
use crate::facts::Facts;
use crate::facts::limits::Limits;
use crate::facts::memory::Memory;
use crate::facts::processors::Processors;
use crate::finding::Finding;
use crate::wanted::{MemoryNeed, Wanted};

/// What MPI keeps in memory for each rank of a host: its segments and boxes, with room to spare.
const SHM_OF_MPI: u64 = 16 << 20;
/// What NCCL's ranks of a host may need together.
const SHM_OF_NCCL: u64 = 1 << 30;
/// Where no run is named: enough for two ranks of MPI. What a container gets where nothing is said is twice that.
const SHM_AT_LEAST: u64 = 2 * SHM_OF_MPI;
/// InfiniBand registers whole buffers: anything below this is a default that nobody chose for it.
const LOCKED_AT_LEAST: u64 = 1 << 30;
/// Files that a trainer has open at least, besides shards and something of each other rank.
const OTHER_FILES: u64 = 16;
/// The same of a coordinator, besides a connection with each rank.
const COORDINATOR_FILES: u64 = 20;

/// Instructions, binding, quota, variables.
pub(super) fn processors(facts: &Facts, wanted: Option<&Wanted>) -> Vec<Finding> {
    let Some(processors) = &facts.processors else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if !processors.avx2 && std::env::consts::ARCH == "x86_64" {
        findings.push(Finding::new(
            Id::NoAvx2,
            &processors.model,
            "these processors, or the virtual machine, know no AVX2",
            "use a machine that does, or let the virtual machine have the host's instructions",
        ));
    }
    let Some(wanted) = wanted.filter(|wanted| !wanted.gpu) else {
        return findings;
    };
    if wanted.bf16 && !processors.bf16 && std::env::consts::ARCH == "x86_64" {
        findings.push(Finding::new(
            Id::NoBf16,
            "run.precision",
            "run.precision is \"bf16\", and these processors know neither AVX512-BF16 nor AMX",
            "compare with run.precision = \"fp32\", and take what is faster; the bits are others",
        ));
    }
    findings.extend(cores(processors, wanted));
    findings.extend(variables(processors, wanted));
    findings
}

fn cores(processors: &Processors, wanted: &Wanted) -> Option<Finding> {
    let is_bound = processors.allowed < processors.online;
    // A rank that is bound has these cores for itself; others share what there is.
    let ranks = if wanted.is_one_rank && is_bound {
        1
    } else {
        wanted.ranks
    };
    let threads = u64::from(ranks) * u64::from(wanted.threads);
    let asked = format!(
        "{} × {} (run.intra_op_threads) want {}",
        counted(ranks.into(), "rank"),
        counted(wanted.threads.into(), "thread"),
        counted(threads, "core")
    );
    let fewer = "start fewer ranks with -n, or lower run.intra_op_threads";
    if threads > processors.allowed.into() && is_bound {
        return Some(Finding::new(
            Id::BindingNarrow,
            "affinity",
            format!(
                "{asked}, and this process may run on {} of {}",
                processors.allowed, processors.online
            ),
            format!(
                "give it more cores (`taskset`, `--bind-to none` or `--map-by slot:PE={}` of mpirun, `--cpus-per-task` of Slurm), or {fewer}",
                wanted.threads
            ),
        ));
    }
    if let Some(quota) = processors.quota.filter(|quota| threads as f64 > *quota) {
        return Some(Finding::new(
            Id::CpuQuota,
            "control group",
            format!("{asked}, and the control group allows {quota:.2} cores' worth of time"),
            format!("raise the limit of CPU of the container or job, or {fewer}"),
        ));
    }
    (threads > processors.allowed.into()).then(|| {
        Finding::new(
            Id::CoresFew,
            "cores",
            format!("{asked}, and this machine has {}", processors.allowed),
            fewer,
        )
    })
}

fn variables(processors: &Processors, wanted: &Wanted) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, value) in &processors.threads {
        let number: Option<u32> = value.split(',').next().and_then(|value| value.trim().parse().ok());
        let contradicts = match name.as_str() {
            "OMP_THREAD_LIMIT" => number.is_some_and(|most| most < wanted.threads),
            "OMP_NUM_THREADS" | "MKL_NUM_THREADS" => !wanted.environment_is_set && number != Some(wanted.threads),
            _ => false,
        };
        if contradicts {
            findings.push(Finding::new(
                Id::ThreadsContradict,
                name,
                format!("{name} is {value:?}, and run.intra_op_threads is {}", wanted.threads),
                format!(
                    "unset it, or set it to {}; `lockstep run` sets OMP_NUM_THREADS and MKL_NUM_THREADS for its trainers by itself",
                    wanted.threads
                ),
            ));
        }
    }
    let is_off = |value: &str| matches!(value.to_ascii_lowercase().as_str(), "" | "false" | "none" | "disabled");
    let binding = processors.binding.iter().filter(|(_, value)| !is_off(value));
    let names: Vec<&str> = binding.map(|(name, _)| name.as_str()).collect();
    // A rank that is bound to cores of its own binds its threads to these.
    let is_bound = processors.allowed < processors.online;
    if wanted.ranks > 1 && !(wanted.is_one_rank && is_bound) && !names.is_empty() {
        findings.push(Finding::new(
            Id::BindingVariables,
            names.join(", "),
            format!(
                "{} bind threads to cores, and {} share this machine",
                names.join(", "),
                counted(wanted.ranks.into(), "rank")
            ),
            "unset them, and let mpirun or Slurm bind each rank to cores of its own",
        ));
    }
    findings
}

/// Memory of the run, and `/dev/shm`.
pub(super) fn memory(facts: &Facts, wanted: Option<&Wanted>) -> Vec<Finding> {
    let Some(memory) = &facts.memory else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    let need = wanted
        .filter(|wanted| !wanted.gpu)
        .and_then(|wanted| wanted.memory.as_ref());
    findings.extend(need.and_then(|need| too_little(memory, need)));
    let enough = match wanted {
        Some(wanted) if wanted.uses_shm() => match wanted.backend.as_str() {
            "mpi" => u64::from(wanted.ranks) * SHM_OF_MPI,
            _ => SHM_OF_NCCL,
        },
        Some(_) => return findings,
        None => SHM_AT_LEAST,
    };
    let remedy = "make it larger: `mount -o remount,size=2G /dev/shm`, `--shm-size` of Docker, an emptyDir of medium Memory in Kubernetes";
    match memory.shm {
        None if wanted.is_some() => {
            findings.push(Finding::new(
                Id::ShmMissing,
                "/dev/shm",
                "there is no /dev/shm",
                "mount a tmpfs there",
            ));
        }
        Some((size, free)) if free < enough => {
            let for_whom = wanted.map_or("MPI or NCCL".to_owned(), |wanted| {
                format!("{} over {}", counted(wanted.ranks.into(), "rank"), wanted.backend)
            });
            let what = format!(
                "/dev/shm has {} free of {}, and {for_whom} may need {}",
                bytes(free),
                bytes(size),
                bytes(enough)
            );
            findings.push(Finding::new(Id::ShmSmall, "/dev/shm", what, remedy));
        }
        _ => {}
    }
    findings
}

/// Memory that is less than the run's account, for ever or now.
fn too_little(memory: &Memory, need: &MemoryNeed) -> Option<Finding> {
    let (most, now) = (memory.most()?, memory.now()?);
    let asked = format!("the run needs {} ({})", bytes(need.bytes), need.account);
    let fewer = "start fewer ranks on this machine, take a smaller model, or spread the run over more machines (`lockstep plan CONFIG -n RANKS` says what a rank takes)";
    let is_limited = memory
        .limit
        .is_some_and(|limit| memory.total == 0 || limit < memory.total);
    let place = if is_limited { "control group" } else { "memory" };
    if need.bytes > most.saturating_add(memory.swap) {
        let what = match memory.swap {
            0 => format!("{asked}, and there are {}", bytes(most)),
            swap => format!("{asked}, and there are {} with {} of swap", bytes(most), bytes(swap)),
        };
        let remedy = match is_limited {
            false => fewer.to_owned(),
            true => format!("raise the limit of memory of the container or job, or {fewer}"),
        };
        return Some(Finding::new(Id::MemoryShort, place, what, remedy));
    }
    (need.bytes > now).then(|| {
        let what = format!("{asked}, and {} of {} are free now", bytes(now), bytes(most));
        let remedy = format!("end what else runs here, or {fewer}");
        Finding::new(Id::MemoryTight, place, what, remedy)
    })
}

/// Files, processes, locked memory.
pub(super) fn limits(facts: &Facts, wanted: Option<&Wanted>) -> Vec<Finding> {
    let Some(limits) = &facts.limits else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if let Some(wanted) = wanted {
        let shards = facts.data.iter().map(|data| data.shards).sum();
        findings.extend(files(limits, wanted, shards));
        let threads = wanted.all_threads();
        let left = limits
            .processes
            .map(|most| (most, most.saturating_sub(limits.processes_now)));
        if let Some((most, left)) = left.filter(|(_, left)| *left < threads) {
            findings.push(Finding::new(
                Id::ProcessesLow,
                "ulimit -u",
                format!(
                    "the run starts at least {threads} threads, and this user may have {left} more ({most} in all)"
                ),
                "raise the limit of processes (`ulimit -u`, nproc in limits.conf, LimitNPROC of a unit)",
            ));
        }
        let left = limits.group.map(|(most, now)| (most, most.saturating_sub(now)));
        if let Some((most, left)) = left.filter(|(_, left)| *left < threads) {
            findings.push(Finding::new(
                Id::PidsLow,
                "pids.max",
                format!("the run starts at least {threads} threads, and the control group allows {left} more ({most} in all)"),
                "raise the limit of processes of the container or job (`--pids-limit` of Docker, TasksMax of a unit, podPidsLimit of the kubelet)",
            ));
        }
    }
    let fabric = limits.infiniband && wanted.is_none_or(Wanted::uses_shm);
    if let Some(locked) = limits.locked.filter(|locked| fabric && *locked < LOCKED_AT_LEAST) {
        findings.push(Finding::new(
            Id::MemlockLow,
            "ulimit -l",
            format!("there is an InfiniBand device, and a process may lock {}", bytes(locked)),
            "let it lock all (`ulimit -l unlimited`, memlock in limits.conf, LimitMEMLOCK of a unit, the capability IPC_LOCK of a container)",
        ));
    }
    findings
}

fn files(limits: &Limits, wanted: &Wanted, shards: u64) -> Option<Finding> {
    let ranks = u64::from(wanted.ranks);
    let of_trainer = shards + ranks + OTHER_FILES;
    let of_coordinator = ranks + COORDINATOR_FILES;
    let remedy = "raise it (`ulimit -n`, nofile in limits.conf, LimitNOFILE of a unit, `--ulimit nofile` of Docker)";
    // The launcher raises its own limit as far as it may, and its trainers inherit that.
    let (soft, name) = match wanted.environment_is_set {
        true => (limits.files_hard, "ulimit -Hn"),
        false => (limits.files, "ulimit -n"),
    };
    if let Some(most) = soft.filter(|most| *most < of_trainer) {
        let what = format!("a trainer opens at least {of_trainer} files, and may open {most}");
        return Some(Finding::new(Id::FilesLow, name, what, remedy));
    }
    let most = limits.files_hard.filter(|most| *most < of_coordinator)?;
    let what = format!(
        "a coordinator of {} opens at least {of_coordinator} files, and may open {most}",
        counted(ranks, "rank")
    );
    Some(Finding::new(Id::FilesLow, "ulimit -Hn", what, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_only_where_swap_does_not_help_and_never_where_nobody_tells() {
        let found = |memory: Memory, bytes: u64| {
            let need = MemoryNeed {
                bytes,
                account: "by a test".to_owned(),
            };
            too_little(&memory, &need).map(|finding| (finding.id, finding.place))
        };
        let machine = Memory {
            total: 100,
            available: 80,
            ..Memory::default()
        };
        assert_eq!(found(machine, 80), None);
        assert_eq!(found(machine, 90), Some((Id::MemoryTight, "memory".to_owned())));
        assert_eq!(found(machine, 101), Some((Id::MemoryShort, "memory".to_owned())));
        let with_swap = Memory { swap: 10, ..machine };
        assert_eq!(found(with_swap, 101), Some((Id::MemoryTight, "memory".to_owned())));
        let container = Memory {
            limit: Some(50),
            limit_used: 20,
            ..machine
        };
        assert_eq!(found(container, 30), None);
        assert_eq!(
            found(container, 40),
            Some((Id::MemoryTight, "control group".to_owned()))
        );
        assert_eq!(
            found(container, 51),
            Some((Id::MemoryShort, "control group".to_owned()))
        );
        assert_eq!(found(Memory::default(), u64::MAX), None, "no /proc/meminfo");
    }
}
