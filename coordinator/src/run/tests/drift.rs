//! A rank in whose memory a bit has changed.

use lockstep_proto::domain::*;

use super::regroup::{elastic, formed, meet, stop};
use super::*;

/// Every rank of a generation of `ranks` says that the memory of `rank` has changed.
fn drift(run: &mut Run, ranks: u64, rank: u32) -> Vec<Decision> {
    let stamp = run.stamp();
    let say = |peer| Event::Stopped {
        peer,
        stamp,
        cause: Some("step 1: the master of w in the memory of rank 1 has changed".to_owned()),
        parts: Vec::new(),
        checkpoint_is_bad: false,
        drifted: Some(rank),
        unusable: None,
    };
    (0..ranks).map(|peer| run.step(say(peer), NOW)).collect()
}

/// The reasons that a decision writes down.
fn reasons(decision: &Decision) -> Vec<&str> {
    let directives = decision.directives.iter();
    directives
        .filter_map(|directive| match directive {
            Done::Persist(Record::Decision { reason }) => Some(reason.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_rank_whose_memory_has_changed_is_set_apart_and_another_process_may_take_its_place() {
    let mut run = train(elastic(3, 2, 3));
    let decisions = drift(&mut run, 3, 1);
    let written = reasons(&decisions[0]);
    assert!(
        written[0].starts_with("rank 1 (pid") && written[0].contains("is set apart"),
        "{written:?}"
    );
    assert!(reasons(&decisions[1]).is_empty(), "it is written once");
    let generation = formed(&decisions[2], 0).unwrap();
    let names: Vec<&str> = generation.members.iter().map(|place| place.member.as_str()).collect();
    assert_eq!(names, ["trainer-0", "trainer-2"]);
    assert_eq!(formed(&decisions[2], 1), None);
    let stamp = run.stamp();
    let last = meet(&mut run, &[0, 2], 0);
    let released = sent(&last, 1);
    assert!(
        released.iter().any(
            |body| matches!(body, CoordinatorBody::Release { reason, .. } if reason.contains("its memory has changed"))
        ),
        "{released:?}"
    );
    // It says farewell, and a process of the same name comes before the end of its stream is seen.
    let outcome = Outcome::Stopped;
    run.step(
        Event::Finished {
            peer: 1,
            stamp,
            outcome,
            step: 0,
        },
        NOW,
    );
    let again = run.step(
        Event::Join {
            peer: 9,
            info: info("trainer-1"),
        },
        NOW,
    );
    assert_eq!(again.refusal, None);
    run.step(Event::MemberLost { peer: 1 }, NOW);
    assert_eq!(run.members().len(), 3);
}

#[test]
fn where_too_few_would_be_left_a_rank_whose_memory_has_changed_stays() {
    let mut run = train(elastic(2, 2, 2));
    let decisions = drift(&mut run, 2, 1);
    let written = reasons(&decisions[0]);
    assert!(
        written[0].contains("without it 1 of at least 2 ranks would be left"),
        "{written:?}"
    );
    assert_eq!(formed(&decisions[1], 1).unwrap().ranks(), 2);
}

#[test]
fn invariant_5_a_committed_step_that_comes_out_otherwise_is_made_again_and_after_eight_times_the_run_ends() {
    let mut run = train(elastic(1, 1, 1));
    everybody_reports(&mut run, 1, 1);
    stop(&mut run, 0, Some("a peer hung up"), &[]);
    let mut made_again = 0;
    loop {
        meet(&mut run, &[0], 0);
        let event = report(&run, 0, 1, 99);
        let decision = run.step(event, NOW);
        made_again += 1;
        if run.phase() == Phase::Ended {
            break;
        }
        let aborts = |body: &CoordinatorBody| matches!(body, CoordinatorBody::Abort { .. });
        assert!(sent(&decision, 0).iter().any(aborts), "{decision:?}");
        stop(&mut run, 0, None, &[]);
    }
    assert_eq!(made_again, 8);
    let reason = &the_end(&run).reason;
    assert!(reason.contains("step 1 is committed with the hash"), "{reason}");
}
