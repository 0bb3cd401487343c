//! `chaos`: real runs on real processes under real faults. Whatever happened, every committed step must have the hash that
//! it has in a run that nothing disturbs, the final parameters must be the same bytes, every sample must be consumed once,
//! and nothing may be left behind.
//!
//! Way of data: a seed becomes lists of faults ([`schedule`], pure) of some kinds ([`kind`]), one for a run whose checkpoints
//! lie in a folder and one for a bucket → a coordinator and trainers are started ([`world`], [`process`], on two hosts, a
//! disk or an S3 server of our own where a fault needs them: [`network`], [`store`]) → each fault is played
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
mod trainer;
mod verdict;
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::chaos::kind::Ground;
pub(crate) use crate::chaos::kind::Kind;
use crate::chaos::network::Hosts;
use crate::chaos::report::Played;
use crate::chaos::schedule::Fault;
use crate::chaos::store::Store;
use crate::chaos::world::{Place, World};
use crate::failure::{Failure, on_path};
use crate::process::{Interrupts, run as run_program};
use crate::workspace::Workspace;

/// The S3 server for checkpoints in a bucket.
const BUCKET_DOUBLE: &str = "bucket-double";
/// What the short run of `cargo xtask test` plays.
const SHORT: usize = 30;

/// `cargo xtask chaos`.
#[derive(Args)]
pub(crate) struct Options {
    /// Faults of each seed.
    #[arg(long, default_value_t = SHORT)]
    faults: usize,
    /// Seeds, each with runs of its own [default: one of the clock].
    #[arg(long, value_delimiter = ',', value_name = "SEED,…")]
    seed: Vec<u64>,
    /// The most trainers at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=8))]
    ranks: u32,
    /// Only these kinds [default: all that this machine can have].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,…")]
    only: Vec<Kind>,
    /// Keep the folders of runs that are well, too.
    #[arg(long)]
    keep: bool,
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
            keep: false,
            programs: None,
        }
    }
}

/// Plays the runs of each seed.
///
/// # Errors
/// With the runs that did not come out of their faults, or came out others; their folders are kept.
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
    let mut runs = Vec::new();
    for seed in seeds {
        let schedules = schedule::schedules(seed, options.faults, &kinds, options.ranks);
        if schedules.is_empty() {
            return Err(Failure::input(format!(
                "no kind that was asked for can be had with {} trainers",
                options.ranks
            )));
        }
        runs.extend(schedules.into_iter().map(|(ground, faults)| (seed, ground, faults)));
    }
    let bucket_double = match runs.iter().any(|(_, ground, _)| *ground == Ground::Bucket) {
        true => bucket_double(workspace, &programs)?,
        false => PathBuf::new(),
    };
    let interrupts = Interrupts::watch()?;
    let target = workspace.programs.parent().unwrap_or(&workspace.programs).join("chaos");
    let (mut played, mut failed) = (Vec::new(), Vec::new());
    for (seed, ground, faults) in &runs {
        let run = Run {
            seed: *seed,
            ground: *ground,
            faults,
        };
        let place = Place {
            programs: &programs,
            bucket_double: &bucket_double,
            folder: target.join(format!("{}-{}", run.name(), std::process::id())),
            ranks: options.ranks,
            interrupts: &interrupts,
        };
        let result = interrupts.left_to_child(|| run.one(&place, options.keep));
        match result {
            Ok(run) => played.push(run),
            Err(failure) => {
                println!("{failure}");
                failed.push(run.name());
            }
        }
        if interrupts.raised() {
            break;
        }
    }
    if !played.is_empty() {
        let path = target.join("report.json");
        report::write(&path, &played)?;
        println!(
            "\n{}\n\n{}; {}",
            report::table(&played),
            report::totals(&played),
            path.display()
        );
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::work(format!(
            "{} of {} runs are not as they should be, as the lines above say: {}",
            failed.len(),
            runs.len(),
            failed.join(", ")
        ))),
    }
}

/// Where the S3 server is; it is built where it is not beside the other programs.
fn bucket_double(workspace: &Workspace, programs: &Path) -> Result<PathBuf, Failure> {
    let beside = programs.join(BUCKET_DOUBLE);
    if beside.is_file() {
        return Ok(beside);
    }
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--package", BUCKET_DOUBLE]);
    run_program("the build of the S3 server", &mut cargo)?;
    Ok(workspace.program(BUCKET_DOUBLE))
}

/// The kinds that are asked for, or all that can be had here.
fn kinds(only: &[Kind]) -> Result<Vec<Kind>, Failure> {
    let wanted: Vec<Kind> = match only.is_empty() {
        true => Kind::by_default(),
        false => only.to_vec(),
    };
    let needs_root = |kind: &Kind| kind.needs_hosts() || kind.needs_disk();
    if !wanted.iter().any(needs_root) {
        return Ok(wanted);
    }
    match network::obstacle() {
        None => Ok(wanted),
        Some(obstacle) if only.is_empty() => {
            println!("without faults of network and disk: {obstacle}");
            Ok(wanted.into_iter().filter(|kind| !needs_root(kind)).collect())
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

/// One run of a seed.
struct Run<'a> {
    seed: u64,
    ground: Ground,
    faults: &'a [Fault],
}

impl Run<'_> {
    /// The name of its folder.
    fn name(&self) -> String {
        match self.ground {
            Ground::Folder => format!("seed-{}", self.seed),
            Ground::Bucket => format!("seed-{}-bucket", self.seed),
        }
    }

    /// Plays it in a folder of its own, which is kept if anything is not as it should be, or if it shall be.
    fn one(&self, place: &Place, keep: bool) -> Result<Played, Failure> {
        fs::create_dir_all(&place.folder).map_err(on_path("create", &place.folder))?;
        let kept = |failure: Failure| {
            let left = verdict::left_behind(&place.folder);
            Failure::work(format!(
                "{}: {failure}{}\n  the run is kept in {}",
                self.name(),
                left.map_or_else(String::new, |left| format!("\n  {left}")),
                place.folder.display()
            ))
        };
        let played = self.disturbed(place).map_err(kept)?;
        if let Some(left) = verdict::left_behind(&place.folder) {
            return Err(kept(Failure::work(left)));
        }
        match keep {
            true => println!("the run is kept in {}", place.folder.display()),
            false => fs::remove_dir_all(&place.folder).map_err(on_path("remove", &place.folder))?,
        }
        Ok(played)
    }

    /// Plays every fault, stops the run and judges it.
    fn disturbed(&self, place: &Place) -> Result<Played, Failure> {
        let name = self.name();
        println!(
            "\n{name}: {} faults on at most {} trainers",
            self.faults.len(),
            place.ranks
        );
        let began = Instant::now();
        let mut world = World::begin(place, self.hosts()?, self.store(place)?)?;
        let started = began.elapsed();
        let mut outcomes = Vec::new();
        for (number, fault) in (1..).zip(self.faults) {
            let outcome = play::play(fault, &mut world).map_err(|failure| {
                let oddities: String = world.oddities.iter().map(|oddity| format!("\n  {oddity}")).collect();
                Failure::work(format!("fault {number}, {}: {failure}{oddities}", fault.name()))
            })?;
            println!("{}", outcome.line(number, world.steps.count()));
            outcomes.push(outcome);
        }
        let stopping = Instant::now();
        let ended = world.stop()?;
        let start_and_stop = started + stopping.elapsed();
        let proving = Instant::now();
        let mut wrong = ended.oddities;
        match verdict::audited(place) {
            Ok(ledger) => {
                for outcome in &mut outcomes {
                    outcome.count_replayed(&ledger.generations);
                }
                wrong.extend(self.faults_that_did_not_show(&ledger, &ended.drilled));
            }
            Err(failure) => wrong.push(failure.to_string()),
        }
        if let Err(failure) = verdict::judge(place, &ended.steps) {
            wrong.push(failure.to_string());
        }
        if !wrong.is_empty() {
            return Err(Failure::work(wrong.join("\n  ")));
        }
        let (seconds, proof_seconds) = (began.elapsed().as_secs_f64(), proving.elapsed().as_secs_f64());
        println!(
            "{name}: all {} steps have the hashes of a run that nothing disturbs ({seconds:.0} s, {proof_seconds:.0} of them for the proofs)",
            ended.steps.count(),
        );
        Ok(Played {
            seed: self.seed,
            checkpoints_in: self.ground,
            steps: ended.steps.count(),
            checkpoints_given_up: verdict::checkpoints_given_up(&place.folder)?,
            seconds,
            start_and_stop_seconds: start_and_stop.as_secs_f64(),
            proof_seconds,
            outcomes,
        })
    }

    fn hosts(&self) -> Result<Option<Hosts>, Failure> {
        match self.faults.iter().any(|fault| fault.kind.needs_hosts()) {
            true => Hosts::new().map(Some),
            false => Ok(None),
        }
    }

    /// Where its checkpoints lie, with config and data beside it.
    fn store(&self, place: &Place) -> Result<Store, Failure> {
        let needs_disk = self.faults.iter().any(|fault| fault.kind.needs_disk());
        let store = match self.ground {
            Ground::Folder => Store::in_folder(&place.folder, needs_disk),
            Ground::Bucket => Store::in_bucket(&place.folder, place.bucket_double, self.seed),
        }?;
        verdict::prepare(place, &store.location())?;
        Ok(store)
    }

    /// What the ledger should say of the faults, and does not.
    fn faults_that_did_not_show(&self, ledger: &verdict::Ledger, drilled: &[(u32, &'static str)]) -> Vec<String> {
        let mut missing: Vec<String> = ledger
            .not_set_apart(drilled)
            .iter()
            .map(|(pid, array)| {
                format!("a bit changed in {array}a tensor of process {pid}, and no decision in the ledger sets it apart for that")
            })
            .collect();
        let damages = |fault: &&Fault| fault.kind == Kind::DamageCheckpoint;
        let (damaged, refused) = (self.faults.iter().filter(damages).count(), ledger.checkpoints_refused());
        if refused > damaged {
            missing.push(format!(
                "{damaged} checkpoints were damaged, and {refused} could not be loaded"
            ));
        }
        missing
    }
}
