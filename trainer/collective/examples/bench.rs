//! What the host backend costs: median and least of rank 0 with two ranks as processes, beside a plain copy that both
//! make at once.
//!
//! `cargo run --release -p lockstep-collective --example bench [-- ROUNDS]`. The parent starts itself twice, with the
//! communicator id in the environment; the children meet, measure in step, and rank 0 prints.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};

use lockstep_collective::{Aborter, Backend, Collective, LaneTree, ReduceLanes, Wire, connect, new_id};

const RANKS: u32 = 2;
const BYTES: usize = 64 << 20;
const ENVIRONMENT: &str = "LOCKSTEP_BENCH_RANK";

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(30, |rounds| rounds.parse().unwrap());
    if let Ok(place) = std::env::var(ENVIRONMENT) {
        let (rank, id) = place.split_once(' ').unwrap();
        return measure(rank.parse().unwrap(), &decode(id), rounds);
    }
    let id: String = new_id(&[1; 32], 1)
        .unwrap()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let children: Vec<_> = (0..RANKS)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .arg(rounds.to_string())
                .env(ENVIRONMENT, format!("{rank} {id}"))
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
}

fn decode(id: &str) -> Vec<u8> {
    (0..id.len() / 2)
        .map(|byte| u8::from_str_radix(&id[2 * byte..2 * byte + 2], 16).unwrap())
        .collect()
}

fn measure(rank: u32, id: &[u8], rounds: usize) {
    let aborter = Aborter::new();
    let mut collective = connect(Backend::Host, id, rank, RANKS, Duration::from_secs(20), &aborter).unwrap();
    let elements = BYTES / size_of::<f32>();
    let started = Instant::now();
    let gradients = collective.allocate("gradients", BYTES).unwrap();
    let parameters = collective.allocate("parameters", BYTES).unwrap();
    let allocation = started.elapsed() / 2;
    let half = elements / RANKS as usize;
    let owners: Vec<_> = (0..RANKS)
        .map(|owner| (owner as usize * half..(owner as usize + 1) * half, owner))
        .collect();
    let tree = LaneTree::full(RANKS);
    let rank_lanes: Vec<Range<u32>> = (0..RANKS).map(|rank| rank..rank + 1).collect();
    for (place, value) in (0u32..).zip(collective.buffer_mut(gradients).floats_mut(0..elements)) {
        *value = (place % 1000) as f32;
    }

    let mut copied = vec![0f32; half];
    let copy = single(&mut collective, rounds, |collective| {
        copied.copy_from_slice(collective.buffer(gradients).floats(0..half));
    });
    let reduce = single(&mut collective, rounds, |collective| {
        collective.publish(0).unwrap();
        let request = ReduceLanes {
            bucket: 0,
            owners: &owners,
            rank_lanes: &rank_lanes,
            tree: &tree,
            buffers: &[gradients],
            wire: Wire::Float32,
        };
        collective.reduce_lanes(&request).unwrap();
    });
    let ranges: Vec<_> = (0..RANKS)
        .map(|owner| (owner as usize * BYTES / 2..(owner as usize + 1) * BYTES / 2, owner))
        .collect();
    let gather = single(&mut collective, rounds, |collective| {
        collective.all_gather_v(parameters, &ranges).unwrap()
    });
    let barrier = many(&mut collective, rounds, |collective| collective.barrier().unwrap());
    let mut exchanges = Vec::new();
    for slots in [2usize, 4096] {
        let owners: Vec<u32> = (0..slots).map(|slot| (slot * RANKS as usize / slots) as u32).collect();
        let mut table = vec![u64::from(rank); slots];
        let took = many(&mut collective, rounds, |collective| {
            collective.exchange_slots(&mut table, &owners).unwrap()
        });
        exchanges.push((slots, took));
    }
    if rank > 0 {
        return;
    }
    let mib = BYTES >> 20;
    println!(
        "{RANKS} ranks, {rounds} rounds, times of rank 0; ratio: the median to that of a plain copy of {} MiB",
        mib / 2
    );
    println!("{:<28}{:>12}{:>12}{:>8}", "", "median", "least", "ratio");
    let print = |name: String, took: Took, in_ratio: bool| {
        let ratio = took.median.as_secs_f64() / copy.median.as_secs_f64();
        let ratio = if in_ratio { format!("{ratio:.2}") } else { String::new() };
        println!("{name:<28}{:>12.3?}{:>12.3?}{ratio:>8}", took.median, took.least);
    };
    print(format!("copy {} MiB", mib / 2), copy, true);
    print(format!("reduce_lanes {mib} MiB"), reduce, true);
    print(format!("all_gather_v {mib} MiB"), gather, true);
    print("barrier".into(), barrier, false);
    for (slots, took) in exchanges {
        print(format!("exchange_slots, {slots} slots"), took, false);
    }
    println!("{:<28}{allocation:>12.3?}", format!("allocate {mib} MiB, once"));
}

/// Times of one call.
#[derive(Clone, Copy)]
struct Took {
    median: Duration,
    least: Duration,
}

/// Times of single calls, ranks in step before each.
fn single(collective: &mut Box<dyn Collective>, rounds: usize, mut call: impl FnMut(&mut Box<dyn Collective>)) -> Took {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            collective.barrier().unwrap();
            let started = Instant::now();
            call(collective);
            started.elapsed()
        })
        .collect();
    times.sort();
    Took {
        median: times[rounds / 2],
        least: times[0],
    }
}

/// Over rounds, of the mean of 200 calls in a row: for calls that are shorter than a clock can tell.
fn many(collective: &mut Box<dyn Collective>, rounds: usize, mut call: impl FnMut(&mut Box<dyn Collective>)) -> Took {
    let took = single(collective, rounds, |collective| (0..200).for_each(|_| call(collective)));
    Took {
        median: took.median / 200,
        least: took.least / 200,
    }
}
