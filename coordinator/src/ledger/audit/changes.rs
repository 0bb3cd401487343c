//! What operators changed: that each change is of the step at which plans went on, in order. That the plans are what the changes
//! make of them is proved with the plans (`steps`).

use super::{Proof, Tables, without_gaps};
use crate::branches::Branches;

pub(super) fn proof(tables: &Tables) -> Proof {
    let mut proof =
        Proof::of("operators' changes follow each other, each from the step on that was the next to be planned");
    without_gaps(&mut proof, "changes", 1, tables.changes.keys().copied());
    let mut before: Option<(u64, u64)> = None;
    for (key, change) in &tables.changes {
        let of = |what: String| format!("row {key} of the table changes {what}");
        proof.holds(change.number == *key, || of(format!("holds number {}", change.number)));
        if change.branch > tables.branches.newest() {
            let branch = change.branch;
            proof.broken(of(format!("is of branch {branch}, which no rewind began")));
            continue;
        }
        let place = Branches::key_of(change.branch, change.from_step);
        if let Some((row, earlier)) = before.replace((*key, place)) {
            proof.holds(earlier <= place, || {
                of(format!(
                    "holds from an earlier plan on than row {row}, which was before it"
                ))
            });
        }
        // What was known when it was decided: its branch, and the changes before it.
        let branches = tables.branches.up_to(change.branch);
        let of_branch = Branches::key_of(change.branch, 0)..Branches::key_of(change.branch + 1, 0);
        let last = tables.plans.range(of_branch).next_back();
        let issued = last.map_or_else(
            || branches.begins_after(change.branch),
            |(plan, _)| Branches::of_key(*plan).1,
        );
        let step = change.from_step.saturating_sub(1);
        proof.holds(step <= issued, || {
            of(format!(
                "holds from step {} on, and plans were issued to step {issued}",
                change.from_step
            ))
        });
        let plan = tables.plans.get(&branches.key(step));
        let end = plan.map_or(0, |plan| plan.first_sample.saturating_add(plan.samples));
        let end = branches.cursor_after(step, end);
        let earlier = tables.changes.range(..key).map(|(_, earlier)| earlier);
        let begins = earlier.fold(end, |cursor, earlier| match earlier.ask.skip_samples {
            Some(count) if earlier.cursor == cursor => cursor.saturating_add(count),
            _ => cursor,
        });
        proof.holds(change.cursor == begins || step > issued, || {
            of(format!(
                "begins at sample {}, and step {step} ended before sample {begins}",
                change.cursor
            ))
        });
    }
    proof.with(match tables.changes.len() {
        1 => "1 change".to_owned(),
        count => format!("{count} changes"),
    })
}
