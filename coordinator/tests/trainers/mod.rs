//! Trainers that speak the protocol through a real socket and train nothing: the hash of a step is a function of the
//! step, so whoever makes it again has the same.
#![allow(dead_code)] // Each test file uses its part.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use lockstep_coordinator::Running;
use lockstep_proto::domain::{
    CoordinatorBody, FromCoordinator, FromMember, Generation, Header, JoinInfo, MemberBody, Orthogonality, Outcome,
    Part, Plan, Ready, Stamp, StepMetrics, StepReport, Validation,
};
use lockstep_proto::v1;
use lockstep_proto::v1::training_client::TrainingClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// What a trainer does besides its steps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behaviour {
    /// Holds parts of a snapshot after so many steps; 0: never.
    pub(crate) snapshot_every: u64,
    /// Makes no step after this one, and is gone when it hears that this one is committed.
    pub(crate) dies_after: Option<u64>,
    /// No rank makes a step with this sample in it: the run is to go back.
    pub(crate) bad_sample: Option<u64>,
    /// Makes no step after this one in the first generation, and waits for another one.
    pub(crate) waits_after: Option<u64>,
}

/// Runs `ranks` trainers to their end, in a runtime of this thread.
pub(crate) fn train(running: &Running, config_hash: &str, behaviours: &[Behaviour]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let address = format!("http://{}", running.address());
    runtime.block_on(async {
        let made = Arc::new(watch::Sender::new(Made::new()));
        let mut trainers = Vec::new();
        for (rank, behaviour) in (0..).zip(behaviours) {
            let mut trainer = Trainer::new(rank, running.run_id(), made.clone(), *behaviour);
            let (address, config_hash) = (address.clone(), config_hash.to_owned());
            trainers.push(tokio::spawn(async move { trainer.live(address, config_hash).await }));
        }
        for trainer in trainers {
            trainer.await.unwrap();
        }
    });
}

/// The last step that each rank of a generation has made: as in a collective, nobody is further than one step ahead.
type Made = BTreeMap<(u64, u32), u64>;

/// Hash of the parameters after a step that ended before sample `end`.
pub(crate) fn hash_of(step: u64, end: u64) -> [u8; 32] {
    let mut hash = [7; 32];
    hash[..8].copy_from_slice(&step.to_le_bytes());
    hash[8..16].copy_from_slice(&end.to_le_bytes());
    hash
}

fn part(step: u64, generation: u64, part: u32) -> Part {
    let mut hash = hash_of(step, 0);
    hash[31] = part as u8;
    Part {
        step,
        generation,
        part,
        hash,
    }
}

/// As a small model's rank 0 measures it.
fn metrics(plan: &Plan) -> StepMetrics {
    let number = 1.0 / (plan.step as f64 + 0.3);
    let phases = ["loader", "forward", "backward", "reduce", "step", "gather"];
    StepMetrics {
        loss: 3.0 + number,
        tokens: plan.samples * 16 - 1,
        grad_norm: number * 7.0,
        update_norm: number / 3.0,
        learning_rate: plan.learning_rate,
        effective_learning_rate: plan.learning_rate * 0.9,
        step_ms: 30.0 + number,
        phases: phases
            .map(|phase| (phase.to_owned(), number * phase.len() as f64))
            .into(),
        polar_factors: 4,
        model_value: Some(number + 2.0),
        dual_norm: Some(number * 11.0),
        lower_bound: Some(0.0),
        orthogonality: Some(Orthogonality {
            tensor: "h.0.mlp.c_fc.weight".to_owned(),
            error: number / 100.0,
        }),
        skipped: None,
        gradient_variance: Some(number * 100.0),
        gradient_square: Some(number),
    }
}

struct Trainer {
    index: u32,
    member: String,
    sender: Option<mpsc::Sender<v1::MemberMessage>>,
    run_id: String,
    stamp: Stamp,
    generation: Option<Generation>,
    rank: u32,
    step: u64,
    plans: VecDeque<Plan>,
    /// Whether it has left its generation by itself.
    has_left: bool,
    parts: Vec<Part>,
    /// Where each step that it made ended, as its newest plan had it.
    ends: BTreeMap<u64, u64>,
    made: Arc<watch::Sender<Made>>,
    behaviour: Behaviour,
}

impl Trainer {
    fn new(index: u32, run_id: &str, made: Arc<watch::Sender<Made>>, behaviour: Behaviour) -> Trainer {
        Trainer {
            index,
            member: format!("trainer-{index}"),
            sender: None,
            run_id: run_id.to_owned(),
            stamp: Stamp::default(),
            generation: None,
            rank: 0,
            step: 0,
            plans: VecDeque::new(),
            has_left: false,
            parts: Vec::new(),
            ends: BTreeMap::new(),
            made,
            behaviour,
        }
    }

    fn info(&self, config_hash: String) -> JoinInfo {
        JoinInfo {
            member: self.member.clone(),
            pid: 4000 + self.index,
            host: "host".to_owned(),
            build: "build".to_owned(),
            config_hash,
            data_hash: "data".to_owned(),
            fingerprint: "avx2, 1 thread".to_owned(),
            devices: vec!["cpu".to_owned()],
            parts_address: format!("host:{}", 5000 + self.index),
        }
    }

    async fn live(&mut self, address: String, config_hash: String) {
        let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
        let (sender, receiver) = mpsc::channel(64);
        let mut client = TrainingClient::new(endpoint.connect().await.unwrap());
        let attached = client.attach(ReceiverStream::new(receiver)).await;
        let mut stream = attached.unwrap().into_inner();
        self.sender = Some(sender);
        let mut joins = Some(self.info(config_hash));
        let mut made = self.made.subscribe();
        loop {
            let next = self.plans.front().map(|plan| plan.step);
            let (generation, ranks) = (
                self.stamp.generation,
                self.generation.as_ref().map_or(0, Generation::ranks),
            );
            let others_are_there = async {
                let all = |made: &Made| {
                    let step = |rank| made.get(&(generation, rank)).copied();
                    next.is_some_and(|next| (0..ranks).all(|rank| step(rank).is_some_and(|step| step + 1 >= next)))
                };
                // The sender lives as long as this trainer.
                made.wait_for(all).await.map(drop)
            };
            tokio::select! {
                message = stream.message() => {
                    let Ok(Some(message)) = message else { return };
                    let message = FromCoordinator::try_from(message).unwrap();
                    if let Some(info) = joins.take() {
                        // The first message is the welcome, of the term that goes on.
                        self.stamp = message.header.stamp;
                        self.say(MemberBody::Join(info)).await;
                    }
                    if !self.hear(message).await {
                        return;
                    }
                }
                _others = others_are_there => {
                    if let Some(plan) = self.plans.pop_front() {
                        self.make(&plan).await;
                    }
                }
            }
        }
    }

    fn has_made(&self, step: u64) {
        let of = (self.stamp.generation, self.rank);
        self.made.send_modify(|made| {
            made.insert(of, step);
        });
    }

    async fn say(&self, body: MemberBody) {
        let header = Header {
            run_id: self.run_id.clone(),
            stamp: self.stamp,
        };
        if let Some(sender) = &self.sender {
            // The run may be over; then nobody listens.
            let _heard = sender.send((&FromMember { header, body }).into()).await;
        }
    }

    /// Answers one message. Whether the trainer is still there.
    async fn hear(&mut self, message: FromCoordinator) -> bool {
        match message.body {
            CoordinatorBody::Generation(generation) => {
                self.stamp = generation.stamp;
                self.step = generation.resume.as_ref().map_or(0, |resume| resume.step);
                self.rank = generation.place_of(&self.member).unwrap().rank;
                self.generation = Some(generation);
                self.has_left = false;
                self.plans.clear();
                self.has_made(self.step);
                if self.rank == 0 {
                    self.say(MemberBody::CommId(vec![9; 32])).await;
                    self.ready().await;
                }
            }
            CoordinatorBody::CommId(_) => self.ready().await,
            CoordinatorBody::PlanWindow(plans) => {
                let last = self.plans.back().map_or(self.step, |plan| plan.step);
                let waits = self.behaviour.waits_after.filter(|_| self.stamp.generation == 1);
                let most = self.behaviour.dies_after.or(waits).unwrap_or(u64::MAX);
                let new = plans.into_iter().filter(|plan| plan.step > last && plan.step <= most);
                self.plans.extend(new);
            }
            // One that has left by itself is not asked again.
            CoordinatorBody::Abort { .. } if self.has_left => self.has_left = false,
            CoordinatorBody::Abort { .. } => {
                self.plans.clear();
                self.leave(None, None).await;
            }
            CoordinatorBody::Release { .. } | CoordinatorBody::Acknowledged { finished: true, .. } => return false,
            CoordinatorBody::Acknowledged { step, .. } => {
                return self.behaviour.dies_after.is_none_or(|last| step < last);
            }
            _ => {}
        }
        true
    }

    /// Of the parameters that it holds.
    fn hash(&self) -> [u8; 32] {
        hash_of(self.step, self.ends.get(&self.step).copied().unwrap_or(0))
    }

    async fn leave(&mut self, cause: Option<String>, unusable: Option<u64>) {
        self.has_left = cause.is_some();
        let (step, parts) = (self.step, self.parts.clone());
        self.say(MemberBody::Stopped {
            step,
            cause,
            parts,
            checkpoint_is_bad: false,
            drifted: None,
            unusable,
        })
        .await;
    }

    async fn ready(&self) {
        let (hash, transports) = (self.hash(), Vec::new());
        self.say(MemberBody::Ready(Ready { hash, transports })).await;
    }

    /// Makes a step.
    async fn make(&mut self, plan: &Plan) {
        let samples = plan.first_sample..plan.first_sample + plan.samples;
        if self.behaviour.bad_sample.is_some_and(|bad| samples.contains(&bad)) {
            self.plans.clear();
            let cause = format!("step {}: the loss is 99", plan.step);
            return self.leave(Some(cause), Some(plan.step)).await;
        }
        self.ends.insert(plan.step, samples.end);
        self.step = plan.step;
        self.has_made(plan.step);
        let is_first = self.rank == 0;
        let report = StepReport {
            stamp: self.stamp,
            rank: self.rank,
            step: plan.step,
            parameter_hash: self.hash(),
            metrics: is_first.then(|| metrics(plan)),
            validation: (is_first && plan.validate).then_some(Validation { loss: 2.5, tokens: 99 }),
            peak_memory_mib: 100,
        };
        self.say(MemberBody::Report(report)).await;
        let every = self.behaviour.snapshot_every;
        if every > 0 && plan.step.is_multiple_of(every) {
            let ranks = self.generation.as_ref().map_or(1, Generation::ranks);
            let held = [self.rank, (self.rank + 1) % ranks].map(|of| part(plan.step, self.stamp.generation, of));
            for part in held.into_iter().take(ranks as usize) {
                self.parts.push(part);
                self.say(MemberBody::Holds(part)).await;
            }
        }
        if plan.last {
            let (outcome, step) = (Outcome::Completed, plan.step);
            self.say(MemberBody::Finished { outcome, step }).await;
        }
    }
}
