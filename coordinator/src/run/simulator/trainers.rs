//! The simulator's trainers: what they hold, say and make. The ranks of a generation make their steps together, as their
//! collectives keep them in step; all else each does on its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_proto::domain::{
    CoordinatorBody, Directive as Urgent, Generation, Outcome, Part, Plan, Ready, Resume, Return, Stamp, Standing,
    StepReport,
};
use rand::Rng;
use rand::rngs::StdRng;

use super::Fault;
use crate::run::tests::info;
use crate::run::{Event, Peer};

mod cuts;
mod fates;
mod steps;
mod streams;

/// What a rank does in its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for a generation.
    Idle,
    /// Waits for the id, or connects.
    Meeting,
    /// Makes steps.
    Training,
    /// Waits for a directive newer than this one.
    Paused(u64),
}

/// A trainer of the model.
pub(super) struct Trainer {
    name: String,
    pub(super) alive: bool,
    hangs: bool,
    /// Whether nothing passes between it and the coordinator, though both live.
    pub(super) muted: bool,
    /// Rises with everything that its device thread does.
    counter: u64,
    joined: bool,
    generation: Option<Generation>,
    comm_id: Option<Vec<u8>>,
    state: State,
    /// The step whose parameters it holds.
    at: u64,
    plans: VecDeque<Plan>,
    urgent: Urgent,
    handled: u64,
    parts: BTreeSet<Part>,
    leaving: bool,
    pub(super) refused: bool,
    /// Whether the run goes on, or ends, without it.
    released: bool,
    finished: bool,
    acknowledged: bool,
    /// The newest term that it has heard from.
    term: u64,
    /// Whether it has a stream to a coordinator that is alive.
    attached: bool,
    /// The number of its stream.
    stream: Peer,
    /// Streams that it has opened.
    opened: u64,
    /// On which side of a cut it is.
    side: bool,
    /// Whether its stream was closed by the coordinator while nothing came through.
    is_fenced: bool,
    has_plans: bool,
    ready: Option<Ready>,
    /// What it must say again on a new stream.
    unacknowledged: Vec<StepReport>,
    outcome: Option<Outcome>,
    /// Messages of coordinators that are gone, which arrive late.
    late: Vec<(Stamp, CoordinatorBody)>,
    pub(super) to_coordinator: VecDeque<Event>,
    to_trainer: VecDeque<(Stamp, CoordinatorBody)>,
}

impl Trainer {
    pub(super) fn is_done(&self) -> bool {
        !self.alive || !self.joined || self.acknowledged || self.refused
    }

    fn stamp(&self) -> Option<Stamp> {
        self.generation.as_ref().map(|generation| generation.stamp)
    }

    /// Says something on its stream, if it has one, under the newest term.
    fn say(&mut self, mut event: Event) {
        match &mut event {
            Event::CommId { stamp, .. }
            | Event::Ready { stamp, .. }
            | Event::Holds { stamp, .. }
            | Event::Stopped { stamp, .. }
            | Event::Wrote { stamp, .. }
            | Event::Finished { stamp, .. }
            | Event::Report {
                report: StepReport { stamp, .. },
                ..
            } => stamp.term = self.term,
            _ => {}
        }
        if let Event::Report { report, .. } = &event {
            self.unacknowledged.push(report.clone());
        }
        if self.attached {
            self.to_coordinator.push_back(event);
        }
    }

    fn is_present(&self) -> bool {
        self.alive && !self.finished && !self.refused && !self.hangs
    }
}

/// Peers of one life of the coordinator have numbers from a multiple of this on.
const EPOCH: u64 = 1_000_000;
/// Trainers, at most; in the numbers of peers a trainer's streams are so far apart.
const MOST: u64 = 1000;

/// Which trainer a peer is, in whatever term.
pub(super) fn who(peer: Peer) -> Peer {
    peer % MOST
}

/// All trainers, by peer.
pub(super) struct Trainers {
    pub(super) all: Vec<Trainer>,
    /// Lives of the coordinator before this one.
    epoch: u64,
    term: u64,
    snapshot_every: u64,
    pub(super) died: bool,
    pub(super) drained: bool,
    pub(super) replayed: u64,
    pub(super) drifts: u64,
    pub(super) hung: u64,
    pub(super) muted: u64,
    /// Samples that no step can be made with.
    pub(super) bad_samples: BTreeSet<u64>,
    /// Steps that could not be made.
    pub(super) unusable: u64,
    /// Where each step ended that was made last: what parameters after a step are, depends on it.
    ends: BTreeMap<u64, u64>,
    /// What is wrong with them.
    pub(super) fault: Option<Fault>,
    /// Epoch and term of a coordinator that was replaced and lives on.
    zombie: Option<(u64, u64)>,
    /// Streams that broke while the coordinator lives on: what is still to be heard on them, their end last.
    pub(super) broken: Vec<VecDeque<Event>>,
    /// Whether nothing passes between trainers of different sides.
    parted: bool,
    /// Whether a stream broke, or went to a coordinator that was replaced.
    pub(super) broke: bool,
    /// Whether a rank failed.
    pub(super) failed: bool,
    /// What a coordinator of an older term has changed at a member that knew of a newer one.
    pub(super) obeyed: Option<String>,
}

impl Trainers {
    pub(super) fn new(ranks: u32, term: u64, snapshot_every: u64) -> Trainers {
        let mut trainers = Trainers {
            all: Vec::new(),
            epoch: 0,
            term,
            snapshot_every,
            died: false,
            drained: false,
            replayed: 0,
            drifts: 0,
            hung: 0,
            muted: 0,
            bad_samples: BTreeSet::new(),
            unusable: 0,
            ends: BTreeMap::new(),
            fault: None,
            zombie: None,
            broken: Vec::new(),
            parted: false,
            broke: false,
            failed: false,
            obeyed: None,
        };
        for _ in 0..ranks {
            trainers.add();
        }
        trainers
    }

    /// Somebody to whom something may happen. Where many have come and gone, not one who is long gone: else the others would be
    /// the slower the longer the schedule is.
    pub(super) fn somebody(&self, rng: &mut StdRng) -> usize {
        const MANY: usize = 12;
        let any = rng.random_range(0..self.all.len());
        if self.all.len() <= MANY {
            return any;
        }
        let is_there = |trainer: &Trainer| {
            trainer.alive && !trainer.acknowledged && !trainer.refused || !trainer.to_coordinator.is_empty()
        };
        let there: Vec<usize> = (0..self.all.len())
            .filter(|index| is_there(&self.all[*index]))
            .collect();
        there.get(any % there.len().max(1)).copied().unwrap_or(any)
    }

    /// Starts another trainer.
    pub(super) fn add(&mut self) {
        self.all.push(Trainer {
            name: format!("trainer-{}", self.all.len()),
            alive: true,
            hangs: false,
            muted: false,
            counter: 0,
            joined: false,
            generation: None,
            comm_id: None,
            state: State::Idle,
            at: 0,
            plans: VecDeque::new(),
            urgent: Urgent::default(),
            handled: 0,
            parts: BTreeSet::new(),
            leaving: false,
            refused: false,
            released: false,
            finished: false,
            acknowledged: false,
            term: self.term,
            attached: true,
            stream: self.epoch * EPOCH + self.all.len() as u64,
            opened: 0,
            side: false,
            is_fenced: false,
            has_plans: false,
            ready: None,
            unacknowledged: Vec::new(),
            outcome: None,
            late: Vec::new(),
            to_coordinator: VecDeque::new(),
            to_trainer: VecDeque::new(),
        });
    }

    /// The stream of a trainer.
    pub(super) fn peer(&self, index: usize) -> Peer {
        self.all[index].stream
    }

    /// Whose stream it is, if nothing has broken it.
    pub(super) fn index_of(&self, peer: Peer) -> Option<usize> {
        let index = who(peer) as usize;
        self.all
            .get(index)
            .is_some_and(|trainer| trainer.stream == peer)
            .then_some(index)
    }

    /// Whether a trainer has said farewell.
    pub(super) fn is_gone(&self, name: &str) -> bool {
        let is_gone =
            |trainer: &Trainer| trainer.name == name && trainer.finished && (trainer.acknowledged || !trainer.released);
        self.all.iter().any(is_gone)
    }

    /// The coordinator is gone, and another one has begun a term: all streams are broken. Some of what it said arrives, some
    /// is late.
    pub(super) fn lose_streams(&mut self, term: u64, stay: &BTreeSet<usize>, rng: &mut StdRng) {
        self.epoch += 1;
        self.term = term;
        self.broken.clear();
        for (index, trainer) in self.all.iter_mut().enumerate() {
            if stay.contains(&index) {
                continue;
            }
            trainer.to_coordinator.clear();
            let arrives = rng.random_range(0..=trainer.to_trainer.len());
            trainer.late.extend(trainer.to_trainer.drain(arrives..));
            // One that has not spoken yet finds the new one at once.
            trainer.attached = !trainer.joined;
            if trainer.attached {
                trainer.term = term;
                trainer.stream = self.epoch * EPOCH + index as u64;
            }
        }
    }

    /// It finds a coordinator, and says how it stands and what was not acknowledged.
    fn attach(&mut self, index: usize, (epoch, term): (u64, u64)) {
        let trainer = &mut self.all[index];
        (trainer.attached, trainer.term) = (true, term);
        trainer.opened += 1;
        trainer.stream = epoch * EPOCH + trainer.opened * MOST + index as u64;
        let peer = trainer.stream;
        trainer.to_trainer.extend(trainer.late.drain(..));
        let standing = match (trainer.state, trainer.has_plans) {
            (State::Idle, _) => Standing::Outside,
            (_, false) => Standing::Meeting,
            (_, true) => Standing::Training,
        };
        let returned = Return {
            info: info(&trainer.name),
            standing,
            ready: trainer.ready.clone(),
            parts: trainer.parts.iter().copied().collect(),
        };
        trainer.say(Event::Return {
            peer,
            generation: trainer.stamp().map_or(0, |stamp| stamp.generation),
            returned: Box::new(returned),
        });
        if trainer.leaving {
            trainer.say(Event::Leaving {
                peer,
                reason: "SIGTERM".to_owned(),
            });
        }
        for report in std::mem::take(&mut trainer.unacknowledged) {
            trainer.say(Event::Report { peer, report });
        }
        if let (Some(outcome), false) = (trainer.outcome.clone(), trainer.acknowledged) {
            let step = trainer.at;
            let stamp = trainer.stamp().unwrap_or_default();
            trainer.say(Event::Finished {
                peer,
                stamp,
                outcome,
                step,
            });
        }
    }

    /// Trainers that could be ranks, without those that are set apart.
    pub(super) fn of_use(&self, apart: &BTreeSet<usize>) -> usize {
        let is_of_use = |trainer: &Trainer| trainer.is_present() && !trainer.leaving;
        let all = self.all.iter().enumerate();
        all.filter(|(index, trainer)| is_of_use(trainer) && !apart.contains(index))
            .count()
    }

    /// Whether a member of this address is alive and holds the part.
    pub(super) fn holds(&self, address: &str, part: &Part) -> bool {
        self.all
            .iter()
            .any(|trainer| info(&trainer.name).parts_address == address && trainer.parts.contains(part))
    }

    /// Ranks of a generation that are still in its collectives.
    pub(super) fn in_collectives(&self, stamp: Stamp) -> Vec<Peer> {
        let is_inside = |trainer: &Trainer| {
            let is_of = trainer.stamp().is_some_and(|own| own.generation == stamp.generation);
            trainer.alive && !trainer.finished && is_of && trainer.state != State::Idle
        };
        let indices = 0..self.all.len();
        indices
            .filter(|index| is_inside(&self.all[*index]))
            .map(|index| self.peer(index))
            .collect()
    }

    pub(super) fn send(&mut self, to: Peer, stamp: Stamp, body: CoordinatorBody) {
        // What is said on a stream that has broken is lost.
        if let Some(index) = self.index_of(to).filter(|index| self.all[*index].attached) {
            self.all[index].to_trainer.push_back((stamp, body));
        }
    }

    /// Its stream is closed.
    pub(super) fn fence(&mut self, peer: Peer) {
        let Some(index) = self.index_of(peer) else { return };
        let trainer = &mut self.all[index];
        if trainer.muted {
            trainer.is_fenced = true;
            return;
        }
        trainer.refused = true;
        trainer.state = State::Idle;
        trainer.to_coordinator.clear();
    }

    /// It takes the next thing that the coordinator has said.
    pub(super) fn deliver(&mut self, index: usize) {
        let trainer = &mut self.all[index];
        if trainer.muted {
            return;
        }
        let Some((stamp, body)) = trainer.to_trainer.pop_front() else {
            return;
        };
        let before = (stamp.term < trainer.term).then(|| trainer.knowledge());
        let told = before.as_ref().map(|_| format!("{body:?} under {stamp:?}"));
        self.take(index, stamp, body);
        let trainer = &self.all[index];
        if before.is_some_and(|before| before != trainer.knowledge()) {
            let (name, term) = (&trainer.name, trainer.term);
            self.obeyed = told.map(|told| format!("{name}, which knew of term {term}, obeyed {told}"));
        }
    }

    fn take(&mut self, index: usize, stamp: Stamp, body: CoordinatorBody) {
        let obeys_all = self.fault == Some(Fault::ObeyOlderTerms);
        let trainer = &mut self.all[index];
        let is_old = stamp.term < trainer.term && !obeys_all;
        if !trainer.alive || trainer.hangs || is_old {
            return;
        }
        let is_present = trainer.stamp().is_some_and(|own| own.generation == stamp.generation);
        match body {
            CoordinatorBody::Generation(generation) => {
                (trainer.has_plans, trainer.ready) = (false, None);
                trainer.unacknowledged.clear();
                trainer.generation = Some(generation);
                trainer.comm_id = None;
                trainer.plans.clear();
                trainer.handled = 0;
                trainer.state = State::Meeting;
            }
            CoordinatorBody::CommId(id) if is_present => trainer.comm_id = Some(id),
            CoordinatorBody::PlanWindow(plans) if is_present => {
                trainer.has_plans = true;
                for plan in plans {
                    let newest = trainer.plans.back().map_or(trainer.at, |newest| newest.step);
                    if plan.step > newest {
                        trainer.plans.push_back(plan);
                    }
                }
            }
            CoordinatorBody::Directive(urgent) => trainer.urgent = trainer.urgent.max(urgent),
            // A member that came back to a later generation than its own is told under the stamp of that one.
            CoordinatorBody::Abort { .. } if trainer.stamp().is_some_and(|own| own.generation <= stamp.generation) => {
                if !trainer.acknowledged && !matches!(trainer.outcome, Some(Outcome::Failed { .. })) {
                    (trainer.finished, trainer.outcome) = (false, None);
                }
                self.stop(index, None)
            }
            CoordinatorBody::Release { outcome, .. } => {
                trainer.state = State::Idle;
                trainer.released = true;
                self.say_farewell(index, outcome);
            }
            CoordinatorBody::SnapshotStands { free_before, .. } if is_present && trainer.state != State::Idle => {
                trainer.parts.retain(|part| part.step >= free_before);
            }
            CoordinatorBody::Acknowledged { step, finished } => {
                trainer.unacknowledged.retain(|report| report.step > step);
                trainer.acknowledged |= finished;
            }
            CoordinatorBody::Welcome { .. }
            | CoordinatorBody::CommId(_)
            | CoordinatorBody::PlanWindow(_)
            | CoordinatorBody::SnapshotStands { .. }
            | CoordinatorBody::Abort { .. } => {}
        }
    }

    /// What a trainer does on its own before its first step of a generation.
    pub(super) fn advance(&mut self, index: usize, wrong: bool, rng: &mut StdRng) {
        let trainer = &mut self.all[index];
        // Who has heard its release looks for nobody any more, answered or not (`Inbox::is_over` in the trainer's session).
        trainer.alive &= trainer.attached || !trainer.released;
        if trainer.alive && !trainer.refused && !trainer.acknowledged && !trainer.attached {
            if !trainer.muted && !trainer.hangs {
                let found = self.who_answers(index, rng);
                self.attach(index, found);
            }
            return;
        }
        let peer = self.peer(index);
        let begins_with = self.begins_with(index);
        let trainer = &mut self.all[index];
        if !trainer.is_present() {
            return;
        }
        if !trainer.joined {
            trainer.joined = true;
            trainer.say(Event::Join {
                peer,
                info: info(&trainer.name),
            });
            return;
        }
        let Some(generation) = trainer.generation.clone() else {
            return;
        };
        let stamp = generation.stamp;
        let is_split = self.is_split(&generation);
        let trainer = &mut self.all[index];
        match trainer.state {
            State::Meeting if generation.resume.as_ref().is_some_and(is_of_checkpoint) && rng.random_ratio(1, 8) => {
                let cause = Some("the checkpoint is damaged".to_owned());
                self.leave(index, cause, true, None, None);
            }
            State::Meeting if is_split => self.miss_peers(index, rng),
            State::Meeting => {
                let lowest = generation.members[0].member == trainer.name;
                if lowest && trainer.comm_id.is_none() {
                    trainer.comm_id = Some(vec![7]);
                    trainer.say(Event::CommId {
                        peer,
                        stamp,
                        id: vec![7],
                    });
                }
                if trainer.comm_id.is_some() {
                    trainer.at = generation.resume.as_ref().map_or(0, |resume| resume.step);
                    trainer.state = State::Training;
                    let ready = Ready {
                        hash: if wrong { [200; 32] } else { begins_with },
                        transports: Vec::new(),
                    };
                    trainer.ready = Some(ready.clone());
                    trainer.say(Event::Ready {
                        peer,
                        stamp,
                        ready: ready.into(),
                    });
                }
            }
            State::Training | State::Paused(_) if rng.random_ratio(1, 4) => {
                // Its collectives break because of a peer that is gone, and it may notice first.
                let in_collectives = self.in_collectives(stamp).len();
                if is_split {
                    self.miss_peers(index, rng);
                } else if in_collectives < generation.members.len() && self.somebody_died_of(&generation) {
                    self.stop(index, Some("a peer hung up".to_owned()));
                }
            }
            _ => {}
        }
    }

    /// The hash of the parameters that a trainer begins its generation with: of a step as it was made last.
    fn begins_with(&self, index: usize) -> [u8; 32] {
        let generation = self.all[index].generation.as_ref();
        let step = generation
            .and_then(|generation| generation.resume.as_ref())
            .map_or(0, |resume| resume.step);
        hash(step, self.ends.get(&step).copied().unwrap_or(0))
    }

    fn somebody_died_of(&self, generation: &Generation) -> bool {
        let is_dead = |trainer: &Trainer| !trainer.alive && trainer.stamp() == Some(generation.stamp);
        self.all.iter().any(is_dead)
    }

    /// It leaves the collectives and says so.
    fn stop(&mut self, index: usize, cause: Option<String>) {
        self.leave(index, cause, false, None, None);
    }

    fn leave(
        &mut self,
        index: usize,
        cause: Option<String>,
        checkpoint_is_bad: bool,
        drifted: Option<u32>,
        unusable: Option<u64>,
    ) {
        let peer = self.peer(index);
        let trainer = &mut self.all[index];
        if trainer.state == State::Idle || trainer.finished {
            return;
        }
        trainer.state = State::Idle;
        trainer.unacknowledged.clear();
        if let Some(stamp) = trainer.stamp() {
            let parts = trainer.parts.iter().copied().collect();
            trainer.say(Event::Stopped {
                peer,
                stamp,
                cause,
                parts,
                checkpoint_is_bad,
                drifted,
                unusable,
            });
        }
    }
}

fn is_of_checkpoint(resume: &Resume) -> bool {
    resume.checkpoint.is_some()
}

/// What a rank that makes no mistake holds after a step that ended before a sample.
fn hash(step: u64, end: u64) -> [u8; 32] {
    let mut hash = [step as u8 + 1; 32];
    hash[..8].copy_from_slice(&end.to_le_bytes());
    hash
}

fn part(step: u64, generation: &Generation, rank: usize) -> Part {
    Part {
        step,
        generation: generation.stamp.generation,
        part: rank as u32,
        hash: [step as u8; 32],
    }
}
