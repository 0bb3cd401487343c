//! What was trained: committed steps, their samples, their plans.

use lockstep_proto::domain::{DirectiveKind, Plan};

use super::{Proof, Tables, without_gaps};
use crate::plan::Planner;

pub(super) fn proofs(tables: &Tables, planner: Option<&Planner>) -> Vec<Proof> {
    let mut proofs = vec![
        in_order(tables),
        each_sample_once(tables),
        as_issued(tables),
        issued(tables),
    ];
    proofs.extend(planner.map(|planner| as_planned(tables, planner)));
    proofs.extend([totals(tables), validated(tables)]);
    proofs
}

fn in_order(tables: &Tables) -> Proof {
    let mut proof = Proof::of("committed steps follow each other without gap, each once");
    without_gaps(&mut proof, "committed", 1, tables.committed.keys().copied());
    for (key, step) in &tables.committed {
        proof.holds(step.plan.step == *key, || {
            format!("row {key} of the table committed holds step {}", step.plan.step)
        });
        proof.holds(step.loss.is_finite() || step.is_skipped, || {
            format!("row {key} of the table committed has the loss {}", step.loss)
        });
        let before = key.checked_sub(1).and_then(|before| tables.committed.get(&before));
        let is_as_before = before.is_none_or(|before| before.parameter_hash == step.parameter_hash);
        proof.holds(!step.is_skipped || is_as_before, || {
            format!("row {key} of the table committed is of a skipped step, and the parameters have changed")
        });
    }
    match tables.last_committed() {
        0 => proof.with("no step yet".to_owned()),
        last => proof.with(format!("steps 1 to {last}")),
    }
}

/// Where a list of plans leaves its samples: an end for each, and the sentence where one does not begin at the last end.
fn follow<'p>(proof: &mut Proof, table: &str, plans: impl Iterator<Item = (u64, &'p Plan)>) -> u64 {
    let mut end = 0;
    for (key, plan) in plans {
        proof.holds(plan.first_sample == end, || {
            let what = if plan.first_sample > end { "left out" } else { "taken twice" };
            format!(
                "row {key} of the table {table} begins at sample {}, and the one before ended before sample {end}: samples are {what}",
                plan.first_sample
            )
        });
        end = plan.first_sample.saturating_add(plan.samples);
    }
    end
}

fn each_sample_once(tables: &Tables) -> Proof {
    let mut proof = Proof::of("every sample position was trained exactly once");
    let plans = tables.committed.iter().map(|(key, step)| (*key, &step.plan));
    let end = follow(&mut proof, "committed", plans);
    proof.with(format!("samples 0 to {end}, without gap or overlap"))
}

fn as_issued(tables: &Tables) -> Proof {
    let mut proof = Proof::of("each committed step was made by the plan that was issued for it");
    for (key, step) in &tables.committed {
        match tables.plans.get(key) {
            None => proof.broken(format!(
                "row {key} of the table committed has no plan: row {key} of the table plans is missing"
            )),
            Some(plan) => proof.holds(*plan == step.plan, || {
                format!(
                    "row {key} of the table committed has another plan than row {key} of the table plans: {}",
                    difference(&step.plan, plan)
                )
            }),
        }
    }
    proof.with(format!("{} plans equal", tables.committed.len()))
}

fn issued(tables: &Tables) -> Proof {
    let mut proof = Proof::of("plans were issued in order, each once");
    without_gaps(&mut proof, "plans", 1, tables.plans.keys().copied());
    for (key, plan) in &tables.plans {
        proof.holds(plan.step == *key, || {
            format!("row {key} of the table plans is for step {}", plan.step)
        });
    }
    let end = follow(&mut proof, "plans", tables.plans.iter().map(|(key, plan)| (*key, plan)));
    let ahead = tables.plans.len().saturating_sub(tables.committed.len());
    proof.with(format!(
        "{} plans, {ahead} of them ahead, to sample {end}",
        tables.plans.len()
    ))
}

fn as_planned(tables: &Tables, planner: &Planner) -> Proof {
    let mut proof = Proof::of("plans are those that the config makes");
    for (key, plan) in &tables.plans {
        if *key == 0 || *key > planner.total_steps() {
            let total = planner.total_steps();
            proof.broken(format!(
                "row {key} of the table plans is for a step that the config has not: it has {total}"
            ));
            continue;
        }
        let mut made = planner.plan(*key, planner.cursor_after(key - 1));
        // An operator may have asked for one more checkpoint.
        made.checkpoint |= plan.checkpoint;
        proof.holds(made == *plan, || {
            format!(
                "row {key} of the table plans is not what the config makes: {}",
                difference(plan, &made)
            )
        });
    }
    proof.with(format!(
        "{} of {} steps made again",
        tables.plans.len(),
        planner.total_steps()
    ))
}

/// The first field in which two plans differ.
fn difference(one: &Plan, other: &Plan) -> String {
    let fields = |plan: &Plan| {
        // Every field by name, so that a new one cannot be forgotten.
        let Plan {
            step,
            learning_rate,
            micro_batches,
            first_sample,
            samples,
            validate,
            last,
            version,
            checkpoint,
        } = plan;
        [
            ("step", step.to_string()),
            ("learning_rate", learning_rate.to_string()),
            ("micro_batches", micro_batches.to_string()),
            ("first_sample", first_sample.to_string()),
            ("samples", samples.to_string()),
            ("validate", validate.to_string()),
            ("last", last.to_string()),
            ("version", version.to_string()),
            ("checkpoint", checkpoint.to_string()),
        ]
    };
    fields(one)
        .into_iter()
        .zip(fields(other))
        .find(|(one, other)| one != other)
        .map_or_else(
            || "no field that can be shown".to_owned(),
            |((name, one), (_, other))| format!("its {name} is {one}, not {other}"),
        )
}

fn totals(tables: &Tables) -> Proof {
    let mut proof = Proof::of("counted samples and tokens add up");
    let (mut samples, mut tokens) = (0_u64, 0_u64);
    for (key, step) in &tables.committed {
        samples = samples.saturating_add(step.plan.samples);
        tokens = tokens.saturating_add(step.step_tokens);
        proof.holds(step.samples == samples, || {
            format!(
                "row {key} of the table committed counts {} samples so far, and they are {samples}",
                step.samples
            )
        });
        proof.holds(step.tokens == tokens, || {
            format!(
                "row {key} of the table committed counts {} tokens so far, and they are {tokens}",
                step.tokens
            )
        });
        // What follows is held against this row, so that one wrong row is one violation.
        (samples, tokens) = (step.samples, step.tokens);
    }
    proof.with(format!("{samples} samples and {tokens} counted tokens"))
}

fn validated(tables: &Tables) -> Proof {
    let mut proof = Proof::of("validations are of committed steps that were to be validated");
    for (step, validation) in &tables.validations {
        match tables.committed.get(step) {
            None => proof.broken(format!(
                "row {step} of the table validations is of a step that is not committed"
            )),
            // The ranks validate where they stop, too, which no plan knows.
            Some(committed) => proof.holds(committed.plan.validate || stops_after(tables, *step), || {
                format!(
                    "row {step} of the table validations is of a step whose plan has no validation, and no run stopped there"
                )
            }),
        }
        proof.holds(validation.loss.is_finite(), || {
            format!("row {step} of the table validations has the loss {}", validation.loss)
        });
    }
    proof.with(format!("{} validations", tables.validations.len()))
}

/// Whether the run was stopped after this step, or was to stop when its coordinator was killed after it.
fn stops_after(tables: &Tables, step: u64) -> bool {
    let is_stopping = || tables.urgent.values().any(|urgent| urgent.kind == DirectiveKind::Stop);
    tables.ends.values().any(|end| end.last_step == step) || step == tables.last_committed() && is_stopping()
}
