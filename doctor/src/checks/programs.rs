//! Programs and libraries.

use crate::catalogue::Id;
use crate::facts::Facts;
use crate::facts::programs::Program;
use crate::finding::Finding;
use crate::wanted::Wanted;

/// The libtorch that the trainer is built with.
const LIBTORCH: &str = "2.13.";

pub(super) fn programs(facts: &Facts, wanted: Option<&Wanted>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let over_mpi = wanted.is_some_and(|wanted| wanted.backend == "mpi");
    let trainers = [
        facts
            .trainer
            .as_ref()
            .filter(|_| !over_mpi)
            .map(|program| (program, "LOCKSTEP_TRAINER", "lockstep-trainer")),
        facts
            .mpi_trainer
            .as_ref()
            .filter(|_| over_mpi)
            .map(|program| (program, "LOCKSTEP_TRAINER_MPI", "lockstep-trainer-mpi")),
    ];
    for (program, variable, package) in trainers.into_iter().flatten() {
        findings.extend(trainer(program, variable, package, &facts.build));
    }
    if let Some((folder, Some(version))) = &facts.libtorch
        && !version.starts_with(LIBTORCH)
    {
        let what = format!("libtorch is {version}, and {LIBTORCH}x is what the trainer is made for");
        let remedy = "take libtorch out of LD_LIBRARY_PATH, or `cargo xtask setup` and build again";
        findings.push(Finding::new(Id::LibtorchVersion, folder.display(), what, remedy));
    }
    if let Some((folder, false)) = &facts.libtorch_folder {
        let what = "LIBTORCH names a folder that has no lib/libtorch_cpu.so";
        let remedy = "unset LIBTORCH, or name the folder in which lib/ and include/ of libtorch 2.13 are";
        findings.push(Finding::new(Id::LibtorchFolder, folder.display(), what, remedy));
    }
    if let Some(Err(reason)) = &facts.trainer_says {
        // What is missing or of another version was said already.
        let is_known =
            |finding: &Finding| matches!(finding.id, Id::LibraryMissing | Id::TrainerVersion | Id::TrainerBroken);
        if let Some(program) = facts.trainer.as_ref().filter(|_| !findings.iter().any(is_known)) {
            let what = format!("the trainer cannot say what it finds here: {reason}");
            let remedy = "start it by hand (`lockstep-trainer facts`), and build it anew if it is of another build";
            findings.push(Finding::new(Id::TrainerBroken, program.path.display(), what, remedy));
        }
    }
    if over_mpi && let (Some(trainer), Some(mpirun)) = (&facts.mpi_trainer, &facts.mpirun) {
        findings.extend(mpi(trainer, mpirun));
    }
    findings
}

fn trainer(program: &Program, variable: &str, package: &str, build: &str) -> Vec<Finding> {
    let place = program.path.display();
    if !program.is_there {
        let what = format!("{place} is not there");
        let remedy = format!(
            "build it with `cargo xtask setup` and `cargo build --release -p {package}`, or name it in {variable}"
        );
        return vec![Finding::new(Id::TrainerMissing, place, what, remedy)];
    }
    // Where it starts nevertheless, the linker has found them elsewhere.
    let starts = matches!(program.version, Some(Ok(_)));
    let linked = program.linked.iter().filter(|_| !starts);
    let missing = linked.flat_map(|linked| &linked.needed_by);
    let missing: Vec<Finding> = missing
        .map(|(library, by)| {
            let what = format!("{library}, which {} needs, is in none of the folders where the linker looks", by.display());
            let remedy = "put the libraries where they were when it was built (`cargo xtask setup`), or name their folder in LD_LIBRARY_PATH";
            Finding::new(Id::LibraryMissing, place.to_string(), what, remedy)
        })
        .collect();
    if !missing.is_empty() {
        return missing;
    }
    match &program.version {
        Some(Err(reason)) => {
            let what = format!("the trainer does not start: {reason}");
            vec![Finding::new(
                Id::TrainerBroken,
                place,
                what,
                "start it by hand with --version, and build it anew",
            )]
        }
        Some(Ok(said)) if version(said) != Some(build) => {
            let what = format!("this is lockstep {build}, and the trainer says {said:?}");
            let remedy =
                format!("build both from one source (`cargo build --release`), or name another one in {variable}");
            vec![Finding::new(Id::TrainerVersion, place, what, remedy)]
        }
        _ => Vec::new(),
    }
}

/// The version in `lockstep-trainer 0.1.0 …`.
fn version(said: &str) -> Option<&str> {
    let mut words = said.split_whitespace();
    words.next().filter(|name| name.starts_with("lockstep-trainer"))?;
    words.next()
}

fn mpi(trainer: &Program, mpirun: &Program) -> Vec<Finding> {
    let place = mpirun.path.display();
    if !mpirun.is_there {
        let what = format!("{place} is not there");
        let remedy = "install the MPI that lockstep-trainer-mpi is linked with, or name its mpirun in LOCKSTEP_MPIRUN; `--backend host` needs no MPI";
        return vec![Finding::new(Id::MpirunMissing, place, what, remedy)];
    }
    let linked = trainer.linked.as_ref().and_then(|linked| linked.mpi());
    let (Some(linked), Some(started)) = (linked, mpirun.mpi()) else {
        return Vec::new();
    };
    if linked == started {
        return Vec::new();
    }
    let what = format!(
        "{} is linked with {}, and this mpirun is of {}",
        trainer.path.display(),
        linked.word(),
        started.word()
    );
    let remedy = format!(
        "name the mpirun of {} in LOCKSTEP_MPIRUN, or build the trainer for {} (MPICC=…, with a CARGO_TARGET_DIR of its own)",
        linked.word(),
        started.word()
    );
    vec![Finding::new(Id::MpiMismatch, place, what, remedy)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_second_word_of_a_trainer() {
        assert_eq!(version("lockstep-trainer 0.1.0"), Some("0.1.0"));
        assert_eq!(version("lockstep-trainer 0.1.0 (Open MPI v4.1.4)"), Some("0.1.0"));
        assert_eq!(version("sleep (GNU coreutils) 9.1"), None);
    }
}
