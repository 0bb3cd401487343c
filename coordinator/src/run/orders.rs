//! What operators order while the run goes on, and how an order is given once.
//!
//! Way of data: an [`Order`] → its key was heard before: the same answer again → its condition holds → it is carried out, on a
//! copy where it is a dry run → the change, the decision and the answer become durable together → the operator hears the
//! sentence and the step. A change holds from the first step on whose plan was not issued.

use lockstep_proto::domain::Plan;

use crate::changes::{Ask, Change};
use crate::run::failure::listed;
use crate::run::machine::Answer;
use crate::run::{Answered, Directive, Effect, Order, Phase, Record, Refusal, Run, Wanted, Wish};

impl Run {
    pub(super) fn ordered(
        &mut self,
        order: &Order,
        effect: &mut Option<Effect>,
        directives: &mut Vec<Directive>,
    ) -> Answer {
        if let Some(before) = self.answers.get(&order.key).filter(|_| !self.forgets_orders()) {
            if before.wanted != order.wanted {
                let reason = format!(
                    "the key {:?} was used for another order, which was answered: {}. Take another key",
                    order.key, before.sentence
                );
                return Err(Refusal::new("KEY_REUSED", "command.key", reason));
            }
            *effect = before.effect;
            return Ok(Some(before.sentence.clone()));
        }
        let first = self.first_affected(&order.wanted);
        if let Some(before) = order.if_step_before
            && first >= before
        {
            let reason =
                format!("it would take effect at step {first} at the earliest, which is not before step {before}");
            return Err(Refusal::new("TOO_LATE", "command.if_step_before", reason));
        }
        if order.dry_run {
            // Nothing that is ordered looks at steps that are committed or at orders that were given, and they are many.
            let many = (std::mem::take(&mut self.past), std::mem::take(&mut self.answers));
            let mut copy = self.clone();
            (self.past, self.answers) = many;
            let said = copy.carry_out(&order.wanted, effect, &mut Vec::new())?;
            let sentence = said.unwrap_or_else(|| copy.reason());
            return Ok(Some(format!("dry run, nothing is changed: {sentence}")));
        }
        let said = self.carry_out(&order.wanted, effect, directives)?;
        let sentence = said.unwrap_or_else(|| self.reason());
        if !order.key.is_empty() {
            let answered = Answered {
                key: order.key.clone(),
                wanted: order.wanted.clone(),
                sentence: sentence.clone(),
                effect: *effect,
            };
            directives.push(Directive::Persist(Record::Answered(Box::new(answered.clone()))));
            self.answers.insert(order.key.clone(), answered);
        }
        Ok(Some(sentence))
    }

    fn forgets_orders(&self) -> bool {
        #[cfg(test)]
        return self.fault == Some(super::simulator::Fault::CarryOutTwice);
        #[cfg(not(test))]
        false
    }

    /// The first step that an order can touch: directives act at the end of a step that runs, changes on plans to come.
    fn first_affected(&self, wanted: &Wanted) -> u64 {
        match wanted {
            Wanted::Change(_) | Wanted::Checkpoint => self.issued_through + 1,
            Wanted::Pause | Wanted::Resume | Wanted::Stop | Wanted::Rewind { .. } | Wanted::Drain { .. } => {
                self.committed + 1
            }
        }
    }

    fn carry_out(&mut self, wanted: &Wanted, effect: &mut Option<Effect>, directives: &mut Vec<Directive>) -> Answer {
        match wanted {
            Wanted::Pause => self.pause(directives),
            Wanted::Resume => self.resume(directives),
            Wanted::Stop => self.stop("an operator", directives),
            Wanted::Checkpoint => {
                let step = self.issued_through + 1;
                let said = self.ask_for_checkpoint(directives)?;
                // Where it was issued for it, the plan of that step says so.
                *effect = (self.issued_through == step).then(|| self.effect_at(step));
                Ok(said)
            }
            Wanted::Change(ask) => self.change(ask, effect, directives),
            Wanted::Rewind { to } => {
                let said = self.rewind_to(*to, directives)?;
                *effect = Some(self.effect_at(to + 1));
                Ok(said)
            }
            Wanted::Drain { member } => self.drain(member, directives),
        }
    }

    fn effect_at(&self, step: u64) -> Effect {
        Effect {
            step,
            version: self.version(),
        }
    }

    /// The version of the plans that are issued next.
    fn version(&self) -> u64 {
        1 + self.branches.newest() + self.changes.count()
    }

    fn change(&mut self, ask: &Ask, effect: &mut Option<Effect>, directives: &mut Vec<Directive>) -> Answer {
        let refuse = |kind, reason| Err(Refusal::new(kind, "change", reason));
        let (total, issued) = (self.planner().total_steps(), self.issued_through);
        match self.phase {
            Phase::Ended => return Err(self.over("change it")),
            Phase::Stopping | Phase::Failing => {
                return refuse(
                    "NOT_TRAINING",
                    format!("no step is planned any more: {}", self.reason()),
                );
            }
            _ if self.wish == Wish::Stop => {
                return refuse(
                    "NOT_TRAINING",
                    "no step is planned any more: the run is being stopped".to_owned(),
                );
            }
            _ if issued >= total => {
                return refuse(
                    "TOO_LATE",
                    format!("the plan of the last step, {total}, is issued already"),
                );
            }
            _ => {}
        }
        if let (Some(_), Some(plan)) = (ask.stop_at, self.issued.iter().find(|plan| plan.stop)) {
            let reason = format!(
                "the plan of step {}, after which the run stops, is issued already",
                plan.step
            );
            return refuse("TOO_LATE", reason);
        }
        if let Some(stop) = ask.stop_at.filter(|stop| *stop > 0) {
            if stop <= issued {
                let reason = format!(
                    "the plans up to step {issued} are issued: step {} is the first after which the run can be made to stop, \
                     unless it is stopped now",
                    issued + 1
                );
                return refuse("TOO_LATE", reason);
            }
            if stop >= total && ask.extend.is_none() {
                return refuse("TOO_LATE", format!("the run ends with step {total} anyway"));
            }
        }
        let change = Change {
            number: self.changes.count() + 1,
            branch: self.branches.newest(),
            from_step: issued + 1,
            cursor: self.changes.skip(self.cursor),
            ask: ask.clone(),
        };
        let before = self.planner().plan(change.from_step, change.cursor);
        if let Err(error) = self.changes.make(change.clone()) {
            return refuse("BAD_CHANGE", error.to_string());
        }
        let after = self.planner().plan(change.from_step, self.changes.skip(change.cursor));
        let total_after = self.planner().total_steps();
        let sentence = sentence(&change, (&before, total), (&after, total_after));
        *effect = Some(self.effect_at(change.from_step));
        directives.push(Directive::Persist(Record::Changed(Box::new(change))));
        directives.push(Directive::Persist(Record::Decision {
            reason: format!("an operator's change {}: {sentence}", self.changes.count()),
        }));
        Ok(Some(sentence))
    }

    /// A member leaves, as if its host had asked it to.
    fn drain(&mut self, name: &str, directives: &mut Vec<Directive>) -> Answer {
        if self.phase == Phase::Ended {
            return Err(self.over("drain a member"));
        }
        let found = self.members.named(name).next();
        let Some((peer, member)) = found.filter(|(_, member)| member.finished.is_none()) else {
            let mut names: Vec<&str> = self
                .members
                .values()
                .map(|member| member.info.member.as_str())
                .collect();
            names.sort_unstable();
            let reason = format!(
                "no member {name:?} is there; there are: {}",
                listed(&names, names.len(), ", ")
            );
            return Err(Refusal::new("NO_SUCH_MEMBER", "member", reason));
        };
        let remain = self.members.candidates() - usize::from(member.is_candidate());
        let least = self.facts.worlds.least.max(1);
        if !self.facts.worlds.are_elastic() || remain < least as usize {
            let reason = format!(
                "without {name} {remain} of at least {least} would remain, and the run would have to stop: start another trainer \
                 first, or stop the run"
            );
            return Err(Refusal::new("TOO_FEW", "member", reason));
        }
        self.leaving(peer, "an operator drains it", directives)?;
        Ok(Some(format!(
            "{name} leaves as soon as the others can go on without it: {}",
            self.reason()
        )))
    }

    /// A step after which operators wanted the run to stop is committed.
    pub(super) fn stop_as_planned(&mut self, step: u64, directives: &mut Vec<Directive>) {
        self.wants(Wish::Stop, directives);
        directives.push(Directive::Persist(Record::Decision {
            reason: format!("the run stops after step {step}, as operators wanted"),
        }));
        if matches!(self.phase, Phase::Training | Phase::Paused) {
            self.phase = Phase::Stopping;
        }
    }
}

/// What a change makes of the next step, and of the run.
fn sentence(change: &Change, (before, total): (&Plan, u64), (after, total_after): (&Plan, u64)) -> String {
    let ask = &change.ask;
    let mut parts = Vec::new();
    let mut number = |what: &str, is_asked: bool, before: Option<f64>, after: Option<f64>| {
        let said = |value: Option<f64>| value.map_or_else(|| "the config's".to_owned(), |value| format!("{value}"));
        if is_asked || before != after {
            parts.push(match before == after {
                true => format!("{what} {}, as before", said(after)),
                false => format!("{what} {} (was {})", said(after), said(before)),
            });
        }
    };
    let count = |value: u64| Some(value as f64);
    let rates = (Some(before.learning_rate), Some(after.learning_rate));
    number("learning rate", ask.learning_rate.is_some(), rates.0, rates.1);
    number(
        "batch",
        ask.batch.is_some(),
        count(before.samples),
        count(after.samples),
    );
    number("momentum", ask.momentum.is_some(), before.momentum, after.momentum);
    number(
        "weight decay",
        ask.weight_decay.is_some(),
        before.weight_decay,
        after.weight_decay,
    );
    number(
        "steps of the run",
        ask.extend.is_some(),
        count(total),
        count(total_after),
    );
    for (what, every) in [
        ("a validation", ask.validate_every),
        ("a checkpoint", ask.checkpoint_every),
    ] {
        match every {
            Some(0) => parts.push(format!("{what} only when the run ends")),
            Some(every) => parts.push(format!("{what} every {every} steps")),
            None => {}
        }
    }
    match ask.stop_at {
        Some(0) => parts.push("no step to stop after".to_owned()),
        Some(step) => parts.push(format!("the run stops after step {step}")),
        None => {}
    }
    if let Some(count) = ask.skip_samples {
        let first = change.cursor;
        parts.push(format!(
            "samples {first} to {} are skipped",
            first.saturating_add(count - 1)
        ));
    }
    format!("from step {} on: {}", change.from_step, parts.join(", "))
}
