//! `bench basin`: how precisely each optimiser needs its learning rate. The small model of `examples/basin.toml` is
//! trained with every optimiser, peak rate and seed; the validation loss at the end against the rate is a basin, and
//! its width is the answer.
//!
//! Way of data: [`trial`] lists the runs; those that [`record`] (`basin.csv`) does not have yet go to [`jobs`], a few at
//! once, and each result is recorded as it comes, so that an interrupted sweep goes on where it was; [`curve`] makes
//! means, best rates and widths of the record alone; [`report`] prints them and [`draw`] makes `basin.svg`.

mod curve;
mod draw;
mod jobs;
mod record;
mod report;
mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use sha2::{Digest, Sha256};

use self::jobs::{Jobs, Outcome};
use self::record::{Record, Row};
use self::trial::{Rates, Trial};
use super::step::{TEXT, folder};
use super::variant::Variant;
use crate::demo::build;
use crate::failure::{Failure, on_path};
use crate::process::{self, Interrupts};
use crate::setup::setup;
use crate::workspace::Workspace;

const CONFIG: &str = "examples/basin.toml";
/// Where results lie if the user does not say.
const OUT: &str = "docs/basin";
/// How often the runs are looked after.
const GLANCE: Duration = Duration::from_millis(50);

/// Options of `bench basin`.
#[derive(Args)]
pub(crate) struct Options {
    /// Optimisers; METHOD+momo sets momo's lower bound to 0.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "muonadam,muonadam+momo,scion,scion+momo,muonmax,muonmax+momo,adamw"
    )]
    methods: Vec<Variant>,
    /// Seeds, each of which gives a run for every rate.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    seeds: Vec<u64>,
    /// Steps of each run.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    steps: u64,
    /// How many factors of two the rates go below and above the method's usual rate.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=20))]
    octaves: u32,
    /// Peak learning rates instead, for all methods or for the one named; repeat it for more methods.
    #[arg(long, value_name = "[METHOD=]A,B,C")]
    rates: Vec<Rates>,
    /// The folder of basin.csv and basin.svg [default: docs/basin in the repository].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// How many runs at once, with one thread each.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    jobs: u32,
    /// Go on with basin.csv: runs that are in it are not made again (the default).
    #[arg(long, conflicts_with = "fresh")]
    resume: bool,
    /// Throw basin.csv away and begin anew.
    #[arg(long)]
    fresh: bool,
    /// Train nothing: draw basin.svg and print the table from basin.csv.
    #[arg(long, conflicts_with = "fresh")]
    draw: bool,
}

/// Makes the sweep, draws it and prints its table.
pub(crate) fn basin(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let out = options.out.clone().unwrap_or_else(|| workspace.root.join(OUT));
    let csv = out.join("basin.csv");
    if options.draw {
        return show(&Record::read(&csv)?, &out);
    }
    let trials = trial::list(
        &options.methods,
        &options.seeds,
        options.steps,
        options.octaves,
        &options.rates,
    )?;
    let config = workspace.root.join(CONFIG);
    let text = fs::read(&config).map_err(on_path("read", &config))?;
    let sweep = format!(
        "{} steps of {CONFIG}, SHA-256 {}",
        options.steps,
        hex(&Sha256::digest(text))
    );
    fs::create_dir_all(&out).map_err(on_path("create", &out))?;
    if options.fresh && csv.exists() {
        fs::remove_file(&csv).map_err(on_path("remove", &csv))?;
    }
    let mut record = Record::open(&csv, &trial::settings(&options.methods, &sweep)?)?;

    let all = trials.len();
    let left: Vec<Trial> = trials.into_iter().filter(|trial| !record.has(trial)).collect();
    println!("{all} runs, {} of them in {} already", all - left.len(), csv.display());
    if !left.is_empty() {
        let interrupts = Interrupts::watch()?;
        setup(workspace, None)?;
        build(workspace)?;
        let place = folder(workspace).join(format!("basin-{}", std::process::id()));
        let data = prepare(workspace, &place)?;
        let sweep = Sweep {
            workspace,
            place: &place,
            data: &data,
            limit: options.jobs as usize,
        };
        // The runs are in process groups of their own: what an interruption means for them is said by this sweep.
        let ended = interrupts.left_to_child(|| sweep.run(left, &mut record, &interrupts))?;
        fs::remove_dir_all(&place).map_err(on_path("remove", &place))?;
        if let Some(missing) = ended {
            return Err(Failure::work(format!(
                "the sweep was interrupted with {missing} of {all} runs missing; the same command goes on where it was"
            )));
        }
    }
    show(&record, &out)
}

fn prepare(workspace: &Workspace, place: &Path) -> Result<PathBuf, Failure> {
    fs::create_dir_all(place).map_err(on_path("create", place))?;
    let data = place.join("data");
    let mut prepare = Command::new(workspace.program("lockstep"));
    prepare
        .args(["data", "prepare", "--tokenizer", "byte", "--out"])
        .arg(&data)
        .arg(workspace.root.join(TEXT));
    process::run("preparing the data", &mut prepare)?;
    Ok(data)
}

/// What all runs share.
struct Sweep<'a> {
    workspace: &'a Workspace,
    /// A folder of this sweep alone; it stays where a run fails, since the run's log is in it.
    place: &'a Path,
    data: &'a Path,
    limit: usize,
}

impl Sweep<'_> {
    /// Makes the runs of `trials` and records them. Interrupted, it ends those under way and returns how many are
    /// missing.
    fn run(&self, trials: Vec<Trial>, record: &mut Record, interrupts: &Interrupts) -> Result<Option<usize>, Failure> {
        let all = trials.len();
        let mut done = 0;
        let mut waiting = trials.into_iter();
        let mut jobs = Jobs::default();
        loop {
            while jobs.len() < self.limit
                && let Some(trial) = waiting.next()
            {
                jobs.start(trial, self.place, |trial| self.command(trial))?;
            }
            if jobs.len() == 0 {
                return Ok(None);
            }
            if interrupts.raised() {
                jobs.end();
                return Ok(Some(all - done));
            }
            for ended in jobs.poll()? {
                done += 1;
                let loss = match ended.outcome {
                    Outcome::Loss(loss) => Some(loss),
                    Outcome::Diverged => None,
                };
                let shown = loss.map_or_else(|| "diverged".to_owned(), |loss| format!("{loss:.4}"));
                println!("[{done}/{all}] {}: {shown} ({:.1} s)", ended.trial, ended.seconds);
                record.add(Row::of(&ended.trial, loss))?;
            }
            std::thread::sleep(GLANCE);
        }
    }

    fn command(&self, trial: &Trial) -> Command {
        let mut command = Command::new(self.workspace.program("lockstep"));
        command.arg("run").arg(self.workspace.root.join(CONFIG)).args([
            "-n",
            "1",
            "--set",
            &format!("data.path={}", self.data.display()),
        ]);
        for set in trial.sets() {
            command.args(["--set", &set]);
        }
        command
    }
}

fn show(record: &Record, out: &Path) -> Result<(), Failure> {
    let curves = curve::curves(record.rows());
    let svg = out.join("basin.svg");
    draw::draw_basin(&curves, &svg)?;
    println!("\n{}\n\n{}", report::table(&curves), svg.display());
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
