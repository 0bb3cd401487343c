//! Going back before a step that cannot be used, and because an operator asks for it.

use lockstep_proto::domain::*;

use super::regroup::{elastic, formed, meet};
use super::*;
use crate::branches::{Rewind, Rewinds};
use crate::changes::{Ask, Setting};
use crate::run::{Order, Recorded, Wanted};

const RULE: Rewinds = Rewinds {
    most: 2,
    steps: 2,
    skips: true,
    rate_factor: 0.5,
};

/// Steps 1 to 5 have 4 samples each, later ones 8.
fn rewinding(rule: Rewinds) -> Run {
    train(RunFacts {
        rewinds: Some(rule),
        ..elastic(2, 1, 2)
    })
}

/// A rank says that a step cannot be used, and which parts it holds.
fn unusable(run: &mut Run, peer: Peer, step: u64, parts: &[Part]) -> Decision {
    let event = Event::Stopped {
        peer,
        stamp: run.stamp(),
        cause: Some(format!("step {step}: the loss is 99")),
        parts: parts.to_vec(),
        checkpoint_is_bad: false,
        drifted: None,
        unusable: Some(step),
    };
    run.step(event, NOW)
}

fn steps(run: &mut Run, range: std::ops::RangeInclusive<u64>) {
    for step in range {
        everybody_reports(run, 2, step);
    }
}

fn rewound(decision: &Decision) -> Option<&Rewind> {
    decision.directives.iter().find_map(|directive| match directive {
        Done::Persist(Record::Rewound(rewind)) => Some(rewind),
        _ => None,
    })
}

fn part(run: &Run, step: u64, part: u32) -> Part {
    Part {
        step,
        generation: run.stamp().generation,
        part,
        hash: [part as u8; 32],
    }
}

fn plans(decision: &Decision) -> Vec<Plan> {
    let windows = sent(decision, 0).into_iter().filter_map(|body| match body {
        CoordinatorBody::PlanWindow(plans) => Some(plans),
        _ => None,
    });
    windows.flatten().collect()
}

#[test]
fn invariant_17_the_run_goes_back_by_its_rule_and_the_next_plan_is_another_one() {
    let mut run = rewinding(RULE);
    steps(&mut run, 1..=6);
    let aborted = unusable(&mut run, 0, 7, &[]);
    assert_eq!(rewound(&aborted), None, "rank 1 may still wait in a collective");
    let decision = unusable(&mut run, 1, 7, &[]);
    let rewind = rewound(&decision).unwrap();
    assert_eq!((rewind.number, rewind.unusable, rewind.to), (1, 7, 4));
    assert_eq!(rewind.skipped, 16..36, "steps 5, 6 and 7 had them");
    assert_eq!((rewind.samples, rewind.parameter_hash), (16, Some([4; 32])));
    let generation = formed(&decision, 0).unwrap();
    assert_eq!((generation.resume, generation.replay_through), (None, 4));
    let reason = &decision.directives[1];
    assert!(
        matches!(reason, Done::Persist(Record::Decision { reason }) if reason.contains("goes back to step 4") && reason.contains("samples 16 to 35 are skipped") && reason.contains("rewind 1 of at most 2")),
        "{reason:?}"
    );

    let plans = plans(&meet(&mut run, &[0, 1], 0));
    let of = |step: u64| &plans[step as usize - 1];
    assert_eq!((of(4).first_sample, of(4).version), (12, 1), "made again as it was");
    assert_eq!((of(5).first_sample, of(5).samples, of(5).version), (36, 4, 2));
    assert_eq!(of(6).first_sample, 40);
    let plain = run.facts.planner.plan(5, 0).learning_rate;
    assert_eq!(of(5).learning_rate, plain * 0.5);
    assert_eq!(run.committed(), 4);
    steps(&mut run, 1..=6);
    assert_eq!((run.committed(), run.samples), (6, 28));
}

#[test]
fn a_step_that_is_named_while_reports_are_missing_is_come_to_again() {
    let mut run = rewinding(RULE);
    steps(&mut run, 1..=5);
    let event = report(&run, 0, 6, 6);
    run.step(event, NOW);
    // Rank 1 is lost with its report of step 6.
    run.step(Event::MemberLost { peer: 1 }, NOW);
    let decision = unusable(&mut run, 0, 7, &[]);
    assert_eq!(rewound(&decision), None);
    assert_eq!(formed(&decision, 0).unwrap().replay_through, 5);
    meet(&mut run, &[0], 0);
    for step in 6..=6 {
        let event = report(&run, 0, step, step as u8);
        run.step(event, NOW);
    }
    let decision = unusable(&mut run, 0, 7, &[]);
    assert_eq!(rewound(&decision).unwrap().to, 4);
}

#[test]
fn invariant_17_nothing_of_a_closed_branch_is_resumed_and_what_lies_before_is() {
    let mut run = rewinding(RULE);
    steps(&mut run, 1..=6);
    let parts: Vec<Part> = [2, 6]
        .iter()
        .flat_map(|step| [0, 1].map(|rank| part(&run, *step, rank)))
        .collect();
    unusable(&mut run, 0, 7, &parts);
    let decision = unusable(&mut run, 1, 7, &parts);
    let resume = formed(&decision, 0).unwrap().resume.unwrap();
    assert_eq!(resume.step, 2, "step 6 is of the closed branch");
    meet(&mut run, &[0, 1], 2);
    steps(&mut run, 3..=7);
    // Both still hold step 6 of the closed branch, which is committed on the new one too.
    run.step(Event::MemberLost { peer: 1 }, NOW);
    let decision = super::regroup::stop(&mut run, 0, None, &parts);
    assert_eq!(formed(&decision, 0).unwrap().resume.unwrap().step, 2);
}

#[test]
fn invariant_17_so_many_rewinds_and_no_more() {
    let mut run = rewinding(RULE);
    steps(&mut run, 1..=6);
    for number in 1..=2 {
        let step = run.committed() + 1;
        unusable(&mut run, 0, step, &[]);
        let decision = unusable(&mut run, 1, step, &[]);
        assert_eq!(rewound(&decision).unwrap().number, number);
        meet(&mut run, &[0, 1], 0);
    }
    let step = run.committed() + 1;
    unusable(&mut run, 0, step, &[]);
    unusable(&mut run, 1, step, &[]);
    let reason = &the_end(&run).reason;
    assert!(
        reason.contains("has gone back 2 times") && reason.contains("fault.max_rewinds"),
        "{reason}"
    );
}

#[test]
fn without_a_policy_the_run_ends_with_what_was_said() {
    let mut run = train(elastic(2, 1, 2));
    steps(&mut run, 1..=2);
    unusable(&mut run, 0, 3, &[]);
    unusable(&mut run, 1, 3, &[]);
    assert!(the_end(&run).reason.starts_with("step 3: the loss is 99"));
}

#[test]
fn a_snapshot_that_a_rewind_may_need_is_not_freed() {
    let hold = |run: &mut Run, step: u64| {
        let stamp = run.stamp();
        let mut last = None;
        for (peer, of) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let part = part(run, step, of);
            last = Some(run.step(Event::Holds { peer, stamp, part }, NOW));
        }
        let frees = |body: CoordinatorBody| match body {
            CoordinatorBody::SnapshotStands { free_before, .. } => Some(free_before),
            _ => None,
        };
        sent(&last.unwrap(), 0).into_iter().find_map(frees)
    };
    let mut run = rewinding(Rewinds { steps: 3, ..RULE });
    let mut freed = Vec::new();
    for step in 1..=8 {
        everybody_reports(&mut run, 2, step);
        if step % 2 == 0 {
            freed.push(hold(&mut run, step));
        }
    }
    assert_eq!(freed, [0, 0, 2, 4].map(Some), "the newest one that is three steps old");
}

/// A run whose records are kept.
struct Kept {
    run: Run,
    recorded: Recorded,
}

impl Kept {
    fn feed(&mut self, event: Event) {
        for directive in self.run.step(event, NOW).directives {
            if let Done::Persist(record) = directive {
                self.recorded.note(&record);
            }
        }
    }
}

#[test]
fn a_coordinator_that_is_killed_after_a_rewind_goes_on_with_the_new_branch() {
    let facts = RunFacts {
        rewinds: Some(RULE),
        ..elastic(1, 1, 1)
    };
    let run = Run::new(facts.clone()).unwrap();
    let mut kept = Kept {
        run,
        recorded: Recorded::default(),
    };
    let info = info("trainer-0");
    kept.feed(Event::Join { peer: 0, info });
    let (peer, stamp, id) = (0, kept.run.stamp(), vec![1]);
    kept.feed(Event::CommId { peer, stamp, id });
    let ready = Ready {
        hash: [0; 32],
        transports: Vec::new(),
    };
    kept.feed(Event::Ready {
        peer,
        stamp,
        ready: ready.into(),
    });
    for step in 1..=6 {
        kept.feed(report(&kept.run, 0, step, step as u8));
    }
    let cause = Some("step 7: the loss is 99".to_owned());
    kept.feed(Event::Stopped {
        peer,
        stamp,
        cause,
        parts: Vec::new(),
        checkpoint_is_bad: false,
        drifted: None,
        unusable: Some(7),
    });
    // Killed between the rewind and the generation that follows it.
    kept.recorded.generations.pop();
    let again = Run::recovered(RunFacts { term: 2, ..facts }, kept.recorded).unwrap();
    assert_eq!((again.committed(), again.issued_through, again.cursor), (4, 4, 36));
    assert_eq!(again.branches, kept.run.branches);
    assert!(
        again.reason().contains("had gone back to an earlier step"),
        "{}",
        again.reason()
    );
}

fn order(run: &mut Run, wanted: Wanted) -> Decision {
    let order = Order {
        wanted,
        ..Order::default()
    };
    run.step(Event::Ordered(Box::new(order)), NOW)
}

fn go_back(run: &mut Run, to: u64) -> Decision {
    order(run, Wanted::Rewind { to })
}

/// Two ranks that have made six steps, and hold a snapshot of step 2 that stands.
fn with_a_snapshot() -> (Run, Vec<Part>) {
    let mut run = train(RunFacts {
        worlds: elastic(2, 1, 2).worlds,
        ..facts(2, 8, 5000)
    });
    steps(&mut run, 1..=6);
    let parts = [0, 1].map(|rank| part(&run, 2, rank)).to_vec();
    let stamp = run.stamp();
    for peer in [0, 1] {
        for part in &parts {
            let part = *part;
            run.step(Event::Holds { peer, stamp, part }, NOW);
        }
    }
    (run, parts)
}

#[test]
fn invariant_17_an_operator_has_the_run_go_back_to_the_step_that_was_named_and_no_plan_changes_by_it() {
    let (mut run, parts) = with_a_snapshot();
    let plan_of_5 = run.past[4].plan.clone();
    let decision = go_back(&mut run, 4);
    let said = "the run goes back from step 6 to step 4: every rank begins with the snapshot of step 2, steps 3 to 4 are made \
                again as they were, and step 5 is the first that is made anew";
    assert_eq!(decision.reason, said);
    assert_eq!(decision.effect.unwrap().step, 5);
    let rewind = rewound(&decision).unwrap();
    assert_eq!((rewind.unusable, rewind.to, rewind.by_operator), (7, 4, true));
    assert_eq!((rewind.skipped.clone(), rewind.rate_factor), (16..16, 1.0));
    assert_eq!((rewind.samples, rewind.parameter_hash), (16, Some([4; 32])));
    let aborts = |peer| {
        sent(&decision, peer)
            .iter()
            .any(|body| matches!(body, CoordinatorBody::Abort { .. }))
    };
    assert!(aborts(0) && aborts(1), "{decision:?}");

    // What is still under way of the closed branch counts for nothing.
    let late = report(&run, 0, 7, 7);
    assert!(run.step(late, NOW).directives.is_empty());
    let decision = unusable(&mut run, 0, 5, &parts);
    assert_eq!(rewound(&decision), None);
    let decision = super::regroup::stop(&mut run, 1, None, &parts);
    let generation = formed(&decision, 0).unwrap();
    assert_eq!((generation.resume.unwrap().step, generation.replay_through), (2, 4));
    let plans = plans(&meet(&mut run, &[0, 1], 2));
    assert_eq!((plans[0].step, plans[0].version), (3, 1), "made again as it was");
    let anew = &plans[2];
    assert_eq!((anew.step, anew.version), (5, 2));
    assert_eq!(
        Plan {
            version: 1,
            ..anew.clone()
        },
        plan_of_5
    );
    steps(&mut run, 3..=8);
    assert_eq!((run.committed(), run.phase()), (8, Phase::Training));
}

#[test]
fn what_operators_change_before_and_after_a_rewind_holds_from_the_first_step_that_is_made_anew() {
    let (mut run, parts) = with_a_snapshot();
    let ask = Ask {
        learning_rate: Some(Setting::Value(0.125)),
        ..Ask::default()
    };
    let answer = order(&mut run, Wanted::Change(ask));
    assert!(answer.effect.unwrap().step > 6);
    go_back(&mut run, 3);
    let ask = Ask {
        batch: Some(Setting::Value(12.0)),
        ..Ask::default()
    };
    let answer = order(&mut run, Wanted::Change(ask));
    assert_eq!(answer.effect.unwrap().step, 4);
    for peer in [0, 1] {
        super::regroup::stop(&mut run, peer, None, &parts);
    }
    let plans = plans(&meet(&mut run, &[0, 1], 2));
    let of = |step: u64| (plans[step as usize - 3].learning_rate, plans[step as usize - 3].samples);
    assert_eq!(of(3), (run.facts.planner.plan(3, 0).learning_rate, 4));
    assert_eq!((of(4), of(5)), ((0.125, 12), (0.125, 12)));
}

#[test]
fn an_operators_rewind_is_none_of_those_that_the_policy_may_make_whose_count_begins_anew() {
    let mut run = rewinding(Rewinds { most: 1, ..RULE });
    steps(&mut run, 1..=6);
    for number in [1, 3] {
        unusable(&mut run, 0, 7, &[]);
        let decision = unusable(&mut run, 1, 7, &[]);
        let rewind = rewound(&decision).unwrap();
        assert_eq!((rewind.number, rewind.to, rewind.by_operator), (number, 4, false));
        let told = format!("{decision:?}");
        assert!(told.contains("rewind 1 of at most 1"), "{told}");
        meet(&mut run, &[0, 1], 0);
        let decision = go_back(&mut run, 0);
        assert_eq!(rewound(&decision).unwrap().number, number + 1);
        for peer in [0, 1] {
            super::regroup::stop(&mut run, peer, None, &[]);
        }
        meet(&mut run, &[0, 1], 0);
        steps(&mut run, 1..=6);
    }
}

#[test]
fn a_rewind_that_cannot_be_is_refused_with_the_reason_and_changes_nothing() {
    let refused = |run: &mut Run, to: u64, kind: &str, reason: &str| {
        let before = format!("{run:?}");
        let decision = go_back(run, to);
        assert_eq!(
            decision.refusal.as_ref().map(|refusal| refusal.kind),
            Some(kind),
            "{decision:?}"
        );
        assert!(decision.reason.contains(reason), "{}", decision.reason);
        assert!(decision.directives.is_empty() && decision.effect.is_none());
        assert_eq!(format!("{run:?}"), before);
    };
    let mut run = train(elastic(2, 1, 2));
    refused(&mut run, 0, "NOT_COMMITTED", "no step is committed yet");
    steps(&mut run, 1..=6);
    refused(&mut run, 7, "NOT_COMMITTED", "the last step that is, is 6");
    refused(
        &mut run,
        5,
        "NO_CHECKPOINT",
        "--to 0 begins with the initial parameters",
    );
    let (mut run, _) = with_a_snapshot();
    refused(&mut run, 1, "NO_CHECKPOINT", "no checkpoint of step 1");
    let ask = Ask {
        stop_at: Some(run.issued_through + 1),
        ..Ask::default()
    };
    order(&mut run, Wanted::Change(ask));
    while !run.issued.iter().any(|plan| plan.stop) {
        let next = run.committed() + 1;
        steps(&mut run, next..=next);
    }
    refused(
        &mut run,
        3,
        "NOT_TRAINING",
        "after which the run stops, is issued already",
    );
    run.step(Event::Stop, NOW);
    refused(&mut run, 3, "NOT_TRAINING", "no step is planned any more");
    run.step(Event::Abandon, NOW);
    refused(&mut run, 3, "RUN_OVER", "the run is over");
    let mut fixed = training(2, 20);
    steps(&mut fixed, 1..=6);
    refused(&mut fixed, 0, "FIXED_WORLD", "its world cannot be formed anew");
}

#[test]
fn a_dry_run_of_a_rewind_says_what_would_be_and_changes_nothing() {
    let (mut run, _) = with_a_snapshot();
    let wanted = Wanted::Rewind { to: 2 };
    let before = format!("{run:?}");
    let dry = Order {
        wanted: wanted.clone(),
        dry_run: true,
        if_step_before: Some(8),
        ..Order::default()
    };
    let answer = run.step(Event::Ordered(Box::new(dry.clone())), NOW);
    let said = "dry run, nothing is changed: the run goes back from step 6 to step 2: every rank begins with the snapshot of \
                step 2, and step 3 is the first that is made anew";
    assert_eq!(answer.reason, said);
    assert!(answer.directives.is_empty());
    assert_eq!(format!("{run:?}"), before);
    let late = Order {
        if_step_before: Some(7),
        ..dry
    };
    let refused = run.step(Event::Ordered(Box::new(late)), NOW);
    assert_eq!(refused.refusal.map(|refusal| refusal.kind), Some("TOO_LATE"));
}

#[test]
fn a_paused_run_that_goes_back_waits_there_until_it_is_resumed() {
    let (mut run, parts) = with_a_snapshot();
    run.step(Event::Pause, NOW);
    go_back(&mut run, 2);
    for peer in [0, 1] {
        super::regroup::stop(&mut run, peer, None, &parts);
    }
    let decision = meet(&mut run, &[0, 1], 2);
    assert_eq!((run.phase(), planned(&decision, 0)), (Phase::Paused, vec![]));
    let decision = run.step(Event::Resume, NOW);
    assert_eq!((run.phase(), planned(&decision, 0)[0]), (Phase::Training, 3));
}

/// The records of a run on one rank, which stops after step 5 as planned.
fn stopped_after_5(facts: &RunFacts) -> Recorded {
    let mut kept = Kept {
        run: Run::new(facts.clone()).unwrap(),
        recorded: Recorded::default(),
    };
    let (peer, info) = (0, info("trainer-0"));
    kept.feed(Event::Join { peer, info });
    let (stamp, id) = (kept.run.stamp(), vec![1]);
    kept.feed(Event::CommId { peer, stamp, id });
    let ready = Ready {
        hash: [0; 32],
        transports: Vec::new(),
    };
    let stop = Ask {
        stop_at: Some(kept.run.issued_through.max(5)),
        ..Ask::default()
    };
    let wanted = Wanted::Change(stop);
    kept.feed(Event::Ordered(Box::new(Order {
        wanted,
        ..Order::default()
    })));
    kept.feed(Event::Ready {
        peer,
        stamp,
        ready: ready.into(),
    });
    for step in 1..=5 {
        kept.feed(report(&kept.run, 0, step, step as u8));
    }
    let outcome = Outcome::Stopped;
    let step = 5;
    kept.feed(Event::Finished {
        peer,
        stamp,
        outcome,
        step,
    });
    kept.feed(Event::MemberLost { peer });
    assert_eq!(
        (&the_end(&kept.run).outcome, the_end(&kept.run).last_step),
        (&Outcome::Stopped, 5)
    );
    kept.recorded
}

#[test]
fn invariant_19_a_run_that_has_stopped_as_planned_and_goes_back_later_does_not_stop_there_again() {
    let facts = elastic(1, 1, 1);
    let recorded = stopped_after_5(&facts);
    let resumed = |facts: &RunFacts| {
        let facts = RunFacts {
            term: 2,
            last_generation: 1,
            is_resumed: true,
            ..facts.clone()
        };
        Run::recovered(facts, recorded.clone()).unwrap()
    };
    let mut run = resumed(&facts);
    let decision = go_back(&mut run, 0);
    assert_eq!(run.phase(), Phase::WaitingForMembers, "{}", decision.reason);
    assert_eq!(rewound(&decision).unwrap().stopped_after, Some(5));
    let stops = |run: &Run| run.changes.stops_at(0, &run.branches);
    assert_eq!(stops(&run), None);
    // Planned once more, it stops there once more.
    let ask = Ask {
        stop_at: Some(5),
        ..Ask::default()
    };
    order(&mut run, Wanted::Change(ask));
    assert_eq!(stops(&run), Some(5));
    // A build that did not know this stopped again, and its ledger must come out as it was.
    let mut older = resumed(&RunFacts {
        stops_once: false,
        ..facts
    });
    go_back(&mut older, 0);
    assert_eq!(stops(&older), Some(5));
}

#[test]
fn a_checkpoint_that_is_deleted_by_now_is_none_to_go_back_to() {
    let mut run = train(RunFacts {
        keeps: Some(crate::run::Keeps { last: 2, every: 0 }),
        worlds: elastic(1, 1, 1).worlds,
        ..facts(1, 8, 5000)
    });
    let stamp = run.stamp();
    for step in 1..=12 {
        everybody_reports(&mut run, 1, step);
        if step % 3 == 0 {
            let written = Written {
                words: Vec::new(),
                hash: [1; 32],
                bytes: 1,
                runs: Vec::new(),
            };
            let written = Ok(Box::new(written));
            run.step(
                Event::Wrote {
                    peer: 0,
                    stamp,
                    step,
                    written,
                },
                NOW,
            );
            let checkpoint = Checkpoint {
                term: stamp.term,
                generation: stamp.generation,
                step,
            };
            let result = Ok(());
            run.step(Event::Commissioned { checkpoint, result }, NOW);
        }
    }
    let refused = go_back(&mut run, 8);
    assert_eq!(
        refused.refusal.map(|refusal| refusal.kind),
        Some("NO_CHECKPOINT"),
        "3 and 6 are deleted"
    );
    let decision = go_back(&mut run, 10);
    let said =
        "every rank begins with the checkpoint of step 9, step 10 is made again as it was, and step 11 is the first";
    assert!(decision.reason.contains(said), "{}", decision.reason);
    let resume = formed(&super::regroup::stop(&mut run, 0, None, &[]), 0)
        .unwrap()
        .resume
        .unwrap();
    assert_eq!((resume.step, resume.checkpoint.is_some()), (9, true));
}
