//! How members come and go while a run lives.

use std::time::Duration;

use lockstep_proto::domain::*;

use super::*;

const PATIENCE: Duration = Duration::from_millis(500);

pub(super) fn elastic(ranks: u32, least: u32, most: u32) -> RunFacts {
    RunFacts {
        worlds: Worlds {
            first: ranks,
            least,
            most,
            patience: PATIENCE,
        },
        ..facts(ranks, 8, 20)
    }
}

fn join(run: &mut Run, peer: Peer) -> Decision {
    let info = info(&format!("trainer-{peer}"));
    run.step(Event::Join { peer, info }, NOW)
}

pub(super) fn stop(run: &mut Run, peer: Peer, cause: Option<&str>, parts: &[Part]) -> Decision {
    let event = Event::Stopped {
        peer,
        stamp: run.stamp(),
        cause: cause.map(str::to_owned),
        parts: parts.to_vec(),
        checkpoint_is_bad: false,
        drifted: None,
        unusable: None,
    };
    run.step(event, NOW)
}

fn part(run: &Run, step: u64, part: u32) -> Part {
    Part {
        step,
        generation: run.stamp().generation,
        part,
        hash: [part as u8; 32],
    }
}

fn hold(run: &mut Run, peer: Peer, part: Part) -> Decision {
    let stamp = run.stamp();
    run.step(Event::Holds { peer, stamp, part }, NOW)
}

/// The generation that a decision tells a member of.
pub(super) fn formed(decision: &Decision, peer: Peer) -> Option<Generation> {
    sent(decision, peer).into_iter().find_map(|body| match body {
        CoordinatorBody::Generation(generation) => Some(generation),
        _ => None,
    })
}

/// The ranks of the present generation, `peers` in order, meet and load `hash`; the last decision.
pub(super) fn meet(run: &mut Run, peers: &[Peer], hash: u8) -> Decision {
    let stamp = run.stamp();
    let (peer, id) = (peers[0], vec![1]);
    run.step(Event::CommId { peer, stamp, id }, NOW);
    let ready = |peer| Event::Ready {
        peer,
        stamp,
        ready: Ready {
            hash: [hash; 32],
            transports: Vec::new(),
        }
        .into(),
    };
    peers.iter().map(|peer| run.step(ready(*peer), NOW)).last().unwrap()
}

fn is_abort(body: &CoordinatorBody) -> bool {
    matches!(body, CoordinatorBody::Abort { .. })
}

#[test]
fn invariant_9_a_lost_rank_aborts_the_others_and_they_go_on_without_it_from_the_first_step() {
    let mut run = train(elastic(3, 1, 8));
    everybody_reports(&mut run, 3, 1);
    let decision = run.step(Event::MemberLost { peer: 1 }, NOW);
    assert!(sent(&decision, 0).iter().any(is_abort) && sent(&decision, 2).iter().any(is_abort));
    assert_eq!(run.phase(), Phase::Regrouping);
    assert!(
        run.reason().contains("rank 0") && run.reason().contains("rank 2") && run.reason().contains("was lost"),
        "{}",
        run.reason()
    );
    assert!(
        formed(&stop(&mut run, 0, None, &[]), 0).is_none(),
        "rank 2 may still wait in a collective"
    );
    let generation = formed(&stop(&mut run, 2, None, &[]), 2).unwrap();
    assert_eq!(generation.stamp.generation, 2);
    assert_eq!((generation.ranks(), generation.resume.clone()), (2, None));
    assert_eq!(generation.replay_through, 1);
    assert_eq!(generation.members[1].lanes, 4..8);
    let decision = meet(&mut run, &[0, 2], 0);
    assert_eq!(run.phase(), Phase::Training);
    assert_eq!(planned(&decision, 2)[..2], [1, 2], "step 1 is made again");
}

#[test]
fn invariant_11_and_12_a_snapshot_stands_when_owners_and_buddies_hold_it_and_survivors_resume_from_it() {
    let mut run = train(elastic(3, 1, 8));
    for step in 1..=5 {
        everybody_reports(&mut run, 3, step);
    }
    let parts: Vec<Part> = (0..3).map(|rank| part(&run, 4, rank)).collect();
    for (peer, own) in (0..).zip(&parts) {
        assert!(sent(&hold(&mut run, peer, *own), 0).is_empty());
    }
    hold(&mut run, 0, parts[2]);
    hold(&mut run, 1, parts[0]);
    let decision = hold(&mut run, 2, parts[1]);
    assert_eq!(
        sent(&decision, 1),
        [CoordinatorBody::SnapshotStands {
            step: 4,
            free_before: 4
        }]
    );
    assert!(matches!(&decision.directives[0], Done::Persist(Record::Snapshot { step: 4, parts }) if parts.len() == 3));

    run.step(Event::MemberLost { peer: 0 }, NOW);
    stop(&mut run, 1, None, &[parts[1], parts[0]]);
    let decision = stop(&mut run, 2, None, &[parts[2], parts[1]]);
    let resume = formed(&decision, 1).unwrap().resume.unwrap();
    assert_eq!((resume.step, resume.generation), (4, 1));
    let addresses: Vec<_> = resume.parts.iter().map(|place| place.addresses.join(" ")).collect();
    assert_eq!(addresses, ["trainer-1:1", "trainer-1:1 trainer-2:1", "trainer-2:1"]);
    let hash = run.hash_of(4).unwrap()[0];
    let decision = meet(&mut run, &[1, 2], hash);
    assert_eq!(planned(&decision, 1)[0], 5);
}

#[test]
fn owners_and_buddy_lost_together_leave_the_first_step() {
    let mut run = train(elastic(3, 1, 8));
    everybody_reports(&mut run, 3, 1);
    let parts: Vec<Part> = (0..3).map(|rank| part(&run, 1, rank)).collect();
    run.step(Event::MemberLost { peer: 0 }, NOW);
    run.step(Event::MemberLost { peer: 1 }, NOW);
    let decision = stop(&mut run, 2, None, &[parts[2], parts[1]]);
    assert_eq!(formed(&decision, 2).unwrap().resume, None);
}

#[test]
fn parameters_that_are_not_those_of_the_step_are_refused() {
    let mut run = train(elastic(2, 1, 8));
    for step in 1..=2 {
        everybody_reports(&mut run, 2, step);
    }
    let parts = [part(&run, 2, 0), part(&run, 2, 1)];
    run.step(Event::MemberLost { peer: 1 }, NOW);
    stop(&mut run, 0, None, &parts);
    meet(&mut run, &[0], 0x99);
    let reason = &the_end(&run).reason;
    assert!(
        reason.contains("the parameters of step 2") && reason.contains("9999"),
        "{reason}"
    );
}

#[test]
fn a_member_that_comes_later_is_taken_in_at_the_end_of_a_step_and_no_step_is_lost() {
    let mut run = train(elastic(2, 1, 3));
    everybody_reports(&mut run, 2, 1);
    let decision = join(&mut run, 2);
    let regroup = Directive {
        sequence: 1,
        kind: DirectiveKind::Regroup,
    };
    assert!(sent(&decision, 0).contains(&CoordinatorBody::Directive(regroup)));
    assert!(!sent(&decision, 0).iter().any(is_abort));
    everybody_reports(&mut run, 2, 2);
    let (first, second) = (part(&run, 2, 0), part(&run, 2, 1));
    stop(&mut run, 0, None, &[first]);
    let decision = stop(&mut run, 1, None, &[second]);
    let generation = formed(&decision, 2).unwrap();
    assert_eq!((generation.ranks(), generation.resume.unwrap().step), (3, 2));
    assert!(sent(&decision, 2).contains(&CoordinatorBody::Directive(Directive {
        sequence: 2,
        kind: DirectiveKind::Resume
    })));
    // A fourth one waits: the world is as large as it may be.
    join(&mut run, 3);
    let hash = run.hash_of(2).unwrap()[0];
    meet(&mut run, &[0, 1, 2], hash);
    assert_eq!(run.phase(), Phase::Training);
}

#[test]
fn a_member_that_must_leave_serves_its_part_until_the_others_have_it() {
    let mut run = train(elastic(2, 1, 8));
    everybody_reports(&mut run, 2, 1);
    let leaving = Event::Leaving {
        peer: 0,
        reason: "SIGTERM".to_owned(),
    };
    run.step(leaving, NOW);
    everybody_reports(&mut run, 2, 2);
    let (first, second) = (part(&run, 2, 0), part(&run, 2, 1));
    stop(&mut run, 0, None, &[first]);
    let decision = stop(&mut run, 1, None, &[second]);
    let generation = formed(&decision, 1).unwrap();
    assert_eq!(generation.members[0].member, "trainer-1");
    assert_eq!(generation.resume.unwrap().parts[0].addresses, ["trainer-0:1"]);
    let hash = run.hash_of(2).unwrap()[0];
    let decision = meet(&mut run, &[1], hash);
    assert!(matches!(
        &sent(&decision, 0)[..],
        [CoordinatorBody::Release { outcome: Outcome::Stopped, reason }] if reason.contains("SIGTERM")
    ));
}

#[test]
fn a_member_that_the_run_cannot_miss_stops_it_when_it_must_leave() {
    let mut run = train(elastic(2, 2, 8));
    let leaving = Event::Leaving {
        peer: 0,
        reason: "SIGTERM".to_owned(),
    };
    run.step(leaving, NOW);
    assert_eq!(run.phase(), Phase::Stopping);
}

#[test]
fn with_fewer_than_the_least_ranks_the_run_waits_and_says_for_how_many() {
    let mut run = train(elastic(2, 2, 8));
    everybody_reports(&mut run, 2, 1);
    run.step(Event::MemberLost { peer: 0 }, NOW);
    stop(&mut run, 1, None, &[]);
    assert_eq!(run.phase(), Phase::WaitingForMembers);
    assert_eq!(
        run.reason(),
        "waiting for trainers to go on after step 1: 1 of at least 2 are there"
    );
    assert_eq!(formed(&join(&mut run, 7), 7).unwrap().ranks(), 2);
}

#[test]
fn a_rank_that_does_not_stop_is_fenced_and_the_others_go_on() {
    let mut run = train(elastic(2, 1, 8));
    stop(&mut run, 0, Some("rank 1 did not come to reduce_lanes"), &[]);
    assert_eq!(run.phase(), Phase::Regrouping);
    run.step(Event::Tick, PATIENCE / 2);
    assert_eq!(run.phase(), Phase::Regrouping);
    let decision = run.step(Event::Tick, PATIENCE);
    assert!(
        decision
            .directives
            .iter()
            .any(|directive| matches!(directive, Done::Fence { peer: 1, reason } if reason.contains("rank 1"))),
        "{decision:?}"
    );
    assert_eq!(formed(&decision, 0).unwrap().ranks(), 1);
}

#[test]
fn ranks_that_never_get_a_step_done_end_the_run_with_the_last_reason() {
    let mut run = train(elastic(2, 1, 8));
    for round in 0..9 {
        assert_ne!(run.phase(), Phase::Ended, "after {round} rounds");
        for peer in [0, 1] {
            stop(&mut run, peer, Some("the cable is cut"), &[]);
        }
        if run.phase() == Phase::WaitingForCommId {
            meet(&mut run, &[0, 1], 0);
        }
    }
    let reason = &the_end(&run).reason;
    assert!(
        reason.contains("8 generations in a row") && reason.contains("the cable is cut"),
        "{reason}"
    );
}

#[test]
fn a_pause_outlives_the_generation() {
    let mut run = train(elastic(2, 1, 8));
    everybody_reports(&mut run, 2, 1);
    run.step(Event::Pause, NOW);
    run.step(Event::MemberLost { peer: 1 }, NOW);
    let decision = stop(&mut run, 0, None, &[]);
    assert!(sent(&decision, 0).contains(&CoordinatorBody::Directive(Directive {
        sequence: 1,
        kind: DirectiveKind::Pause
    })));
    meet(&mut run, &[0], 0);
    assert_eq!(run.phase(), Phase::Paused);
}
