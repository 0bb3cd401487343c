//! The life of a trainer: connect → join → one generation after the other → final files.
//!
//! - this file: [`train`], and what a member keeps from one generation to the next: its data, its device, the parts of
//!   snapshots that it holds
//! - `generation`: one member in one generation: communicator → loaded → ready → plans and steps → reports
//! - `meeting`: the ranks of a generation meet
//! - `leaving`: what a SIGTERM comes to
//!
//! The thread that calls [`train`] drives the device; the session carries the connection on threads of its own. A broken
//! collective, or an abort by the coordinator, ends the generation and not the process: the engine is dropped, the member
//! says what it holds, and waits for the next generation. Decisions that concern all ranks (the verdict on a step, pause,
//! stop, the end of the generation) are taken from exchanged slots only.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{Aborter, Collective, CollectiveError};
use lockstep_config::{CollectiveBackend, RunConfig};
use lockstep_data::{Dataset, Order, ValidationSet};
use lockstep_parts::Keeper;
use lockstep_proto::domain::{Generation, JoinInfo, Outcome, Part};
use lockstep_security::Credentials;
use lockstep_session::{Session, SessionError, SessionOptions, Why};

use crate::device::opening::{Opened, open};
use crate::drill::Drill;
use crate::error::TrainerError;
use crate::fingerprint::fingerprint;
use crate::snapshot::checkpoint::Place;
use crate::started::local_rank;

mod generation;
mod leaving;
mod meeting;

use generation::Rank;
use meeting::address_towards;

/// How long a trainer waits for the coordinator and for its peers to meet.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the device thread may take to end after the run has given this member up.
const HANGS_FOR_GOOD: Duration = Duration::from_secs(20);

/// MPI, in a binary that is linked with one.
pub trait Mpi: Sync {
    /// The library and its version, for `--version` and the log.
    fn version(&self) -> String;

    /// Starts MPI, once a process and before anything else of it; nothing happens where no MPI has started this process.
    ///
    /// # Errors
    /// MPI fails, or it cannot be called from more than one thread.
    fn start(&self) -> Result<(), CollectiveError>;

    /// This process's rank among those that MPI started together, and their number; 0 of 1 where there is none.
    fn place(&self) -> (u32, u32);

    /// Joins the processes that MPI started together, as ranks of a generation. Called on the thread that will make the
    /// calls. They meet within `deadline`, and a call waits for a rank that does nothing for `stall`, or for ever.
    ///
    /// # Errors
    /// MPI started another number of processes, or it fails.
    fn connect(
        &self,
        rank: u32,
        size: u32,
        deadline: Duration,
        stall: Option<Duration>,
        aborter: &Aborter,
    ) -> Result<Box<dyn Collective>, CollectiveError>;

    /// Ends MPI, when every rank has trained to the end: it waits for all of them. Not after a failure.
    ///
    /// # Errors
    /// MPI fails.
    fn finish(&self) -> Result<(), CollectiveError>;
}

/// What a trainer is told when it is started.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The coordinator's address, `http://HOST:PORT` or `https://HOST:PORT`.
    pub coordinator: String,
    /// What this trainer shows to it.
    pub credentials: Credentials,
    /// The name of this member.
    pub member: String,
    /// The run's folder; `runs/NAME` under the current directory if not given.
    pub run_dir: Option<PathBuf>,
    /// The address at which other hosts reach this one; if not given, the one that leads to the coordinator.
    pub advertise: Option<IpAddr>,
    /// How long a coordinator is looked for whose connection broke.
    pub coordinator_patience: Duration,
    /// The name of the run that this trainer is for, if it knows it: another one's is refused.
    pub run: Option<String>,
    /// Whether a SIGTERM is for this member alone, which then leaves.
    pub leaves_on_sigterm: bool,
}

/// Trains until the coordinator's plans end, or until it is stopped or something fails. A failure is reported to the
/// coordinator before it is returned.
pub fn train(options: &TrainOptions, mpi: Option<&'static dyn Mpi>) -> Result<Outcome, TrainerError> {
    let (mut session, welcome) = Session::connect(SessionOptions {
        coordinator: options.coordinator.clone(),
        credentials: options.credentials.clone(),
        member: options.member.clone(),
        patience: PATIENCE,
    })?;
    session.when_over(end_if_it_hangs);
    let mut made = 0;
    match run(&mut session, options, mpi, &welcome.config_toml, &mut made) {
        Ok(outcome) => Ok(outcome),
        Err(TrainerError::Session(SessionError::Released { outcome, reason }))
            if !matches!(outcome, Outcome::Failed { .. }) =>
        {
            tracing::info!("{reason}");
            session.finish(outcome.clone(), made)?;
            Ok(outcome)
        }
        Err(error @ TrainerError::SetApart(_)) => Err(error),
        Err(error) => {
            // The end came from the coordinator, which knows already why.
            if !session.abort_signal().is_set() {
                let outcome = Outcome::Failed {
                    reason: error.to_string(),
                };
                if let Err(unheard) = session.finish(outcome, made) {
                    tracing::warn!("the coordinator did not hear why this rank failed: {unheard}");
                }
            }
            Err(error)
        }
    }
}

/// The run has given this member up. Its device thread hears of that wherever it waits; if it hangs, somebody else must end
/// the process.
fn end_if_it_hangs(reason: String) {
    let waits = std::thread::Builder::new()
        .name("last resort".to_owned())
        .spawn(move || {
            std::thread::sleep(HANGS_FOR_GOOD);
            tracing::error!("{reason}; the device thread does not end, so this process ends now");
            lockstep_autograd::device::leave(1);
        });
    if let Err(error) = waits {
        tracing::warn!("should the device thread hang, nobody ends this process: {error}");
    }
}

/// The whole life with the coordinator, from joining to the last word; `made` is the step that this rank holds.
fn run(
    session: &mut Session,
    options: &TrainOptions,
    mpi: Option<&'static dyn Mpi>,
    config_toml: &str,
    made: &mut u64,
) -> Result<Outcome, TrainerError> {
    let mut member = Member::start(options, mpi, config_toml)?;
    let keeper = member.keeper.clone();
    let parts = move || keeper.as_ref().map(|keeper| keeper.parts()).unwrap_or_default();
    session.join(member.info()?, parts);
    session.look_for_coordinator(options.coordinator_patience);
    if member.keeper.is_some() && options.leaves_on_sigterm {
        leaving::say_on_sigterm(session.voice())?;
    }
    loop {
        session.activity().waits_in(*made, "outside");
        let generation = match session.next_generation() {
            Err(SessionError::Released { outcome, reason }) if member.has_drifted => {
                session.finish(outcome, *made)?;
                return Err(TrainerError::SetApart(reason));
            }
            next => next?,
        };
        match member.take_part(session, &generation, made) {
            Ok(End::Over(outcome)) => match session.finish(outcome.clone(), *made) {
                Ok(()) => return Ok(outcome),
                // Another rank was lost before it had reported the last steps.
                Err(SessionError::Aborted { reason }) if member.keeper.is_some() => {
                    tracing::warn!("the last steps are made again: {reason}");
                    session.stopped(*made, member.parts(), None);
                }
                Err(error) => return Err(error.into()),
            },
            Ok(End::Regroup) => session.stopped(*made, member.parts(), None),
            Err(error) if member.outlives(&error) => {
                tracing::warn!("this generation is over: {error}");
                let why = why(&error);
                member.has_drifted |= why.drifted.is_some() && why.drifted == member.rank_in(&generation);
                let is_told = session.abort_signal().is_set();
                session.stopped(*made, member.parts(), (!is_told).then_some(why));
            }
            Err(error) => return Err(error),
        }
    }
}

/// What a member says of the error that ended its part in a generation.
fn why(error: &TrainerError) -> Why {
    Why {
        cause: error.to_string(),
        checkpoint_is_bad: matches!(error, TrainerError::Checkpoint(error) if error.refuses()),
        drifted: match error {
            TrainerError::Drift(drift) => Some(drift.rank),
            _ => None,
        },
        unusable: match error {
            TrainerError::Unusable { step, .. } => Some(*step),
            _ => None,
        },
    }
}

/// How a member's part in a generation ended.
enum End {
    /// The run is over.
    Over(Outcome),
    /// All ranks have agreed to form another generation.
    Regroup,
}

/// What a member keeps from one generation to the next.
struct Member {
    options: TrainOptions,
    mpi: Option<&'static dyn Mpi>,
    config: RunConfig,
    dataset: Arc<Dataset>,
    validation: Arc<ValidationSet>,
    order: Order,
    opened: Opened,
    /// Faults that are ordered.
    drill: Drill,
    /// The address at which other hosts reach this one.
    advertise: IpAddr,
    /// Whether a bit of its memory has changed by itself.
    has_drifted: bool,
    /// Where checkpoints lie.
    checkpoints: Place,
    /// Parts of snapshots; none where the world is never formed anew.
    keeper: Option<Arc<Keeper>>,
}

impl Member {
    fn start(options: &TrainOptions, mpi: Option<&'static dyn Mpi>, config_toml: &str) -> Result<Member, TrainerError> {
        let config = RunConfig::parse(config_toml, "the config from the coordinator", &[])?;
        if let Some(run) = options.run.as_ref().filter(|run| **run != config.run.name) {
            return Err(TrainerError::Refused(format!(
                "the coordinator at {} is of the run \"{}\", and this trainer is for the run \"{run}\"; give the run another \
                 port (coordinator.bind), or name its own coordinator with --coordinator",
                options.coordinator, config.run.name
            )));
        }
        let opened = open(&config, local_rank().unwrap_or(0))?;
        tch::set_num_threads(config.run.intra_op_threads as i32);
        let dataset = Arc::new(Dataset::open(&config.data.path)?);
        let validated = match &config.data.validation {
            Some(path) => Arc::new(Dataset::open(path)?),
            None => Arc::clone(&dataset),
        };
        let sequence = config.data.sequence_length;
        let advertise = match options.advertise {
            Some(address) => address,
            None => address_towards(&options.coordinator)?,
        };
        let is_elastic = config.collective.backend != CollectiveBackend::Mpi;
        Ok(Member {
            validation: Arc::new(ValidationSet::new(validated, config.batch.micro_batch, sequence)),
            order: Order::new(config.run.seed, dataset.train().training_samples(sequence)),
            keeper: is_elastic.then(|| Keeper::open(advertise).map(Arc::new)).transpose()?,
            checkpoints: Place::new(store_of(&config, options)),
            drill: Drill::from_environment()?,
            has_drifted: false,
            options: options.clone(),
            mpi,
            config,
            dataset,
            opened,
            advertise,
        })
    }

    /// What it says of itself.
    fn info(&self) -> Result<JoinInfo, TrainerError> {
        let address = |keeper: &Arc<Keeper>| keeper.address().to_string();
        Ok(JoinInfo {
            member: self.options.member.clone(),
            pid: std::process::id(),
            host: host_name(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            config_hash: self.config.hash(),
            data_hash: self.dataset.manifest_hash(),
            fingerprint: fingerprint(&self.config, self.dataset.vocab(), &self.opened)?,
            devices: vec![self.opened.facts.clone().unwrap_or_else(|| "cpu".to_owned())],
            parts_address: self.keeper.as_ref().map(address).unwrap_or_default(),
        })
    }

    /// Its rank in a generation.
    fn rank_in(&self, generation: &Generation) -> Option<u32> {
        generation.place_of(&self.options.member).map(|place| place.rank)
    }

    /// Every part of a snapshot that it holds.
    fn parts(&self) -> Vec<Part> {
        self.keeper.as_ref().map(|keeper| keeper.parts()).unwrap_or_default()
    }

    /// Whether an error ends the generation only: a peer is gone, or the coordinator has ended it.
    fn outlives(&self, error: &TrainerError) -> bool {
        let of_generation = match error {
            TrainerError::Collective(error) => !matches!(error, CollectiveError::Misuse { .. }),
            TrainerError::Session(SessionError::Aborted { .. } | SessionError::Deadline { .. }) => true,
            TrainerError::Parts(_) | TrainerError::Checkpoint(_) | TrainerError::Drift(_) => true,
            TrainerError::Unusable { .. } => true,
            _ => false,
        };
        self.keeper.is_some() && of_generation
    }

    /// Trains in one generation; `made` becomes the step that this rank holds.
    fn take_part(
        &mut self,
        session: &mut Session,
        generation: &Generation,
        made: &mut u64,
    ) -> Result<End, TrainerError> {
        let mut rank = Rank::start(self, session, generation)?;
        *made = rank.made();
        let end = rank.steps(session);
        *made = rank.made();
        match end? {
            End::Over(outcome) => {
                if outcome == Outcome::Stopped {
                    rank.write_last_checkpoint()?;
                }
                rank.write_final(&self.options)?;
                Ok(End::Over(outcome))
            }
            End::Regroup => {
                rank.keep_all()?;
                Ok(End::Regroup)
            }
        }
    }
}

/// The run's folder.
fn run_folder(config: &RunConfig, options: &TrainOptions) -> PathBuf {
    let folder = options.run_dir.clone();
    folder.unwrap_or_else(|| PathBuf::from("runs").join(&config.run.name))
}

/// Where a run's checkpoints lie.
fn store_of(config: &RunConfig, options: &TrainOptions) -> String {
    let folder = || run_folder(config, options).join("checkpoints").display().to_string();
    config.checkpoint.store.clone().unwrap_or_else(folder)
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unknown".to_owned())
}
