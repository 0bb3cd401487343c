//! The run as a pure state machine: `(state, event, now) -> (state, directives, reason)`.
//!
//! Way of data: the service turns what arrives (messages, closed streams, commands, the clock) into an [`Event`];
//! [`Run::step`] decides and answers with a [`Decision`]: records to make durable, messages to send, the end, and a
//! sentence that says why. Nothing here reads a clock, a socket or a file, so the simulator (`simulator`, tests only)
//! can drive it through thousands of schedules. It checks, and other tests name, these invariants:
//!
//! 1. One generation at a time: messages of a generation go out only while it is the present one, and the next one is
//!    formed only when every member of it has left its collectives, or is gone. A generation goes on in a new term only
//!    when all of its ranks have come back as they were.
//! 2. Terms and generations only rise.
//! 3. No sample twice and none left out: the committed steps' sample ranges follow each other without gap or overlap,
//!    but for the samples that a rewind skips.
//! 4. No plan is altered after it was issued; plans are issued in order, each once.
//! 5. A step is committed only when every rank of the generation reported one equal hash for it; a committed step
//!    stays committed unless a rewind leaves it behind: steps are committed in order, each once. What a later generation makes of it again must be equal.
//! 6. Nothing is sent before it is durable: a generation, plan, directive or acknowledgement follows its record.
//! 7. A window reaches at least two plans ahead of the committed step while the run trains, never past the last step
//!    and never further than [`LONGEST_WINDOW`].
//! 8. There is one end, with one sentence; after it nothing is sent but answers to farewells.
//! 9. When a rank is lost, every other rank that is still in the collectives is told to abort, in the same decision.
//! 10. A schedule without faults and stops commits every planned step, whoever comes and goes, as long as enough members
//!     stay.
//! 11. A generation resumes from a snapshot of which its members, or those that are leaving, hold every part, and never from
//!     a step that is not committed.
//! 12. A snapshot stands only when every part of it is held twice, or once where there is one rank.
//! 13. A checkpoint is committed only when every rank of one generation has written its part of a committed step, and loaded
//!     only when it was committed and neither refused nor deleted since.
//! 14. The events that the ledger keeps lead to the same records again.
//! 15. A snapshot that stands can be resumed from, for as long as a member that held it is there for each of its parts.
//! 16. What a coordinator of a lower term says changes nothing at a member that has heard of a higher one.
//! 17. A rewind goes back to a committed step, makes the next plan another one, and is one of at most so many; nothing that a
//!     closed branch made is resumed from. One that operators ask for goes back just there and changes nothing but that; the
//!     policy's count begins anew then.
//! 18. What operators, or the policy of the batch, change holds for every plan that is issued after it and for none before; an
//!     order that is said again, also to a later coordinator, is carried out once.
//! 19. A run that operators want to stop after a step has no plan behind it, makes it, and ends with it, or one step later where
//!     a rank is lost in it; once.
//! 20. The batch that the policy decides on follows from the committed steps of the live branch up to one that is the same
//!     for every way that a run can take, and no plan is issued before that is known.

mod checkpoints;
mod commands;
mod decision;
mod drift;
mod failure;
mod farewells;
mod leases;
mod machine;
mod members;
mod orders;
mod reach;
mod regroup;
mod returning;
mod rewind;
#[cfg(test)]
mod simulator;
mod snapshots;
#[cfg(test)]
mod tests;
mod window;
mod world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lockstep_proto::domain::{
    Checkpoint, Directive as Urgent, Generation, MemberPlace, MemberStatus, Plan, RunEnd, Stamp, StepMetrics,
    Validation, Written,
};
use serde::{Deserialize, Serialize};

use crate::adaptive::{Observation, Policy};
use crate::branches::{Branches, Rewinds};
use crate::changes::Changes;
use crate::plan::Planner;
pub use crate::run::checkpoints::Keeps;
pub(crate) use crate::run::checkpoints::name as name_of_checkpoint;
pub use crate::run::decision::{
    Answered, Begun, Commission, Commit, Decision, Directive, Effect, Event, Farewell, Order, Peer, Record, Refusal,
    Wanted, Wish,
};
pub use crate::run::leases::Leases;
use crate::run::members::{Member, Members};
pub use crate::run::reach::Stands;
pub use crate::run::returning::Recorded;
use crate::run::returning::Returning;
pub use crate::run::window::LONGEST_WINDOW;

/// How many ranks a run may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worlds {
    /// Members that make the first world complete.
    pub first: u32,
    /// With fewer the run waits.
    pub least: u32,
    /// More have to wait.
    pub most: u32,
    /// How long a rank that was told to leave the collectives may take, before it is fenced.
    pub patience: Duration,
}

impl Worlds {
    /// A world that is never formed anew: a lost rank ends the run.
    pub fn fixed(ranks: u32) -> Worlds {
        Worlds {
            first: ranks,
            least: ranks,
            most: ranks,
            patience: Duration::ZERO,
        }
    }

    /// Whether a lost rank is something to go on after.
    pub fn are_elastic(&self) -> bool {
        !self.patience.is_zero()
    }
}

/// What is known of a run before anybody joins.
#[derive(Clone, Debug)]
pub struct RunFacts {
    /// Hash of the config that every member must have.
    pub config_hash: String,
    /// Hash of the data manifest that every member must have.
    pub data_hash: String,
    /// Lanes of the run.
    pub lanes: u32,
    /// How many ranks it may have.
    pub worlds: Worlds,
    /// This life of the coordinator.
    pub term: u64,
    /// The last generation of earlier terms; 0 for none.
    pub last_generation: u64,
    /// How long the ranks of an earlier term are waited for.
    pub return_patience: Duration,
    /// Whether nobody of an earlier term trains any more.
    pub is_resumed: bool,
    /// Time that a plan window reaches ahead.
    pub window: Duration,
    /// What the secrets of the generations are derived from: the same in every term.
    pub secret: [u8; 32],
    /// Makes the plans.
    pub planner: Planner,
    /// How far the run goes back before a step that cannot be used; none: it never does.
    pub rewinds: Option<Rewinds>,
    /// Which checkpoints stay in the store; none: coordinators of older builds did not ask, and tried what was deleted.
    pub keeps: Option<Keeps>,
    /// Whether a planned stop that was made is done with, so that a run which goes back before it does not stop there again.
    /// Coordinators of older builds stopped again, and their ledgers must replay.
    pub stops_once: bool,
}

/// What the run waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For members to join until the world is complete.
    WaitingForMembers,
    /// For the ranks of the last generation to speak to this coordinator, which has replaced an earlier one.
    WaitingForReturn,
    /// For rank 0's communicator id.
    WaitingForCommId,
    /// For every rank's communicator and initial parameters.
    WaitingForReady,
    /// For step reports.
    Training,
    /// For `resume` or `stop`.
    Paused,
    /// For the ranks to leave the collectives of this generation, so that the next one can be formed.
    Regrouping,
    /// For the ranks to stop at the end of a step and say farewell.
    Stopping,
    /// For the farewells after the last step.
    Finishing,
    /// A rank failed: for a moment, to learn whether another rank's death is the cause.
    Failing,
    /// For nothing.
    Ended,
}

impl Phase {
    /// The name that people see.
    pub fn name(self) -> &'static str {
        match self {
            Phase::WaitingForMembers => "waiting-for-members",
            Phase::WaitingForReturn => "waiting-for-return",
            Phase::WaitingForCommId => "waiting-for-comm-id",
            Phase::WaitingForReady => "waiting-for-ready",
            Phase::Training => "training",
            Phase::Paused => "paused",
            Phase::Regrouping => "regrouping",
            Phase::Stopping => "stopping",
            Phase::Finishing => "finishing",
            Phase::Failing => "failing",
            Phase::Ended => "ended",
        }
    }
}

/// A committed step: what is needed to have it made again and to know it when it is.
#[derive(Clone, Debug)]
struct Past {
    plan: Plan,
    hash: [u8; 32],
    /// Samples and counted tokens of the run after it.
    samples: u64,
    tokens: u64,
    /// What it said about noise and speed.
    seen: Observation,
}

/// The end of a generation that is followed by another one.
#[derive(Clone, Debug)]
struct Regroup {
    reason: String,
    since: Duration,
    /// Whether its ranks were told to abort, not to end the step first.
    is_aborted: bool,
}

/// What the ranks said about a step that is not committed yet.
#[derive(Clone, Debug)]
struct Reported {
    hashes: Vec<Option<[u8; 32]>>,
    /// Ranks of which there is none yet.
    missing: usize,
    metrics: Option<StepMetrics>,
    validation: Option<Validation>,
}

/// The state of a run. See the module's first lines for what always holds.
#[derive(Clone, Debug)]
pub struct Run {
    facts: RunFacts,
    phase: Phase,
    /// Whether no world was formed yet since somebody started, or resumed, the run.
    begins_anew: bool,
    members: Members,
    /// Build and fingerprint of the first member: the ones that the others must have.
    fixed: Option<(String, String)>,
    generation: Option<Generation>,
    /// The ranks of every generation of this term.
    worlds_of: BTreeMap<u64, u32>,
    regroup: Option<Regroup>,
    /// Whom a new term still waits for.
    returning: Option<Returning>,
    /// Generations that were aborted one after the other without a new step.
    fruitless: u32,
    /// The branches that were closed.
    branches: Branches,
    /// What operators have changed.
    changes: Changes,
    /// The noise of the gradient, and the batch that follows from it.
    policy: Policy,
    /// The orders that were carried out, by key.
    answers: BTreeMap<String, Answered>,
    /// The step that cannot be used, and why, until its generation is left.
    unusable: Option<(u64, String)>,
    /// The newest urgent directive.
    urgent: Urgent,
    wish: Wish,
    /// Plans that were issued and are not committed, in order.
    issued: VecDeque<Plan>,
    issued_through: u64,
    /// First sample of the next plan.
    cursor: u64,
    reports: BTreeMap<u64, Reported>,
    committed: u64,
    /// The committed steps, from the first on.
    past: Vec<Past>,
    /// Hash of the initial parameters, once a generation began with them.
    initial: Option<[u8; 32]>,
    /// The newest snapshot that stands.
    snapshot: u64,
    /// Of snapshots of the present generation that may come to stand, by step: how many more parts have to be held before it is
    /// worth a look at all members. None: nobody has looked since members said anew what they hold.
    lacking: Option<BTreeMap<u64, usize>>,
    /// Parts of checkpoints that are written, by step and rank.
    writing: BTreeMap<u64, BTreeMap<u32, Written>>,
    /// Checkpoints whose manifests are being committed.
    committing: BTreeSet<Checkpoint>,
    /// The checkpoints that can be loaded.
    checkpoints: Vec<Checkpoint>,
    /// Those of every branch that were committed and not refused since, in the order of their commits: of them the store keeps some.
    stored: Vec<Checkpoint>,
    now: Duration,
    newest_validation: u64,
    samples: u64,
    tokens: u64,
    /// Smoothed milliseconds of a step.
    step_ms: Option<f64>,
    peak_memory_mib: u64,
    /// In `Failing`: the sentence and when it was said.
    failing: Option<(String, Duration)>,
    end: Option<RunEnd>,
    #[cfg(test)]
    fault: Option<simulator::Fault>,
}

impl Run {
    /// A run that waits for its members.
    ///
    /// # Errors
    /// When the world cannot be made: no ranks, or fewer lanes than ranks.
    pub fn new(facts: RunFacts) -> Result<Run, Refusal> {
        let RunFacts {
            lanes,
            worlds: Worlds { first: ranks, .. },
            ..
        } = facts;
        if ranks == 0 || lanes < ranks {
            let reason = format!(
                "run.lanes is {lanes} and the run was started with {ranks} ranks: every rank hosts at least one lane, \
                 so start at least one and at most {lanes} ranks, or raise run.lanes"
            );
            return Err(Refusal::new("LANES", "run.lanes", reason));
        }
        let changes = Changes::none(facts.planner.clone());
        let policy = Policy::of(facts.planner.config());
        Ok(Run {
            facts,
            phase: Phase::WaitingForMembers,
            begins_anew: true,
            members: Members::default(),
            fixed: None,
            generation: None,
            worlds_of: BTreeMap::new(),
            regroup: None,
            returning: None,
            fruitless: 0,
            branches: Branches::default(),
            changes,
            policy,
            answers: BTreeMap::new(),
            unusable: None,
            urgent: Urgent::default(),
            wish: Wish::Train,
            issued: VecDeque::new(),
            issued_through: 0,
            cursor: 0,
            reports: BTreeMap::new(),
            committed: 0,
            past: Vec::new(),
            initial: None,
            snapshot: 0,
            lacking: None,
            writing: BTreeMap::new(),
            committing: BTreeSet::new(),
            checkpoints: Vec::new(),
            stored: Vec::new(),
            now: Duration::ZERO,
            newest_validation: 0,
            samples: 0,
            tokens: 0,
            step_ms: None,
            peak_memory_mib: 0,
            failing: None,
            end: None,
            #[cfg(test)]
            fault: None,
        })
    }

    /// What the run waits for.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Term and number of the present generation; number 0 (or the last of earlier terms) before the first.
    pub fn stamp(&self) -> Stamp {
        let before = Stamp {
            term: self.facts.term,
            generation: self.facts.last_generation,
        };
        self.generation.as_ref().map_or(before, |generation| generation.stamp)
    }

    /// Ranks of the present generation; before the first one, those that it will have.
    pub fn ranks(&self) -> u32 {
        self.generation
            .as_ref()
            .map_or(self.facts.worlds.first, Generation::ranks)
    }

    /// Makes the plans of the steps that come.
    pub fn planner(&self) -> &Planner {
        self.changes.newest()
    }

    /// What operators have changed.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The last committed step.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Largest peak memory that a rank reported.
    pub fn peak_memory_mib(&self) -> u64 {
        self.peak_memory_mib
    }

    /// How the run ended, once it has.
    pub fn end(&self) -> Option<&RunEnd> {
        self.end.as_ref()
    }

    /// How many members there are.
    pub fn members_there(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX)
    }

    /// The place that a name has in the present generation.
    fn place_of(&self, name: &str) -> Option<&MemberPlace> {
        let rank = self.members.place_of(name)?;
        self.generation.as_ref()?.members.get(rank as usize)
    }

    /// Whose ranks the members have, or have had, from now on.
    fn take_generation(&mut self, generation: Generation) {
        self.members.take_places(&generation);
        self.generation = Some(generation);
    }

    /// The members, by rank where they have one.
    pub fn members(&self) -> Vec<MemberStatus> {
        let mut members: Vec<_> = self
            .members
            .values()
            .map(|member| MemberStatus {
                info: member.info.clone(),
                place: self
                    .place_of(&member.info.member)
                    .map(|place| (place.rank, place.lanes.clone())),
                reported_step: member.reported,
                phase: member.progress.phase.clone(),
                transports: member.ready.as_ref().map(Stands::listed).unwrap_or_default(),
                waits: member.progress.waits,
            })
            .collect();
        members.sort_by_key(|member| member.place.as_ref().map_or(u32::MAX, |place| place.0));
        members
    }

    /// How many pairs of ranks reach each other by a transport, by its name. Each pair is named by both of its ranks and
    /// counted at the lower one.
    pub fn transports(&self) -> Vec<(String, u32)> {
        let mut pairs: BTreeMap<&str, u32> = BTreeMap::new();
        for member in self.members.values() {
            let (Some(rank), Some(ready)) = (member.rank, &member.ready) else {
                continue;
            };
            ready.count_behind(rank, &mut pairs);
        }
        pairs
            .into_iter()
            .map(|(transport, pairs)| (transport.to_owned(), pairs))
            .collect()
    }
}
