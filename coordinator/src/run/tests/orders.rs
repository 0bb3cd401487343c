//! What operators order while the run goes on.

use super::*;
use crate::changes::{Ask, Extension, Setting};
use crate::run::{Order, Recorded, Wanted};

fn order(run: &mut Run, order: Order) -> Decision {
    run.step(Event::Ordered(Box::new(order)), NOW)
}

fn change(run: &mut Run, ask: Ask) -> Decision {
    let wanted = Wanted::Change(ask);
    order(
        run,
        Order {
            wanted,
            ..Order::default()
        },
    )
}

fn rate(value: f64) -> Ask {
    Ask {
        learning_rate: Some(Setting::Value(value)),
        ..Ask::default()
    }
}

fn kind(decision: &Decision) -> &str {
    assert!(
        decision.directives.is_empty(),
        "a refusal changes nothing: {decision:?}"
    );
    decision.refusal.as_ref().map_or("nothing", |refusal| refusal.kind)
}

/// Has every rank report the steps, and returns the plans that were issued meanwhile.
fn go_on(run: &mut Run, ranks: u32, steps: std::ops::RangeInclusive<u64>) -> Vec<Plan> {
    let mut plans = Vec::new();
    for step in steps {
        for directive in everybody_reports(run, ranks, step).directives {
            if let Done::Persist(Record::Plans(issued)) = directive {
                plans.extend(issued);
            }
        }
    }
    plans
}

use lockstep_proto::domain::Plan;

#[test]
fn a_change_holds_from_the_first_step_that_is_not_issued() {
    let mut run = training(2, 5000);
    let issued = run.issued_through;
    let answer = change(&mut run, rate(0.125));
    let effect = answer.effect.unwrap();
    assert_eq!((effect.step, effect.version), (issued + 1, 2));
    assert!(
        answer
            .reason
            .contains(&format!("from step {} on: learning rate 0.125", issued + 1)),
        "{}",
        answer.reason
    );
    let plans = go_on(&mut run, 2, 1..=issued);
    assert!(plans.len() > 1 && plans[0].step == issued + 1);
    assert!(
        plans
            .iter()
            .all(|plan| plan.learning_rate == 0.125 && plan.version == 2),
        "{plans:?}"
    );
    // What is changed together holds together; a factor is of what the schedule says, and the schedule comes back.
    let ask = Ask {
        learning_rate: Some(Setting::Factor(0.5)),
        batch: Some(Setting::Value(11.0)),
        momentum: Some(Setting::Value(0.5)),
        ..Ask::default()
    };
    let answer = change(&mut run, ask);
    let from = answer.effect.unwrap().step;
    let plain = run.facts.planner.plan(from, 0).learning_rate;
    let plan = run.planner().plan(from, 0);
    assert_eq!(
        (plan.learning_rate, plan.samples, plan.momentum),
        (plain * 0.5, 12, Some(0.5))
    );
    change(
        &mut run,
        Ask {
            learning_rate: Some(Setting::Schedule),
            ..Ask::default()
        },
    );
    let plan = run.planner().plan(from, 0);
    assert_eq!((plan.learning_rate, plan.samples), (plain, 12), "the batch stays");
}

#[test]
fn the_same_key_is_the_same_order_also_in_a_later_term() {
    let mut run = training(1, 5000);
    let once = Order {
        wanted: Wanted::Change(rate(0.25)),
        key: "a".to_owned(),
        ..Order::default()
    };
    let first = order(&mut run, once.clone());
    let mut recorded = Recorded::default();
    for directive in &first.directives {
        if let Done::Persist(record) = directive {
            recorded.note(record);
        }
    }
    go_on(&mut run, 1, 1..=2);
    let again = order(&mut run, once.clone());
    assert!(again.directives.is_empty());
    assert_eq!((&again.reason, again.effect), (&first.reason, first.effect));
    let other = Order {
        wanted: Wanted::Change(rate(0.5)),
        ..once.clone()
    };
    assert_eq!(kind(&order(&mut run, other)), "KEY_REUSED");
    let mut later = Run::recovered(facts(1, 8, 5000), recorded).unwrap();
    let again = order(&mut later, once);
    assert_eq!((again.reason, again.effect), (first.reason, first.effect));
    assert_eq!(later.planner().plan(9, 0).learning_rate, 0.25);
    assert_eq!(later.changes().count(), 1);
}

#[test]
fn a_condition_that_does_not_hold_and_a_dry_run_change_nothing() {
    let mut run = training(1, 5000);
    let first = run.issued_through + 1;
    let late = Order {
        wanted: Wanted::Change(rate(0.25)),
        if_step_before: Some(first),
        key: "late".to_owned(),
        ..Order::default()
    };
    assert_eq!(kind(&order(&mut run, late.clone())), "TOO_LATE");
    let dry = Order {
        if_step_before: Some(first + 1),
        dry_run: true,
        ..late
    };
    let before = format!("{run:?}");
    let answer = order(&mut run, dry.clone());
    assert!(answer.directives.is_empty() && answer.refusal.is_none());
    assert!(
        answer.reason.starts_with("dry run, nothing is changed: from step"),
        "{}",
        answer.reason
    );
    assert_eq!(answer.effect.unwrap().step, first);
    assert_eq!(format!("{run:?}"), before);
    for wanted in [Wanted::Pause, Wanted::Stop, Wanted::Checkpoint] {
        let answer = order(&mut run, Order { wanted, ..dry.clone() });
        assert!(answer.directives.is_empty() && answer.refusal.is_none(), "{answer:?}");
    }
    assert_eq!(format!("{run:?}"), before);
}

#[test]
fn a_run_is_made_longer_and_its_schedules_with_it() {
    let mut run = training(1, 100);
    let extend = |by| Ask {
        extend: Some(by),
        ..Ask::default()
    };
    assert_eq!(kind(&change(&mut run, extend(Extension::Samples(8)))), "BAD_CHANGE");
    let before = run.planner().plan(60, 0).learning_rate;
    let answer = change(&mut run, extend(Extension::Steps(100)));
    assert!(
        answer.reason.contains("steps of the run 200 (was 100)"),
        "{}",
        answer.reason
    );
    assert_eq!(run.planner().total_steps(), 200);
    assert!(
        run.planner().plan(60, 0).learning_rate > before,
        "the cosine lasts to the new end"
    );
    let mut plans = Vec::new();
    let mut step = 0;
    while run.phase() == Phase::Training {
        step += 1;
        plans.extend(go_on(&mut run, 1, step..=step));
    }
    assert_eq!((step, run.phase()), (200, Phase::Finishing));
    let last: Vec<u64> = plans.iter().filter(|plan| plan.last).map(|plan| plan.step).collect();
    assert_eq!(last, [200]);
    assert_eq!(kind(&change(&mut run, extend(Extension::Steps(1)))), "TOO_LATE");
}

#[test]
fn a_run_stops_after_the_step_that_was_named() {
    let mut run = training(1, 5000);
    let at = |step| Ask {
        stop_at: Some(step),
        ..Ask::default()
    };
    let issued = run.issued_through;
    assert_eq!(kind(&change(&mut run, at(issued))), "TOO_LATE");
    assert_eq!(kind(&change(&mut run, at(5000))), "TOO_LATE");
    change(&mut run, at(issued + 5));
    change(&mut run, at(0));
    change(&mut run, at(issued + 3));
    let plans = go_on(&mut run, 1, 1..=issued + 2);
    let stops: Vec<u64> = plans.iter().filter(|plan| plan.stop).map(|plan| plan.step).collect();
    assert_eq!(
        (stops, run.issued_through),
        (vec![issued + 3], issued + 3),
        "nothing is planned behind it"
    );
    assert_eq!(run.phase(), Phase::Training);
    go_on(&mut run, 1, issued + 3..=issued + 3);
    assert_eq!(run.phase(), Phase::Stopping);
    let stamp = run.stamp();
    run.step(
        Event::Finished {
            peer: 0,
            stamp,
            outcome: lockstep_proto::domain::Outcome::Stopped,
            step: issued + 3,
        },
        NOW,
    );
    run.step(Event::MemberLost { peer: 0 }, NOW);
    assert_eq!(the_end(&run).outcome, lockstep_proto::domain::Outcome::Stopped);
    assert_eq!(the_end(&run).last_step, issued + 3);
}

#[test]
fn invariant_19_a_stop_whose_plan_is_issued_cannot_be_taken_back_or_moved() {
    let mut run = training(1, 5000);
    let at = |step| Ask {
        stop_at: Some(step),
        ..Ask::default()
    };
    let stop = run.issued_through + 3;
    change(&mut run, at(stop));
    change(&mut run, at(0));
    change(&mut run, at(stop));
    assert_eq!(
        run.changes().count(),
        3,
        "before its plan is issued it can be taken back, and planned again"
    );
    while !run.issued.iter().any(|plan| plan.stop) {
        let next = run.committed() + 1;
        go_on(&mut run, 1, next..=next);
    }
    for other in [0, stop + 1, stop + 100] {
        let refused = change(&mut run, at(other));
        assert_eq!(kind(&refused), "TOO_LATE");
        let said = format!("the plan of step {stop}, after which the run stops, is issued already");
        assert_eq!(refused.reason, said);
    }
    let next = run.committed() + 1;
    go_on(&mut run, 1, next..=stop);
    assert_eq!(
        (run.committed(), run.issued_through, run.phase()),
        (stop, stop, Phase::Stopping)
    );
}

#[test]
fn skipped_samples_are_in_no_plan() {
    let mut run = training(1, 5000);
    let cursor = run.cursor;
    let answer = change(
        &mut run,
        Ask {
            skip_samples: Some(10),
            ..Ask::default()
        },
    );
    let last = cursor + 9;
    assert!(
        answer
            .reason
            .contains(&format!("samples {cursor} to {last} are skipped")),
        "{}",
        answer.reason
    );
    let issued = run.issued_through;
    let plans = go_on(&mut run, 1, 1..=issued);
    assert_eq!(plans[0].first_sample, cursor + 10);
    assert!(
        plans
            .windows(2)
            .all(|two| two[0].first_sample + two[0].samples == two[1].first_sample)
    );
}

#[test]
fn orders_that_cannot_be_are_refused_with_the_reason() {
    let mut run = training(1, 5000);
    assert_eq!(kind(&change(&mut run, Ask::default())), "BAD_CHANGE");
    assert_eq!(kind(&change(&mut run, rate(-1.0))), "BAD_CHANGE");
    let batch = Ask {
        batch: Some(Setting::Value(1.5)),
        ..Ask::default()
    };
    assert_eq!(kind(&change(&mut run, batch)), "BAD_CHANGE");
    let member = "nobody".to_owned();
    let drain = Order {
        wanted: Wanted::Drain { member },
        ..Order::default()
    };
    let refused = order(&mut run, drain.clone());
    assert!(refused.reason.contains("there are: trainer-0"), "{}", refused.reason);
    let member = "trainer-0".to_owned();
    let last = Order {
        wanted: Wanted::Drain { member },
        ..Order::default()
    };
    assert_eq!(kind(&order(&mut run, last)), "TOO_FEW");
    run.step(Event::Stop, NOW);
    assert_eq!(kind(&change(&mut run, rate(1.0))), "NOT_TRAINING");
    run.step(Event::Abandon, NOW);
    assert_eq!(kind(&change(&mut run, rate(1.0))), "RUN_OVER");
    assert_eq!(kind(&order(&mut run, drain)), "RUN_OVER");
}
