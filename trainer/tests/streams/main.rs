//! The real engine's streams and events, proven: two ranks make steps over NCCL's double, every read and write of flat memory
//! is told by libtorch's operators and by the double, and a checker proves all of them ordered. Without any kind of edge it
//! names two accesses that nothing orders.
//!
//! - `ranks`: the world, whole engines on the shim's device over the recording guard
//! - `watched`: that device, and how an edge is kept from it
//! - `edges`: the edges, and where the loss of each must show
#![allow(clippy::unwrap_used, missing_docs)]

mod edges;
mod ranks;
mod watched;

use accelerator_double::{double, nccl};
use lockstep_collective::{Accelerator as _, Device as _, Stream};
use lockstep_device_recorder::{Access, Action, Completion, Entry, Log, Range, Recorder, check};
use nccl_rs::{Communicator, Config, DataType};

use edges::{By, EDGES, access_of, ranks, touched};
use ranks::{Play, plain, watched as run};
use watched::{Fault, How, NO_FAULT, Watched};

/// Another seed each time; `LOCKSTEP_SEED` repeats one.
fn new_seed() -> u64 {
    let told = std::env::var("LOCKSTEP_SEED").map(|seed| seed.parse().unwrap());
    let seed = told.unwrap_or_else(|_| rand::random::<u64>() >> 1);
    println!("LOCKSTEP_SEED={seed}");
    seed
}

/// The log as it would be if the host waited for nothing.
fn without_the_host(log: &Log) -> Log {
    let mut log = log.clone();
    log.entries
        .retain(|entry| !matches!(entry.action, Action::Query { .. }));
    log
}

/// Whether `whole` touches all that `parts` do; both in order and without overlaps.
fn covers(whole: &[Range], parts: &[Range]) -> bool {
    let is_in = |part: &Range| {
        let at = whole.iter().find(|piece| part.bytes.start < piece.bytes.end);
        at.is_some_and(|piece| piece.bytes.start <= part.bytes.start && part.bytes.end <= piece.bytes.end)
    };
    !parts.is_empty() && parts.iter().all(is_in)
}

/// No access is missing from the log, or a proof over it would prove less than it says.
fn assert_nothing_is_unseen(log: &Log) {
    for rank in ranks() {
        let copies = Watched::memory(rank, "working copies");
        let made = touched(log, &copies, |who, access, _| {
            who == By::Compute && access == Access::Write
        });
        let read = touched(log, &copies, |who, access, _| {
            who == By::Compute && access == Access::Read
        });
        assert_eq!(made, read, "every working copy is made at first, and read");
        let moved = touched(log, &copies, |who, _, _| who == By::Communication);
        assert!(covers(&moved, &made), "every working copy is sent or received");
        let slots = Watched::memory(rank, "gradients 0");
        let of_masters = |by: &str| by == "NCCL, Broadcast";
        let masters = touched(log, &slots, |_, _, by| of_masters(by));
        let filled = touched(log, &slots, |who, access, _| {
            who == By::Compute && access == Access::Write
        });
        let reduced = touched(log, &slots, |who, _, by| who == By::Communication && !of_masters(by));
        assert!(covers(&filled, &masters), "every gradient is made");
        assert!(covers(&reduced, &masters), "every gradient is sent or added");
    }
}

#[test]
fn with_every_edge_all_accesses_of_whole_steps_are_ordered() {
    let seed = new_seed();
    for seed in seed..seed + 4 {
        let play = Play::random(seed);
        let (left, log) = run(&play, NO_FAULT);
        let proof = check(&log).unwrap_or_else(|report| panic!("{play:?}: {report}"));
        println!("{play:?}: {} lines, {proof:?}", log.entries.len());
        assert!(proof.pairs_between_places > 1000, "{proof:?}");
        if play.is_busy() {
            assert_nothing_is_unseen(&log);
        }
        assert_eq!(left, plain(&play), "{play:?}: the same bits as on the host");
        // Events alone order the device's memory: nothing leans on what the host happens to wait for.
        let flat = [
            "gradients 0",
            "gradients 1",
            "working copies",
            "headers",
            "partials of other ranks",
        ];
        let names = ranks().flat_map(|rank| flat.map(|name| Watched::memory(rank, name)));
        let parts: Vec<_> = names.map(|name| Range::new(&name, 0..usize::MAX)).collect();
        let log = without_the_host(&log).within(&parts);
        check(&log).unwrap_or_else(|report| panic!("{play:?}, without the host: {report}"));
    }
}

#[test]
fn without_any_kind_of_edge_two_accesses_are_named_that_nothing_orders() {
    let play = Play::random(new_seed()).with_work_for_all();
    println!("{play:?}\nedge | how it is lost | these two accesses | are not ordered");
    let (_, whole) = run(&play, NO_FAULT);
    for edge in &EDGES {
        for how in [How::LeftOut, How::Stale] {
            if how == How::Stale && !edge.shows_when_stale {
                continue;
            }
            let (_, log) = run(&play, edge.fault(how));
            let mut found = 0;
            for rank in ranks() {
                let log = log.within(&edge.part.of(&whole, rank));
                let Err(report) = check(&log) else { continue };
                found += 1;
                println!(
                    "{} | {how:?} | {} | {}",
                    edge.name, report.first_words, report.second_words
                );
                for (line, (by, accesses)) in [(report.first, edge.first), (report.second, edge.second)] {
                    let (who, access, ..) = access_of(&log.entries[line - 1]).unwrap();
                    assert!(who == by && accesses.contains(&access), "{}: {report}", edge.name);
                }
            }
            // A stale mark covers all but the last of its kind in a step, which not every rank has a part in.
            let least = if how == How::LeftOut { 2 } else { 1 };
            assert!(found >= least, "{} {how:?}: found at {found} ranks", edge.name);
        }
    }
}

#[test]
fn before_memory_is_overwritten_either_of_two_edges_is_enough() {
    // What is read after the last bucket is ready, as the search for changed memory does, needs its own edge.
    let play = Play {
        drift_every: 0,
        ..Play::random(new_seed()).with_work_for_all()
    };
    println!("{play:?}");
    let (_, whole) = run(&play, NO_FAULT);
    for edge in EDGES.iter().filter(|edge| edge.marks.len() == 2) {
        let is_about = |entry: &Entry| match access_of(entry) {
            Some((who, access, ..)) => {
                (who == edge.first.0 && edge.first.1.contains(&access))
                    || (who == edge.second.0 && edge.second.1.contains(&access))
            }
            None => true,
        };
        for mark in edge.marks.chunks(1) {
            let fault = Fault {
                names: mark,
                how: How::LeftOut,
            };
            let (_, log) = run(&play, fault);
            for rank in ranks() {
                let mut log = log.within(&edge.part.of(&whole, rank));
                log.entries.retain(is_about);
                check(&log).unwrap_or_else(|report| panic!("{} without {mark:?}: {report}", edge.name));
            }
        }
    }
}

#[test]
fn an_event_of_the_shim_that_is_recorded_before_success_is_caught() {
    let recorder = Recorder::start(Completion::AtOnce).unwrap();
    let nccl = nccl();
    let id = nccl.unique_id().unwrap();
    double().set_polls(&id, 0, 3);
    let mut communicator = Communicator::init(&nccl, 1, &id, 0, &Config::new().non_blocking()).unwrap();
    communicator.wait_while(|| true).unwrap();
    let device = Watched::new(0, *recorder, NO_FAULT, 1);
    let memory = device.allocate("memory", 16).unwrap();
    let (all, stream) = (memory.pointer(), device.native(Stream::Communication));
    communicator
        .group(|group| group.broadcast(all, all, 16, DataType::Uint8, 0, stream))
        .unwrap();
    let early = device.record(Stream::Communication).unwrap_err().to_string();
    assert!(
        early.contains("1 operations of NCCL are not on the Communication stream"),
        "{early}"
    );
    assert_eq!(device.offences(), 1);
    communicator.wait_while(|| true).unwrap();
    device.record(Stream::Communication).unwrap();
    assert_eq!(device.offences(), 1);
    communicator.destroy().unwrap();
}
