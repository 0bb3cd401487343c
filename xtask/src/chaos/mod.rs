//! `chaos`: real runs on real processes under real faults. Whatever happened, every committed step must have the hash that
//! it has in a run that nothing disturbs, the final parameters must be the same bytes, every sample must be consumed once,
//! and nothing may be left behind.
//!
//! Way of data: a seed becomes a list of faults ([`schedule`], pure) of some kinds ([`kind`]) → a coordinator and trainers
//! are started ([`world`], [`process`], on two hosts and a disk of our own where a fault needs them: [`network`], [`store`]) → each fault is played
//! and the run comes out of it ([`play`]), as its committed steps show ([`steps`]) → the run is stopped and compared
//! ([`verdict`]) → a table ([`report`]).

mod kind;
mod network;
mod play;
mod process;
mod report;
mod schedule;
mod steps;
mod store;
mod verdict;
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Args;

pub(crate) use crate::chaos::kind::Kind;
use crate::chaos::network::Hosts;
use crate::chaos::report::Played;
use crate::chaos::store::Store;
use crate::chaos::world::{Place, World};
use crate::failure::{Failure, on_path};
use crate::process::Interrupts;
use crate::workspace::Workspace;

/// What the short run of `cargo xtask test` plays.
const SHORT: usize = 30;

/// `cargo xtask chaos`.
#[derive(Args)]
pub(crate) struct Options {
    /// Faults of each run.
    #[arg(long, default_value_t = SHORT)]
    faults: usize,
    /// Seeds, a run each [default: one of the clock].
    #[arg(long, value_delimiter = ',', value_name = "SEED,…")]
    seed: Vec<u64>,
    /// The most trainers at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=8))]
    ranks: u32,
    /// Only these kinds [default: all that this machine can have].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,…")]
    only: Vec<Kind>,
    /// The folder of the programs [default: where this one lies].
    #[arg(long)]
    programs: Option<PathBuf>,
}

impl Options {
    /// Those of `cargo xtask test`.
    pub(crate) fn short() -> Options {
        Options {
            faults: SHORT,
            seed: Vec::new(),
            ranks: 4,
            only: Vec::new(),
            programs: None,
        }
    }
}

/// Plays a run for each seed.
///
/// # Errors
/// With the first run that did not come out of its faults, or came out another one; its folder is kept.
pub(crate) fn chaos(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let programs = options.programs.clone().unwrap_or_else(|| workspace.programs.clone());
    for name in ["lockstep", "lockstep-coordinator", "lockstep-trainer"] {
        if !programs.join(name).is_file() {
            return Err(Failure::input(format!(
                "{} is not there: build it first with `cargo build --release`",
                programs.join(name).display()
            )));
        }
    }
    let kinds = kinds(&options.only)?;
    let seeds = match options.seed.is_empty() {
        true => vec![of_the_clock()],
        false => options.seed.clone(),
    };
    let interrupts = Interrupts::watch()?;
    let target = workspace.programs.parent().unwrap_or(&workspace.programs).join("chaos");
    let mut played = Vec::new();
    let mut result = Ok(());
    for seed in &seeds {
        let run = interrupts.left_to_child(|| one(&programs, &target, *seed, options, &kinds, &interrupts));
        match run {
            Ok(run) => played.push(run),
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    if !played.is_empty() {
        println!("\n{}\n", report::table(&played));
        let path = target.join("report.json");
        report::write(&path, &played)?;
        let seeds: Vec<String> = played.iter().map(|run| run.seed.to_string()).collect();
        println!("seeds {} are well; {}", seeds.join(", "), path.display());
    }
    result
}

/// The kinds that are asked for, or all that can be had here.
fn kinds(only: &[Kind]) -> Result<Vec<Kind>, Failure> {
    let wanted = if only.is_empty() { Kind::all() } else { only };
    let needs_root = |kind: &Kind| kind.needs_hosts() || kind.needs_disk();
    if !wanted.iter().any(needs_root) {
        return Ok(wanted.to_vec());
    }
    match network::obstacle() {
        None => Ok(wanted.to_vec()),
        Some(obstacle) if only.is_empty() => {
            println!("without faults of network and disk: {obstacle}");
            Ok(wanted.iter().filter(|kind| !needs_root(kind)).copied().collect())
        }
        Some(obstacle) => Err(Failure::input(format!(
            "no faults of network and disk here: {obstacle}"
        ))),
    }
}

fn of_the_clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// One seed in a folder of its own, which is kept if anything is not as it should be.
fn one(
    programs: &Path,
    target: &Path,
    seed: u64,
    options: &Options,
    kinds: &[Kind],
    interrupts: &Interrupts,
) -> Result<Played, Failure> {
    let folder = target.join(format!("seed-{seed}-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(on_path("create", &folder))?;
    let place = Place {
        programs,
        folder,
        ranks: options.ranks,
        interrupts,
    };
    let kept = |failure: Failure| {
        let left = verdict::left_behind(&place.folder);
        Failure::work(format!(
            "seed {seed}: {failure}{}\n  the run is kept in {}",
            left.map_or_else(String::new, |left| format!("\n  {left}")),
            place.folder.display()
        ))
    };
    let played = disturbed(&place, seed, options, kinds).map_err(kept)?;
    if let Some(left) = verdict::left_behind(&place.folder) {
        return Err(kept(Failure::work(left)));
    }
    fs::remove_dir_all(&place.folder).map_err(on_path("remove", &place.folder))?;
    Ok(played)
}

/// Plays every fault, stops the run and judges it.
fn disturbed(place: &Place, seed: u64, options: &Options, kinds: &[Kind]) -> Result<Played, Failure> {
    let faults = schedule::schedule(seed, options.faults, kinds, options.ranks);
    if faults.is_empty() {
        return Err(Failure::input(format!(
            "no kind that was asked for can be had with {} trainers",
            options.ranks
        )));
    }
    println!(
        "\nseed {seed}: {} faults on at most {} trainers",
        faults.len(),
        options.ranks
    );
    let began = Instant::now();
    verdict::prepare(place)?;
    let hosts = match faults.iter().any(|fault| fault.kind.needs_hosts()) {
        true => Some(Hosts::new()?),
        false => None,
    };
    let store = Store::new(&place.folder, faults.iter().any(|fault| fault.kind.needs_disk()))?;
    let mut world = World::begin(place, hosts, store)?;
    let mut outcomes = Vec::new();
    for (number, fault) in (1..).zip(&faults) {
        let outcome = play::play(fault, &mut world).map_err(|failure| {
            let oddities: String = world.oddities.iter().map(|oddity| format!("\n  {oddity}")).collect();
            Failure::work(format!("fault {number}, {}: {failure}{oddities}", fault.kind.name()))
        })?;
        println!("{}", outcome.line(number, world.steps.count()));
        outcomes.push(outcome);
    }
    let (steps, oddities) = world.stop()?;
    let seconds = began.elapsed().as_secs_f64();
    let mut wrong = oddities;
    match verdict::audited(place) {
        Ok(generations) => outcomes
            .iter_mut()
            .for_each(|outcome| outcome.count_replayed(&generations)),
        Err(failure) => wrong.push(failure.to_string()),
    }
    if let Err(failure) = verdict::judge(place, &steps) {
        wrong.push(failure.to_string());
    }
    if !wrong.is_empty() {
        return Err(Failure::work(wrong.join("\n  ")));
    }
    println!(
        "seed {seed}: all {} steps have the hashes of a run that nothing disturbs ({seconds:.0} s, {:.0} s with that run)",
        steps.count(),
        began.elapsed().as_secs_f64()
    );
    Ok(Played {
        seed,
        steps: steps.count(),
        seconds,
        outcomes,
    })
}
