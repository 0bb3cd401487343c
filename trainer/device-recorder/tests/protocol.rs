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

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use lockstep_autograd::device::{Cuda, Event, Recorded, StreamName};
use lockstep_device_recorder::{Completion, Log, Message, Pen, Proof, Range, Recorder, Unordered, check};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tch::Tensor;

/// An edge of the protocol; the number is the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Ready(usize),
    DoneBeforeRead(usize),
    DoneBeforeOverwrite(usize),
    UsedBeforeSend(usize),
    UsedBeforeOverwrite(usize),
    Gathered(usize),
    CopyAfterUpdate,
    UpdateAfterCopy,
    HostAfterCopy,
    CopyAfterHost,
}

/// In which order C gathers: as D applies (last layers first), or as the next forward needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GatherOrder {
    Applied,
    Forward,
}

/// What one rank does. Bucket 0 holds the last layers, as backward fills it first.
#[derive(Debug, Clone)]
struct Plan {
    /// Parameters of each bucket.
    elements: Vec<usize>,
    /// Whether this rank reduces and updates the bucket.
    owned: Vec<bool>,
    gathers: GatherOrder,
    steps: u64,
    /// Seed of pauses.
    pauses: u64,
}

impl Plan {
    fn buckets(&self) -> usize {
        self.elements.len()
    }

    fn range(&self, memory: &str, bucket: usize, bytes_each: usize) -> Range {
        let start: usize = self.elements[..bucket].iter().sum();
        Range::new(memory, start * bytes_each..(start + self.elements[bucket]) * bytes_each)
    }

    fn slot(&self, bucket: usize) -> Range {
        self.range("gradients", bucket, 4)
    }

    fn working(&self, bucket: usize) -> Range {
        self.range("working copies", bucket, 2)
    }

    fn masters(&self) -> Range {
        Range::new("masters", 0..4 * self.elements.iter().sum::<usize>())
    }
}

/// What the threads share.
#[derive(Clone)]
struct Rank {
    plan: Arc<Plan>,
    cuda: Arc<Cuda>,
    pen: Pen,
    without: Arc<dyn Fn(Edge) -> bool + Send + Sync>,
}

impl Rank {
    /// The streams' numbers in the log: S0, S1, S2.
    fn s(&self, name: StreamName) -> i64 {
        self.cuda.stream(name)
    }

    /// Does `wait` unless the edge is taken out.
    fn edge(&self, edge: Edge, wait: impl FnOnce()) {
        if !(self.without)(edge) {
            wait();
        }
    }

    fn events(&self, name: &str) -> Vec<Event> {
        let buckets = 0..self.plan.buckets();
        buckets
            .map(|b| self.cuda.event(&format!("{name}[{b}]")).unwrap())
            .collect()
    }

    fn record(&self, event: &mut Event, stream: StreamName, step: u64) -> Recorded {
        let token = event.record(stream, step).unwrap();
        self.pen.name_event(token.native_event(), token.event());
        token
    }
}

type Tokens = (Sender<(usize, Recorded)>, Receiver<(usize, Recorded)>);

/// Thread A: backward, bucket by bucket, when D asks for it.
fn backward(rank: &Rank, begin: &Receiver<u64>, ready_to_c: &Sender<(usize, Recorded)>, end: &Sender<()>) {
    let mut ready = rank.events("ready");
    let mut random = StdRng::seed_from_u64(rank.plan.pauses);
    for step in begin {
        assert!(rank.cuda.current_stream_is_compute().unwrap());
        let s0 = rank.s(StreamName::Compute);
        for (b, ready) in ready.iter_mut().enumerate() {
            rank.pen.read(s0, &rank.plan.working(b), "backward");
            rank.pen.read(s0, &rank.plan.slot(b), "accumulate");
            rank.pen.write(s0, &rank.plan.slot(b), "accumulate");
            ready_to_c
                .send((b, rank.record(ready, StreamName::Compute, step)))
                .unwrap();
            pause(&mut random);
        }
        end.send(()).unwrap();
    }
}

fn pause(random: &mut StdRng) {
    for _ in 0..random.random_range(0..3) {
        std::thread::yield_now();
    }
}

/// Thread C: exchanges of each bucket in index order, then gathers.
fn exchange(
    rank: &Rank,
    ready: &Receiver<(usize, Recorded)>,
    done_to_d: &Sender<(usize, Recorded)>,
    used: &Receiver<(usize, Recorded)>,
    gathered_to_d: &Sender<(usize, Recorded)>,
) {
    let (mut done, mut gathered) = (rank.events("done"), rank.events("gathered"));
    let mut random = StdRng::seed_from_u64(rank.plan.pauses + 1);
    let s1 = rank.s(StreamName::Communication);
    let buckets = rank.plan.buckets();
    let largest = rank.plan.elements.iter().max().unwrap();
    let scratch = Range::new("receive scratch", 0..4 * largest);
    for step in 1..=rank.plan.steps {
        let mut finished = Vec::new();
        for b in 0..buckets {
            let (index, token) = ready.recv().unwrap();
            assert_eq!((index, token.step()), (b, step), "buckets start in index order");
            rank.edge(Edge::Ready(b), || token.block(StreamName::Communication).unwrap());
            let slot = rank.plan.slot(b);
            if rank.plan.owned[b] {
                let scratch = Range::new(&scratch.memory, 0..4 * rank.plan.elements[b]);
                rank.pen.write(s1, &scratch, "receive");
                rank.pen.read(s1, &scratch, "add");
                rank.pen.read(s1, &slot, "add");
                rank.pen.write(s1, &slot, "add");
                let mut sum = Tensor::from_slice(&[step as f32]);
                let left = sum.shallow_clone();
                let right = Tensor::from_slice(&[b as f32]);
                rank.cuda
                    .add_out(StreamName::Communication, &mut sum, &left, &right)
                    .unwrap();
                assert_eq!(sum.double_value(&[0]), (step as usize + b) as f64);
            } else {
                rank.pen.read(s1, &slot, "send");
            }
            let token = rank.record(&mut done[b], StreamName::Communication, step);
            finished.push(token.clone());
            done_to_d.send((b, token)).unwrap();
            pause(&mut random);
        }
        // One poll an exchange, as the deadline needs it.
        while !finished.iter().all(|token| token.query().unwrap()) {
            pause(&mut random);
        }
        let mut tokens: Vec<_> = (0..buckets).map(|_| used.recv().unwrap()).collect();
        if rank.plan.gathers == GatherOrder::Forward {
            tokens.reverse();
        }
        for (b, token) in tokens {
            let edge = if rank.plan.owned[b] {
                Edge::UsedBeforeSend(b)
            } else {
                Edge::UsedBeforeOverwrite(b)
            };
            rank.edge(edge, || token.block(StreamName::Communication).unwrap());
            if rank.plan.owned[b] {
                rank.pen.read(s1, &rank.plan.working(b), "gather, send");
            } else {
                rank.pen.write(s1, &rank.plan.working(b), "gather, receive");
            }
            let token = rank.record(&mut gathered[b], StreamName::Communication, step);
            gathered_to_d.send((b, token)).unwrap();
        }
    }
}

/// Thread H: sends what was copied to pinned memory.
fn snapshots(rank: &Rank, copied: &Receiver<Recorded>, sent: &Sender<Message>) {
    for token in copied {
        rank.edge(Edge::HostAfterCopy, || token.synchronize().unwrap());
        rank.pen.host_read(&pinned(&rank.plan), "send of the snapshot");
        sent.send(rank.pen.send()).unwrap();
    }
}

fn pinned(plan: &Plan) -> Range {
    Range::new("pinned", plan.masters().bytes)
}

/// What D holds of other threads.
struct Ends {
    begin_backward: Sender<u64>,
    backward_ended: Receiver<()>,
    done: Receiver<(usize, Recorded)>,
    used_to_c: Sender<(usize, Recorded)>,
    gathered: Receiver<(usize, Recorded)>,
    copied_to_h: Sender<Recorded>,
    sent: Receiver<Message>,
}

/// Thread D: forward with its gates, update of each bucket, snapshot.
fn compute(rank: &Rank, ends: &Ends) {
    let plan = &rank.plan;
    let (s0, s2) = (rank.s(StreamName::Compute), rank.s(StreamName::Snapshots));
    let mut used = rank.events("used");
    let mut updated = rank.cuda.event("updated").unwrap();
    let mut copied = rank.cuda.event("copied").unwrap();
    let mut last_copy: Option<Recorded> = None;
    for step in 1..=plan.steps {
        let mut gates: Vec<Option<Recorded>> = vec![None; plan.buckets()];
        if step > 1 {
            for _ in 0..plan.buckets() {
                let (b, token) = ends.gathered.recv().unwrap();
                gates[b] = Some(token);
            }
        }
        for b in (0..plan.buckets()).rev() {
            if let Some(token) = &gates[b] {
                rank.edge(Edge::Gathered(b), || token.block(StreamName::Compute).unwrap());
            }
            rank.pen.read(s0, &plan.working(b), "forward");
        }
        ends.begin_backward.send(step).unwrap();
        ends.backward_ended.recv().unwrap();
        if let Some(token) = last_copy.take() {
            rank.edge(Edge::UpdateAfterCopy, || token.block(StreamName::Compute).unwrap());
        }
        for (b, used) in used.iter_mut().enumerate() {
            let (index, token) = ends.done.recv().unwrap();
            assert_eq!((index, token.step()), (b, step));
            if plan.owned[b] {
                rank.edge(Edge::DoneBeforeRead(b), || token.block(StreamName::Compute).unwrap());
                rank.pen.read(s0, &plan.slot(b), "update");
                rank.pen.write(s0, &plan.range("masters", b, 4), "update");
                rank.pen.write(s0, &plan.working(b), "update");
            } else {
                rank.edge(Edge::DoneBeforeOverwrite(b), || {
                    token.block(StreamName::Compute).unwrap()
                });
                // The drift vote reads the working copy that the gather is about to overwrite.
                rank.pen.read(s0, &plan.working(b), "drift vote");
            }
            rank.pen.write(s0, &plan.slot(b), "zero");
            let token = rank.record(used, StreamName::Compute, step);
            ends.used_to_c.send((b, token)).unwrap();
        }
        let token = rank.record(&mut updated, StreamName::Compute, step);
        if step > 1 {
            let message = ends.sent.recv().unwrap();
            rank.edge(Edge::CopyAfterHost, || rank.pen.receive(message));
        }
        rank.edge(Edge::CopyAfterUpdate, || token.block(StreamName::Snapshots).unwrap());
        rank.pen.read(s2, &plan.masters(), "copy");
        rank.pen.write(s2, &pinned(plan), "copy");
        let token = rank.record(&mut copied, StreamName::Snapshots, step);
        ends.copied_to_h.send(token.clone()).unwrap();
        last_copy = Some(token);
    }
    // The last gathers and the last snapshot.
    for _ in 0..plan.buckets() {
        ends.gathered.recv().unwrap();
    }
    rank.pen.receive(ends.sent.recv().unwrap());
}

/// Runs the plan on four threads without the edges for which `without` is true, and returns the log.
fn run(plan: &Plan, without: impl Fn(Edge) -> bool + Send + Sync + 'static) -> Log {
    let recorder = Recorder::start(Completion::AtRandom { seed: plan.pauses }).unwrap();
    let rank = Rank {
        plan: Arc::new(plan.clone()),
        cuda: Cuda::open_registered_guard(0).unwrap(),
        pen: *recorder,
        without: Arc::new(without),
    };
    let (begin_backward, begin) = channel();
    let (end, backward_ended) = channel();
    let (ready_to_c, ready): Tokens = channel();
    let (done_to_d, done): Tokens = channel();
    let (used_to_c, used): Tokens = channel();
    let (gathered_to_d, gathered): Tokens = channel();
    let (copied_to_h, copied) = channel();
    let (sent_to_d, sent) = channel();
    let ends = Ends {
        begin_backward,
        backward_ended,
        done,
        used_to_c,
        gathered,
        copied_to_h,
        sent,
    };
    let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
    std::thread::scope(|scope| {
        let threads = [
            {
                let rank = rank.clone();
                named("A").spawn_scoped(scope, move || backward(&rank, &begin, &ready_to_c, &end))
            },
            {
                let rank = rank.clone();
                named("C").spawn_scoped(scope, move || {
                    exchange(&rank, &ready, &done_to_d, &used, &gathered_to_d)
                })
            },
            {
                let rank = rank.clone();
                named("H").spawn_scoped(scope, move || snapshots(&rank, &copied, &sent_to_d))
            },
            {
                let rank = rank.clone();
                named("D").spawn_scoped(scope, move || compute(&rank, &ends))
            },
        ];
        for thread in threads {
            thread.unwrap().join().unwrap();
        }
    });
    recorder.log()
}

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
