//! The run's own thread: letters → machine → ledger → files → sends, in this order.
//!
//! What only reports progress (committed steps, validations, their acknowledgements) is gathered for at most
//! [`GATHER`] and made durable in one transaction; everything else goes through at once. In either case nothing is
//! sent before what precedes it is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lockstep_proto::domain::{
    CommittedStep, CoordinatorBody, FromCoordinator, Header, Outcome, RunEnd, RunEvent, RunStatus, Stamp,
};
use lockstep_proto::encoded::Encoded;
use tokio::sync::broadcast;
use tonic::Status;

use crate::dashboard::Board;
use crate::files::RunFiles;
use crate::ledger::{CallRow, Ledger, Recorder};
use crate::run::{Decision, Directive, Effect, Event, Leases, Peer, Phase, Record, Refusal, Run};
use crate::service::checkpoints::Committer;
use crate::service::mailbox::{Letter, Letters, OUTGOING, Outgoing, Reply};
use crate::service::status::refused;
use crate::telemetry::{Fact, Telemetry};

/// How long committed steps may wait for a common transaction.
const GATHER: Duration = Duration::from_millis(50);
/// How often the machine hears of the time.
const TICK: Duration = Duration::from_millis(100);
/// How often the run is shown to whoever watches, at least.
const LOOK: Duration = Duration::from_millis(500);
/// One part in so many of the thread's time goes into looks, at most.
const LOOKS_SHARE: u32 = 20;
/// How long the farewells of members are answered after the end.
const LINGER: Duration = Duration::from_secs(2);
/// Letters that are taken between two transactions.
const BATCH: usize = 256;
/// Events without a directive that may wait for the next transaction; more of them get one of their own.
const MOST_EVENTS: usize = 256;

/// What the executor is made of.
pub(crate) struct ExecutorParts {
    pub(crate) run: Run,
    pub(crate) leases: Leases,
    pub(crate) recorder: Recorder,
    pub(crate) ledger: Ledger,
    pub(crate) files: RunFiles,
    pub(crate) letters: Letters,
    pub(crate) events: broadcast::Sender<RunEvent>,
    pub(crate) name: String,
    /// The backend of a world of so many ranks.
    pub(crate) backend: Box<dyn Fn(u32) -> &'static str + Send>,
    /// Commits checkpoints.
    pub(crate) committer: Committer,
    /// The step that was committed last, in an earlier term.
    pub(crate) last: Option<CommittedStep>,
    /// The newest validation loss of an earlier term.
    pub(crate) newest_validation: Option<f64>,
    /// What people see.
    pub(crate) board: Arc<Board>,
    /// Makes a trace of the run, where a collector wants one.
    pub(crate) telemetry: Option<Telemetry>,
}

/// The answer to a command: a sentence, and from which step on it shows, where that is one.
type Answer = Result<(String, Option<Effect>), Refusal>;

/// The run's thread. See the module's first lines.
pub(crate) struct Executor {
    parts: ExecutorParts,
    began: Instant,
    members: BTreeMap<Peer, Outgoing>,
    /// The message that was made last, of what body and under which stamp: what is said to many is made once.
    made: Option<(Arc<CoordinatorBody>, Stamp, Encoded)>,
    /// Members that took no more.
    deaf: BTreeSet<Peer>,
    pending: Vec<Directive>,
    /// What a trace shows of what is pending, and when it was decided.
    facts: Vec<(SystemTime, Fact)>,
    pending_since: Option<Instant>,
    /// Whether something pending must not wait for others.
    is_urgent: bool,
    /// Refusals of members that wait for the refused event to be durable.
    refusals: Vec<(Peer, Refusal)>,
    /// Answers that wait for the decision to be durable.
    replies: Vec<(Reply<Answer>, Answer)>,
    /// Who gave orders, and whose calls were refused, since the last transaction.
    calls: Vec<CallRow>,
    told: (&'static str, String),
    /// When the present phase began.
    phase_since: Instant,
    loss: Option<f64>,
    validation_loss: Option<f64>,
    tokens_per_second: Option<f64>,
    ended: Option<(RunEnd, Instant)>,
    next_look: Instant,
    /// Before this not even what people must know at once leads to a look.
    earliest_look: Instant,
    /// The rank that the others waited for at the last look, and where it was.
    waited_for: Option<(String, String)>,
}

impl Executor {
    pub(crate) fn new(parts: ExecutorParts) -> Executor {
        let told = (parts.run.phase().name(), parts.run.reason());
        tracing::info!("{}: {}", told.0, told.1);
        Executor {
            began: Instant::now(),
            members: BTreeMap::new(),
            made: None,
            deaf: BTreeSet::new(),
            pending: Vec::new(),
            facts: Vec::new(),
            pending_since: None,
            is_urgent: false,
            refusals: Vec::new(),
            replies: Vec::new(),
            calls: Vec::new(),
            told,
            phase_since: Instant::now(),
            loss: parts.last.as_ref().map(|step| step.loss),
            validation_loss: parts.newest_validation,
            tokens_per_second: parts.last.as_ref().map(|step| step.tokens_per_second),
            ended: None,
            next_look: Instant::now(),
            earliest_look: Instant::now(),
            waited_for: None,
            parts,
        }
    }

    /// Runs until the run has ended and its members have said farewell, or have had the time to.
    pub(crate) async fn carry(mut self) -> RunEnd {
        let mut next_tick = Instant::now() + TICK;
        loop {
            if let Some((end, since)) = &self.ended
                && (self.members.is_empty() || since.elapsed() >= LINGER)
            {
                let end = end.clone();
                self.flush();
                return end;
            }
            let flush_at = self
                .pending_since
                .map_or(next_tick, |since| (since + GATHER).min(next_tick));
            tokio::select! {
                biased;
                letter = self.parts.letters.next() => match letter {
                    Some(letter) => self.take(letter),
                    // Every service is gone; nobody can speak to this run any more.
                    None => self.decide(Event::Abandon),
                },
                () = tokio::time::sleep_until(flush_at.into()) => {}
            }
            for _ in 0..BATCH {
                match self.parts.letters.ready() {
                    Some(letter) => self.take(letter),
                    None => break,
                }
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.look_at_leases();
                self.decide(Event::Tick);
            }
            let due = self.pending_since.is_some_and(|since| since.elapsed() >= GATHER);
            let is_asked = !self.replies.is_empty() || !self.refusals.is_empty();
            if due || is_asked || self.parts.recorder.waiting() > MOST_EVENTS || self.is_urgent {
                self.flush();
            }
            self.tell_state();
            if Instant::now() >= self.next_look {
                self.show();
            }
        }
    }

    fn take(&mut self, letter: Letter) {
        match letter {
            Letter::Attach(peer, outgoing) => {
                self.members.insert(peer, outgoing);
            }
            Letter::Event(event) => {
                self.parts.board.heard(&event);
                if let (Some(telemetry), Event::Commissioned { checkpoint, result }) =
                    (&mut self.parts.telemetry, &event)
                    && let Err(reason) = result
                {
                    telemetry.not_committed(checkpoint, reason);
                }
                let from = sender_of(&event);
                let left = matches!(event, Event::MemberLost { .. });
                if let Event::Progress { peer, progress } = &event {
                    self.parts.leases.heard(*peer, progress, self.began.elapsed());
                }
                let decision = self.step(event);
                if let (Some(peer), Some(refusal)) = (from, decision.refusal) {
                    tracing::warn!("{}", refusal.reason);
                    self.refusals.push((peer, refusal));
                }
                if let (Some(peer), true) = (from, left) {
                    self.members.remove(&peer);
                    self.parts.leases.gone(peer);
                }
            }
            Letter::Command(event, caller, reply) => {
                let decision = self.step(event);
                let answer = decision.refusal.map_or(Ok((decision.reason, decision.effect)), Err);
                let said = match &answer {
                    Ok((sentence, _)) => Ok(sentence.as_str()),
                    Err(refusal) => Err(refusal.reason.as_str()),
                };
                self.calls.push(caller.row(self.parts.ledger.term(), said));
                self.replies.push((reply, answer));
            }
            Letter::Called(row) => {
                self.calls.push(row);
                self.pending_since.get_or_insert_with(Instant::now);
            }
            Letter::Status(reply) => reply(self.status()),
            Letter::Members(reply) => reply(self.parts.run.members()),
            Letter::Watch(reply) => {
                let events = self.parts.events.subscribe();
                let present = match &self.ended {
                    Some((end, _)) => RunEvent::Ended(end.clone()),
                    None => RunEvent::State {
                        phase: self.told.0.to_owned(),
                        reason: self.told.1.clone(),
                    },
                };
                reply((present, events));
            }
        }
    }

    /// Ranks that have stopped moving.
    fn look_at_leases(&mut self) {
        let (ranks, now) = (self.parts.run.watched(), self.began.elapsed());
        for (peer, how) in self.parts.leases.lapsed(ranks, now) {
            self.decide(Event::Lapsed { peer, how });
        }
    }

    fn decide(&mut self, event: Event) {
        self.step(event);
    }

    fn step(&mut self, event: Event) -> Decision {
        let now = self.began.elapsed();
        let mut decision = self.parts.recorder.decide(&mut self.parts.run, event, now);
        if !decision.directives.is_empty() {
            self.pending_since.get_or_insert_with(Instant::now);
            self.is_urgent |= decision.directives.iter().any(is_urgent);
            if self.parts.telemetry.is_some() {
                let at = SystemTime::now();
                let facts = decision.directives.iter().filter_map(Fact::of);
                self.facts.extend(facts.map(|fact| (at, fact)));
            }
            self.pending.append(&mut decision.directives);
        }
        decision
    }

    /// Makes durable what is pending, writes the files, then sends.
    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        (self.pending_since, self.is_urgent) = (None, false);
        let (mut records, mut rest) = (Vec::new(), Vec::new());
        for directive in pending {
            match directive {
                Directive::Persist(record) => records.push(record),
                other => rest.push(other),
            }
        }
        let events = self.parts.recorder.take();
        let calls = std::mem::take(&mut self.calls);
        let facts = std::mem::take(&mut self.facts);
        if !(records.is_empty() && events.is_empty() && calls.is_empty())
            && let Err(error) = self.parts.ledger.append_with_calls(&records, events, &calls)
        {
            self.cannot_go_on(error.to_string());
            return;
        }
        if let Some(telemetry) = &mut self.parts.telemetry {
            telemetry.show(facts, &calls);
        }
        let mut acknowledged = BTreeMap::new();
        let mut end = None;
        for directive in rest {
            match directive {
                // Of several acknowledgements to one member the newest says it all.
                Directive::Send { to, stamp, body } if acknowledges_a_step(&body) => {
                    acknowledged.insert(to, (stamp, body));
                }
                Directive::Send { to, stamp, body } => self.send(to, stamp, &body),
                Directive::Fence { peer, reason } => {
                    tracing::warn!("{reason}");
                    self.refuse(peer, &Refusal::new("FENCED", "member", reason));
                }
                Directive::Commit(commission) => self.parts.committer.commit(*commission),
                Directive::End(ended) => end = Some(ended),
                Directive::Persist(_) => {}
            }
        }
        for (to, (stamp, body)) in acknowledged {
            self.send(to, stamp, &body);
        }
        self.made = None;
        self.cut_the_deaf();
        for (peer, refusal) in std::mem::take(&mut self.refusals) {
            self.refuse(peer, &refusal);
        }
        if let Err(error) = self.write_files(&records) {
            // What was decided is durable all the same.
            for (reply, answer) in self.replies.drain(..) {
                reply(answer);
            }
            self.cannot_go_on(error.to_string());
            return;
        }
        for (reply, answer) in self.replies.drain(..) {
            reply(answer);
        }
        if let Some(end) = end {
            self.end(end);
        }
    }

    fn write_files(&mut self, records: &[Record]) -> Result<(), crate::files::FileError> {
        let mut wrote = false;
        for record in records {
            self.parts.board.recorded(record);
            let event = match record {
                Record::Committed(commit) => {
                    let step = commit.to_committed_step(self.parts.run.planner().total_steps());
                    self.parts.files.committed(&step)?;
                    self.parts.files.of_world(&step, (self.parts.backend)(step.ranks));
                    (self.loss, self.tokens_per_second) = (Some(step.loss), Some(step.tokens_per_second));
                    RunEvent::Step(Box::new(step))
                }
                Record::Validation { step, validation } => {
                    self.parts.files.validated(*step, *validation)?;
                    self.validation_loss = Some(validation.loss);
                    RunEvent::Validation {
                        step: *step,
                        validation: *validation,
                    }
                }
                Record::Rewound(rewind) => {
                    self.parts.files.rewound(rewind)?;
                    wrote = true;
                    continue;
                }
                Record::Decision { reason } => {
                    tracing::info!("decided: {reason}");
                    self.publish(RunEvent::Decided { reason: reason.clone() });
                    continue;
                }
                _ => continue,
            };
            wrote = true;
            self.publish(event);
        }
        if wrote { self.parts.files.flush() } else { Ok(()) }
    }

    fn send(&mut self, to: Peer, stamp: Stamp, body: &Arc<CoordinatorBody>) {
        let Some(outgoing) = self.members.get(&to) else { return };
        let message = match &self.made {
            Some((of, known, message)) if *known == stamp && Arc::ptr_eq(of, body) => message.clone(),
            _ => {
                let header = Header {
                    run_id: self.parts.ledger.run().run_id.clone(),
                    stamp,
                };
                let message: Encoded = (&FromCoordinator {
                    header,
                    body: CoordinatorBody::clone(body),
                })
                    .into();
                self.made = Some((body.clone(), stamp, message.clone()));
                message
            }
        };
        if !outgoing.send(message) {
            self.deaf.insert(to);
        }
    }

    /// Cuts off members that do not take what they are told. The others go on without them.
    fn cut_the_deaf(&mut self) {
        for peer in std::mem::take(&mut self.deaf) {
            let Some(outgoing) = self.members.remove(&peer) else {
                continue;
            };
            let name = self.parts.run.name(peer);
            let how = format!("it does not take what it is told, and {OUTGOING} messages wait for it");
            tracing::warn!("{name} is cut off: {how}");
            // The ledger keeps why; the end of its stream then says that it is lost.
            self.decide(Event::Lapsed { peer, how: how.clone() });
            outgoing.close(Status::resource_exhausted(format!("{name} was cut off: {how}")));
        }
    }

    /// Closes a member's stream with a sentence.
    fn refuse(&mut self, peer: Peer, refusal: &Refusal) {
        if let Some(outgoing) = self.members.remove(&peer) {
            outgoing.close(refused(refusal));
        }
    }

    /// The disk failed: nothing can be made durable, so the run ends without a record of it.
    fn cannot_go_on(&mut self, reason: String) {
        for (peer, refusal) in std::mem::take(&mut self.refusals) {
            self.refuse(peer, &refusal);
        }
        let last_step = self.parts.run.committed();
        let stamp = self.parts.run.stamp();
        let members: Vec<Peer> = self.members.keys().copied().collect();
        let body = Arc::new(CoordinatorBody::Release {
            outcome: Outcome::Failed { reason: reason.clone() },
            reason: reason.clone(),
        });
        for peer in members {
            self.send(peer, stamp, &body);
        }
        for (reply, _decided) in self.replies.drain(..) {
            // What was decided is not durable, so it never happened.
            reply(Err(Refusal::new("NOT_DURABLE", "run", reason.clone())));
        }
        self.end(RunEnd {
            outcome: Outcome::Failed { reason: reason.clone() },
            reason,
            last_step,
        });
    }

    fn end(&mut self, end: RunEnd) {
        if self.ended.is_some() {
            return;
        }
        if let Err(error) = self.parts.files.end(&end, self.parts.run.peak_memory_mib()) {
            tracing::error!("{error}");
        }
        self.ended = Some((end.clone(), Instant::now()));
        self.tell_state();
        self.parts.board.ended(&end);
        if let Some(telemetry) = &mut self.parts.telemetry {
            telemetry.ended(&end);
        }
        self.publish(RunEvent::Ended(end));
    }

    /// Says what the run waits for, when it changed.
    fn tell_state(&mut self) {
        let now = (self.parts.run.phase().name(), self.parts.run.reason());
        if now == self.told || (self.parts.run.phase() == Phase::Ended && self.ended.is_none()) {
            return;
        }
        tracing::info!("{}: {}", now.0, now.1);
        if now.0 != self.told.0 {
            self.phase_since = Instant::now();
        }
        self.told = now.clone();
        self.next_look = self.earliest_look.max(Instant::now());
        self.publish(RunEvent::State {
            phase: now.0.to_owned(),
            reason: now.1,
        });
    }

    /// Shows how the run stands to whoever watches.
    fn show(&mut self) {
        let began = Instant::now();
        self.waited_for = self.find_waited_for();
        let board = &self.parts.board;
        board.observed(self.status(), self.parts.run.members(), self.waited_for.as_ref());
        // A look goes over all members, so in a large world there are fewer.
        let took = began.elapsed();
        self.earliest_look = began + took * LOOKS_SHARE;
        self.next_look = self.earliest_look.max(began + LOOK);
    }

    /// While the run trains, the rank that the others wait for, if they do, and where it is.
    fn find_waited_for(&self) -> Option<(String, String)> {
        let run = &self.parts.run;
        let ranks = run.watched();
        let waited_for = self.parts.leases.waited_for(ranks, self.began.elapsed());
        let (peer, how) = waited_for.filter(|_| run.phase() == Phase::Training)?;
        Some((run.name(peer), how))
    }

    fn publish(&self, event: RunEvent) {
        // An error only says that nobody watches.
        let _watched = self.parts.events.send(event);
    }

    /// What the run waits for, on whom and for how long; where it trains, the rank that the others wait for, if they do.
    fn reason(&self) -> String {
        let run = &self.parts.run;
        let reason = since(run.phase(), run.reason(), self.phase_since.elapsed());
        match self.waited_for.as_ref().filter(|_| run.phase() == Phase::Training) {
            Some((name, how)) => format!("{reason}; waiting for {name}: {how}"),
            None => reason,
        }
    }

    fn status(&self) -> RunStatus {
        let run = &self.parts.run;
        let (skipped_steps, last_skip) = self.parts.files.skipped();
        let (rewinds, last_rewind) = self.parts.files.rewinds();
        RunStatus {
            header: Header {
                run_id: self.parts.ledger.run().run_id.clone(),
                stamp: run.stamp(),
            },
            name: self.parts.name.clone(),
            phase: run.phase().name().to_owned(),
            reason: self.reason(),
            step: run.committed(),
            total_steps: run.planner().total_steps(),
            ranks: run.ranks(),
            members: run.members_there(),
            backend: (self.parts.backend)(run.ranks()).to_owned(),
            loss: self.loss,
            validation_loss: self.validation_loss,
            tokens_per_second: self.tokens_per_second,
            transports: run.transports(),
            skipped_steps,
            last_skip: last_skip.map(str::to_owned),
            rewinds,
            last_rewind: last_rewind.map(str::to_owned),
            alerts: self.parts.board.raised(),
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Members that are still there learn that nobody will answer any more.
        for outgoing in std::mem::take(&mut self.members).into_values() {
            outgoing.close(Status::unavailable("the run is over"));
        }
    }
}

/// Whether a directive must not wait for others.
fn is_urgent(directive: &Directive) -> bool {
    match directive {
        Directive::Persist(Record::Committed(_) | Record::Validation { .. }) => false,
        Directive::Send { body, .. } => !acknowledges_a_step(body),
        _ => true,
    }
}

fn acknowledges_a_step(body: &CoordinatorBody) -> bool {
    matches!(body, CoordinatorBody::Acknowledged { finished: false, .. })
}

/// The reason of a phase in which the run waits, with how long it has.
fn since(phase: Phase, reason: String, time: Duration) -> String {
    match phase {
        Phase::Training | Phase::Ended => reason,
        _ => format!("{reason} (for {:.1} s)", time.as_secs_f64()),
    }
}

fn sender_of(event: &Event) -> Option<Peer> {
    match event {
        Event::Join { peer, .. }
        | Event::Return { peer, .. }
        | Event::CommId { peer, .. }
        | Event::Ready { peer, .. }
        | Event::Progress { peer, .. }
        | Event::Report { peer, .. }
        | Event::Holds { peer, .. }
        | Event::Stopped { peer, .. }
        | Event::Wrote { peer, .. }
        | Event::Leaving { peer, .. }
        | Event::Finished { peer, .. }
        | Event::MemberLost { peer } => Some(*peer),
        // Nobody says it of itself.
        Event::Lapsed { .. } => None,
        Event::Commissioned { .. }
        | Event::Tick
        | Event::Pause
        | Event::Resume
        | Event::Checkpoint
        | Event::Stop
        | Event::Abandon
        | Event::Ordered(_) => None,
    }
}
