//! Where the run went back: that each rewind is one that the config allows, goes back to what was committed, and changes the
//! plan.

use lockstep_config::RunConfig;

use super::{Proof, Tables, without_gaps};

pub(super) fn proof(tables: &Tables, config: Option<&RunConfig>) -> Proof {
    let mut proof = Proof::of("a rewind goes back to a committed step, by the config's rule, and changes the plan");
    without_gaps(&mut proof, "rewinds", 1, tables.rewinds.keys().copied());
    let mut told = Vec::new();
    for (key, rewind) in &tables.rewinds {
        let of = |what: String| format!("row {key} of the table rewinds {what}");
        let before = tables.branches.up_to(key.saturating_sub(1));
        told.push(format!("from step {} to {}", rewind.unusable, rewind.to));
        proof.holds(rewind.number == *key, || of(format!("holds number {}", rewind.number)));
        proof.holds(tables.generations.contains_key(&rewind.generation), || {
            of(format!(
                "closes generation {}, which the table generations lacks",
                rewind.generation
            ))
        });
        let last = tables.last_of(key.saturating_sub(1), |_| true);
        proof.holds(rewind.unusable == last + 1, || {
            of(format!(
                "is because of step {}, and the last committed one was {last}",
                rewind.unusable
            ))
        });
        let good = tables.committed.get(&before.key(rewind.to));
        let end = good.map_or(0, |step| step.plan.first_sample.saturating_add(step.plan.samples));
        proof.holds(rewind.to <= last && (good.is_some() || rewind.to == 0), || {
            of(format!("goes back to step {}, which was not committed", rewind.to))
        });
        proof.holds(rewind.skipped.start == end, || {
            of(format!(
                "skips samples from {} on, and step {} ended before sample {end}",
                rewind.skipped.start, rewind.to
            ))
        });
        let (samples, tokens) = good.map_or((0, 0), |step| (step.samples, step.tokens));
        proof.holds((rewind.samples, rewind.tokens) == (samples, tokens), || {
            of(format!(
                "counts {} samples and {} tokens after step {}, and they are {samples} and {tokens}",
                rewind.samples, rewind.tokens, rewind.to
            ))
        });
        proof.holds(
            good.is_none_or(|step| rewind.parameter_hash == Some(step.parameter_hash)),
            || of(format!("names other parameters than those of step {}", rewind.to)),
        );
        if let Some(step) = rewind.stopped_after {
            let stops = tables
                .committed
                .get(&before.key(step))
                .is_some_and(|made| made.plan.stop);
            proof.holds(stops && step > rewind.to, || {
                of(format!(
                    "says that the run had stopped after step {step} as planned, and it had not"
                ))
            });
        }
        if rewind.by_operator {
            let changes_nothing = rewind.skipped.is_empty() && rewind.rate_factor == 1.0;
            proof.holds(changes_nothing, || {
                of("was asked for by an operator, and changes what is planned".to_owned())
            });
            continue;
        }
        let unusable = tables.plans.get(&before.key(rewind.unusable));
        let through = unusable.map(|plan| plan.first_sample.saturating_add(plan.samples));
        proof.holds(rewind.skipped.is_empty() || Some(rewind.skipped.end) == through, || {
            of(format!(
                "skips samples to before {}, which is not the end of step {}",
                rewind.skipped.end, rewind.unusable
            ))
        });
        proof.holds(!rewind.skipped.is_empty() || rewind.rate_factor != 1.0, || {
            of("changes nothing: the same step would come again".to_owned())
        });
        let Some(fault) = config.map(|config| &config.fault) else {
            continue;
        };
        proof.holds(rewind.to == last.saturating_sub(fault.rewind_steps), || {
            of(format!(
                "goes back to step {}, and fault.rewind_steps is {}",
                rewind.to, fault.rewind_steps
            ))
        });
        proof.holds(
            rewind.skipped.is_empty() != fault.rewind_skip && rewind.rate_factor == fault.rewind_factor,
            || of("is not what fault.rewind_skip and fault.rewind_factor say".to_owned()),
        );
        proof.holds(before.made_by_policy() < u64::from(fault.max_rewinds), || {
            of(format!(
                "is one more than fault.max_rewinds, {}, allows",
                fault.max_rewinds
            ))
        });
    }
    proof.with(match told.is_empty() {
        true => "no rewind".to_owned(),
        false => told.join(", "),
    })
}
