//! Looks at every decision of the machine and compares it with what was really said before: the first broken
//! invariant becomes a [`Violation`] with the invariant's number.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::domain::{CoordinatorBody, Directive as Urgent, Generation, Outcome, Part, Plan, Stamp};

use super::trainers::Trainers;
use crate::run::{Decision, Directive, Event, LONGEST_WINDOW, Peer, Phase, Record, Run, RunFacts};

/// A broken invariant.
#[derive(Debug)]
pub(in crate::run) struct Violation {
    pub(in crate::run) invariant: u32,
    pub(in crate::run) what: String,
}

impl Violation {
    pub(super) fn new(invariant: u32, what: impl Into<String>) -> Violation {
        Violation {
            invariant,
            what: what.into(),
        }
    }
}

type Checked = Result<(), Violation>;

pub(super) struct Checker {
    is_elastic: bool,
    total_steps: u64,
    newest: Stamp,
    /// What every member really said of a step, in the present generation.
    said: BTreeMap<(u64, Peer), BTreeSet<[u8; 32]>>,
    /// The ranks of the present generation.
    ranks: BTreeSet<Peer>,
    durable_generation: Option<Generation>,
    durable_plans: BTreeMap<u64, Plan>,
    durable_urgent: Urgent,
    committed: u64,
    cursor: u64,
    /// The last plan that a member was sent.
    sent_through: BTreeMap<Peer, u64>,
    must_abort: BTreeSet<Peer>,
    /// Parts that were said to be held, by whom.
    held: BTreeMap<Part, BTreeSet<Peer>>,
    /// The snapshot that stands.
    stands: u64,
    pub(super) generations: u64,
    pub(super) resumed: u64,
    ended: bool,
}

fn ensure(holds: bool, invariant: u32, what: impl FnOnce() -> String) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(Violation::new(invariant, what()))
    }
}

impl Checker {
    pub(super) fn new(facts: &RunFacts) -> Checker {
        Checker {
            is_elastic: facts.worlds.are_elastic(),
            total_steps: facts.planner.total_steps(),
            newest: Stamp {
                term: facts.term,
                generation: facts.last_generation,
            },
            said: BTreeMap::new(),
            ranks: BTreeSet::new(),
            durable_generation: None,
            durable_plans: BTreeMap::new(),
            durable_urgent: Urgent::default(),
            committed: 0,
            cursor: 0,
            sent_through: BTreeMap::new(),
            must_abort: BTreeSet::new(),
            held: BTreeMap::new(),
            stands: 0,
            generations: 0,
            resumed: 0,
            ended: false,
        }
    }

    pub(super) fn before(&mut self, event: &Event, run: &Run) {
        self.must_abort.clear();
        match event {
            Event::Report { peer, report }
                if Some(report.stamp) == self.durable_generation.as_ref().map(|g| g.stamp) =>
            {
                self.said
                    .entry((report.step, *peer))
                    .or_default()
                    .insert(report.parameter_hash);
            }
            Event::MemberLost { peer } if run.phase() != Phase::Ended => {
                let in_collectives = run.members.iter().filter(|(_, member)| member.is_in_collectives());
                let present: BTreeSet<Peer> = in_collectives.map(|(peer, _)| *peer).collect();
                let is_told = run.regroup.as_ref().is_some_and(|regroup| regroup.is_aborted);
                if present.contains(peer) && !(is_told && run.phase() == Phase::Regrouping) {
                    self.must_abort = present.into_iter().filter(|other| other != peer).collect();
                }
            }
            Event::Holds { peer, part, .. } => {
                self.held.entry(*part).or_default().insert(*peer);
            }
            _ => {}
        }
    }

    pub(super) fn after(&mut self, decision: &Decision, run: &Run, trainers: &Trainers) -> Checked {
        for directive in &decision.directives {
            match directive {
                Directive::Persist(record) => self.persisted(record, run, trainers)?,
                Directive::Fence { peer, .. } => {
                    ensure(self.is_elastic, 8, || format!("peer {peer} is fenced in a fixed world"))?;
                }
                Directive::Send { to, stamp, body } => self.sent(*to, *stamp, body)?,
                Directive::End(end) => {
                    ensure(!self.ended, 8, || format!("a second end: {}", end.reason))?;
                    self.ended = true;
                }
            }
        }
        let written = run.phase() == Phase::Finishing || run.phase() == Phase::Ended;
        ensure(
            self.must_abort.is_empty() || (written && !self.ended_badly(decision)),
            9,
            || format!("peers {:?} were not told to abort", self.must_abort),
        )?;
        ensure(!decision.reason.is_empty(), 8, || {
            "a decision without a reason".to_owned()
        })?;
        if run.phase() == Phase::Training {
            let issued = self.durable_plans.keys().next_back().copied().unwrap_or(0);
            let ahead = issued - self.committed;
            let holds = ahead <= LONGEST_WINDOW && (ahead >= 2 || issued == self.total_steps);
            ensure(holds, 7, || format!("{ahead} plans ahead of step {}", self.committed))?;
        }
        Ok(())
    }

    /// Whether this decision ends the run in another way than with all steps made.
    fn ended_badly(&self, decision: &Decision) -> bool {
        let is_bad =
            |directive: &Directive| matches!(directive, Directive::End(end) if end.outcome != Outcome::Completed);
        decision.directives.iter().any(is_bad)
    }

    fn formed(&mut self, generation: &Generation, run: &Run, trainers: &Trainers) -> Checked {
        if let Some(before) = &self.durable_generation {
            let stamp = before.stamp;
            let inside = trainers.in_collectives(stamp);
            let gone: Vec<_> = inside.iter().filter(|peer| run.members.contains_key(peer)).collect();
            ensure(gone.is_empty(), 1, || {
                format!(
                    "{:?} follows {stamp:?}, and peers {gone:?} are in its collectives",
                    generation.stamp
                )
            })?;
        }
        self.said.clear();
        let of_names = |name: &str| run.members.iter().find(|(_, member)| member.info.member == name);
        self.ranks = generation
            .members
            .iter()
            .filter_map(|place| of_names(&place.member).map(|(peer, _)| *peer))
            .collect();
        self.sent_through.clear();
        self.generations += 1;
        self.stands = generation.resume.as_ref().map_or(0, |resume| resume.step);
        let Some(resume) = &generation.resume else {
            return Ok(());
        };
        self.resumed += 1;
        ensure(resume.step <= self.committed, 11, || {
            format!("step {} is resumed and {} is committed", resume.step, self.committed)
        })?;
        for (part, place) in (0..).zip(&resume.parts) {
            let part = Part {
                step: resume.step,
                generation: resume.generation,
                part,
                hash: place.hash,
            };
            let is_held = place.addresses.iter().any(|address| trainers.holds(address, &part));
            // A holder may have died a moment ago, and nobody knows it yet.
            ensure(is_held || trainers.died, 11, || {
                format!("nobody holds {part:?} of {:?}", resume.step)
            })?;
            ensure(!place.addresses.is_empty(), 11, || format!("no address for {part:?}"))?;
        }
        Ok(())
    }

    fn persisted(&mut self, record: &Record, run: &Run, trainers: &Trainers) -> Checked {
        ensure(!self.ended, 8, || format!("{record:?} after the end"))?;
        match record {
            Record::Generation(generation) => {
                let stamp = generation.stamp;
                ensure(stamp > self.newest, 2, || {
                    format!("{stamp:?} follows {:?}", self.newest)
                })?;
                ensure(self.is_elastic || self.durable_generation.is_none(), 1, || {
                    format!("a second generation, {stamp:?}, in a fixed world")
                })?;
                self.formed(generation, run, trainers)?;
                self.newest = stamp;
                self.durable_generation = Some(generation.clone());
            }
            Record::Plans(plans) => {
                for plan in plans {
                    let next = self.durable_plans.keys().next_back().map_or(1, |step| step + 1);
                    ensure(plan.step == next, 4, || {
                        format!("plan {} after plan {}", plan.step, next - 1)
                    })?;
                    ensure(plan.step <= self.total_steps, 7, || {
                        format!("plan {} is past the end", plan.step)
                    })?;
                    self.durable_plans.insert(plan.step, plan.clone());
                }
            }
            Record::Urgent(urgent) => {
                ensure(*urgent > self.durable_urgent, 2, || {
                    format!("{urgent:?} after {:?}", self.durable_urgent)
                })?;
                self.durable_urgent = *urgent;
            }
            Record::Committed(commit) => {
                let (step, first) = (commit.plan.step, commit.plan.first_sample);
                ensure(step == self.committed + 1, 5, || {
                    format!("step {step} after step {}", self.committed)
                })?;
                ensure(first == self.cursor, 3, || {
                    format!("step {step} begins at {first}, not at {}", self.cursor)
                })?;
                ensure(Some(&commit.plan) == self.durable_plans.get(&step), 4, || {
                    format!("step {step}: another plan")
                })?;
                for rank in &self.ranks {
                    let said = self.said.get(&(step, *rank));
                    let one = said.is_some_and(|hashes| hashes.iter().eq([&commit.parameter_hash]));
                    ensure(one, 5, || {
                        format!("step {step} is committed, and peer {rank} said {said:?}")
                    })?;
                }
                self.committed = step;
                self.cursor = first + commit.plan.samples;
                ensure(commit.samples == self.cursor, 3, || {
                    format!("step {step} counts {} samples", commit.samples)
                })?;
            }
            Record::Validation { step, .. } => {
                ensure(*step <= self.committed, 6, || {
                    format!("step {step} is validated before it is committed")
                })?;
            }
            Record::Snapshot { step, parts } => {
                ensure(*step > self.stands && *step <= self.committed, 12, || {
                    format!(
                        "snapshot {step} after {}, and {} is committed",
                        self.stands, self.committed
                    )
                })?;
                self.stands = *step;
                let copies = self.ranks.len().min(2);
                ensure(parts.len() == self.ranks.len(), 12, || {
                    format!("snapshot {step} has {parts:?}")
                })?;
                for part in parts {
                    let held = self.held.get(part).map_or(0, BTreeSet::len);
                    ensure(held >= copies, 12, || format!("{part:?} is held {held} times"))?;
                }
            }
            Record::Decision { reason } => ensure(!reason.is_empty(), 8, || "no reason".to_owned())?,
            Record::End(end) => {
                let last = end.last_step;
                ensure(last == self.committed, 8, || {
                    format!("the end speaks of step {last}, not {}", self.committed)
                })?;
            }
        }
        Ok(())
    }

    fn sent(&mut self, to: Peer, stamp: Stamp, body: &CoordinatorBody) -> Checked {
        ensure(stamp >= self.newest, 2, || {
            format!("sent under {stamp:?} after {:?}", self.newest)
        })?;
        ensure(stamp <= self.newest, 6, || {
            format!("sent under {stamp:?}, which is not durable")
        })?;
        let farewell = matches!(body, CoordinatorBody::Acknowledged { finished: true, .. });
        ensure(!self.ended || farewell, 8, || format!("{body:?} after the end"))?;
        match body {
            CoordinatorBody::Generation(generation) => {
                let durable = self.durable_generation.as_ref() == Some(generation);
                ensure(durable, 6, || "a generation is sent that is not durable".to_owned())?;
            }
            CoordinatorBody::PlanWindow(plans) => {
                for plan in plans {
                    let durable = self.durable_plans.get(&plan.step);
                    ensure(durable.is_some(), 6, || {
                        format!("plan {} is sent before it is durable", plan.step)
                    })?;
                    ensure(durable == Some(plan), 4, || format!("plan {} was altered", plan.step))?;
                    let resumed = self.durable_generation.as_ref().and_then(|g| g.resume.as_ref());
                    let from = resumed.map_or(0, |resume| resume.step);
                    let through = self.sent_through.entry(to).or_insert(from);
                    ensure(plan.step == *through + 1, 4, || {
                        format!("plan {} after plan {through}", plan.step)
                    })?;
                    *through = plan.step;
                }
            }
            CoordinatorBody::Directive(urgent) => {
                let durable = self.durable_urgent;
                ensure(*urgent == durable, 6, || {
                    format!("{urgent:?} is sent, and durable is {durable:?}")
                })?;
            }
            CoordinatorBody::Acknowledged { step, .. } => {
                let durable = self.committed;
                ensure(*step <= durable, 6, || {
                    format!("step {step} is acknowledged, and durable is {durable}")
                })?;
            }
            CoordinatorBody::Abort { .. } | CoordinatorBody::Release { .. } => {
                self.must_abort.remove(&to);
            }
            CoordinatorBody::SnapshotStands { step } => {
                let stands = self.stands;
                ensure(*step == stands, 6, || {
                    format!("snapshot {step} is said to stand, and durable is {stands}")
                })?;
            }
            CoordinatorBody::CommId(_) | CoordinatorBody::Welcome { .. } => {}
        }
        Ok(())
    }
}
