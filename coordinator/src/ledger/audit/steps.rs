//! What was trained: committed steps, their samples, their plans.

use lockstep_proto::domain::{DirectiveKind, Plan};

use super::{Proof, Tables, branches_without_gaps, row};
use crate::branches::Branches;
use crate::changes::Changes;

pub(super) fn proofs(tables: &Tables, changes: Option<&Changes>) -> Vec<Proof> {
    let mut proofs = vec![
        in_order(tables),
        each_sample_once(tables),
        as_issued(tables),
        issued(tables),
    ];
    proofs.extend(changes.map(|changes| as_planned(tables, changes)));
    proofs.extend([totals(tables), validated(tables)]);
    proofs
}

fn in_order(tables: &Tables) -> Proof {
    let mut proof = Proof::of("committed steps follow each other without gap, each once");
    branches_without_gaps(&mut proof, "committed", tables, tables.committed.keys().copied());
    for (key, step) in &tables.committed {
        let (branch, number) = Branches::of_key(*key);
        let named = row(*key);
        proof.holds(step.plan.step == number, || {
            format!("{named} of the table committed holds step {}", step.plan.step)
        });
        proof.holds(step.loss.is_finite() || step.is_skipped, || {
            format!("{named} of the table committed has the loss {}", step.loss)
        });
        let before = number
            .checked_sub(1)
            .map(|before| tables.branches.up_to(branch).key(before));
        let before = before.and_then(|before| tables.committed.get(&before));
        let is_as_before = before.is_none_or(|before| before.parameter_hash == step.parameter_hash);
        proof.holds(!step.is_skipped || is_as_before, || {
            format!("{named} of the table committed is of a skipped step, and the parameters have changed")
        });
    }
    match tables.last_committed() {
        0 => proof.with("no step yet".to_owned()),
        last => proof.with(format!("steps 1 to {last}")),
    }
}

/// Where a list of plans leaves its samples, and the sentence where one does not begin where it should: at the end of the one
/// before, or, as the first of its branch, where the rewind said.
fn follow<'p>(
    proof: &mut Proof,
    (table, tables): (&str, &Tables),
    plans: impl Iterator<Item = (u64, &'p Plan)>,
) -> u64 {
    let (mut end, mut branch) = (0, 0);
    for (key, plan) in plans {
        let (of, _) = Branches::of_key(key);
        if let Some(rewind) = tables.branches.rewind(of).filter(|_| of != branch) {
            end = rewind.skipped.end;
        }
        branch = of;
        end = tables.skip(end);
        proof.holds(plan.first_sample == end, || {
            let what = if plan.first_sample > end { "left out" } else { "taken twice" };
            let named = row(key);
            format!(
                "{named} of the table {table} begins at sample {}, and the one before ended before sample {end}: samples are {what}",
                plan.first_sample
            )
        });
        end = plan.first_sample.saturating_add(plan.samples);
    }
    end
}

fn each_sample_once(tables: &Tables) -> Proof {
    let mut proof =
        Proof::of("every sample position was trained exactly once, but for those that a rewind or an operator skipped");
    let live = tables.live();
    let plans = live.values().map(|(key, step)| (*key, &step.plan));
    let end = follow(&mut proof, ("committed", tables), plans);
    let mut figures = format!("samples 0 to {end}, without gap or overlap");
    let mut of_live: Vec<u64> = live.values().map(|(key, _)| Branches::of_key(*key).0).collect();
    of_live.dedup();
    for rewind in of_live.into_iter().filter_map(|branch| tables.branches.rewind(branch)) {
        if !rewind.skipped.is_empty() {
            let (first, last) = (rewind.skipped.start, rewind.skipped.end);
            figures += &format!("; {first} to {last} skipped by rewind {}", rewind.number);
        }
    }
    for change in tables.changes.values() {
        if let Some(count) = change.ask.skip_samples {
            let (first, number) = (change.cursor, change.number);
            figures += &format!(
                "; {first} to {} skipped by change {number}",
                first.saturating_add(count)
            );
        }
    }
    proof.with(figures)
}

fn as_issued(tables: &Tables) -> Proof {
    let mut proof = Proof::of("each committed step was made by the plan that was issued for it");
    for (key, step) in &tables.committed {
        match tables.plans.get(key) {
            None => proof.broken(format!(
                "{named} of the table committed has no plan: {named} of the table plans is missing",
                named = row(*key)
            )),
            Some(plan) => proof.holds(*plan == step.plan, || {
                format!(
                    "{named} of the table committed has another plan than {named} of the table plans: {}",
                    difference(&step.plan, plan),
                    named = row(*key)
                )
            }),
        }
    }
    proof.with(format!("{} plans equal", tables.committed.len()))
}

fn issued(tables: &Tables) -> Proof {
    let mut proof = Proof::of("plans were issued in order, each once");
    branches_without_gaps(&mut proof, "plans", tables, tables.plans.keys().copied());
    for (key, plan) in &tables.plans {
        proof.holds(plan.step == Branches::of_key(*key).1, || {
            format!("{} of the table plans is for step {}", row(*key), plan.step)
        });
    }
    let end = follow(
        &mut proof,
        ("plans", tables),
        tables.plans.iter().map(|(key, plan)| (*key, plan)),
    );
    let ahead = tables.plans.len().saturating_sub(tables.committed.len());
    proof.with(format!(
        "{} plans, {ahead} of them ahead, to sample {end}",
        tables.plans.len()
    ))
}

fn as_planned(tables: &Tables, changes: &Changes) -> Proof {
    let mut proof = Proof::of("plans are those that the config and the operators' changes make");
    // Where the next plan of the same branch begins.
    let (mut cursor, mut last) = (0_u64, None);
    for (key, plan) in &tables.plans {
        let (branch, step) = Branches::of_key(*key);
        let named = row(*key);
        if last.replace(branch) != Some(branch) {
            let rewind = tables.branches.rewind(branch);
            cursor = rewind.map_or(0, |rewind| rewind.skipped.end);
        }
        let (planner, known) = changes.at(*key);
        let begins = changes.skip(cursor);
        cursor = plan.first_sample.saturating_add(plan.samples);
        if step == 0 || step > planner.total_steps() {
            let total = planner.total_steps();
            proof.broken(format!(
                "{named} of the table plans is for a step that the config has not: it has {total}"
            ));
            continue;
        }
        let branches = tables.branches.up_to(branch);
        let mut made = branches.change(planner.plan(step, begins));
        made.version += known;
        // An operator may have asked for one more checkpoint.
        made.checkpoint |= plan.checkpoint;
        made.stop = !made.last && changes.all().any(|change| change.ask.stop_at == Some(step)) && plan.stop;
        proof.holds(made == *plan, || {
            format!(
                "{named} of the table plans is not what the config makes: {}",
                difference(plan, &made)
            )
        });
    }
    proof.with(format!(
        "{} of {} steps made again",
        tables.plans.len(),
        changes.newest().total_steps()
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
            momentum,
            weight_decay,
            stop,
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
            ("momentum", format!("{momentum:?}")),
            ("weight_decay", format!("{weight_decay:?}")),
            ("stop", stop.to_string()),
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
    let (mut samples, mut tokens, mut branch) = (0_u64, 0_u64, 0);
    for (key, step) in &tables.committed {
        let (of, _) = Branches::of_key(*key);
        if let Some(rewind) = tables.branches.rewind(of).filter(|_| of != branch) {
            (samples, tokens) = (rewind.samples, rewind.tokens);
        }
        branch = of;
        let named = row(*key);
        samples = samples.saturating_add(step.plan.samples);
        tokens = tokens.saturating_add(step.step_tokens);
        proof.holds(step.samples == samples, || {
            format!(
                "{named} of the table committed counts {} samples so far, and they are {samples}",
                step.samples
            )
        });
        proof.holds(step.tokens == tokens, || {
            format!(
                "{named} of the table committed counts {} tokens so far, and they are {tokens}",
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
    for (key, validation) in &tables.validations {
        let (_, step) = Branches::of_key(*key);
        let named = row(*key);
        match tables.committed.get(key) {
            None => proof.broken(format!(
                "{named} of the table validations is of a step that is not committed"
            )),
            // The ranks validate where they stop, too, which no plan knows.
            Some(committed) => proof.holds(committed.plan.validate || stops_after(tables, step), || {
                format!(
                    "{named} of the table validations is of a step whose plan has no validation, and no run stopped there"
                )
            }),
        }
        proof.holds(validation.loss.is_finite(), || {
            format!("{named} of the table validations has the loss {}", validation.loss)
        });
    }
    proof.with(format!("{} validations", tables.validations.len()))
}

/// Whether the run was stopped after this step, or was to stop when its coordinator was killed after it.
fn stops_after(tables: &Tables, step: u64) -> bool {
    let is_stopping = || tables.urgent.values().any(|urgent| urgent.kind == DirectiveKind::Stop);
    tables.ends.values().any(|end| end.last_step == step) || step == tables.last_committed() && is_stopping()
}
