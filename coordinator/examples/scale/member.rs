//! One trainer that speaks the protocol through a connection of its own and trains nothing: the hash of a step is a function
//! of the step. It says twice a second what it does, as trainers do.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lockstep_proto::PROTOCOL_VERSION;
use lockstep_proto::v1;
use lockstep_proto::v1::coordinator_message::Body as Heard;
use lockstep_proto::v1::member_message::Body as Said;
use lockstep_proto::v1::training_client::TrainingClient;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// How often a member says what it does.
const EVERY: Duration = Duration::from_millis(500);
/// Messages of a member that may wait for its stream.
const WAITING: usize = 8;
/// Connections that are opened at a time.
pub(crate) const OPENED: usize = 32;

/// What all members of a load share.
pub(crate) struct Crew {
    pub(crate) address: String,
    pub(crate) config_hash: String,
    pub(crate) data_hash: String,
    pub(crate) members: u32,
    /// Whether each says how it reaches every other.
    pub(crate) transports: bool,
    /// The step that every rank may have made.
    pub(crate) released: watch::Receiver<u64>,
    /// How many open their connections at a time.
    pub(crate) opening: Semaphore,
    pub(crate) tally: Tally,
}

/// What the members have come to.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) joined: AtomicU32,
    pub(crate) ready: AtomicU32,
    /// Ranks that have plans.
    pub(crate) planned: AtomicU32,
    /// Reports of all steps.
    pub(crate) reports: AtomicU64,
    /// The newest step that rank 0 has a plan for.
    pub(crate) plans: AtomicU64,
    /// Bytes of plan windows that all members took.
    pub(crate) messages: AtomicU64,
    /// When rank 0 heard that a step is committed.
    pub(crate) committed: Mutex<Vec<(u64, Instant)>>,
}

struct Member<'a> {
    crew: &'a Crew,
    index: u32,
    header: v1::Header,
    rank: Option<u32>,
    reported: u64,
    planned: u64,
    /// The last step of the run, once it is planned.
    last: Option<u64>,
    counter: u64,
    sender: mpsc::Sender<v1::MemberMessage>,
}

/// Lives until the coordinator has taken its farewell.
pub(crate) async fn live(crew: &Crew, index: u32) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let attached = {
        let _turn = crew.opening.acquire().await?;
        let channel = Endpoint::from_shared(crew.address.clone())?.connect().await?;
        TrainingClient::new(channel).attach(ReceiverStream::new(receiver)).await
    };
    let mut stream = attached
        .with_context(|| format!("member {index} cannot attach"))?
        .into_inner();
    let mut member = Member {
        crew,
        index,
        header: v1::Header::default(),
        rank: None,
        reported: 0,
        planned: 0,
        last: None,
        counter: 0,
        sender,
    };
    let mut released = crew.released.clone();
    // Members begin at different moments, so they do not all speak at once.
    let share = f64::from(index) / f64::from(crew.members);
    let mut words = tokio::time::interval_at((Instant::now() + EVERY + EVERY.mul_f64(share)).into(), EVERY);
    words.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let may_report = member.rank.is_some() && member.reported < member.planned;
        let next = member.reported + 1;
        tokio::select! {
            message = stream.message() => match message.with_context(|| format!("member {index} was cut"))? {
                Some(message) => if !member.hear(message).await? { return Ok(()) },
                None => bail!("the stream of member {index} ended before the run"),
            },
            made = async { released.wait_for(|step| *step >= next).await.map(drop) }, if may_report => {
                made?;
                member.report(next).await?;
            }
            _tick = words.tick() => member.progress().await?,
        }
    }
}

impl Member<'_> {
    async fn say(&self, body: Said) -> anyhow::Result<()> {
        let message = v1::MemberMessage {
            header: Some(self.header.clone()),
            body: Some(body),
        };
        self.sender.send(message).await.context("the stream takes no more")
    }

    /// Answers a message. Whether the member is still there.
    async fn hear(&mut self, message: v1::CoordinatorMessage) -> anyhow::Result<bool> {
        let tally = &self.crew.tally;
        tally.messages.fetch_add(1, Ordering::Relaxed);
        match message.body {
            Some(Heard::Welcome(_)) => {
                self.header = message.header.unwrap_or_default();
                self.header.protocol_version = PROTOCOL_VERSION;
                self.say(Said::Join(self.info())).await?;
                tally.joined.fetch_add(1, Ordering::Relaxed);
            }
            Some(Heard::Generation(generation)) => {
                self.header.generation = message.header.map_or(0, |header| header.generation);
                let name = self.name();
                let place = generation.members.iter().find(|place| place.member == name);
                self.rank = place.map(|place| place.rank);
                if self.rank == Some(0) {
                    self.say(Said::CommId(v1::CommId { id: vec![9; 32] })).await?;
                    self.ready().await?;
                }
            }
            Some(Heard::CommId(_)) => self.ready().await?,
            Some(Heard::PlanWindow(window)) => {
                if self.planned == 0 {
                    tally.planned.fetch_add(1, Ordering::Relaxed);
                }
                for plan in window.plans {
                    self.planned = self.planned.max(plan.step);
                    self.last = plan.last.then_some(plan.step).or(self.last);
                }
                if self.rank == Some(0) {
                    tally.plans.store(self.planned, Ordering::Relaxed);
                }
            }
            Some(Heard::Acknowledged(v1::Acknowledged { finished: true, .. }) | Heard::Release(_)) => return Ok(false),
            Some(Heard::Acknowledged(v1::Acknowledged { step, .. })) if self.rank == Some(0) => {
                if let Ok(mut committed) = tally.committed.lock() {
                    committed.push((step, Instant::now()));
                }
            }
            Some(Heard::Abort(v1::Abort { reason })) => bail!("the generation was aborted: {reason}"),
            _ => {}
        }
        Ok(true)
    }

    fn name(&self) -> String {
        format!("trainer-{}", self.index)
    }

    fn info(&self) -> v1::Join {
        v1::Join {
            member: self.name(),
            pid: 4000 + self.index,
            host: format!("host-{}", self.index / 8),
            build: "build".to_owned(),
            config_hash: self.crew.config_hash.clone(),
            data_hash: self.crew.data_hash.clone(),
            fingerprint: "avx2, 1 thread".to_owned(),
            devices: vec!["cpu".to_owned()],
            parts_address: format!("host-{}:{}", self.index / 8, 5000 + self.index % 8),
        }
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let name = |other: u32| match other {
            other if Some(other) == self.rank => "",
            other if other / 8 == self.index / 8 => "shared memory",
            _ => "tcp",
        };
        let others = if self.crew.transports { self.crew.members } else { 0 };
        let transports = (0..others).map(|other| name(other).to_owned()).collect();
        let parameter_hash = vec![0; 32];
        self.say(Said::Ready(v1::Ready {
            parameter_hash,
            transports,
        }))
        .await?;
        self.crew.tally.ready.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Says that a step is made; after the last one, that its part is over.
    async fn report(&mut self, step: u64) -> anyhow::Result<()> {
        let rank = self.rank.unwrap_or_default();
        let mut hash = vec![7; 32];
        hash[..8].copy_from_slice(&step.to_le_bytes());
        let report = v1::StepReport {
            rank,
            step,
            parameter_hash: hash,
            metrics: (rank == 0).then(|| v1::StepMetrics {
                loss: 2.5,
                tokens: 64,
                step_ms: 1000.0,
                polar_factors: 4,
                ..v1::StepMetrics::default()
            }),
            validation: (rank == 0 && self.last == Some(step)).then_some(v1::Validation { loss: 2.5, tokens: 99 }),
            peak_memory_mib: 100,
        };
        self.say(Said::Report(report)).await?;
        (self.reported, self.counter) = (step, self.counter + 1);
        self.crew.tally.reports.fetch_add(1, Ordering::Relaxed);
        if self.last == Some(step) {
            let kind = Some(v1::outcome::Kind::Completed(v1::outcome::Completed {}));
            let outcome = Some(v1::Outcome { kind });
            self.say(Said::Finished(v1::Finished { outcome, step })).await?;
        }
        Ok(())
    }

    async fn progress(&mut self) -> anyhow::Result<()> {
        if self.header.run_id.is_empty() {
            return Ok(()); // not welcomed yet
        }
        self.counter += 1;
        self.say(Said::Progress(v1::Progress {
            step: self.reported + 1,
            phase: "forward".to_owned(),
            counter: self.counter,
            longest_ms: Some(900),
            waits: false,
        }))
        .await
    }
}
