//! Facts as lines for people: a name and a value.

use std::path::PathBuf;

use crate::checks::{bytes, counted};
use crate::facts::Facts;
use crate::facts::coordinator::Coordinator;
use crate::facts::data::Data;
use crate::facts::disk::Disk;
use crate::facts::gpus::Gpus;
use crate::facts::limits::Limits;
use crate::facts::processors::Processors;
use crate::facts::programs::Program;
use crate::facts::trainer::TrainerFacts;
use crate::pairs::Pair;

/// What is worth a look, whether anything is wrong with it or not.
pub fn lines(facts: &Facts) -> Vec<(String, String)> {
    let mut lines = vec![("host", format!("{}, lockstep {}", facts.host, facts.build))];
    lines.extend(facts.processors.iter().map(|it| ("cores", processors(it))));
    if let Some(memory) = &facts.memory {
        lines.push((
            "memory",
            match memory.now().zip(memory.most()) {
                Some((now, most)) => format!("{} of {} free", bytes(now), bytes(most)),
                None => "not told by the kernel".to_owned(),
            },
        ));
        let shm = memory
            .shm
            .map(|(size, free)| format!("{} of {} free", bytes(free), bytes(size)));
        lines.push(("/dev/shm", shm.unwrap_or_else(|| "not there".to_owned())));
    }
    lines.extend(facts.limits.iter().map(|it| ("limits", limits(it))));
    lines.extend(facts.disks.iter().map(|it| ("disk", disk(it))));
    lines.extend(facts.gpus.iter().map(|it| ("gpus", gpus(it))));
    let gpu_libraries = facts.gpus.iter().filter(|it| it.are_there());
    lines.extend(gpu_libraries.flat_map(|it| {
        let libraries = [("libcuda", &it.libcuda), ("nccl", &it.nccl)];
        libraries.map(|(name, found)| (name, library(found.as_ref())))
    }));
    lines.extend(facts.trainer.iter().map(|it| ("trainer", program(it))));
    if let Some((folder, version)) = &facts.libtorch {
        lines.push((
            "libtorch",
            format!(
                "{} in {}",
                version.as_deref().unwrap_or("of unknown version"),
                folder.display()
            ),
        ));
    }
    if let Some(Ok(says)) = &facts.trainer_says {
        let has_gpus = facts.gpus.as_ref().is_some_and(Gpus::are_there);
        lines.extend(trainer(says, has_gpus));
    }
    if let Some(mpi_trainer) = &facts.mpi_trainer {
        lines.push(("mpi", mpi(mpi_trainer)));
    }
    lines.extend(facts.mpirun.iter().map(|it| ("mpirun", program(it))));
    lines.extend(facts.data.iter().map(|it| ("data", data(it))));
    lines.extend(facts.coordinator.iter().map(|it| ("coordinator", coordinator(it))));
    lines.extend(facts.pairs.iter().map(|it| ("way", pair(it))));
    lines
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn processors(it: &Processors) -> String {
    let instructions = [(it.avx512, "AVX-512"), (it.avx2, "AVX2")];
    let best = instructions
        .iter()
        .find(|(has, _)| *has)
        .map_or("no AVX2", |(_, name)| name);
    let bf16 = if it.bf16 { ", bf16 products" } else { "" };
    let quota = it.quota.map(|quota| format!(", quota {quota:.2}")).unwrap_or_default();
    format!(
        "{} of {} to use{quota}: {}, {best}{bf16}",
        it.allowed, it.online, it.model
    )
}

fn limits(it: &Limits) -> String {
    let of = |limit: Option<u64>| limit.map_or("any".to_owned(), |limit| limit.to_string());
    format!(
        "files {} (hard {}), processes {}",
        of(it.files),
        of(it.files_hard),
        of(it.processes)
    )
}

fn disk(it: &Disk) -> String {
    let speed = match &it.written {
        Ok(speed) if speed.bytes >= 1 << 20 => format!(
            "{:.0} MB/s, {:.1} ms to be on the disk",
            speed.bytes as f64 / 1e6 / speed.seconds.max(1e-9),
            speed.sync_seconds * 1e3
        ),
        Ok(speed) => format!("{:.1} ms to be on the disk", speed.sync_seconds * 1e3),
        Err(refusal) => refusal.reason.clone(),
    };
    format!(
        "{} ({}): {} of {} free, {speed}",
        it.folder.display(),
        it.purpose,
        bytes(it.free),
        bytes(it.size)
    )
}

fn gpus(it: &Gpus) -> String {
    match &it.driver {
        None => "none".to_owned(),
        Some(driver) => format!("{} of {} visible, driver {driver}", it.visible, it.devices),
    }
}

/// A library's version, and where it was found.
fn library(found: Option<&(PathBuf, Option<String>)>) -> String {
    match found {
        Some((path, version)) => format!(
            "{} in {}",
            version.as_deref().unwrap_or("of unknown version"),
            path.display()
        ),
        None => "not found".to_owned(),
    }
}

/// The trainer for MPI, and the MPI's library that it takes.
fn mpi(it: &Program) -> String {
    let linked = it.linked.as_ref();
    let whose = linked
        .and_then(|linked| linked.mpi())
        .map_or("no MPI that is known", |mpi| mpi.word());
    let place = linked.and_then(|linked| linked.place_of("libmpi"));
    let place = place.map_or_else(String::new, |place| format!(", {}", place.display()));
    format!("{}: linked with {whose}{place}", it.path.display())
}

/// The first line of what it says: mpirun says more.
fn program(it: &Program) -> String {
    let said = match &it.version {
        Some(Ok(said)) => said.lines().next().unwrap_or_default().trim(),
        Some(Err(reason)) => reason,
        None if it.is_there => "there",
        None => "not there",
    };
    format!("{}: {said}", it.path.display())
}

/// Without GPUs nobody misses CUDA.
fn trainer(it: &TrainerFacts, has_gpus: bool) -> Vec<(&'static str, String)> {
    let mut lines = vec![("kernels", format!("{}; {}", it.instruction_set, it.libraries))];
    lines.extend(has_gpus.then(|| ("cuda", it.cuda.clone())));
    let nccl = it
        .nccl
        .as_ref()
        .map(|nccl| nccl.clone().unwrap_or_else(|reason| reason));
    lines.extend(nccl.map(|nccl| ("nccl", format!("the trainer takes {nccl}"))));
    lines.extend(it.mpi.iter().map(|mpi| ("mpi", mpi.clone())));
    if !it.memory.is_empty() {
        let ranks: Vec<String> = it.memory.iter().map(|rank| bytes(*rank)).collect();
        lines.push(("account", format!("{} by rank, without activations", ranks.join(", "))));
    }
    lines
}

fn data(it: &Data) -> String {
    let hashed = match it.fault {
        Some(_) => "refused".to_owned(),
        None => format!(
            "{} in {}, {} hashed",
            bytes(it.bytes),
            counted(it.shards, "shard"),
            bytes(it.hashed)
        ),
    };
    format!("{}: {hashed}", it.folder.display())
}

fn coordinator(it: &Coordinator) -> String {
    match &it.answer {
        Ok(answer) => format!("{}: answers after {:.1} ms", it.url, answer.seconds * 1e3),
        Err(_) => format!("{}: no answer", it.url),
    }
}

fn pair(it: &Pair) -> String {
    match &it.way {
        Ok(way) => format!(
            "{} – {}: {:.3} ms, {:.0} Mbit/s there, {:.0} Mbit/s back",
            it.from, it.to, way.milliseconds, way.megabits_to, way.megabits_from
        ),
        Err(reason) => format!("{} – {}: {reason}", it.from, it.to),
    }
}
