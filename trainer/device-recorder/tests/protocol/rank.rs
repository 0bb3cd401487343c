//! One rank's threads in a training step, with the edges between them that can be taken out one by one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use lockstep_autograd::device::{Cuda, Event, Recorded, StreamName};
use lockstep_device_recorder::{Completion, Log, Message, Pen, Range, Recorder};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tch::Tensor;

/// An edge of the protocol; the number is the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
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
pub(crate) enum GatherOrder {
    Applied,
    Forward,
}

/// What one rank does. Bucket 0 holds the last layers, as backward fills it first.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Parameters of each bucket.
    pub(crate) elements: Vec<usize>,
    /// Whether this rank reduces and updates the bucket.
    pub(crate) owned: Vec<bool>,
    pub(crate) gathers: GatherOrder,
    pub(crate) steps: u64,
    /// Seed of pauses.
    pub(crate) pauses: u64,
}

impl Plan {
    pub(crate) fn buckets(&self) -> usize {
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
        for (b, done) in done.iter_mut().enumerate() {
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
            let token = rank.record(done, StreamName::Communication, step);
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
pub(crate) fn run(plan: &Plan, without: impl Fn(Edge) -> bool + Send + Sync + 'static) -> Log {
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
