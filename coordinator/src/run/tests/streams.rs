//! Streams that break while both ends live: a member comes back on a new one before the end of the old one is seen.

use lockstep_proto::domain::*;

use super::regroup::{elastic, formed, meet, stop};
use super::*;

fn come_back(run: &mut Run, name: &str, peer: Peer, standing: Standing, parts: &[Part]) -> Decision {
    let generation = run.stamp().generation;
    let returned = Return {
        info: info(name),
        standing,
        ready: Some(Ready {
            hash: [0; 32],
            transports: Vec::new(),
        }),
        parts: parts.to_vec(),
    };
    let returned = Box::new(returned);
    let event = Event::Return {
        peer,
        generation,
        returned,
    };
    run.step(event, NOW)
}

fn is_aborted(decision: &Decision, peer: Peer) -> bool {
    let is_abort = |body: &CoordinatorBody| matches!(body, CoordinatorBody::Abort { .. });
    sent(decision, peer).iter().any(is_abort)
}

#[test]
fn invariant_1_and_15_a_rank_that_comes_back_on_a_new_stream_is_waited_for_and_its_snapshot_is_resumed() {
    let mut run = train(elastic(1, 1, 2));
    everybody_reports(&mut run, 1, 1);
    let part = Part {
        step: 1,
        generation: 1,
        part: 0,
        hash: [7; 32],
    };
    let stamp = run.stamp();
    run.step(Event::Holds { peer: 0, stamp, part }, NOW);
    let join = Event::Join {
        peer: 1,
        info: info("trainer-1"),
    };
    run.step(join, NOW);
    let decision = come_back(&mut run, "trainer-0", 2, Standing::Training, &[part]);
    assert!(is_aborted(&decision, 2), "{decision:?}");
    assert_eq!(formed(&decision, 1), None, "the only rank is still in its collectives");
    let again = come_back(&mut run, "trainer-0", 2, Standing::Training, &[part]);
    assert!(again.directives.is_empty(), "said twice");
    let generation = formed(&stop(&mut run, 2, None, &[part]), 2).unwrap();
    assert_eq!((generation.ranks(), generation.resume.unwrap().step), (2, 1));
    run.step(Event::MemberLost { peer: 0 }, NOW);
    assert_eq!(
        run.phase(),
        Phase::WaitingForCommId,
        "the old stream says nothing of the new one"
    );
}

#[test]
fn a_rank_that_was_told_to_abort_on_its_old_stream_is_told_again_on_the_new_one() {
    let mut run = train(elastic(3, 1, 3));
    run.step(Event::MemberLost { peer: 1 }, NOW);
    stop(&mut run, 0, None, &[]);
    let decision = come_back(&mut run, "trainer-2", 9, Standing::Training, &[]);
    assert!(
        is_aborted(&decision, 9) && formed(&decision, 0).is_none(),
        "{decision:?}"
    );
    assert_eq!(formed(&stop(&mut run, 9, None, &[]), 9).unwrap().ranks(), 2);
}

#[test]
fn a_rank_that_has_left_the_collectives_when_it_comes_back_is_not_waited_for() {
    let mut run = train(elastic(2, 1, 2));
    run.step(Event::MemberLost { peer: 1 }, NOW);
    let decision = come_back(&mut run, "trainer-0", 9, Standing::Outside, &[]);
    assert_eq!(formed(&decision, 9).unwrap().ranks(), 1);
}

#[test]
fn who_comes_back_to_say_its_farewell_when_all_is_written_is_let_in() {
    let mut run = train(RunFacts {
        worlds: elastic(2, 1, 2).worlds,
        ..facts(2, 8, 1)
    });
    everybody_reports(&mut run, 2, 1);
    let farewell = |peer, stamp| Event::Finished {
        peer,
        stamp,
        outcome: Outcome::Completed,
        step: 1,
    };
    let stamp = run.stamp();
    run.step(farewell(0, stamp), NOW);
    let decision = come_back(&mut run, "trainer-1", 9, Standing::Training, &[]);
    assert_eq!(decision.refusal, None);
    assert!(!is_aborted(&decision, 9), "{decision:?}");
    run.step(farewell(9, stamp), NOW);
    assert_eq!(the_end(&run).outcome, Outcome::Completed);
}

#[test]
fn a_late_word_on_a_stream_that_is_gone_does_not_take_the_place_of_the_newer_one() {
    let mut run = train(elastic(2, 1, 2));
    come_back(&mut run, "trainer-0", 9, Standing::Training, &[]);
    let late = come_back(&mut run, "trainer-0", 8, Standing::Training, &[]);
    assert!(late.directives.is_empty(), "{late:?}");
    stop(&mut run, 1, None, &[]);
    let last = stop(&mut run, 9, None, &[]);
    assert_eq!(formed(&last, 9).unwrap().ranks(), 2);
    meet(&mut run, &[9, 1], 0);
    assert_eq!(run.phase(), Phase::Training);
}

#[test]
fn who_comes_back_because_the_answer_to_its_farewell_was_lost_gets_it_again_and_is_still_a_rank_that_ended() {
    let mut run = train(RunFacts {
        worlds: elastic(2, 1, 2).worlds,
        ..facts(2, 8, 1)
    });
    everybody_reports(&mut run, 2, 1);
    let farewell = |peer, stamp| Event::Finished {
        peer,
        stamp,
        outcome: Outcome::Completed,
        step: 1,
    };
    let is_heard = |decision: &Decision, peer| {
        let is_answer = |body: &CoordinatorBody| matches!(body, CoordinatorBody::Acknowledged { finished: true, .. });
        sent(decision, peer).iter().any(is_answer)
    };
    let stamp = run.stamp();
    run.step(farewell(0, stamp), NOW);
    let decision = come_back(&mut run, "trainer-0", 8, Standing::Training, &[]);
    assert!(
        decision.refusal.is_none() && decision.directives.is_empty(),
        "{decision:?}"
    );
    assert!(is_heard(&run.step(farewell(8, stamp), NOW), 8));
    run.step(farewell(1, stamp), NOW);
    assert_eq!(the_end(&run).outcome, Outcome::Completed);
    // Also after the end.
    assert_eq!(
        come_back(&mut run, "trainer-1", 9, Standing::Training, &[]).refusal,
        None
    );
    assert!(is_heard(&run.step(farewell(9, stamp), NOW), 9));
}

#[test]
fn who_comes_back_to_a_generation_that_is_over_takes_its_farewell_back_even_if_its_steps_stand() {
    let mut run = train(elastic(2, 2, 2));
    everybody_reports(&mut run, 2, 1);
    run.step(Event::MemberLost { peer: 0 }, NOW);
    let decision = come_back(&mut run, "trainer-0", 9, Standing::Training, &[]);
    assert!(is_aborted(&decision, 9));
    let stamp = run.stamp();
    let outcome = Outcome::Completed;
    let farewell = Event::Finished {
        peer: 9,
        stamp,
        outcome,
        step: 1,
    };
    let decision = run.step(farewell, NOW);
    assert!(
        decision.directives.is_empty(),
        "its abort is on the way to it: {decision:?}"
    );
    stop(&mut run, 9, None, &[]);
    assert_eq!(formed(&stop(&mut run, 1, None, &[]), 9).unwrap().ranks(), 2);
}

#[test]
fn who_comes_back_after_the_end_and_has_taken_its_farewell_back_is_told_that_the_run_is_over() {
    let mut run = train(elastic(2, 2, 2));
    run.step(Event::Stop, NOW);
    run.step(Event::MemberLost { peer: 1 }, NOW);
    let decision = come_back(&mut run, "trainer-1", 9, Standing::Training, &[]);
    assert!(is_aborted(&decision, 9), "{decision:?}");
    let stamp = run.stamp();
    stop(&mut run, 0, None, &[]);
    assert_eq!(the_end(&run).outcome, Outcome::Stopped);
    // It had said farewell before the abort reached it, and its new stream breaks before the answer does.
    let farewell = Event::Finished {
        peer: 9,
        stamp,
        outcome: Outcome::Stopped,
        step: 0,
    };
    let is_answer = |body: &CoordinatorBody| matches!(body, CoordinatorBody::Acknowledged { finished: true, .. });
    assert!(sent(&run.step(farewell, NOW), 9).iter().any(is_answer));
    let refusal = come_back(&mut run, "trainer-1", 10, Standing::Outside, &[])
        .refusal
        .unwrap();
    assert!(refusal.reason.contains("the run is over"), "{refusal:?}");
}
