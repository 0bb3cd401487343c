//! How runs pause and end.

use std::time::Duration;

use lockstep_proto::domain::*;

use super::*;

/// The first generation of the first term.
const STAMP: Stamp = Stamp { term: 1, generation: 1 };

#[test]
fn a_lost_trainer_ends_a_fixed_world_at_once_and_is_named() {
    let mut run = training(3, 10);
    everybody_reports(&mut run, 3, 1);
    let decision = run.step(Event::MemberLost { peer: 1 }, NOW);
    for peer in [0, 2] {
        assert!(
            matches!(&sent(&decision, peer)[..], [CoordinatorBody::Release { reason, .. }] if reason.contains("rank 1"))
        );
    }
    let end = the_end(&run);
    assert!(
        end.reason.starts_with("rank 1 (pid 4009, trainer-1 on host) was lost"),
        "{}",
        end.reason
    );
    assert!(matches!(end.outcome, Outcome::Failed { .. }));
    let late = run.step(
        Event::Finished {
            peer: 0,
            stamp: STAMP,
            outcome: Outcome::Failed { reason: "x".into() },
            step: 1,
        },
        NOW,
    );
    assert_eq!(
        sent(&late, 0),
        [CoordinatorBody::Acknowledged {
            step: 1,
            finished: true
        }]
    );
}

#[test]
fn a_death_that_follows_a_peers_complaint_is_the_reason_that_is_given() {
    let complaint = Event::Finished {
        peer: 0,
        stamp: STAMP,
        outcome: Outcome::Failed {
            reason: "a peer hung up".into(),
        },
        step: 0,
    };
    let mut run = training(2, 10);
    run.step(complaint.clone(), Duration::from_millis(10));
    assert_eq!(run.phase(), Phase::Failing);
    run.step(Event::MemberLost { peer: 1 }, Duration::from_millis(60));
    assert!(the_end(&run).reason.starts_with("rank 1 "), "{}", the_end(&run).reason);
    let mut run = training(2, 10);
    run.step(complaint, Duration::from_millis(10));
    run.step(Event::Tick, Duration::from_millis(300));
    assert_eq!(run.phase(), Phase::Failing);
    let decision = run.step(Event::Tick, Duration::from_millis(310));
    assert!(
        the_end(&run)
            .reason
            .contains("rank 0 (pid 4009, trainer-0 on host) failed: a peer hung up")
    );
    assert!(matches!(sent(&decision, 1)[..], [CoordinatorBody::Release { .. }]));
}

#[test]
fn a_trainer_that_dies_before_the_world_is_complete_ends_the_run() {
    let mut run = Run::new(facts(2, 8, 3)).unwrap();
    run.step(
        Event::Join {
            peer: 0,
            info: info("trainer-0"),
        },
        NOW,
    );
    run.step(Event::MemberLost { peer: 5 }, NOW);
    assert_eq!(run.phase(), Phase::WaitingForMembers, "strangers may come and go");
    run.step(Event::MemberLost { peer: 0 }, NOW);
    assert!(the_end(&run).reason.contains("pid 4009"), "{}", the_end(&run).reason);
}

#[test]
fn a_trainer_that_fails_before_it_joins_is_answered_and_its_reason_kept() {
    let mut run = Run::new(facts(2, 4, 10)).unwrap();
    let decision = run.step(
        Event::Finished {
            peer: 7,
            stamp: STAMP,
            outcome: Outcome::Failed {
                reason: "the data is not there".into(),
            },
            step: 0,
        },
        NOW,
    );
    assert_eq!(
        sent(&decision, 7),
        [CoordinatorBody::Acknowledged {
            step: 0,
            finished: true
        }]
    );
    let kept = decision.directives.iter().any(|directive| {
        let crate::run::Directive::Persist(Record::Decision { reason }) = directive else {
            return false;
        };
        reason.ends_with("before it joined: the data is not there")
    });
    assert!(kept, "{:?}", decision.directives);
}

#[test]
fn a_run_completes_when_every_rank_says_farewell_after_the_last_step() {
    let mut run = training(2, 3);
    for step in 1..=3 {
        everybody_reports(&mut run, 2, step);
    }
    assert_eq!(run.phase(), Phase::Finishing);
    let decision = run.step(
        Event::Finished {
            peer: 0,
            stamp: STAMP,
            outcome: Outcome::Completed,
            step: 3,
        },
        NOW,
    );
    assert_eq!(
        sent(&decision, 0),
        [CoordinatorBody::Acknowledged {
            step: 3,
            finished: true
        }]
    );
    run.step(Event::MemberLost { peer: 0 }, NOW);
    assert_eq!(run.phase(), Phase::Finishing, "it had said farewell");
    run.step(
        Event::Finished {
            peer: 1,
            stamp: STAMP,
            outcome: Outcome::Completed,
            step: 3,
        },
        NOW,
    );
    let end = RunEnd {
        outcome: Outcome::Completed,
        reason: "all 3 steps were made".into(),
        last_step: 3,
    };
    assert_eq!(the_end(&run), &end);
}

#[test]
fn a_stop_reaches_everybody_and_the_run_ends_after_the_step_they_agree_on() {
    let mut run = training(2, 10);
    everybody_reports(&mut run, 2, 1);
    let decision = run.step(Event::Stop, NOW);
    let stop = Directive {
        sequence: 1,
        kind: DirectiveKind::Stop,
    };
    assert!(sent(&decision, 0).contains(&CoordinatorBody::Directive(stop)));
    assert!(run.step(Event::Stop, NOW).directives.is_empty(), "once only");
    everybody_reports(&mut run, 2, 2);
    for peer in 0..2 {
        run.step(
            Event::Finished {
                peer,
                stamp: STAMP,
                outcome: Outcome::Stopped,
                step: 2,
            },
            NOW,
        );
    }
    assert_eq!(the_end(&run).outcome, Outcome::Stopped);
    assert_eq!(the_end(&run).reason, "the run was stopped after step 2 of 10");
    assert_eq!(run.step(Event::Pause, NOW).refusal.unwrap().kind, "RUN_OVER");
}

#[test]
fn a_stop_before_the_first_step_ends_the_run_at_once() {
    let mut run = Run::new(facts(2, 8, 3)).unwrap();
    run.step(
        Event::Join {
            peer: 0,
            info: info("trainer-0"),
        },
        NOW,
    );
    let decision = run.step(Event::Stop, NOW);
    assert!(matches!(sent(&decision, 0)[..], [CoordinatorBody::Release { .. }]));
    assert_eq!(
        (&the_end(&run).outcome, the_end(&run).last_step),
        (&Outcome::Stopped, 0)
    );
}

#[test]
fn a_rank_that_ends_without_being_told_to_fails_the_run() {
    let mut run = training(1, 10);
    everybody_reports(&mut run, 1, 1);
    run.step(
        Event::Finished {
            peer: 0,
            stamp: STAMP,
            outcome: Outcome::Stopped,
            step: 1,
        },
        NOW,
    );
    assert!(
        the_end(&run).reason.contains("without having been told to"),
        "{}",
        the_end(&run).reason
    );
    let mut run = training(1, 10);
    run.step(Event::Stop, NOW);
    run.step(
        Event::Finished {
            peer: 0,
            stamp: STAMP,
            outcome: Outcome::Stopped,
            step: 4,
        },
        NOW,
    );
    assert!(
        the_end(&run).reason.contains("ended after step 4"),
        "{}",
        the_end(&run).reason
    );
}

#[test]
fn a_pause_holds_plans_back_and_resume_gives_them() {
    let mut run = training(1, 10);
    let pause = run.step(Event::Pause, NOW);
    let directive = Directive {
        sequence: 1,
        kind: DirectiveKind::Pause,
    };
    assert_eq!(sent(&pause, 0), [CoordinatorBody::Directive(directive)]);
    assert_eq!(run.phase(), Phase::Paused);
    for step in 1..=4 {
        assert!(planned(&everybody_reports(&mut run, 1, step), 0).is_empty());
    }
    assert!(run.step(Event::Pause, NOW).directives.is_empty(), "paused already");
    let resume = run.step(Event::Resume, NOW);
    assert!(sent(&resume, 0).contains(&CoordinatorBody::Directive(Directive {
        sequence: 2,
        kind: DirectiveKind::Resume
    })));
    assert_eq!(planned(&resume, 0), [5, 6, 7, 8, 9, 10]);
    assert!(run.step(Event::Resume, NOW).reason.contains("not paused"));
}

#[test]
fn a_pause_before_training_is_remembered() {
    let mut run = Run::new(facts(1, 8, 3)).unwrap();
    run.step(Event::Pause, NOW);
    run.step(
        Event::Join {
            peer: 0,
            info: info("trainer-0"),
        },
        NOW,
    );
    let stamp = run.stamp();
    run.step(
        Event::CommId {
            peer: 0,
            stamp,
            id: vec![1],
        },
        NOW,
    );
    let ready = run.step(
        Event::Ready {
            peer: 0,
            stamp,
            ready: lockstep_proto::domain::Ready {
                hash: [0; 32],
                transports: Vec::new(),
            }
            .into(),
        },
        NOW,
    );
    assert_eq!((run.phase(), planned(&ready, 0)), (Phase::Paused, vec![]));
    assert_eq!(planned(&run.step(Event::Resume, NOW), 0), [1, 2, 3]);
}

#[test]
fn a_member_that_must_leave_stops_the_run_in_order() {
    let mut run = training(2, 10);
    run.step(
        Event::Leaving {
            peer: 1,
            reason: "SIGTERM".into(),
        },
        NOW,
    );
    assert_eq!(run.phase(), Phase::Stopping);
}
