//! Going back before a step that cannot be used.

use lockstep_proto::domain::*;

use super::regroup::{elastic, formed, meet};
use super::*;
use crate::branches::{Rewind, Rewinds};
use crate::run::Recorded;

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
