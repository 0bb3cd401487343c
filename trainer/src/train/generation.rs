//! One member in one generation: communicator → loaded → ready → plans and steps → reports.

use std::sync::Arc;
use std::time::Instant;

use lockstep_collective::Aborter;
use lockstep_config::{Device, LOCAL_RANK, RunConfig};
use lockstep_data::{Dataset, Loader, ValidationSet, micro_batch_samples};
use lockstep_proto::domain::{
    Directive, DirectiveKind, Generation, Orthogonality, Outcome, Plan, Ready, StepMetrics, StepReport, Validation,
};
use lockstep_session::{Activity, Session};

use crate::device::opening::{Opened, open, place_on_host};
use crate::device::statistics::DeviceMemory;
use crate::error::TrainerError;
use crate::memory_account::MemoryAccount;
use crate::model::choice::from_config;
use crate::snapshot::checkpoint::Writing;
use crate::snapshot::keeping::{self, Keeping};
use crate::started::local_rank;
use crate::step::{Engine, StepOutcome};
use crate::train::meeting::{Place, meet};
use crate::train::{End, Member, TrainOptions, run_folder};
use crate::weights_file::Writer;

/// Micro-batches that the loader prepares ahead.
const AHEAD: usize = 8;

/// One rank of one generation.
pub(super) struct Rank {
    config: RunConfig,
    dataset: Arc<Dataset>,
    validation: Arc<ValidationSet>,
    generation: Generation,
    rank: u32,
    engine: Engine,
    /// What is known of the memory of its device.
    memory: DeviceMemory,
    loader: Loader,
    /// Carries its snapshots, where there are any.
    keeping: Option<Keeping>,
    /// Writes its parts of checkpoints, until the last one.
    writing: Option<Writing>,
    /// The newest step of which its part was handed over.
    written: u64,
    /// The step whose parameters it holds.
    made: u64,
    /// The newest directive that all ranks have agreed on in this generation.
    handled: u64,
    /// Where this thread writes down what it does.
    activity: Arc<Activity>,
    /// What keeping the state after the last step took, in milliseconds: part of the next step's time.
    keep_ms: f64,
}

impl Rank {
    /// Meets the other ranks and loads what the generation begins with.
    pub(super) fn start(
        member: &mut Member,
        session: &mut Session,
        generation: &Generation,
    ) -> Result<Rank, TrainerError> {
        let config = member.config.clone();
        let place = generation.place_of(&member.options.member).ok_or_else(|| {
            TrainerError::Broken(format!(
                "the generation has no place for this member, {}",
                member.options.member
            ))
        })?;
        let (rank, world) = (place.rank, generation.ranks());
        let index = place_on_host(generation, &member.options.member);
        if local_rank().is_none() && index > 0 && config.run.device == Device::Cuda {
            member.opened = another(&config, index, &member.opened)?;
        }
        let account = MemoryAccount::of(&config, member.dataset.vocab(), rank, world)?;
        let aborter = Aborter::default();
        let signal = session.abort_signal();
        let (told, reasons) = (aborter.clone(), signal.clone());
        signal.on_abort(Box::new(move || told.abort(&reasons.reason().unwrap_or_default())));
        let place = Place {
            rank,
            size: world,
            advertise: member.advertise,
            aborter,
        };
        let compute = &member.opened.compute;
        let activity = session.activity();
        activity.waits_in(first_step(generation), "meet");
        let communication = meet(session, &config, member.mpi, place, generation, compute)?;
        activity.begins(first_step(generation), "build");
        let lanes = generation.members.iter().map(|m| m.lanes.clone()).collect();
        let model = from_config(&config, member.dataset.vocab());
        let memory = DeviceMemory::new(compute, account);
        let engine = Engine::new(&config, model, communication, lanes, compute);
        let mut engine = engine.map_err(|error| memory.explain(error))?;
        engine.order(member.drill.clone());
        engine.watch(Arc::clone(&activity));
        let made = first_step(generation);
        if let Some(resume) = &generation.resume {
            activity.waits_in(resume.step, "load");
            match (resume.checkpoint, &member.keeper) {
                (Some(checkpoint), _) => engine.load(&member.checkpoints.load(checkpoint)?)?,
                (None, Some(keeper)) => engine.load(&keeping::fetch(keeper, resume, &signal)?)?,
                (None, None) => {}
            }
        }
        let transports = engine.transports();
        session.ready(Ready {
            hash: engine.parameter_hash()?,
            transports,
        })?;
        let (name, number) = (&member.options.member, generation.stamp.generation);
        tracing::info!(
            "{name} is rank {rank} of {world} in generation {number}, and trains from step {}",
            made + 1
        );
        let keeper = member.keeper.as_ref();
        let writing = Writing::start(&member.checkpoints, session.voice())?;
        let keeping = keeper.map(|keeper| Keeping::start(keeper, generation, rank, session.voice(), signal));
        let sequence = config.data.sequence_length;
        let rank = Rank {
            loader: Loader::start(Arc::clone(&member.dataset), member.order, sequence, AHEAD)?,
            dataset: Arc::clone(&member.dataset),
            validation: Arc::clone(&member.validation),
            generation: generation.clone(),
            keeping: keeping.transpose()?,
            writing: Some(writing),
            written: 0,
            config,
            rank,
            engine,
            memory,
            made,
            handled: 0,
            activity,
            keep_ms: 0.0,
        };
        if made > 0 {
            // The parts that it began with belong to another world, and their holders may go.
            rank.snapshot()?;
        }
        Ok(rank)
    }

    /// The step whose parameters it holds.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// Freezes what this rank owns, and lets it be kept and copied while the next steps go on.
    fn snapshot(&self) -> Result<(), TrainerError> {
        let fault = &self.config.fault;
        // A single rank would lose its own with itself, but it may be told to go back.
        let is_wanted = fault.snapshot_every > 0 && (self.generation.ranks() > 1 || fault.may_rewind());
        let Some(keeping) = self.keeping.as_ref().filter(|_| is_wanted) else {
            return Ok(());
        };
        if !keeping.hand_over(self.made, self.engine.freeze(self.made)?) {
            tracing::warn!("no snapshot of step {}: two older ones are still under way", self.made);
        }
        Ok(())
    }

    /// Keeps what this rank owns, for the next generation.
    pub(super) fn keep_all(&self) -> Result<(), TrainerError> {
        if let Some(keeping) = &self.keeping {
            keeping.keep_now(self.made, self.engine.freeze(self.made)?);
        }
        Ok(())
    }

    /// Freezes what this rank owns, and lets it be written while the next steps go on.
    fn checkpoint(&mut self) -> Result<(), TrainerError> {
        let Some(writing) = &self.writing else { return Ok(()) };
        match writing.hand_over(self.engine.freeze_for_store(self.made)?) {
            true => self.written = self.made,
            false => tracing::warn!(
                "no checkpoint of step {}: two older ones are still being written",
                self.made
            ),
        }
        Ok(())
    }

    /// The run has been stopped after a step: it can go on from there.
    pub(super) fn write_last_checkpoint(&mut self) -> Result<(), TrainerError> {
        let Some(writing) = self.writing.take().filter(|_| self.written < self.made) else {
            return Ok(());
        };
        writing.finish(self.engine.freeze_for_store(self.made)?);
        Ok(())
    }

    /// Steps until a plan says that it is the last one, or all ranks have agreed to stop or to regroup.
    pub(super) fn steps(&mut self, session: &Session) -> Result<End, TrainerError> {
        loop {
            self.activity.waits_in(self.made + 1, "plan");
            let Some(plan) = session.next_plan(self.made + 1)? else {
                return Ok(End::Over(Outcome::Stopped));
            };
            self.activity.begins(plan.step, "data");
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
            // A step that is made again stopped the run once, and was gone on from.
            let ends_here = plan.stop && plan.step > self.generation.replay_through;
            let validation = match plan.validate || plan.last || stopping || ends_here {
                true => {
                    self.activity.begins(plan.step, "validation");
                    Some(self.engine.validate(&self.validation)?)
                }
                false => None,
            };
            self.activity.waits_in(plan.step, "report");
            session.report(self.report(&plan, outcome, validation))?;
            if plan.last {
                return Ok(End::Over(Outcome::Completed));
            }
            let began = Instant::now();
            self.activity.begins(plan.step, "keep");
            if plan.checkpoint {
                self.checkpoint()?;
            }
            if plan.step.checked_rem(self.config.fault.snapshot_every) == Some(0) {
                self.snapshot()?;
            }
            self.keep_ms = began.elapsed().as_secs_f64() * 1e3;
            if let Some(keeping) = &self.keeping {
                keeping.free_before(session.parts_may_be_freed_before());
            }
            if ends_here {
                return Ok(End::Over(Outcome::Stopped));
            }
            match directive {
                Some(DirectiveKind::Stop) => return Ok(End::Over(Outcome::Stopped)),
                Some(DirectiveKind::Regroup) => return Ok(End::Regroup),
                Some(DirectiveKind::Pause) => {
                    self.activity.waits_in(plan.step, "paused");
                    match self.pause(session)? {
                        DirectiveKind::Stop => return Ok(End::Over(Outcome::Stopped)),
                        DirectiveKind::Regroup => return Ok(End::Regroup),
                        _ => {}
                    }
                }
                Some(DirectiveKind::None | DirectiveKind::Resume) | None => {}
            }
        }
    }

    /// The agreed directive, if it is newer than the last one that was handled. While committed steps are made again
    /// directives wait.
    fn newer(&mut self, word: u64) -> Option<DirectiveKind> {
        if self.made < self.generation.replay_through {
            return None;
        }
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

    fn report(&self, plan: &Plan, mut outcome: StepOutcome, validation: Option<Validation>) -> StepReport {
        outcome.phases.push(("keep_ms".to_owned(), self.keep_ms));
        StepReport {
            stamp: self.generation.stamp,
            rank: self.rank,
            step: plan.step,
            parameter_hash: outcome.parameter_hash,
            metrics: (self.rank == 0).then_some(StepMetrics {
                skipped: outcome.skipped,
                loss: outcome.loss,
                tokens: outcome.tokens,
                grad_norm: outcome.grad_norm,
                gradient_variance: outcome.noise.map(|noise| noise.variance),
                gradient_square: outcome.noise.map(|noise| noise.square),
                update_norm: outcome.update_norm,
                learning_rate: plan.learning_rate,
                effective_learning_rate: outcome.effective_learning_rate,
                step_ms: outcome.step_ms + self.keep_ms,
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
    pub(super) fn write_final(&mut self, options: &TrainOptions) -> Result<(), TrainerError> {
        self.activity.waits_in(self.made, "files");
        self.engine.settle()?;
        let folder = run_folder(&self.config, options);
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

/// The step that a generation begins with.
fn first_step(generation: &Generation) -> u64 {
    generation.resume.as_ref().map_or(0, |resume| resume.step)
}

/// The highest resident memory of this process so far.
fn peak_memory_mib() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    // Linux gives kibibytes.
    usage.map(|usage| usage.max_rss().unsigned_abs() / 1024).unwrap_or(0)
}
