//! Looks at every decision of the machine and compares it with what was really said before: the first broken
//! invariant becomes a [`Violation`] with the invariant's number.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::domain::{
    Checkpoint, CoordinatorBody, Directive as Urgent, Generation, Outcome, Part, Plan, Stamp, Standing,
};

use super::trainers::{Trainers, who};
use crate::adaptive::{Observation, Policy};
use crate::branches::{Branches, Rewind, Rewinds};
use crate::changes::{Change, Changes};
use crate::run::{Decision, Directive, Event, Keeps, LONGEST_WINDOW, Peer, Phase, Record, Run, RunFacts, Wanted};

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

#[derive(Clone)]
pub(super) struct Checker {
    is_elastic: bool,
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
    /// Samples that the live branch has trained.
    trained: u64,
    /// The rule of rewinds, and those that were made.
    rule: Option<Rewinds>,
    branches: Branches,
    changes: Changes,
    /// The policy before any step, and what every step of the live branch said.
    policy: Policy,
    seen: BTreeMap<u64, Observation>,
    answered: BTreeSet<String>,
    /// The step after which operators want the run to stop, that of an issued plan, and that of a committed one.
    stop_after: Option<u64>,
    stop_issued: Option<u64>,
    pub(super) stop_made: Option<u64>,
    /// Where operators wanted to go back to.
    asked_back: BTreeSet<u64>,
    pub(super) operators_rewinds: u64,
    /// Rewinds of the policy since the last of them.
    rewinds_since: u32,
    /// The plans of the branch that was closed last.
    left_behind: BTreeMap<u64, Plan>,
    /// Steps that some rank of the present generation could not make.
    said_unusable: BTreeSet<u64>,
    /// Every snapshot of the live branch that stood, and from which step on they are not freed.
    stood: BTreeMap<u64, Vec<Part>>,
    kept_from: u64,
    pub(super) rewinds: u64,
    /// The last plan that a member was sent.
    sent_through: BTreeMap<Peer, u64>,
    must_abort: BTreeSet<Peer>,
    /// Parts that were said to be held, by whom.
    held: BTreeMap<Part, BTreeSet<Peer>>,
    /// The snapshot that stands.
    stands: u64,
    /// Its parts, until another one stands or training begins again.
    standing: Vec<Part>,
    /// The step before the first plan that a member is sent, in this generation and term.
    sent_from: u64,
    hashes: BTreeMap<u64, [u8; 32]>,
    /// Ranks, by generation, whose farewells are durable.
    farewells: BTreeSet<(u64, u32)>,
    /// Whether the ranks of an earlier term were waited for.
    waited: bool,
    /// What members said when they came back in this term: their generation, and whether they are ready in it.
    came_back: BTreeMap<String, (u64, bool)>,
    /// Who said that it wrote its part of a checkpoint, in this generation, by step.
    wrote: BTreeMap<u64, BTreeSet<Peer>>,
    commissioned: BTreeSet<Checkpoint>,
    loadable: BTreeSet<Checkpoint>,
    /// Every checkpoint that was committed and not refused since, and which of them the store keeps.
    stored: Vec<Checkpoint>,
    keeps: Option<Keeps>,
    pub(super) checkpoints: u64,
    pub(super) loaded: u64,
    pub(super) went_on: u64,
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
            changes: Changes::none(facts.planner.clone()),
            policy: Policy::of(facts.planner.config()),
            seen: BTreeMap::new(),
            answered: BTreeSet::new(),
            stop_after: None,
            stop_issued: None,
            stop_made: None,
            asked_back: BTreeSet::new(),
            operators_rewinds: 0,
            rewinds_since: 0,
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
            trained: 0,
            rule: facts.rewinds,
            branches: Branches::default(),
            left_behind: BTreeMap::new(),
            said_unusable: BTreeSet::new(),
            stood: BTreeMap::new(),
            kept_from: 0,
            rewinds: 0,
            sent_through: BTreeMap::new(),
            must_abort: BTreeSet::new(),
            held: BTreeMap::new(),
            stands: 0,
            standing: Vec::new(),
            sent_from: 0,
            hashes: BTreeMap::new(),
            farewells: BTreeSet::new(),
            waited: false,
            came_back: BTreeMap::new(),
            wrote: BTreeMap::new(),
            commissioned: BTreeSet::new(),
            loadable: BTreeSet::new(),
            stored: Vec::new(),
            keeps: facts.keeps,
            checkpoints: 0,
            loaded: 0,
            went_on: 0,
            generations: 0,
            resumed: 0,
            ended: false,
        }
    }

    fn total_steps(&self) -> u64 {
        self.changes.newest().total_steps()
    }

    /// A plan is what the config, the rewinds and the operators' changes so far make, and nothing else.
    fn as_changed(&self, plan: &Plan, begins: u64) -> Checked {
        let begins = self.changes.skip(begins);
        let mut made = self.branches.change(self.changes.newest().plan(plan.step, begins));
        made.version += self.changes.count();
        made.checkpoint |= plan.checkpoint;
        made.stop = self.stop_after == Some(plan.step) && !plan.last;
        ensure(made == *plan, 18, || {
            format!("{plan:?} is issued, and the changes so far make {made:?}")
        })?;
        self.as_adapted(plan)
    }

    /// The batch of a step is what the policy makes of the steps up to the decision before the last, and of nothing else: not of
    /// how far the run is when the plan is issued.
    fn as_adapted(&self, plan: &Plan) -> Checked {
        let mut policy = self.policy.clone();
        for seen in self.seen.values() {
            if policy.known_through() >= plan.step {
                break;
            }
            policy.observe(seen);
        }
        let known = policy.known_through();
        ensure(known >= plan.step, 20, || {
            format!("{plan:?} is issued, and batches are known through {known}")
        })?;
        let (made, has) = (
            policy.at(plan.step).and_then(|adapted| adapted.batch),
            self.changes.adapted(),
        );
        ensure(made == has, 20, || {
            format!("{plan:?} is issued under the decision {has:?}, and it is {made:?}")
        })
    }

    fn changed(&mut self, change: &Change) -> Checked {
        let issued = self.durable_plans.keys().next_back().copied().unwrap_or(0);
        let follows = change.number == self.changes.count() + 1 && change.from_step == issued + 1;
        ensure(follows, 18, || format!("{change:?} after plan {issued}"))?;
        if let Some(stop) = change.ask.stop_at {
            ensure(self.stop_issued.is_none() && self.stop_made.is_none(), 19, || {
                format!("{change:?}, and a plan that stops the run is issued")
            })?;
            self.stop_after = (stop > 0).then_some(stop);
        }
        let made = self.changes.make(change.clone());
        ensure(made.is_ok(), 18, || format!("{change:?} cannot be made: {made:?}"))
    }

    /// Another coordinator has taken over what is durable.
    pub(super) fn restarted(&mut self, run: &Run) -> Checked {
        self.newest = run.stamp();
        if let Some(generation) = &mut self.durable_generation {
            ensure(run.stamp().generation == generation.stamp.generation, 2, || {
                format!("{:?} follows {:?} in a new term", run.stamp(), generation.stamp)
            })?;
            generation.stamp = run.stamp();
        }
        ensure(run.committed() == self.committed, 5, || {
            format!(
                "a new term begins at step {}, and {} is committed",
                run.committed(),
                self.committed
            )
        })?;
        self.sent_through.clear();
        self.sent_from = self.committed;
        self.came_back.clear();
        self.must_abort.clear();
        Ok(())
    }

    pub(super) fn before(&mut self, event: &Event, run: &Run) {
        self.must_abort.clear();
        self.waited = run.phase() == Phase::WaitingForReturn;
        match event {
            Event::Report { peer, report }
                if Some(report.stamp) == self.durable_generation.as_ref().map(|g| g.stamp) =>
            {
                self.said
                    .entry((report.step, who(*peer)))
                    .or_default()
                    .insert(report.parameter_hash);
            }
            Event::MemberLost { peer } if run.phase() != Phase::Ended => {
                let in_collectives = run.members.iter().filter(|(_, member)| member.is_in_collectives());
                let present: BTreeSet<Peer> = in_collectives.map(|(peer, _)| *peer).collect();
                let is_told = run.regroup.as_ref().is_some_and(|regroup| regroup.is_aborted);
                if present.contains(peer) && !(is_told && run.phase() == Phase::Regrouping) {
                    let others = present.into_iter().filter(|other| other != peer);
                    self.must_abort = others.map(who).collect();
                }
            }
            Event::Stopped {
                peer,
                stamp,
                parts,
                unusable,
                ..
            } => {
                // Among them is what it kept at the end, of which it does not speak otherwise.
                self.hold(*peer, parts);
                let is_present = Some(*stamp) == self.durable_generation.as_ref().map(|g| g.stamp);
                self.said_unusable.extend(unusable.filter(|_| is_present));
            }
            Event::Ordered(order) if !order.dry_run => {
                if let Wanted::Rewind { to } = order.wanted {
                    self.asked_back.insert(to);
                }
            }
            Event::Holds { peer, part, .. } => self.hold(*peer, std::slice::from_ref(part)),
            Event::Wrote {
                peer,
                stamp,
                step,
                written: Ok(_),
            } if Some(*stamp) == self.durable_generation.as_ref().map(|g| g.stamp) => {
                self.wrote.entry(*step).or_default().insert(who(*peer));
            }
            Event::Return {
                peer,
                generation,
                returned,
            } => {
                let is_inside = returned.standing != Standing::Outside && returned.ready.is_some();
                let said = (*generation, is_inside);
                self.came_back.insert(returned.info.member.clone(), said);
                self.hold(*peer, &returned.parts);
            }
            _ => {}
        }
    }

    /// A member says that it holds these parts.
    fn hold(&mut self, peer: Peer, parts: &[Part]) {
        for part in parts {
            self.held.entry(*part).or_default().insert(who(peer));
        }
    }

    pub(super) fn after(&mut self, decision: &Decision, run: &Run, trainers: &Trainers) -> Checked {
        // Every decision rests on them.
        if let Some(disagreement) = run.members.disagreement() {
            ensure(false, 1, || disagreement)?;
        }
        for directive in &decision.directives {
            match directive {
                Directive::Persist(record) => self.persisted(record, run, trainers)?,
                Directive::Fence { peer, .. } => {
                    ensure(self.is_elastic, 8, || format!("peer {peer} is fenced in a fixed world"))?;
                }
                Directive::Send { to, stamp, body } => self.sent(*to, *stamp, body)?,
                Directive::Commit(commission) => {
                    let step = commission.checkpoint.step;
                    ensure(step <= self.committed, 13, || {
                        format!("step {step} is checkpointed, and {} is committed", self.committed)
                    })?;
                    let wrote = self.wrote.get(&step);
                    ensure(wrote.is_some_and(|wrote| wrote.is_superset(&self.ranks)), 13, || {
                        format!("the checkpoint of step {step} has the parts of {wrote:?} only")
                    })?;
                    self.commissioned.insert(commission.checkpoint);
                }
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
        let goes_on = matches!(
            run.phase(),
            Phase::Training | Phase::Paused | Phase::Stopping | Phase::Finishing
        );
        if self.waited && goes_on {
            self.went_on += 1;
            let generation = self.durable_generation.as_ref();
            for place in generation.iter().flat_map(|generation| &generation.members) {
                let number = self.newest.generation;
                let said = self.came_back.get(&place.member);
                // Or it has ended its part, which is durable, whether it has heard that or not.
                let has_ended = self.farewells.contains(&(number, place.rank));
                let as_it_was = said == Some(&(number, true)) || has_ended || trainers.is_gone(&place.member);
                ensure(as_it_was, 1, || {
                    format!("generation {number} goes on without {}", place.member)
                })?;
            }
        }
        ensure(
            self.stop_made.is_none() || !matches!(run.phase(), Phase::Training | Phase::Paused),
            19,
            || format!("{:?} after a step that stops the run", run.phase()),
        )?;
        if run.phase() == Phase::Training {
            let issued = self.durable_plans.keys().next_back().copied().unwrap_or(0);
            let ahead = issued - self.committed;
            let ends = issued == self.total_steps() || self.stop_issued.is_some();
            let holds = ahead <= LONGEST_WINDOW && (ahead >= 2 || ends);
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
            // One that came back to find the world gone on without it is told to leave, and is no rank.
            let is_known = |peer: &&Peer| run.members.get(peer).is_some_and(|member| member.astray.is_none());
            let gone: Vec<_> = inside.iter().filter(is_known).collect();
            ensure(gone.is_empty(), 1, || {
                format!(
                    "{:?} follows {stamp:?}, and peers {gone:?} are in its collectives",
                    generation.stamp
                )
            })?;
        }
        self.is_kept(generation, run)?;
        self.said.clear();
        self.said_unusable.clear();
        self.wrote.clear();
        let of_names = |name: &str| run.members.iter().find(|(_, member)| member.info.member == name);
        self.ranks = generation
            .members
            .iter()
            .filter_map(|place| of_names(&place.member).map(|(peer, _)| who(*peer)))
            .collect();
        self.sent_through.clear();
        self.sent_from = generation.resume.as_ref().map_or(0, |resume| resume.step);
        self.generations += 1;
        self.stands = generation.resume.as_ref().map_or(0, |resume| resume.step);
        let Some(resume) = &generation.resume else {
            return Ok(());
        };
        self.resumed += 1;
        ensure(self.branches.is_live(resume.step, resume.generation), 17, || {
            format!(
                "step {} of generation {} is of a closed branch",
                resume.step, resume.generation
            )
        })?;
        ensure(resume.step <= self.committed, 11, || {
            format!("step {} is resumed and {} is committed", resume.step, self.committed)
        })?;
        if let Some(checkpoint) = resume.checkpoint {
            self.loaded += 1;
            let is_good = self.loadable.contains(&checkpoint) && checkpoint.step == resume.step;
            let gone = self.keeps.map(|keeps| keeps.deleted(&self.stored)).unwrap_or_default();
            let is_gone = gone
                .iter()
                .any(|gone| (gone.generation, gone.step) == (checkpoint.generation, checkpoint.step));
            ensure(!is_gone, 13, || {
                format!("{checkpoint:?} is to be loaded, and was deleted")
            })?;
            return ensure(is_good, 13, || {
                format!("{checkpoint:?} is to be loaded, and good are {:?}", self.loadable)
            });
        }
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

    /// What stands can be had for as long as a holder of each part is there.
    fn is_kept(&mut self, generation: &Generation, run: &Run) -> Checked {
        let resumed = generation.resume.as_ref().map_or(0, |resume| resume.step);
        let parts = std::mem::take(&mut self.standing);
        let Some(step) = parts
            .first()
            .map(|part| part.step)
            .filter(|step| *step < self.total_steps())
        else {
            return Ok(());
        };
        let is_in = |(_, member): &(&Peer, &crate::run::Member)| member.finished.is_none();
        let there: BTreeSet<Peer> = run.members.iter().filter(is_in).map(|(peer, _)| who(*peer)).collect();
        let is_there = |part: &Part| self.held.get(part).is_some_and(|holders| !holders.is_disjoint(&there));
        ensure(resumed >= step || !parts.iter().all(is_there), 15, || {
            format!("step {resumed} is resumed, and the members that are there held the whole snapshot of step {step}")
        })
    }

    /// A branch is closed.
    fn rewound(&mut self, rewind: &Rewind, run: &Run, trainers: &Trainers) -> Checked {
        match rewind.by_operator {
            true => self.asked_for(rewind)?,
            false => self.by_the_rule(rewind, run, trainers)?,
        }
        let stops = self.stop_made.take_if(|stop| *stop > rewind.to);
        ensure(rewind.stopped_after == stops, 19, || {
            format!("{rewind:?}, and the run was stopped after {stops:?}")
        })?;
        self.stop_after = self.stop_after.filter(|stop| Some(*stop) != stops);
        self.stop_issued = self.stop_issued.filter(|stop| *stop <= rewind.to);
        self.left_by(rewind)
    }

    /// An operator wanted to go back just there.
    fn asked_for(&mut self, rewind: &Rewind) -> Checked {
        let is_known = self.asked_back.contains(&rewind.to) && rewind.to <= self.committed;
        ensure(is_known && rewind.unusable == self.committed + 1, 17, || {
            format!(
                "{rewind:?} after step {}, and {:?} were asked for",
                self.committed, self.asked_back
            )
        })?;
        let is_over = self.stop_issued.is_some() || self.stop_made.is_some();
        ensure(!is_over, 19, || format!("{rewind:?}, and the run is to stop"))?;
        let end = self.durable_plans.get(&rewind.to);
        let end = end.map_or(0, |plan| plan.first_sample + plan.samples);
        let changes_nothing = rewind.skipped == (end..end) && rewind.rate_factor == 1.0;
        ensure(changes_nothing, 17, || format!("{rewind:?} changes what is planned"))?;
        self.operators_rewinds += 1;
        self.rewinds_since = 0;
        Ok(())
    }

    /// The policy's rule has the run go back.
    fn by_the_rule(&mut self, rewind: &Rewind, run: &Run, trainers: &Trainers) -> Checked {
        let Some(rule) = self.rule else {
            return Err(Violation::new(17, format!("{rewind:?}, and there is no rule")));
        };
        ensure(self.rewinds_since < rule.most, 17, || {
            format!("{rewind:?} is one too many")
        })?;
        let is_the_next = rewind.unusable == self.committed + 1 && self.said_unusable.contains(&rewind.unusable);
        ensure(is_the_next, 17, || {
            format!(
                "{rewind:?} after step {}, and {:?} were said",
                self.committed, self.said_unusable
            )
        })?;
        ensure(rewind.to == self.committed.saturating_sub(rule.steps), 17, || {
            format!("{rewind:?} after step {}", self.committed)
        })?;
        let end = |step: u64| {
            self.durable_plans
                .get(&step)
                .map_or(0, |plan| plan.first_sample + plan.samples)
        };
        let skipped = end(rewind.to)..if rule.skips {
            end(rewind.unusable)
        } else {
            end(rewind.to)
        };
        ensure(rewind.skipped == skipped, 17, || {
            format!("{rewind:?} and not {skipped:?}")
        })?;
        ensure(!rewind.skipped.is_empty() || rewind.rate_factor != 1.0, 17, || {
            format!("{rewind:?} changes nothing")
        })?;
        let stamp = self.durable_generation.as_ref().map(|generation| generation.stamp);
        let is_known = |peer: &Peer| run.members.get(peer).is_some_and(|member| member.astray.is_none());
        let inside = stamp.map(|stamp| trainers.in_collectives(stamp)).unwrap_or_default();
        ensure(!inside.iter().any(is_known), 1, || {
            format!("{rewind:?}, and {inside:?} are in the collectives")
        })?;
        self.rewinds += 1;
        self.rewinds_since += 1;
        Ok(())
    }

    /// What holds from a rewind on.
    fn left_by(&mut self, rewind: &Rewind) -> Checked {
        self.trained = (1..=rewind.to)
            .filter_map(|step| self.durable_plans.get(&step))
            .map(|plan| plan.samples)
            .sum();
        ensure(rewind.samples == self.trained, 17, || {
            format!("{rewind:?}, and {} samples were trained then", self.trained)
        })?;
        (self.committed, self.cursor) = (rewind.to, rewind.skipped.end);
        self.left_behind = self.durable_plans.split_off(&(rewind.to + 1));
        self.hashes.split_off(&(rewind.to + 1));
        self.seen.split_off(&(rewind.to + 1));
        self.loadable.retain(|checkpoint| checkpoint.step <= rewind.to);
        self.stood.split_off(&(rewind.to + 1));
        let newest = self.stood.last_key_value().filter(|(step, _)| **step >= self.kept_from);
        self.standing = newest.map(|(_, parts)| parts.clone()).unwrap_or_default();
        self.branches.close(rewind.clone());
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
                    ensure(plan.step <= self.total_steps(), 7, || {
                        format!("plan {} is past the end", plan.step)
                    })?;
                    let closed = self.left_behind.remove(&plan.step);
                    ensure(closed.as_ref() != Some(plan), 17, || {
                        format!("plan {} is the one that was left behind", plan.step)
                    })?;
                    let before = self.durable_plans.values().next_back();
                    let end = before.map_or(0, |before| before.first_sample + before.samples);
                    self.as_changed(plan, self.branches.cursor_after(plan.step - 1, end))?;
                    ensure(self.stop_issued.is_none(), 19, || {
                        format!("plan {} after one that stops the run", plan.step)
                    })?;
                    // A rank that was lost in that very step makes the others make it again, and one more.
                    let replayed = self.durable_generation.as_ref().map_or(0, |made| made.replay_through);
                    ensure(self.stop_made.is_none_or(|stop| replayed >= stop), 19, || {
                        format!("plan {} after the step that stopped the run", plan.step)
                    })?;
                    self.stop_issued = plan.stop.then_some(plan.step);
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
                self.cursor = self.changes.skip(self.cursor);
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
                if commit.plan.stop {
                    (self.stop_issued, self.stop_made) = (None, Some(step));
                }
                self.committed = step;
                self.seen.insert(step, Observation::of(&commit.plan, &commit.metrics));
                self.hashes.insert(step, commit.parameter_hash);
                self.cursor = first + commit.plan.samples;
                self.trained += commit.plan.samples;
                ensure(commit.samples == self.trained, 3, || {
                    format!("step {step} counts {} samples", commit.samples)
                })?;
            }
            Record::Rewound(rewind) => self.rewound(rewind, run, trainers)?,
            Record::Changed(change) => self.changed(change)?,
            Record::Answered(answered) => {
                let is_new = self.answered.insert(answered.key.clone());
                ensure(is_new, 18, || format!("{answered:?} is carried out again"))?;
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
                self.standing = parts.clone();
                self.stood.insert(*step, parts.clone());
                let copies = self.ranks.len().min(2);
                ensure(parts.len() == self.ranks.len(), 12, || {
                    format!("snapshot {step} has {parts:?}")
                })?;
                for part in parts {
                    let held = self.held.get(part).map_or(0, BTreeSet::len);
                    ensure(held >= copies, 12, || format!("{part:?} is held {held} times"))?;
                }
            }
            Record::Begun(begun) => {
                let stamp = self
                    .durable_generation
                    .as_ref()
                    .map(|generation| generation.stamp.generation);
                ensure(stamp == Some(begun.generation), 1, || {
                    format!("generation {} begins, and {stamp:?} is durable", begun.generation)
                })?;
                let known = self.hashes.get(&begun.from).copied();
                let known = known.filter(|_| begun.from > 0);
                ensure(known.is_none_or(|known| known == begun.parameter_hash), 5, || {
                    format!("generation {} begins with other parameters", begun.generation)
                })?;
            }
            Record::Farewell { generation, rank, .. } => {
                let ranks = self.durable_generation.as_ref().map_or(0, Generation::ranks);
                ensure(*generation == self.newest.generation && *rank < ranks, 1, || {
                    format!("rank {rank} of generation {generation} ends")
                })?;
                self.farewells.insert((*generation, *rank));
            }
            Record::Wish(_) => {}
            Record::Checkpoint(checkpoint) => {
                ensure(self.commissioned.contains(checkpoint), 13, || {
                    format!("{checkpoint:?} was never commissioned")
                })?;
                self.checkpoints += 1;
                self.loadable.insert(*checkpoint);
                self.stored.push(*checkpoint);
            }
            Record::CheckpointRefused { checkpoint, .. } => {
                self.stored.retain(|known| known != checkpoint);
                ensure(self.loadable.remove(checkpoint), 13, || {
                    format!("{checkpoint:?} is refused twice")
                })?;
            }
            Record::Decision { reason } => ensure(!reason.is_empty(), 8, || "no reason".to_owned())?,
            Record::End(end) => {
                let last = end.last_step;
                ensure(last == self.committed, 8, || {
                    format!("the end speaks of step {last}, not {}", self.committed)
                })?;
                let replayed = self.durable_generation.as_ref().map_or(0, |made| made.replay_through);
                let as_planned = self.stop_made.is_none_or(|stop| last == stop || replayed >= stop);
                ensure(as_planned, 19, || {
                    format!("the run was to stop after {:?}, and ended after {last}", self.stop_made)
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
                    let mut from = self.sent_from;
                    // A rank that had got no plans yet gets them from the generation's first on.
                    if plan.step <= from {
                        let resume = self
                            .durable_generation
                            .as_ref()
                            .and_then(|generation| generation.resume.as_ref());
                        from = resume.map_or(0, |resume| resume.step);
                    }
                    let through = self.sent_through.entry(who(to)).or_insert(from);
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
                self.must_abort.remove(&who(to));
            }
            CoordinatorBody::SnapshotStands { step, free_before } => {
                let stands = self.stands;
                let farthest = self.rule.map_or(*step, |rule| step.saturating_sub(rule.steps));
                ensure(*free_before <= farthest, 15, || {
                    format!(
                        "snapshot {step} stands, before {free_before} all is freed, and a rewind may go back to {farthest}"
                    )
                })?;
                self.kept_from = self.kept_from.max(*free_before);
                ensure(*step == stands, 6, || {
                    format!("snapshot {step} is said to stand, and durable is {stands}")
                })?;
            }
            CoordinatorBody::CommId(_) | CoordinatorBody::Welcome { .. } => {}
        }
        Ok(())
    }
}
