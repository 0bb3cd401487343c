//! The protocol of streams and events of a training step, driven through the real shim over the recorder: threads D
//! (forward, update), A (backward), C (exchanges) and H (snapshots), as a rank of several runs them. With every edge all
//! accesses are ordered; without any kind of edge, and without any single one that nothing else implies, they are not.
//!
//! ```text
//! A  last gradient of bucket b              ready[b].record(S0) → token to C
//! C  buckets in index order                 ready[b].block(S1); send or receive and add on S1; done[b].record(S1) → D
//! D  before reading OR overwriting slot b   done[b].block(S0)
//! D  parameters of bucket b applied         used[b].record(S0) → token to C
//! C                                         used[b].block(S1); gather of b on S1; gathered[b].record(S1) → D
//! D  gate of the layer in the next forward  gathered[b].block(S0)
//! D  snapshot                               updated.record(S0), .block(S2); copy on S2; copied.record(S2) → H
//! D  before the next update of the masters  copied.block(S0)
//! H                                         copied.synchronize(); send the copy; message → D
//! D  before the next copy                   the message
//! ```
#![allow(clippy::unwrap_used, missing_docs)]

mod rank;

use lockstep_device_recorder::{Proof, Unordered, check};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use rank::{Edge, GatherOrder, Plan, run};

fn two_steps(gathers: GatherOrder) -> Plan {
    Plan {
        elements: vec![640, 128, 1024, 64],
        owned: vec![true, false, false, true],
        gathers,
        steps: 2,
        pauses: 1,
    }
}

/// What the checker says of the plan without one edge.
fn checked_without(plan: &Plan, edge: Edge) -> Result<Proof, Box<Unordered>> {
    check(&run(plan, move |candidate| candidate == edge))
}

#[test]
fn with_every_edge_two_steps_are_ordered() {
    for gathers in [GatherOrder::Applied, GatherOrder::Forward] {
        let log = run(&two_steps(gathers), |_| false);
        let proof = check(&log).unwrap_or_else(|report| panic!("{report}\n{log}"));
        println!("{} lines, {proof:?}", log.entries.len());
        assert!(proof.pairs_between_places > 20, "{proof:?}");
    }
}

#[test]
fn without_any_kind_of_edge_two_steps_are_not_ordered() {
    type Kind = (&'static str, fn(Edge) -> bool);
    let kinds: [Kind; 10] = [
        ("ready", |edge| matches!(edge, Edge::Ready(_))),
        ("done before a slot is read", |edge| {
            matches!(edge, Edge::DoneBeforeRead(_))
        }),
        ("done before a slot is overwritten", |edge| {
            matches!(edge, Edge::DoneBeforeOverwrite(_))
        }),
        ("used before a copy is sent", |edge| {
            matches!(edge, Edge::UsedBeforeSend(_))
        }),
        ("used before a copy is overwritten", |edge| {
            matches!(edge, Edge::UsedBeforeOverwrite(_))
        }),
        ("gathered", |edge| matches!(edge, Edge::Gathered(_))),
        ("copy after update", |edge| edge == Edge::CopyAfterUpdate),
        ("update after copy", |edge| edge == Edge::UpdateAfterCopy),
        ("host after copy", |edge| edge == Edge::HostAfterCopy),
        ("copy after host", |edge| edge == Edge::CopyAfterHost),
    ];
    for (name, without) in kinds {
        let report = check(&run(&two_steps(GatherOrder::Applied), without));
        let report = report.expect_err(name);
        println!("without {name}: {report}");
    }
}

#[test]
fn without_one_edge_of_one_bucket_the_report_names_its_memory_and_its_event() {
    use Edge::{DoneBeforeOverwrite, DoneBeforeRead, Gathered, Ready, UsedBeforeOverwrite, UsedBeforeSend};
    let applied = two_steps(GatherOrder::Applied);
    let forward = two_steps(GatherOrder::Forward);
    // A wait for a later record of a stream covers its earlier ones. So each used edge stands alone where C gathers in
    // the order of D's records, and each gate where D reads in the order of C's.
    let mut cases: Vec<(&Plan, Edge, String, &str)> = Vec::new();
    for b in 0..applied.buckets() {
        cases.push((&applied, Ready(b), format!("ready[{b}]"), "gradients"));
        if applied.owned[b] {
            cases.push((&applied, DoneBeforeRead(b), format!("done[{b}]"), "gradients"));
            cases.push((&applied, UsedBeforeSend(b), format!("used[{b}]"), "working copies"));
        } else {
            cases.push((&applied, DoneBeforeOverwrite(b), format!("done[{b}]"), "gradients"));
            cases.push((&applied, UsedBeforeOverwrite(b), format!("used[{b}]"), "working copies"));
            cases.push((&forward, Gathered(b), format!("gathered[{b}]"), "working copies"));
        }
    }
    assert_eq!(cases.len(), 14);
    for (plan, edge, event, memory) in cases {
        let report = checked_without(plan, edge).expect_err(&format!("{edge:?}"));
        println!("without {edge:?}: {report}");
        assert_eq!(report.range.memory.as_ref(), memory, "{edge:?}: {report}");
        assert!(report.missing.contains(&event), "{edge:?}: {report}");
    }
}

#[test]
fn plans_of_any_shape_are_ordered_with_every_edge_and_not_without_one() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..30 {
        let buckets = random.random_range(2..8);
        let plan = Plan {
            elements: (0..buckets).map(|_| random.random_range(1..5000)).collect(),
            owned: (0..buckets).map(|_| random.random_bool(0.5)).collect(),
            gathers: GatherOrder::Applied,
            steps: random.random_range(2..5),
            pauses: u64::from(random.random::<u32>()),
        };
        let log = run(&plan, |_| false);
        if let Err(report) = check(&log) {
            panic!("{plan:?}: {report}\n{log}");
        }
        let b = random.random_range(0..buckets);
        let edge = match (random.random_range(0..3), plan.owned[b]) {
            (0, _) => Edge::Ready(b),
            (1, true) => Edge::DoneBeforeRead(b),
            (1, false) => Edge::DoneBeforeOverwrite(b),
            (_, true) => Edge::UsedBeforeSend(b),
            (_, false) => Edge::UsedBeforeOverwrite(b),
        };
        let result = checked_without(&plan, edge);
        assert!(result.is_err(), "{plan:?} without {edge:?} was taken for ordered");
    }
}
