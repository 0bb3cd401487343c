//! A trainer that was started with a config, by mpirun, srun or torchrun together with the others of its job, or by hand: no
//! launcher of ours is there, so rank 0 hosts the coordinator, unless one is named.
//!
//! Way of data: config and environment → [`bootstrap`] decides how this rank comes to its coordinator (pure) → rank 0 starts
//! one ([`host`]) and says where it is, the others [`find`] it → [`train`] → rank 0 waits for its coordinator, whose exit code is
//! the job's. The others end with 0 where the run was stopped in order: an mpirun ends
//! a whole job as soon as one process has another code.

use std::path::{Path, PathBuf};

use lockstep_config::place::Starter;
use lockstep_config::{CollectiveBackend, RunConfig, first_host_of_slurm, hosts_of_hostfile};
use lockstep_proto::address::{Address, Early};
use lockstep_proto::domain::Outcome;
use lockstep_session::SessionError;
use rustix::process::getppid;

use crate::error::TrainerError;
use crate::started::{end_with_parent, end_with_starter, keep_log, member_of, own_place};
use crate::train::{Mpi, TrainOptions, train};

mod bootstrap;
mod environment;
mod find;
mod host;
mod signals;

use bootstrap::{Known, Way, reached_at, way};
use find::{Found, early_end, find};
use host::{Hosted, Orders, Start, host};

/// Set to a word that is new for every job, where what starts the ranks gives them none.
const JOB: &str = "LOCKSTEP_JOB";
/// The hosts of the job in Slurm's words: of the step, of the job.
const SLURM_HOSTS: [&str; 2] = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"];

/// What such a trainer is told.
#[derive(Clone, Debug)]
pub struct TogetherOptions {
    /// The config's file.
    pub config: PathBuf,
    /// Overrides of its keys.
    pub sets: Vec<String>,
    /// The number of ranks, where nothing else says it.
    pub ranks: Option<u32>,
    /// A coordinator that runs elsewhere.
    pub coordinator: Option<String>,
    /// The file in which the address of the hosted one is.
    pub coordinator_file: Option<PathBuf>,
    /// The hosts of the job, rank 0's first.
    pub hostfile: Option<PathBuf>,
    /// The member's name, where one is given.
    pub member: Option<String>,
    /// All else; its coordinator and name are found here.
    pub train: TrainOptions,
}

/// Trains as a rank of a job, and hosts its coordinator as rank 0. The exit code.
///
/// # Errors
/// What cannot be used, does not come, or fails.
pub fn together(options: &TogetherOptions, mpi: Option<&'static dyn Mpi>) -> Result<u8, TrainerError> {
    let config = RunConfig::read(&options.config, &options.sets)?;
    let is_mpi = config.collective.backend == CollectiveBackend::Mpi;
    if is_mpi && mpi.is_none() {
        return Err(TrainerError::Refused(
            "collective.backend is \"mpi\", and this trainer has no MPI: start lockstep-trainer-mpi instead".to_owned(),
        ));
    }
    environment::prepare(&config)?;
    let place = own_place()?;
    let run_dir = options.train.run_dir.clone();
    let run_dir = run_dir.unwrap_or_else(|| PathBuf::from("runs").join(&config.run.name));
    let (first_host, job, parent) = (first_host(options)?, std::env::var(JOB).ok(), parent());
    let known = Known {
        named: options.coordinator.as_deref(),
        file: options.coordinator_file.as_deref(),
        place: place.as_ref(),
        ranks: options.ranks,
        bind: config.coordinator.bind,
        scheme: if config.security.has_tls() { "https" } else { "http" },
        first_host: first_host.as_deref(),
        run_dir: &run_dir,
        job: job.as_deref(),
        parent: parent.as_deref(),
    };
    let way = way(&known).map_err(TrainerError::Refused)?;
    keep_log()?;
    end_with_starter()?;
    // The words of torchrun are anybody's, of a script too that has ended when its ranks train.
    if place.as_ref().is_some_and(|place| place.starter != Starter::Torchrun) {
        end_with_parent()?;
    }
    let rank = place.as_ref().map_or(0, |place| place.rank);
    let mut job = Job {
        train: TrainOptions {
            member: options.member.clone().unwrap_or_else(|| member_of(rank)),
            run_dir: Some(run_dir.clone()),
            run: Some(config.run.name.clone()),
            leaves_on_sigterm: matches!(way, Way::Named(_)),
            ..options.train.clone()
        },
        mpi: mpi.filter(|_| is_mpi),
    };
    match way {
        Way::Named(url) => {
            job.train.coordinator = url;
            match job.train(|_| None) {
                Err(TrainerError::Session(error @ SessionError::Unreachable { .. })) => {
                    Err(TrainerError::Broken(format!(
                        "{error}. It is named by --coordinator or LOCKSTEP_COORDINATOR: start it before its trainers, or leave \
                         both away, and rank 0 hosts one"
                    )))
                }
                other => other.map(code),
            }
        }
        Way::Hosted {
            ranks,
            file,
            job: word,
            is_far,
        } => {
            let orders = Orders {
                config: options.config.clone(),
                sets: options.sets.clone(),
                run_dir,
                ranks,
            };
            let name = |url: &str| {
                reached_at(
                    url,
                    config.coordinator.bind,
                    is_far,
                    &own_name(options, first_host.as_deref()),
                )
            };
            job.host(orders, (&file, word), name)
        }
        Way::At(url) => {
            signals::stop_in_order(None)?;
            let word = known.job.map(str::to_owned).or_else(|| place?.job);
            job.train.coordinator = url;
            let file = run_dir.join(Address::FILE);
            match job.train(|_| early_end(&file, word.as_deref())) {
                Err(TrainerError::Session(error @ SessionError::Unreachable { .. })) => {
                    Err(TrainerError::Refused(format!(
                        "{error}. This is the first host of the job and the port of coordinator.bind, where rank 0 should host \
                         it: see what rank 0 says, or name a coordinator with --coordinator"
                    )))
                }
                other => other.map(follower_code),
            }
        }
        Way::In { file, job: word } => {
            signals::stop_in_order(None)?;
            match find(&file, &word)? {
                Found::Ended(early) => Ok(ended_early(&early)),
                Found::Address(url) => {
                    job.train.coordinator = url;
                    job.train(|_| None).map(follower_code)
                }
            }
        }
    }
}

/// How training ended.
enum Trained {
    /// The run is over for this rank.
    Over(Outcome),
    /// It never began.
    Early(Early),
}

/// What one rank is about to do.
struct Job {
    train: TrainOptions,
    /// Where the run goes over it.
    mpi: Option<&'static dyn Mpi>,
}

impl Job {
    /// Trains. Where nobody answers, `early` may know why.
    fn train(&self, early: impl FnOnce(&SessionError) -> Option<Early>) -> Result<Trained, TrainerError> {
        self.mpi.map_or(Ok(()), Mpi::start)?;
        let outcome = match train(&self.train, self.mpi) {
            Err(TrainerError::Session(error @ SessionError::Unreachable { .. })) => {
                return early(&error).map(Trained::Early).ok_or_else(|| error.into());
            }
            outcome => outcome?,
        };
        // Only after a good end: it waits for all ranks.
        self.mpi.map_or(Ok(()), Mpi::finish)?;
        Ok(Trained::Over(outcome))
    }

    /// Hosts the coordinator, trains beside it, and waits for it.
    fn host(
        mut self,
        orders: Orders,
        (file, word): (&Path, Option<String>),
        name: impl Fn(&str) -> String,
    ) -> Result<u8, TrainerError> {
        let write = |address: Address| {
            let made = file.parent().map_or(Ok(()), std::fs::create_dir_all);
            made.and_then(|()| address.write_file(file))
                .map_err(|source| TrainerError::File {
                    what: "cannot write",
                    path: file.display().to_string(),
                    source,
                })
        };
        let hosted = match host(orders)? {
            Start::Serves(hosted) => hosted,
            Start::Ended(code) => {
                // The other ranks wait for a word of it.
                let reason = match code {
                    0 => "the run is complete: there is nothing left to train".to_owned(),
                    _ => "the coordinator that rank 0 hosts could not begin; rank 0 says why".to_owned(),
                };
                let early = Early { code, reason };
                write(Address::ended(word, early.clone()))?;
                return Ok(ended_early(&early));
            }
        };
        signals::stop_in_order(Some(hosted.stop()))?;
        self.train.coordinator = name(&hosted.url);
        write(Address::served(self.train.coordinator.clone(), hosted.pid).for_job(word))?;
        let own = Written(file);
        tracing::info!("this rank hosts the coordinator, at {}", self.train.coordinator);
        self.train(|_| None)?;
        let code = end(hosted);
        drop(own);
        Ok(code)
    }
}

/// The exit code of a job: its coordinator's, when that has ended.
fn end(hosted: Hosted) -> u8 {
    hosted.wait()
}

/// An address that is taken away with this value: nobody listens there any more.
struct Written<'a>(&'a Path);

impl Drop for Written<'_> {
    fn drop(&mut self) {
        // It may have been removed by hand.
        let _ = std::fs::remove_file(self.0);
    }
}

fn ended_early(early: &Early) -> u8 {
    tracing::info!("{}", early.reason);
    early.code
}

/// The exit code of a rank whose coordinator is somebody else's.
fn code(trained: Trained) -> u8 {
    match trained {
        Trained::Over(Outcome::Completed) => 0,
        Trained::Over(Outcome::Stopped) => 3,
        Trained::Over(Outcome::Failed { .. }) => 1,
        Trained::Early(early) => ended_early(&early),
    }
}

/// The exit code of a rank beside the one that hosts the coordinator: that one tells of a stop.
fn follower_code(trained: Trained) -> u8 {
    match trained {
        Trained::Over(Outcome::Completed | Outcome::Stopped) => 0,
        other => code(other),
    }
}

/// The first host of the job, where a list says it.
fn first_host(options: &TogetherOptions) -> Result<Option<String>, TrainerError> {
    if let Some(path) = &options.hostfile {
        let text = std::fs::read_to_string(path).map_err(|source| TrainerError::File {
            what: "cannot read the hostfile",
            path: path.display().to_string(),
            source,
        })?;
        let first = hosts_of_hostfile(&text).into_iter().next();
        return first.map(Some).ok_or_else(|| {
            TrainerError::Refused(format!(
                "the hostfile {} names no host; write one a line, rank 0's first",
                path.display()
            ))
        });
    }
    let lists = SLURM_HOSTS.iter().filter_map(|name| std::env::var(name).ok());
    Ok(lists.filter_map(|list| first_host_of_slurm(&list)).next())
}

/// The name by which others reach this host.
fn own_name(options: &TogetherOptions, first_host: Option<&str>) -> String {
    let given = options.train.advertise.map(|address| address.to_string());
    let own = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    given.or_else(|| first_host.map(str::to_owned)).unwrap_or_else(own)
}

/// The process that has started this one, and when that was started itself: one for all ranks of an mpirun on one host.
fn parent() -> Option<String> {
    let parent = getppid()?.as_raw_nonzero();
    let stat = std::fs::read_to_string(format!("/proc/{parent}/stat")).ok()?;
    // Behind the name in brackets, which may have spaces: the state is field 3, the start field 22.
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{parent} {start}"))
}
