//! Looks at every decision of the machine and compares it with what was really said before: the first broken
//! invariant becomes a [`Violation`] with the invariant's number.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::domain::{CoordinatorBody, Directive as Urgent, Generation, Plan, Stamp};

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
    ranks: u32,
    total_steps: u64,
    newest: Stamp,
    /// What every rank really said of a step, in the present generation.
    said: BTreeMap<(u64, u32), BTreeSet<[u8; 32]>>,
    durable_generation: Option<Generation>,
    durable_plans: BTreeMap<u64, Plan>,
    durable_urgent: Urgent,
    committed: u64,
    cursor: u64,
    /// The last plan that a member was sent.
    sent_through: BTreeMap<Peer, u64>,
    must_abort: BTreeSet<Peer>,
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
            ranks: facts.ranks,
            total_steps: facts.planner.total_steps(),
            newest: Stamp {
                term: facts.term,
                generation: facts.last_generation,
            },
            said: BTreeMap::new(),
            durable_generation: None,
            durable_plans: BTreeMap::new(),
            durable_urgent: Urgent::default(),
            committed: 0,
            cursor: 0,
            sent_through: BTreeMap::new(),
            must_abort: BTreeSet::new(),
            ended: false,
        }
    }

    pub(super) fn before(&mut self, event: &Event, run: &Run) {
        self.must_abort.clear();
        match event {
            Event::Report { peer, report }
                if Some(report.stamp) == self.durable_generation.as_ref().map(|g| g.stamp) =>
            {
                // The simulation's peers are its ranks.
                self.said
                    .entry((report.step, *peer as u32))
                    .or_default()
                    .insert(report.parameter_hash);
            }
            Event::MemberLost { peer } if run.phase() != Phase::Ended => {
                let present = run.members.iter().filter(|(_, member)| member.finished.is_none());
                let present: BTreeSet<Peer> = present.map(|(peer, _)| *peer).collect();
                if present.contains(peer) {
                    self.must_abort = present.into_iter().filter(|other| other != peer).collect();
                }
            }
            _ => {}
        }
    }

    pub(super) fn after(&mut self, decision: &Decision, run: &Run) -> Checked {
        for directive in &decision.directives {
            match directive {
                Directive::Persist(record) => self.persisted(record)?,
                Directive::Send { to, stamp, body } => self.sent(*to, *stamp, body)?,
                Directive::End(end) => {
                    ensure(!self.ended, 8, || format!("a second end: {}", end.reason))?;
                    self.ended = true;
                }
            }
        }
        ensure(self.must_abort.is_empty(), 9, || {
            format!("peers {:?} were not told to abort", self.must_abort)
        })?;
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

    fn persisted(&mut self, record: &Record) -> Checked {
        ensure(!self.ended, 8, || format!("{record:?} after the end"))?;
        match record {
            Record::Generation(generation) => {
                let stamp = generation.stamp;
                ensure(stamp > self.newest, 2, || {
                    format!("{stamp:?} follows {:?}", self.newest)
                })?;
                ensure(self.durable_generation.is_none(), 1, || {
                    format!("a second generation, {stamp:?}")
                })?;
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
                for rank in 0..self.ranks {
                    let said = self.said.get(&(step, rank));
                    let one = said.is_some_and(|hashes| hashes.iter().eq([&commit.parameter_hash]));
                    ensure(one, 5, || {
                        format!("step {step} is committed, and rank {rank} said {said:?}")
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
                    let through = self.sent_through.entry(to).or_default();
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
            CoordinatorBody::Abort { .. } => {
                self.must_abort.remove(&to);
            }
            CoordinatorBody::CommId(_) | CoordinatorBody::Welcome { .. } => {}
        }
        Ok(())
    }
}
