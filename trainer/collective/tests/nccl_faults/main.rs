//! Faults of every kind that the double knows, at random moments, in worlds over NCCL whose ranks are threads: every rank is
//! told in time by a typed error, never gets a wrong value, meets in a new communicator on the same device, and nothing is
//! left of the old one.
//!
//! - `plan`: what goes wrong, a pure function of a seed
//! - `rounds`: the calls of a rank, and the values that they must give
//! - `world`: the ranks' threads, what they do to themselves, and how they are judged
#![allow(clippy::unwrap_used)]

mod plan;
mod rounds;
mod world;

#[path = "../faults/load.rs"]
mod load;
#[path = "../nccl_world/mod.rs"]
mod nccl_world;
#[path = "../faults/report.rs"]
mod report;

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use accelerator_double::double;
use plan::Plan;
use report::{Played, run};
use world::Impatient;

/// Most of a world's time is waiting; but ranks that wait look at NCCL very often.
const AT_ONCE: usize = 6;

/// Times as long as ranks should need to: another try of a world with more of it tells a busy machine from a defect.
const PATIENCE: [u32; 3] = [1, 4, 16];

/// Plays one world; with more patience where the machine was too busy for it. None where it did not end as it should.
fn play(seed: u64, number: u64) -> Option<Played> {
    for patience in PATIENCE {
        let plan = Plan::new(seed, number, patience);
        let what = format!("LOCKSTEP_SEED={seed} LOCKSTEP_FAULT={number}: {plan:?}");
        match catch_unwind(|| world::play(&plan)) {
            Ok(Ok(slowest)) => {
                return Some(Played {
                    name: plan.name,
                    waits: plan.waits(),
                    slowest,
                });
            }
            Ok(Err(Impatient(why))) => println!("too busy a machine, or wrong: {what}\n    {why}"),
            Err(_) => {
                println!("failed: {what}");
                return None;
            }
        }
    }
    println!("failed: LOCKSTEP_SEED={seed} LOCKSTEP_FAULT={number}, with every patience");
    None
}

/// Descriptors and threads of this process.
fn holdings() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"].map(|folder| std::fs::read_dir(folder).unwrap().count())
}

// The only test of this program: it counts the threads.
#[test]
fn ranks_over_nccl_know_of_a_fault_in_time_and_go_on() {
    // The library is loaded once.
    nccl_world::World::new().assert_clean("nothing");
    let before = holdings();
    run("Nccl", AT_ONCE, play);
    assert_eq!(double().strangers(), 0, "handles that never were have been used");
    // A thread that has ended is in the list for a moment more.
    let until = Instant::now() + Duration::from_secs(5);
    while holdings() != before && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(holdings(), before, "descriptors and threads, after and before");
}
