//! What the machine promises, said one by one; the numbers are those of the module's invariants. Here: worlds,
//! windows, reports and commits; `answers` has farewells, `drift` has memory that changes, `endings` has pauses and ends, `recording` what the ledger keeps of events, `regroup`
//! members that come and go, `schedules` the random schedules of the simulator, `streams` those that break.

mod answers;
mod checkpoints;
mod drift;
mod endings;
mod orders;
mod recording;
mod regroup;
mod rewind;
mod schedules;
mod streams;

use std::time::Duration;

use lockstep_config::{Length, RunConfig};
use lockstep_proto::domain::*;

use super::{Decision, Directive as Done, Event, Peer, Phase, Record, Run, RunFacts, Worlds};
use crate::plan::Planner;

pub(super) fn facts(ranks: u32, lanes: u32, steps: u64) -> RunFacts {
    let text = r#"
        [run]
        name = "machine"
        steps = 1
        [data]
        path = "data"
        sequence_length = 16
        [model]
        kind = "gpt2"
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 2
        schedule = { kind = "steps", sizes = [[0, 4], [5, 7]] }
        [learning_rate]
        schedule = { kind = "cosine", peak = 1.0, warmup = 3 }
        [optimizer]
        method = "muon"
        [validation]
        every = 3
        [checkpoint]
        every = 4
    "#;
    let mut config = RunConfig::parse(text, "test", &[]).unwrap();
    config.run.length = Length::Steps(steps);
    RunFacts {
        config_hash: "config".to_owned(),
        data_hash: "data".to_owned(),
        lanes,
        worlds: Worlds::fixed(ranks),
        term: 1,
        last_generation: 0,
        is_resumed: false,
        return_patience: Duration::from_secs(60),
        window: Duration::from_secs(5),
        secret: [3; 32],
        planner: Planner::new(&config, 0).unwrap(),
        rewinds: None,
        keeps: None,
        stops_once: true,
    }
}

pub(super) fn info(member: &str) -> JoinInfo {
    JoinInfo {
        member: member.to_owned(),
        pid: 4000 + member.len() as u32,
        host: "host".to_owned(),
        build: "build".to_owned(),
        config_hash: "config".to_owned(),
        data_hash: "data".to_owned(),
        fingerprint: "avx2, 1 thread".to_owned(),
        devices: vec!["cpu".to_owned()],
        parts_address: format!("{member}:1"),
    }
}

const NOW: Duration = Duration::ZERO;

/// A run of `ranks` ranks that trains: peer p has rank p.
fn training(ranks: u32, steps: u64) -> Run {
    train(facts(ranks, 8, steps))
}

fn train(facts: RunFacts) -> Run {
    let ranks = facts.worlds.first;
    let mut run = Run::new(facts).unwrap();
    for peer in 0..u64::from(ranks) {
        run.step(
            Event::Join {
                peer,
                info: info(&format!("trainer-{peer}")),
            },
            NOW,
        );
    }
    let stamp = run.stamp();
    run.step(
        Event::CommId {
            peer: 0,
            stamp,
            id: vec![1],
        },
        NOW,
    );
    for peer in 0..u64::from(ranks) {
        run.step(
            Event::Ready {
                peer,
                stamp,
                ready: lockstep_proto::domain::Ready {
                    hash: [0; 32],
                    transports: Vec::new(),
                }
                .into(),
            },
            NOW,
        );
    }
    assert_eq!(run.phase(), Phase::Training);
    run
}

fn metrics() -> StepMetrics {
    StepMetrics {
        loss: 2.0,
        tokens: 64,
        grad_norm: 3.0,
        update_norm: 4.0,
        learning_rate: 0.5,
        effective_learning_rate: 0.25,
        step_ms: 10.0,
        phases: vec![("forward".to_owned(), 6.0)],
        polar_factors: 12,
        model_value: Some(1.75),
        dual_norm: Some(5.0),
        lower_bound: Some(1.5),
        orthogonality: Some(Orthogonality {
            tensor: "h.0.mlp.c_proj.weight".to_owned(),
            error: 0.125,
        }),
        skipped: None,
        gradient_variance: Some(80.0),
        gradient_square: Some(0.5),
    }
}

fn report(run: &Run, rank: u32, step: u64, hash: u8) -> Event {
    let report = StepReport {
        stamp: run.stamp(),
        rank,
        step,
        parameter_hash: [hash; 32],
        metrics: (rank == 0).then(metrics),
        validation: None,
        peak_memory_mib: 5 + u64::from(rank),
    };
    Event::Report {
        peer: u64::from(rank),
        report,
    }
}

fn everybody_reports(run: &mut Run, ranks: u32, step: u64) -> Decision {
    let mut last = None;
    for rank in 0..ranks {
        let event = report(run, rank, step, step as u8);
        last = Some(run.step(event, NOW));
    }
    last.unwrap()
}

fn sent(decision: &Decision, peer: Peer) -> Vec<CoordinatorBody> {
    let to_peer = |directive: &Done| match directive {
        Done::Send { to, body, .. } if *to == peer => Some((**body).clone()),
        _ => None,
    };
    decision.directives.iter().filter_map(to_peer).collect()
}

fn planned(decision: &Decision, peer: Peer) -> Vec<u64> {
    let windows = sent(decision, peer).into_iter().filter_map(|body| match body {
        CoordinatorBody::PlanWindow(plans) => Some(plans),
        _ => None,
    });
    windows.flatten().map(|plan| plan.step).collect()
}

fn the_end(run: &Run) -> &RunEnd {
    run.end().expect("the run has ended")
}

#[test]
fn the_world_is_made_when_the_last_member_joins_and_ranks_follow_names() {
    let mut run = Run::new(facts(2, 5, 3)).unwrap();
    let first = run.step(
        Event::Join {
            peer: 7,
            info: info("trainer-10"),
        },
        NOW,
    );
    assert_eq!(first.reason, "waiting for trainers: 1 of 2 have joined");
    let second = run.step(
        Event::Join {
            peer: 8,
            info: info("trainer-9"),
        },
        NOW,
    );
    assert_eq!(run.phase(), Phase::WaitingForCommId);
    for peer in [7, 8] {
        let [CoordinatorBody::Generation(generation)] = &sent(&second, peer)[..] else {
            panic!("{second:?}")
        };
        let places: Vec<_> = generation
            .members
            .iter()
            .map(|p| (p.member.as_str(), p.lanes.clone()))
            .collect();
        assert_eq!(places, [("trainer-9", 0..2), ("trainer-10", 2..5)]);
        assert_ne!(generation.secret, [3; 32]);
    }
    let id = run.step(
        Event::CommId {
            peer: 7,
            stamp: run.stamp(),
            id: vec![1],
        },
        NOW,
    );
    assert!(id.directives.is_empty(), "only rank 0 makes the id");
    let id = run.step(
        Event::CommId {
            peer: 8,
            stamp: run.stamp(),
            id: vec![2],
        },
        NOW,
    );
    assert_eq!(sent(&id, 7), [CoordinatorBody::CommId(vec![2])]);
    assert_eq!(run.phase(), Phase::WaitingForReady);
}

#[test]
fn fewer_lanes_than_ranks_and_no_ranks_are_refused_with_both_numbers() {
    let refusal = Run::new(facts(4, 3, 1)).unwrap_err();
    assert!(
        refusal.reason.contains("run.lanes is 3") && refusal.reason.contains("4 ranks"),
        "{}",
        refusal.reason
    );
    assert!(Run::new(facts(0, 3, 1)).is_err());
}

#[test]
fn members_that_differ_are_refused_with_both_values() {
    let mut run = Run::new(facts(3, 8, 1)).unwrap();
    run.step(
        Event::Join {
            peer: 0,
            info: info("a"),
        },
        NOW,
    );
    let mut refused = |change: &dyn Fn(&mut JoinInfo), kind: &str, values: [&str; 2]| {
        let mut info = info("b");
        change(&mut info);
        let decision = run.step(Event::Join { peer: 1, info }, NOW);
        let refusal = decision.refusal.expect(kind);
        assert_eq!(refusal.kind, kind);
        assert!(
            values.iter().all(|value| refusal.reason.contains(value)),
            "{}",
            refusal.reason
        );
        assert!(decision.directives.is_empty());
    };
    refused(
        &|info| info.config_hash = "other-1".into(),
        "CONFIG_DIFFERS",
        ["other-1", "config"],
    );
    refused(
        &|info| info.data_hash = "other-2".into(),
        "DATA_DIFFERS",
        ["other-2", "data"],
    );
    refused(
        &|info| info.build = "other-3".into(),
        "BUILD_DIFFERS",
        ["other-3", "build"],
    );
    refused(
        &|info| info.fingerprint = "sse, 2 threads".into(),
        "FINGERPRINT_DIFFERS",
        ["sse, 2 threads", "avx2, 1 thread"],
    );
    refused(&|info| info.member = "a".into(), "NAME_TAKEN", ["a", "4001"]);
    let mut full = training(1, 3);
    let refusal = full
        .step(
            Event::Join {
                peer: 9,
                info: info("late"),
            },
            NOW,
        )
        .refusal
        .unwrap();
    assert_eq!(refusal.kind, "WORLD_FULL");
}

#[test]
fn different_initial_hashes_end_the_run_and_name_the_ranks() {
    let mut run = Run::new(facts(3, 8, 3)).unwrap();
    for peer in 0..3 {
        run.step(
            Event::Join {
                peer,
                info: info(&format!("trainer-{peer}")),
            },
            NOW,
        );
    }
    let stamp = run.stamp();
    run.step(
        Event::CommId {
            peer: 0,
            stamp,
            id: vec![1],
        },
        NOW,
    );
    for (peer, hash) in [(0, 1), (1, 1), (2, 0xab)] {
        run.step(
            Event::Ready {
                peer,
                stamp,
                ready: lockstep_proto::domain::Ready {
                    hash: [hash; 32],
                    transports: Vec::new(),
                }
                .into(),
            },
            NOW,
        );
    }
    let reason = &the_end(&run).reason;
    let said = [
        "initial parameters",
        "ranks 0, 1 have",
        "rank 2 has the hash abab",
        "0101",
    ];
    assert!(said.iter().all(|part| reason.contains(part)), "{reason}");
}

#[test]
fn invariant_4_and_7_windows_follow_the_measured_step_time_and_end_with_the_last_step() {
    let mut run = training(2, 1000);
    assert_eq!(run.issued_through, 4);
    let decision = everybody_reports(&mut run, 2, 1);
    assert_eq!(
        planned(&decision, 1),
        (5..=501).collect::<Vec<_>>(),
        "5 s of steps of 10 ms after step 1"
    );
    for step in 2..=251 {
        assert!(
            planned(&everybody_reports(&mut run, 2, step), 0).is_empty(),
            "half a window is still there"
        );
    }
    assert_eq!(
        planned(&everybody_reports(&mut run, 2, 252), 0),
        (502..=752).collect::<Vec<_>>()
    );
    for step in 253..=1000 {
        everybody_reports(&mut run, 2, step);
    }
    assert_eq!((run.issued_through, run.phase()), (1000, Phase::Finishing));
}

#[test]
fn invariant_5_a_step_is_committed_when_every_rank_has_reported_it() {
    let mut run = training(3, 10);
    let stamp = run.stamp();
    for rank in [2, 0] {
        let event = report(&run, rank, 1, 1);
        let decision = run.step(event.clone(), NOW);
        assert!(decision.directives.is_empty());
        assert!(run.step(event, NOW).directives.is_empty(), "said twice");
    }
    let decision = run.step(report(&run, 1, 1, 1), NOW);
    let Some(Done::Persist(Record::Committed(commit))) = decision.directives.first() else {
        panic!("{decision:?}")
    };
    assert_eq!(
        (commit.plan.step, commit.stamp, commit.samples, commit.tokens),
        (1, stamp, 4, 64)
    );
    assert_eq!(commit.metrics, metrics(), "as rank 0 measured them");
    assert!(sent(&decision, 2).contains(&CoordinatorBody::Acknowledged {
        step: 1,
        finished: false
    }));
    assert_eq!(run.peak_memory_mib(), 7);
}

#[test]
fn a_committed_step_shows_what_rank_0_measured() {
    let mut run = training(2, 10);
    let learning_rate = run.issued[0].learning_rate;
    let decision = everybody_reports(&mut run, 2, 1);
    let Some(Done::Persist(Record::Committed(commit))) = decision.directives.first() else {
        panic!("{decision:?}")
    };
    let expected = CommittedStep {
        step: 1,
        total_steps: 10,
        samples: 4,
        tokens: 64,
        loss: 2.0,
        learning_rate,
        effective_learning_rate: 0.25,
        batch: 4,
        grad_norm: 3.0,
        update_norm: 4.0,
        tokens_per_second: 6400.0,
        step_ms: 10.0,
        phases: vec![("forward".to_owned(), 6.0)],
        generation: 1,
        ranks: 2,
        parameter_hash: commit.parameter_hash,
        polar_factors: 12,
        model_value: Some(1.75),
        dual_norm: Some(5.0),
        lower_bound: Some(1.5),
        orthogonality: metrics().orthogonality,
        gradient_variance: Some(80.0),
        gradient_square: Some(0.5),
        noise_scale: Some(160.0),
        skipped: None,
    };
    assert_eq!(commit.to_committed_step(10), expected);
}

#[test]
fn a_skipped_step_is_committed_with_its_reason_though_its_loss_is_no_number() {
    let mut run = training(1, 10);
    let mut report = report(&run, 0, 1, 7);
    if let Event::Report { report, .. } = &mut report {
        report.metrics = Some(StepMetrics {
            loss: f64::NAN,
            grad_norm: f64::INFINITY,
            update_norm: 0.0,
            skipped: Some("step 1: the loss is NaN".to_owned()),
            ..metrics()
        });
    }
    let decision = run.step(report, NOW);
    let Some(Done::Persist(Record::Committed(commit))) = decision.directives.first() else {
        panic!("{decision:?}")
    };
    assert_eq!(commit.metrics.skipped.as_deref(), Some("step 1: the loss is NaN"));
    assert_eq!(run.committed(), 1);
}

#[test]
fn invariant_5_different_hashes_end_the_run_and_name_step_ranks_and_hashes() {
    let mut run = training(2, 10);
    everybody_reports(&mut run, 2, 1);
    run.step(report(&run, 0, 2, 0x11), NOW);
    let decision = run.step(report(&run, 1, 2, 0x22), NOW);
    let reason = &the_end(&run).reason;
    let said = [
        "step 2",
        "rank 0 has the hash 1111",
        "rank 1 has the hash 2222",
        "Step 1 stands",
    ];
    assert!(said.iter().all(|part| reason.contains(part)), "{reason}");
    assert!(matches!(sent(&decision, 0)[..], [CoordinatorBody::Release { .. }]));
    assert_eq!(run.committed(), 1);
}

#[test]
fn invariant_5_a_committed_step_stays_committed() {
    let mut run = training(2, 10);
    everybody_reports(&mut run, 2, 1);
    let again = run.step(report(&run, 1, 1, 1), NOW);
    assert_eq!(
        sent(&again, 1),
        [CoordinatorBody::Acknowledged {
            step: 1,
            finished: false
        }]
    );
    run.step(report(&run, 1, 1, 77), NOW);
    assert!(
        the_end(&run).reason.contains("step 1 is committed"),
        "{}",
        the_end(&run).reason
    );
}

#[test]
fn a_validation_may_follow_its_step() {
    let mut run = training(1, 10);
    everybody_reports(&mut run, 1, 1);
    let Event::Report { peer, mut report } = report(&run, 0, 1, 1) else {
        unreachable!()
    };
    report.validation = Some(Validation { loss: 1.5, tokens: 9 });
    let record = Done::Persist(Record::Validation {
        step: 1,
        validation: Validation { loss: 1.5, tokens: 9 },
    });
    let decision = run.step(
        Event::Report {
            peer,
            report: report.clone(),
        },
        NOW,
    );
    assert_eq!(decision.directives[0], record);
    assert!(
        !run.step(Event::Report { peer, report }, NOW)
            .directives
            .contains(&record),
        "once only"
    );
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_a_sentence() {
    let mut run = training(2, 10);
    let Event::Report { peer, mut report } = report(&run, 0, 1, 1) else {
        unreachable!()
    };
    report.metrics.as_mut().unwrap().loss = f64::NAN;
    run.step(Event::Report { peer, report }, NOW);
    assert!(
        the_end(&run).reason.starts_with("the loss of step 1 is NaN"),
        "{}",
        the_end(&run).reason
    );
}

#[test]
fn reports_that_nobody_planned_or_of_another_rank_end_the_run() {
    let mut run = training(2, 10);
    run.step(report(&run, 0, 9, 1), NOW);
    assert!(
        the_end(&run).reason.contains("step 9, for which no plan was issued"),
        "{}",
        the_end(&run).reason
    );
    let mut run = training(2, 10);
    let Event::Report { report, .. } = report(&run, 0, 1, 1) else {
        unreachable!()
    };
    run.step(Event::Report { peer: 1, report }, NOW);
    assert!(
        the_end(&run).reason.contains("rank 1 reported step 1 under the rank 0"),
        "{}",
        the_end(&run).reason
    );
}

#[test]
fn invariant_2_messages_of_another_generation_are_ignored() {
    let mut run = training(1, 10);
    let Event::Report { peer, mut report } = report(&run, 0, 1, 1) else {
        unreachable!()
    };
    report.stamp.generation -= 1;
    assert!(
        run.step(
            Event::Report {
                peer,
                report: report.clone()
            },
            NOW
        )
        .directives
        .is_empty()
    );
    report.stamp = Stamp { term: 0, ..run.stamp() };
    assert!(run.step(Event::Report { peer, report }, NOW).directives.is_empty());
    assert_eq!(run.committed(), 0);
}
