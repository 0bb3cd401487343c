//! Every operation moves what it should, on worlds of one to four ranks, in random sizes and orders. The double stands in
//! for NCCL, so this is about what the binding asks for; the numbers are computed here in another way.
#![allow(clippy::unwrap_used)]

mod world;

use nccl_rs::{Communicator, DataType, Error, Group, Reduction, Stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use world::{DOUBLE, Memory, at_every_rank, nccl, ready, stream, synchronize};

/// Whole numbers in float32, so that sums are exact in any order.
fn values(rng: &mut StdRng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1000..1000) as f32).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|chunk| f32::from_ne_bytes(chunk.try_into().unwrap()))
        .collect()
}

/// One round: what goes in at each rank, and what must come out.
struct Round {
    kind: u32,
    count: usize,
    root: u32,
    reduction: Reduction,
    inputs: Vec<Vec<f32>>,
    outputs: Vec<Vec<f32>>,
}

const KINDS: u32 = 9;

fn fold(reduction: Reduction, column: impl Iterator<Item = f32>) -> f32 {
    match reduction {
        Reduction::Max => column.fold(f32::MIN, f32::max),
        Reduction::Min => column.fold(f32::MAX, f32::min),
        _ => column.sum(),
    }
}

impl Round {
    fn random(rng: &mut StdRng, ranks: u32, kind: u32) -> Round {
        let count = rng.random_range(1..40);
        let (root, n) = (rng.random_range(0..ranks), ranks as usize);
        let reduction = [Reduction::Sum, Reduction::Max, Reduction::Min][rng.random_range(0..3)];
        // Reduce-scatter, all-to-all and scatter read a block for each rank.
        let read = if matches!(kind, 3 | 5 | 7) { count * n } else { count };
        let inputs: Vec<Vec<f32>> = (0..n).map(|_| values(rng, read)).collect();
        let reduced: Vec<f32> = (0..read)
            .map(|at| fold(reduction, inputs.iter().map(|input| input[at])))
            .collect();
        let only_root = |out: Vec<f32>| -> Vec<Vec<f32>> {
            let untouched = vec![0.0; out.len()];
            (0..n)
                .map(|rank| {
                    if rank == root as usize {
                        out.clone()
                    } else {
                        untouched.clone()
                    }
                })
                .collect()
        };
        let block = |from: &[f32], rank: usize| from[rank * count..][..count].to_vec();
        let outputs = match kind {
            0 => vec![inputs[root as usize].clone(); n],
            1 => only_root(reduced),
            2 => vec![reduced; n],
            3 => (0..n).map(|rank| block(&reduced, rank)).collect(),
            4 => vec![inputs.concat(); n],
            5 => (0..n)
                .map(|rank| inputs.iter().flat_map(|input| block(input, rank)).collect())
                .collect(),
            6 => only_root(inputs.concat()),
            7 => (0..n).map(|rank| block(&inputs[root as usize], rank)).collect(),
            _ => (0..n).map(|rank| inputs[(rank + n - 1) % n].clone()).collect(),
        };
        Round {
            kind,
            count,
            root,
            reduction,
            inputs,
            outputs,
        }
    }

    fn ask(&self, group: &mut Group<'_>, rank: u32, from: &Memory, to: &Memory, stream: Stream) -> Result<(), Error> {
        let (count, kind, root) = (self.count, DataType::Float32, self.root);
        let (from, to, how) = (from.pointer(), to.pointer(), self.reduction);
        let ranks = self.inputs.len() as u32;
        match self.kind {
            0 => group.broadcast(from, to, count, kind, root, stream),
            1 => group.reduce(from, to, count, kind, how, root, stream),
            2 => group.all_reduce(from, to, count, kind, how, stream),
            3 => group.reduce_scatter(from, to, count, kind, how, stream),
            4 => group.all_gather(from, to, count, kind, stream),
            5 => group.all_to_all(from, to, count, kind, stream),
            6 => group.gather(from, to, count, kind, root, stream),
            7 => group.scatter(from, to, count, kind, root, stream),
            _ => {
                group.send(from, count, kind, (rank + 1) % ranks, stream)?;
                group.recv(to, count, kind, (rank + ranks - 1) % ranks, stream)
            }
        }
    }
}

#[test]
fn every_operation_alone_and_in_groups_gives_every_rank_its_data() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for ranks in 1..=4 {
        // Every kind alone, then groups of several, with any number of polls.
        let mut groups: Vec<Vec<Round>> = (0..KINDS)
            .map(|kind| vec![Round::random(&mut rng, ranks, kind)])
            .collect();
        for _ in 0..30 {
            let rounds = rng.random_range(1..6);
            let kinds: Vec<u32> = (0..rounds).map(|_| rng.random_range(0..KINDS)).collect();
            groups.push(
                kinds
                    .into_iter()
                    .map(|kind| Round::random(&mut rng, ranks, kind))
                    .collect(),
            );
        }
        let id = nccl().unique_id().unwrap();
        DOUBLE.set_polls(&id, rng.random_range(0..4), rng.random_range(0..4));
        at_every_rank(&id, ranks, |rank, communicator| {
            let stream = stream();
            for group in &groups {
                exchange(communicator, rank, group, stream);
            }
            communicator.finalize().unwrap();
            ready(communicator).unwrap();
            communicator.destroy().unwrap();
        });
        assert_eq!((DOUBLE.live(&id), DOUBLE.misuse(&id)), (0, 0), "{ranks} ranks");
    }
}

fn exchange(communicator: &mut Communicator, rank: u32, rounds: &[Round], stream: Stream) {
    let at = rank as usize;
    let memory: Vec<(Memory, Memory)> = rounds
        .iter()
        .map(|round| {
            (
                Memory::of(&bytes(&round.inputs[at])),
                Memory::zeros(round.outputs[at].len() * 4),
            )
        })
        .collect();
    let asked = communicator.group(|group| {
        rounds
            .iter()
            .zip(&memory)
            .try_for_each(|(round, (from, to))| round.ask(group, rank, from, to, stream))
    });
    asked.unwrap();
    ready(communicator).unwrap();
    synchronize(stream);
    for (round, (_, to)) in rounds.iter().zip(&memory) {
        let (kind, count, root) = (round.kind, round.count, round.root);
        assert_eq!(
            floats(&to.bytes()),
            round.outputs[at],
            "kind {kind}, {count} elements, root {root}, rank {rank}"
        );
    }
}

#[test]
fn collectives_work_in_place() {
    let id = nccl().unique_id().unwrap();
    at_every_rank(&id, 3, |rank, communicator| {
        let stream = stream();
        let sum = Memory::of(&bytes(&[rank as f32, 1.0]));
        let mut all = [0.0; 3];
        all[rank as usize] = rank as f32 + 10.0;
        let gathered = Memory::of(&bytes(&all));
        let mine = gathered
            .pointer()
            .slice(4 * rank as usize..4 * (rank as usize + 1))
            .unwrap();
        let asked = communicator.group(|group| {
            group.all_reduce(
                sum.pointer(),
                sum.pointer(),
                2,
                DataType::Float32,
                Reduction::Sum,
                stream,
            )?;
            group.all_gather(mine, gathered.pointer(), 1, DataType::Float32, stream)
        });
        asked.unwrap();
        ready(communicator).unwrap();
        synchronize(stream);
        assert_eq!(floats(&sum.bytes()), [3.0, 3.0]);
        assert_eq!(floats(&gathered.bytes()), [10.0, 11.0, 12.0]);
    });
}

#[test]
fn pairs_meet_in_their_order_and_zero_elements_are_an_operation() {
    let id = nccl().unique_id().unwrap();
    at_every_rank(&id, 2, |rank, communicator| {
        let stream = stream();
        let memory = [Memory::of(&[1]), Memory::of(&[2, 3]), Memory::of(&[])];
        let asked = communicator.group(|group| {
            memory.iter().try_for_each(|each| {
                let (pointer, count) = (each.pointer(), each.pointer().bytes());
                if rank == 0 {
                    group.send(pointer, count, DataType::Uint8, 1, stream)
                } else {
                    group.recv(pointer, count, DataType::Uint8, 0, stream)
                }
            })
        });
        asked.unwrap();
        ready(communicator).unwrap();
        synchronize(stream);
        assert_eq!((memory[0].bytes(), memory[1].bytes()), (vec![1], vec![2, 3]));
    });
}

#[test]
fn a_blocking_communicator_is_ready_after_each_call() {
    use nccl_rs::{Config, State};
    let id = nccl().unique_id().unwrap();
    std::thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let config = Config::new().blocking();
                let mut communicator = Communicator::init(&nccl(), 2, &id, rank, &config).unwrap();
                let (stream, memory) = (stream(), Memory::of(&[rank as u8 + 5; 8]));
                let all = memory.pointer();
                let state = communicator.group(|group| group.broadcast(all, all, 8, DataType::Uint8, 1, stream));
                assert_eq!(state.unwrap(), State::Ready);
                synchronize(stream);
                assert_eq!(memory.bytes(), [6; 8]);
                assert_eq!(communicator.finalize().unwrap(), State::Ready);
                communicator.destroy().unwrap();
            });
        }
    });
    assert_eq!((DOUBLE.live(&id), DOUBLE.misuse(&id)), (0, 0));
}
