//! The commands of docs/mpirun.md and docs/slurm.md, typed as they are written: the blocks that name this file. Data is prepared,
//! models are trained by mpirun, mpiexec and mpirun.mpich, by sbatch, srun and salloc, and each is asked to generate.

use std::fs;

use serde_json::Value;

use crate::pages::{Block, Tried, blocks, repository};
use crate::place::Place;
use crate::slurm::Slurm;
use crate::stage::said;
use crate::{is_without, slurm};

fn own_blocks(page: &str) -> Vec<Block> {
    let text = fs::read_to_string(repository().join(page)).unwrap();
    let is_own = |block: &Block| match &block.tried {
        Tried::By(files) => files.split(", ").any(|file| file == "launch/tests/jobs/documented.rs"),
        _ => false,
    };
    let found: Vec<Block> = blocks(page, &text).into_iter().filter(is_own).collect();
    assert!(found.len() >= 3, "{page} has {} blocks of its own here", found.len());
    found
}

/// What a machine of tests needs besides: mpirun may run as root, on more ranks than cores.
const MORE: &str =
    "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1\n";

/// The lines of a block, without those for programs that are left out; none if nothing is left.
fn with_what_is_there(block: Block) -> Option<Block> {
    let is_there = |line: &&str| {
        let is_mpichs = line.contains("mpich");
        let variable = if is_mpichs {
            "LOCKSTEP_WITHOUT_MPICH"
        } else {
            "LOCKSTEP_WITHOUT_MPI"
        };
        !(is_mpichs || line.contains("mpi")) || !is_without(variable)
    };
    let lines: Vec<&str> = block.text.lines().filter(is_there).collect();
    let text = format!("{MORE}{}", lines.join("\n"));
    (!lines.is_empty()).then_some(Block { text, ..block })
}

fn works(place: &Place, block: &Block) {
    if let Some(told) = place.run(block) {
        panic!("{told}");
    }
}

/// All runs of a place have come to their end.
fn all_complete(place: &Place, names: &[&str]) {
    for name in names {
        let text = fs::read_to_string(place.path(&format!("runs/{name}/summary.json")));
        let text = text.unwrap_or_else(|error| panic!("the run {name}: {error}"));
        let summary: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(summary["exit"], "completed", "{name}");
        assert_eq!(summary["worlds"][0]["ranks"], 2, "{name}");
    }
}

#[test]
fn the_page_on_mpirun_trains_by_each_of_them() {
    let place = Place::new();
    for block in own_blocks("docs/mpirun.md").into_iter().filter_map(with_what_is_there) {
        works(&place, &block);
    }
    if !is_without("LOCKSTEP_WITHOUT_MPI") {
        all_complete(&place, &["shakespeare", "over-mpi", "plain", "plain-too"]);
    }
    if !is_without("LOCKSTEP_WITHOUT_MPICH") {
        all_complete(&place, &["mpich", "plain-mpich"]);
    }
}

#[test]
fn the_page_on_slurm_trains_as_a_job_and_as_a_step() {
    if slurm::left_out() {
        return;
    }
    let place = Place::new();
    let slurm = Slurm::start();
    for block in own_blocks("docs/slurm.md") {
        let text = format!("export SLURM_CONF={}\n{}", slurm.config().display(), block.text);
        works(&place, &Block { text, ..block });
        slurm.wait_for_all();
    }
    // Shown where the test fails.
    println!("{}", said(&place.bash("cat lockstep-*.log").output().unwrap()));
    all_complete(&place, &["shakespeare", "by-srun", "by-mpirun"]);
}
