//! A coordinator that is killed in the middle of its work.
//!
//! The service takes up to some hundred letters, then makes all records that they led to durable in one transaction, then
//! sends: messages in the order in which they were decided, acknowledgements of steps last, refusals after them. So a kill
//! finds the decisions of one transaction either not kept and not told to anybody, or kept and told in part. Between two
//! decisions, with nothing under way, is the third place, and `Simulation::restart` alone.
//!
//! Way of data: [`Simulation::begin_to_tear`] remembers what the checker knew → the decisions from then on are held back
//! ([`Simulation::hold`]) → after some of them [`Simulation::tear`] lets the kill come before or after the transaction, and
//! another coordinator takes over what is durable.

use lockstep_proto::domain::CoordinatorBody;
use rand::Rng;

use super::checker::{Checker, Violation};
use super::{Fault, Simulation};
use crate::run::{Decision, Directive, Event, Phase};

/// Decisions of one transaction, at most.
const MOST: u32 = 6;

/// The transaction that a coordinator does not survive.
pub(super) struct Torn {
    /// Decisions that are still made before the kill.
    left: u32,
    /// What was known when the transaction was empty.
    checker: Box<Checker>,
    held_back: Vec<Directive>,
    /// Trainers that are refused.
    refused: Vec<usize>,
    /// Commands whose answers nobody has heard.
    unanswered: Vec<Event>,
}

/// Kills in the middle of a transaction, and what became of it.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::run) struct Tears {
    /// Nothing was kept.
    pub(in crate::run) lost: u64,
    /// Everything was kept, and nothing told.
    pub(in crate::run) untold: u64,
    /// Everything was kept, and some of it told.
    pub(in crate::run) told_in_part: u64,
}

impl Simulation {
    /// From now on what is decided waits for a transaction, in which the coordinator will be killed.
    pub(super) fn begin_to_tear(&mut self) {
        self.torn = Some(Torn {
            left: self.wild.random_range(1..=MOST),
            checker: Box::new(self.checker.clone()),
            held_back: Vec::new(),
            refused: Vec::new(),
            unanswered: Vec::new(),
        });
    }

    /// A decision waits for the transaction. Gives it back where none is waited for.
    pub(super) fn hold(&mut self, event: Option<Event>, joins: Option<usize>, decision: Decision) -> Option<Decision> {
        let Some(torn) = &mut self.torn else {
            return Some(decision);
        };
        torn.left = torn.left.saturating_sub(1);
        torn.held_back.extend(decision.directives);
        torn.refused.extend(joins.filter(|_| decision.refusal.is_some()));
        torn.unanswered.extend(event);
        None
    }

    /// The kill, once enough was decided.
    pub(super) fn tear(&mut self) -> Result<(), Violation> {
        let Some(torn) = self.torn.take_if(|torn| torn.left == 0) else {
            return Ok(());
        };
        // Whoever gave a command has no answer, and gives it again.
        let again = torn.unanswered.into_iter().map(|event| (1, event));
        self.commands.splice(0..0, again);
        let (records, rest): (Vec<_>, Vec<_>) = torn
            .held_back
            .into_iter()
            .partition(|directive| matches!(directive, Directive::Persist(_)));
        let rest = in_order_of_sending(rest);
        if self.wild.random() {
            self.tears.lost += 1;
            self.checker = *torn.checker;
            if self.run.fault == Some(Fault::SendBeforeTheTransaction) {
                rest.into_iter().for_each(|directive| self.carry_out(directive));
            }
            return self.restart();
        }
        let told = self.wild.random_range(0..=rest.len());
        match told {
            0 => self.tears.untold += 1,
            _ => self.tears.told_in_part += 1,
        }
        let all = told == rest.len();
        let is_over = self.run.phase() == Phase::Ended;
        for directive in records.into_iter().chain(rest.into_iter().take(told)) {
            self.carry_out(directive);
        }
        for index in torn.refused.into_iter().filter(|_| all) {
            self.trainers.refuse(index);
        }
        if is_over {
            // The end is durable: nobody takes the run over, and whoever was not told looks for a coordinator in vain.
            self.trainers.forsake();
            return Ok(());
        }
        self.restart()
    }
}

/// Of several acknowledgements to one member the newest says it all, and goes last.
fn in_order_of_sending(directives: Vec<Directive>) -> Vec<Directive> {
    let is_of_a_step = |directive: &Directive| {
        let Directive::Send { body, .. } = directive else {
            return false;
        };
        matches!(**body, CoordinatorBody::Acknowledged { finished: false, .. })
    };
    let (acknowledgements, mut rest): (Vec<_>, Vec<_>) = directives.into_iter().partition(is_of_a_step);
    for (index, directive) in acknowledgements.iter().enumerate() {
        let is_to_the_same = |later: &Directive| match (directive, later) {
            (Directive::Send { to, .. }, Directive::Send { to: later, .. }) => to == later,
            _ => false,
        };
        if !acknowledgements[index + 1..].iter().any(is_to_the_same) {
            rest.push(directive.clone());
        }
    }
    rest
}
