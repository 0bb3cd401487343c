//! Nobody who ends its part is left without an answer.

use lockstep_proto::domain::*;

use super::regroup::{elastic, meet, stop};
use super::*;

fn farewell(run: &mut Run, peer: Peer, step: u64) -> Decision {
    let event = Event::Finished {
        peer,
        stamp: run.stamp(),
        outcome: Outcome::Stopped,
        step,
    };
    run.step(event, NOW)
}

fn is_heard(decision: &Decision, peer: Peer) -> bool {
    let is_answer = |body: &CoordinatorBody| matches!(body, CoordinatorBody::Acknowledged { finished: true, .. });
    sent(decision, peer).iter().any(is_answer)
}

#[test]
fn after_the_end_the_farewell_of_a_rank_that_had_left_the_collectives_is_answered() {
    let mut run = train(elastic(2, 2, 2));
    everybody_reports(&mut run, 2, 1);
    run.step(Event::MemberLost { peer: 1 }, NOW);
    // It stops as it was told to, one rank is too few to go on with, and the run is stopped while it waits for another.
    stop(&mut run, 0, None, &[]);
    let decision = run.step(Event::Stop, NOW);
    assert!(matches!(sent(&decision, 0)[..], [CoordinatorBody::Release { .. }]));
    assert!(is_heard(&farewell(&mut run, 0, 1), 0));
    assert!(
        is_heard(&farewell(&mut run, 0, 1), 0),
        "said twice, since the answer was lost"
    );
}

#[test]
fn who_is_released_after_steps_that_the_others_make_again_is_answered_at_once() {
    let mut run = train(elastic(3, 2, 3));
    everybody_reports(&mut run, 3, 1);
    let drifted = Event::Stopped {
        peer: 1,
        stamp: run.stamp(),
        cause: Some("the memory of rank 1 has changed".to_owned()),
        parts: Vec::new(),
        checkpoint_is_bad: false,
        drifted: Some(1),
        unusable: None,
    };
    run.step(drifted, NOW);
    stop(&mut run, 0, None, &[]);
    stop(&mut run, 2, None, &[]);
    let decision = meet(&mut run, &[0, 2], 0);
    assert!(matches!(sent(&decision, 1)[..], [CoordinatorBody::Release { .. }]));
    // It had made step 2, whose reports of the others are lost. They make it again, and nobody needs its own.
    assert!(is_heard(&farewell(&mut run, 1, 2), 1));
}

#[test]
fn a_rank_that_failed_ends_the_run_with_its_own_sentence_whether_its_peers_complain_before_or_after() {
    for complains_first in [true, false] {
        let mut run = train(elastic(2, 1, 2));
        everybody_reports(&mut run, 2, 1);
        let failed = Event::Finished {
            peer: 1,
            stamp: run.stamp(),
            outcome: Outcome::Failed {
                reason: "the device is out of order".to_owned(),
            },
            step: 1,
        };
        if complains_first {
            stop(&mut run, 0, Some("a peer hung up"), &[]);
            run.step(failed, NOW);
        } else {
            run.step(failed, NOW);
            stop(&mut run, 0, Some("a peer hung up"), &[]);
        }
        assert_eq!(run.phase(), Phase::Failing);
        run.step(Event::Tick, Duration::from_secs(1));
        assert!(
            the_end(&run).reason.contains("the device is out of order"),
            "{}",
            the_end(&run).reason
        );
    }
}

#[test]
fn a_farewell_that_was_acknowledged_is_acknowledged_again_also_while_the_others_leave_their_generation() {
    let mut run = train(elastic(3, 1, 3));
    everybody_reports(&mut run, 3, 1);
    run.step(Event::Stop, NOW);
    assert!(is_heard(&farewell(&mut run, 1, 1), 1));
    run.step(Event::MemberLost { peer: 2 }, NOW);
    assert_eq!(run.phase(), Phase::Regrouping);
    assert!(is_heard(&farewell(&mut run, 1, 1), 1));
    assert!(!is_heard(&farewell(&mut run, 0, 1), 0), "its abort is on the way to it");
}

#[test]
fn a_late_farewell_of_a_member_that_has_stopped_since_does_not_end_its_part() {
    let mut run = train(elastic(2, 2, 3));
    everybody_reports(&mut run, 2, 1);
    run.step(Event::MemberLost { peer: 1 }, NOW);
    stop(&mut run, 0, None, &[]);
    assert!(!is_heard(&farewell(&mut run, 0, 1), 0));
    let join = Event::Join {
        peer: 7,
        info: info("trainer-7"),
    };
    run.step(join, NOW);
    assert_eq!(run.phase(), Phase::WaitingForCommId, "both make the next world");
}
