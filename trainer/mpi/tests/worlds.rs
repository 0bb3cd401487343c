//! The same bits on any world: random scripts of collectives, played by real ranks of mpirun, against one process that adds
//! and copies by the definition. Every rank checks all that it receives.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod job;

use std::ops::Range;

use lockstep_collective::{Collective, LaneTree, ReduceLanes, Wire};
use lockstep_collective_script::{Player, Script, patient};
use lockstep_trainer::train::Mpi as _;
use lockstep_trainer_mpi::{Library, Options};
use rand::Rng;

/// Scripts of one job.
const SCRIPTS: u64 = 12;

fn play(ranks: Range<u32>) {
    let first: u64 = rand::rng().random_range(0..1 << 40);
    println!("seeds {first} to {}", first + SCRIPTS - 1);
    for size in ranks {
        let (good, said) = job::start(size, "a_rank_of_scripts", &format!("{first} {size}")).end();
        assert!(good, "{size} ranks, seeds from {first}: {said}");
    }
}

#[test]
fn one_to_four_ranks_get_the_bits_of_one_process() {
    play(1..5);
}

#[test]
fn five_to_eight_ranks_get_them_too() {
    play(5..9);
}

#[test]
#[ignore = "a rank, started by mpirun"]
fn a_rank_of_scripts() {
    let told = job::told();
    let (first, size) = told.split_once(' ').unwrap();
    let (first, size): (u64, u32) = (first.parse().unwrap(), size.parse().unwrap());
    for seed in first..first + SCRIPTS {
        let script = Script::with_size(seed, size);
        // Messages so short that a reduction has many, and the usual ones.
        let options = match seed % 3 {
            0 => Options::default(),
            odd => Options {
                chunk_bytes: 4 * (16 + 1000 * odd as usize),
                chunks_ahead: odd as usize,
                gather_bytes: 1000,
                halves_when_near: odd == 1,
                ..Options::default()
            },
        };
        Player::new(
            &script,
            Box::new(job::join(seed as u32 % size, size, options, &patient())),
        )
        .play();
    }
    Library.finish().unwrap();
}

#[test]
fn partials_that_are_bfloat16_travel_as_such_and_stay_what_they_are() {
    let (good, said) = job::start(3, "a_rank_with_bfloat16", "").end();
    assert!(good, "{said}");
}

#[test]
#[ignore = "a rank, started by mpirun"]
fn a_rank_with_bfloat16() {
    job::told();
    let options = Options {
        chunk_bytes: 4096,
        halves_when_near: true,
        ..Options::default()
    };
    let mut collective = job::join(0, 3, options, &patient());
    let rank = collective.rank();
    let elements = 10_007;
    let buffer = collective.allocate("gradients", 4 * elements).unwrap();
    // Rank 1's elements are float32 in the middle third of the buffer, so that messages of both kinds mix.
    let value = |rank: u32, place: usize| {
        let bits = 0x3f80_0000 + (place as u32 * 7 + rank) % 1000 * 0x1_0000;
        let low = u32::from(rank == 1 && (3000..6000).contains(&place)) * 0x1234;
        f32::from_bits(bits | low)
    };
    for (place, element) in collective
        .buffer_mut(buffer)
        .floats_mut(0..elements)
        .iter_mut()
        .enumerate()
    {
        *element = value(rank, place);
    }
    let owners = [(0..3333, 2), (3333..3334, 1), (3400..7000, 0), (7000..elements, 1)];
    let tree = LaneTree::full(3);
    let request = ReduceLanes {
        bucket: 0,
        owners: &owners,
        rank_lanes: &[0..1, 1..2, 2..3],
        tree: &tree,
        buffers: &[buffer],
        wire: Wire::Float32,
    };
    collective.publish(0).unwrap();
    collective.reduce_lanes(&request).unwrap();
    // Rank 1 sends 3600 elements to rank 0, of which messages of 1024 show 2600 low halves, and all others go by halves.
    let (elements_sent, least_whole) = match rank {
        0 => (3333 + 1 + 3007, 0),
        1 => (3333 + 3600, 333 + 2600),
        _ => (1 + 3007 + 3600, 0),
    };
    let whole = collective.partial_bytes_sent() / 2 - elements_sent;
    assert!(
        (least_whole..=least_whole + 2048).contains(&whole),
        "rank {rank}: {whole} went whole"
    );
    let sums = collective.buffer(buffer).floats(0..elements);
    for place in owners
        .iter()
        .filter(|(_, owner)| *owner == rank)
        .flat_map(|(range, _)| range.clone())
    {
        let sum = (value(0, place) + value(1, place)) + value(2, place);
        assert_eq!(sums[place].to_bits(), sum.to_bits(), "element {place} of rank {rank}");
    }
    collective.barrier().unwrap();
    drop(collective);
    Library.finish().unwrap();
}
