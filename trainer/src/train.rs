//! The life of a trainer: connect → join → generation → communicator → ready → plans and steps → reports → final files.
//!
//! The thread that calls [`train`] drives the device; the session carries the connection on threads of its own. Decisions
//! that concern all ranks (the verdict on a step, pause, stop) are taken from exchanged slots only.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{Aborter, Collective, CollectiveError};
use lockstep_config::{Device, LOCAL_RANK, RunConfig};
use lockstep_data::{Dataset, Loader, Order, ValidationSet, micro_batch_samples};
use lockstep_proto::domain::{
    Directive, DirectiveKind, Generation, JoinInfo, Orthogonality, Outcome, Plan, Ready, StepMetrics, StepReport,
    Validation,
};
use lockstep_session::{Session, SessionOptions};

use crate::device::opening::{Opened, open, place_on_host};
use crate::device::statistics::DeviceMemory;
use crate::error::TrainerError;
use crate::fingerprint::fingerprint;
use crate::memory_account::MemoryAccount;
use crate::model::choice::from_config;
use crate::started::local_rank;
use crate::step::{Engine, StepOutcome};
use crate::weights_file::Writer;

mod meeting;

use meeting::{Place, address_towards, meet};

/// How long a trainer waits for the coordinator and for its peers to meet.
const PATIENCE: Duration = Duration::from_secs(60);
/// Micro-batches that the loader prepares ahead.
const AHEAD: usize = 8;

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
    /// The coordinator's address, `http://HOST:PORT`.
    pub coordinator: String,
    /// The name of this member.
    pub member: String,
    /// The run's folder; `runs/NAME` under the current directory if not given.
    pub run_dir: Option<PathBuf>,
    /// The address at which other hosts reach this one; if not given, the one that leads to the coordinator.
    pub advertise: Option<IpAddr>,
}

/// Trains until the coordinator's plans end, or until it is stopped or something fails. A failure is reported to the
/// coordinator before it is returned.
pub fn train(options: &TrainOptions, mpi: Option<&'static dyn Mpi>) -> Result<Outcome, TrainerError> {
    let (mut session, welcome) = Session::connect(SessionOptions {
        coordinator: options.coordinator.clone(),
        member: options.member.clone(),
        patience: PATIENCE,
    })?;
    let mut made = 0;
    match run(&mut session, options, mpi, &welcome.config_toml, &mut made) {
        Ok(outcome) => {
            session.finish(outcome.clone(), made)?;
            Ok(outcome)
        }
        Err(error) => {
            // An abort came from the coordinator, which knows already why the run ends.
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

/// The whole life between the first and the last word with the coordinator; `made` counts the steps.
fn run(
    session: &mut Session,
    options: &TrainOptions,
    mpi: Option<&'static dyn Mpi>,
    config_toml: &str,
    made: &mut u64,
) -> Result<Outcome, TrainerError> {
    let mut trainer = Trainer::start(session, options, mpi, config_toml)?;
    let result = trainer.steps(session);
    *made = trainer.made;
    let outcome = result?;
    trainer.write_final(options)?;
    Ok(outcome)
}

/// One member in one generation.
struct Trainer {
    config: RunConfig,
    dataset: Arc<Dataset>,
    validation: ValidationSet,
    generation: Generation,
    rank: u32,
    engine: Engine,
    /// What is known of the memory of its device.
    memory: DeviceMemory,
    loader: Loader,
    /// Steps made so far.
    made: u64,
    /// The newest directive that all ranks have agreed on.
    handled: u64,
}

impl Trainer {
    fn start(
        session: &mut Session,
        options: &TrainOptions,
        mpi: Option<&'static dyn Mpi>,
        config_toml: &str,
    ) -> Result<Trainer, TrainerError> {
        let config = RunConfig::parse(config_toml, "the config from the coordinator", &[])?;
        let told = local_rank();
        let mut opened = open(&config, told.unwrap_or(0))?;
        tch::set_num_threads(config.run.intra_op_threads as i32);
        let dataset = Arc::new(Dataset::open(&config.data.path)?);
        let validated = match &config.data.validation {
            Some(path) => Arc::new(Dataset::open(path)?),
            None => Arc::clone(&dataset),
        };
        let sequence = config.data.sequence_length;
        let validation = ValidationSet::new(validated, config.batch.micro_batch, sequence);
        let order = Order::new(config.run.seed, dataset.train().training_samples(sequence));
        let generation = session.join(JoinInfo {
            member: options.member.clone(),
            pid: std::process::id(),
            host: host_name(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            config_hash: config.hash(),
            data_hash: dataset.manifest_hash(),
            fingerprint: fingerprint(&config, &opened)?,
            devices: vec![opened.facts.clone().unwrap_or_else(|| "cpu".to_owned())],
        })?;
        let place = generation.place_of(&options.member).ok_or_else(|| {
            TrainerError::Broken(format!(
                "the generation has no place for this member, {}",
                options.member
            ))
        })?;
        let (rank, world) = (place.rank, generation.ranks());
        let index = place_on_host(&generation, &options.member);
        if told.is_none() && index > 0 && config.run.device == Device::Cuda {
            opened = another(&config, index, &opened)?;
        }
        let account = MemoryAccount::of(&config, dataset.vocab(), rank, world)?;
        let aborter = Aborter::default();
        let signal = session.abort_signal();
        let (told, reasons) = (aborter.clone(), signal.clone());
        signal.on_abort(Box::new(move || told.abort(&reasons.reason().unwrap_or_default())));
        let advertise = match options.advertise {
            Some(address) => address,
            None => address_towards(&options.coordinator)?,
        };
        let meeting = Place {
            rank,
            size: world,
            advertise,
            aborter,
        };
        let communication = meet(session, &config, mpi, meeting, &generation, &opened.compute)?;
        let lanes = generation.members.iter().map(|m| m.lanes.clone()).collect();
        let model = from_config(&config, dataset.vocab());
        let memory = DeviceMemory::new(&opened.compute, account);
        let engine = Engine::new(&config, model, communication, lanes, &opened.compute);
        let mut engine = engine.map_err(|error| memory.explain(error))?;
        let transports = engine.transports();
        session.ready(Ready {
            hash: engine.parameter_hash()?,
            transports,
        })?;
        let loader = Loader::start(Arc::clone(&dataset), order, sequence, AHEAD)?;
        Ok(Trainer {
            config,
            dataset,
            validation,
            generation,
            rank,
            engine,
            memory,
            loader,
            made: 0,
            handled: 0,
        })
    }

    /// Steps until a plan says that it is the last one, or all ranks have agreed to stop.
    fn steps(&mut self, session: &Session) -> Result<Outcome, TrainerError> {
        loop {
            session.progress(self.made + 1, "plan");
            let Some(plan) = session.next_plan(self.made + 1)? else {
                return Ok(Outcome::Stopped);
            };
            session.progress(plan.step, "step");
            for index in self.engine.micro_batches_of(&plan) {
                self.loader.submit(micro_batch_samples(
                    plan.first_sample,
                    self.config.batch.micro_batch,
                    index,
                ));
            }
            let loader = &mut self.loader;
            let outcome = self
                .engine
                .step(&plan, session.directive().to_word(), &mut || Ok(loader.next()?));
            let outcome = outcome.map_err(|error| self.memory.explain(error))?;
            self.memory.watch(plan.step)?;
            self.made = plan.step;
            let directive = self.newer(outcome.directive);
            let stopping = matches!(directive, Some(DirectiveKind::Stop));
            let validation = match plan.validate || plan.last || stopping {
                true => {
                    session.progress(plan.step, "validation");
                    Some(self.engine.validate(&self.validation)?)
                }
                false => None,
            };
            session.report(self.report(&plan, outcome, validation))?;
            if plan.last {
                return Ok(Outcome::Completed);
            }
            match directive {
                Some(DirectiveKind::Stop) => return Ok(Outcome::Stopped),
                Some(DirectiveKind::Pause) => {
                    session.progress(plan.step, "paused");
                    if self.pause(session)? == DirectiveKind::Stop {
                        return Ok(Outcome::Stopped);
                    }
                }
                Some(DirectiveKind::None | DirectiveKind::Resume) | None => {}
            }
        }
    }

    /// The agreed directive, if it is newer than the last one that was handled.
    fn newer(&mut self, word: u64) -> Option<DirectiveKind> {
        let directive = Directive::from_word(word)?;
        (directive.sequence > self.handled).then(|| {
            self.handled = directive.sequence;
            directive.kind
        })
    }

    /// Waits, with all ranks, until the newest directive that any of them has seen is no pause.
    fn pause(&mut self, session: &Session) -> Result<DirectiveKind, TrainerError> {
        loop {
            session.wait_directive_after(self.handled)?;
            let word = self.engine.agree(session.directive().to_word())?;
            match self.newer(word) {
                Some(DirectiveKind::Pause) | None => {}
                Some(kind) => return Ok(kind),
            }
        }
    }

    fn report(&self, plan: &Plan, outcome: StepOutcome, validation: Option<Validation>) -> StepReport {
        StepReport {
            stamp: self.generation.stamp,
            rank: self.rank,
            step: plan.step,
            parameter_hash: outcome.parameter_hash,
            metrics: (self.rank == 0).then_some(StepMetrics {
                loss: outcome.loss,
                tokens: outcome.tokens,
                grad_norm: outcome.grad_norm,
                update_norm: outcome.update_norm,
                learning_rate: plan.learning_rate,
                effective_learning_rate: outcome.effective_learning_rate,
                step_ms: outcome.step_ms,
                phases: outcome.phases,
                polar_factors: outcome.polar_factors,
                model_value: outcome.model.map(|model| model.value),
                lower_bound: outcome.model.map(|model| model.lower_bound),
                dual_norm: outcome.dual_norm,
                orthogonality: outcome
                    .orthogonality
                    .map(|(tensor, error)| Orthogonality { tensor, error }),
            }),
            validation: validation.filter(|_| self.rank == 0),
            peak_memory_mib: self.memory.peak_mib().unwrap_or_else(peak_memory_mib),
        }
    }

    /// The float32 masters of all owners go to rank 0, which writes them with tokenizer and config.
    fn write_final(&mut self, options: &TrainOptions) -> Result<(), TrainerError> {
        self.engine.settle()?;
        let folder = options
            .run_dir
            .clone()
            .unwrap_or_else(|| PathBuf::from("runs").join(&self.config.run.name));
        let mut writer = Writer::new(folder.join("final"), self.made);
        let writes = self.rank == 0;
        self.engine.gather_masters(|name, shape, values| {
            if writes {
                writer.add(name, shape, values);
            }
            Ok(())
        })?;
        if writes {
            writer.finish(&self.config, self.dataset.folder())?;
        }
        Ok(())
    }
}

/// The GPU of this rank's number on its host, where nobody had said the number before the ranks were known. It must be such a
/// device as the one that the fingerprint speaks of.
fn another(config: &RunConfig, index: usize, first: &Opened) -> Result<Opened, TrainerError> {
    let opened = open(config, index)?;
    match opened.facts == first.facts {
        true => Ok(opened),
        false => Err(TrainerError::Refused(format!(
            "GPU {index} is another device than GPU 0 of this host ({} and {}), and this rank has joined as the latter; set {LOCAL_RANK} to this rank's number on its host",
            opened.facts.unwrap_or_default(),
            first.facts.clone().unwrap_or_default()
        ))),
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unknown".to_owned())
}

/// The highest resident memory of this process so far.
fn peak_memory_mib() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    // Linux gives kibibytes.
    usage.map(|usage| usage.max_rss().unsigned_abs() / 1024).unwrap_or(0)
}
