//! A whole tiny run in one process: the real coordinator on a free port, and trainers on threads that drive real
//! sessions with made-up hashes. What their collectives would do, agreeing on the newest directive, is `Exchange`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_config::RunConfig;
use lockstep_coordinator::{BegunRun, Coordinator, CoordinatorOptions, Running};
use lockstep_proto::domain::*;
use lockstep_security::Credentials;
use lockstep_session::{Session, SessionError, SessionOptions};
use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A run whose world is fixed: the ranks of these tests cannot form another one.
pub(crate) fn config(steps: u64) -> RunConfig {
    config_of(steps, "mpi")
}

pub(crate) fn config_of(steps: u64, backend: &str) -> RunConfig {
    let text = format!(
        r#"
        [run]
        name = "tiny"
        steps = {steps}
        [data]
        path = "data"
        sequence_length = 16
        [model]
        kind = "gpt2"
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 2
        schedule = 8
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
        [validation]
        every = 5
        [collective]
        backend = "{backend}"
        "#
    );
    RunConfig::parse(&text, "test", &[]).unwrap()
}

pub(crate) fn coordinator(folder: &TempDir, ranks: u32, steps: u64) -> Running {
    coordinator_of(config(steps), folder, ranks)
}

pub(crate) fn coordinator_of(config: RunConfig, folder: &TempDir, ranks: u32) -> Running {
    let options = CoordinatorOptions {
        config,
        run_dir: folder.path().join("run"),
        begun: BegunRun::LeftAlone,
        vocabulary: 257,
        ranks,
        training_samples: 100,
        data_hash: "data".to_owned(),
    };
    Coordinator::start(options).unwrap()
}

pub(crate) fn info(rank: u32, config_hash: String) -> JoinInfo {
    JoinInfo {
        member: format!("trainer-{rank}"),
        pid: 9000 + rank,
        host: "here".to_owned(),
        build: "test".to_owned(),
        config_hash,
        data_hash: "data".to_owned(),
        fingerprint: "same".to_owned(),
        devices: vec!["cpu".to_owned()],
        parts_address: String::new(),
    }
}

/// The maximum over the ranks, and a hang-up that every waiting rank sees.
#[derive(Default)]
pub(crate) struct Exchange {
    state: Mutex<(u64, u32, u64, u64, bool)>,
    changed: Condvar,
    /// Ranks that wait in a pause, and the last step that they made.
    pub(crate) paused: AtomicU32,
    pub(crate) paused_after: AtomicU64,
}

impl Exchange {
    pub(crate) fn maximum(&self, ranks: u32, word: u64) -> Option<u64> {
        let mut state = self.state.lock().unwrap();
        let round = state.0;
        state.1 += 1;
        state.2 = state.2.max(word);
        if state.1 == ranks {
            *state = (round + 1, 0, 0, state.2, state.4);
            self.changed.notify_all();
            return (!state.4).then_some(state.3);
        }
        while state.0 == round && !state.4 {
            state = self.changed.wait(state).unwrap();
        }
        (!state.4).then_some(state.3)
    }

    pub(crate) fn hang_up(&self) {
        self.state.lock().unwrap().4 = true;
        self.changed.notify_all();
    }
}

/// What a trainer of a test does besides training.
#[derive(Clone, Copy, Default)]
pub(crate) struct Behaviour {
    /// Drops its session, as a killed process would, before this step.
    pub(crate) dies_before: Option<u64>,
    /// Reports another hash for this step.
    pub(crate) differs_at: Option<u64>,
    /// Time that a step takes.
    pub(crate) step: Duration,
}

pub(crate) struct Trainers {
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) threads: Vec<JoinHandle<Result<u64, SessionError>>>,
}

impl Trainers {
    pub(crate) fn start(running: &Running, ranks: u32, behaviour: impl Fn(u32) -> Behaviour) -> Trainers {
        let exchange = Arc::new(Exchange::default());
        let threads = (0..ranks)
            .map(|rank| {
                let (exchange, behaviour) = (exchange.clone(), behaviour(rank));
                let address = format!("http://{}", running.address());
                std::thread::spawn(move || train(address, rank, ranks, behaviour, &exchange))
            })
            .collect();
        Trainers { exchange, threads }
    }

    pub(crate) fn join(self) -> Vec<Result<u64, SessionError>> {
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

/// What rank 0 says of a step: every second step is of an optimiser without a model of the loss.
pub(crate) fn metrics_of(step: u64) -> StepMetrics {
    let modelled = step % 2 == 1;
    StepMetrics {
        loss: 4.0 / step as f64,
        tokens: 128,
        step_ms: 2.0,
        phases: vec![("forward".to_owned(), 1.0)],
        polar_factors: 6,
        model_value: modelled.then_some(3.0 / step as f64),
        dual_norm: modelled.then_some(step as f64),
        lower_bound: modelled.then_some(0.0),
        orthogonality: modelled.then(|| Orthogonality {
            tensor: format!("h.{step}.mlp.c_fc.weight"),
            error: 0.5 / step as f64,
        }),
        skipped: None,
        ..StepMetrics::default()
    }
}

pub(crate) fn hash_of(step: u64) -> [u8; 32] {
    [step as u8; 32]
}

/// The way of a device thread.
fn train(
    coordinator: String,
    number: u32,
    ranks: u32,
    behaviour: Behaviour,
    exchange: &Arc<Exchange>,
) -> Result<u64, SessionError> {
    let options = SessionOptions {
        coordinator,
        credentials: Credentials::default(),
        member: format!("trainer-{number}"),
        patience: PATIENCE,
    };
    let (mut session, welcome) = Session::connect(options)?;
    let hung = exchange.clone();
    session.abort_signal().on_abort(Box::new(move || hung.hang_up()));
    let config = RunConfig::parse(&welcome.config_toml, "welcome", &[]).unwrap();
    session.join(info(number, config.hash()), Vec::new);
    let generation = session.next_generation()?;
    let place = generation.place_of(&format!("trainer-{number}")).unwrap().clone();
    assert_eq!((place.rank, generation.ranks()), (number, ranks));
    let id = session.exchange_comm_id(place.rank == 0, || generation.secret.to_vec())?;
    assert_eq!(id, generation.secret);
    session.ready(Ready {
        hash: hash_of(0),
        transports: Vec::new(),
    })?;
    let mut step = 0;
    loop {
        let Some(plan) = session.next_plan(step + 1)? else {
            session.finish(Outcome::Completed, step)?;
            return Ok(step);
        };
        assert_eq!((plan.step, plan.first_sample), (step + 1, step * 8));
        step += 1;
        if behaviour.dies_before == Some(step) {
            return Ok(step - 1);
        }
        session.activity().begins(step, "step");
        std::thread::sleep(behaviour.step);
        let Some(newest) = exchange.maximum(ranks, session.directive().to_word()) else {
            // Another rank's session may have heard of it first.
            let deadline = Instant::now() + PATIENCE;
            while !session.abort_signal().is_set() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            let reason = session.abort_signal().reason().unwrap();
            session.finish(Outcome::Failed { reason: reason.clone() }, step - 1)?;
            return Err(SessionError::Aborted { reason });
        };
        let parameter_hash = if behaviour.differs_at == Some(step) {
            [0xee; 32]
        } else {
            hash_of(step)
        };
        session.report(StepReport {
            stamp: generation.stamp,
            rank: place.rank,
            step,
            parameter_hash,
            metrics: (place.rank == 0).then(|| metrics_of(step)),
            validation: (place.rank == 0 && plan.validate).then_some(Validation { loss: 2.0, tokens: 50 }),
            peak_memory_mib: 100 + u64::from(place.rank),
        })?;
        let mut directive = Directive::from_word(newest).unwrap();
        while directive.kind == DirectiveKind::Pause {
            exchange.paused_after.store(step, Ordering::SeqCst);
            exchange.paused.fetch_add(1, Ordering::SeqCst);
            let seen = session.wait_directive_after(directive.sequence)?;
            exchange.paused.fetch_sub(1, Ordering::SeqCst);
            let newest = exchange.maximum(ranks, seen.to_word()).ok_or(SessionError::Closed)?;
            directive = Directive::from_word(newest).unwrap();
        }
        if directive.kind == DirectiveKind::Stop {
            session.finish(Outcome::Stopped, step)?;
            return Ok(step);
        }
    }
}
