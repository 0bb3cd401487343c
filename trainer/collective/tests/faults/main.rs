//! Faults of every kind at random moments, in worlds whose ranks are processes: whoever survives is told in time by a typed
//! error that names the guilty, never gets a wrong value, meets in a new generation, and has nothing left of the old one.
//!
//! - `plan`: what goes wrong, a pure function of a seed
//! - `rank`: a rank's process; `rounds`: the calls that it makes; `leftovers`: what it holds
//! - `parent`: starts the ranks and judges them; `proxy`, `intruders`: what it puts in their way
//! - `load`: how busy the machine was; `report`: a run of many, and its table
#![allow(clippy::unwrap_used)]

mod intruders;
mod leftovers;
mod load;
mod parent;
mod plan;
mod proxy;
mod rank;
mod report;
mod rounds;

use std::panic::catch_unwind;

use parent::Impatient;
use plan::{Carrier, Plan};
use report::{Played, run};

/// Times as long as ranks should need to: another try of a world with more of it tells a busy machine from a defect.
const PATIENCE: [u32; 3] = [1, 4, 16];
/// Most of a world's time is waiting.
const AT_ONCE: usize = 4;

/// Plays one world; with more patience where the machine was too busy for it. None where it did not end as it should.
fn play(seed: u64, number: u64, carrier: Carrier) -> Option<Played> {
    for patience in PATIENCE {
        let plan = Plan::new(seed, number, carrier, patience);
        let what = format!("LOCKSTEP_SEED={seed} LOCKSTEP_FAULT={number}: {plan:?}");
        match catch_unwind(|| parent::play(&plan, number, seed)) {
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

fn faults(carrier: Carrier) {
    run(&format!("{carrier:?}"), AT_ONCE, |seed, number| {
        play(seed, number, carrier)
    });
}

#[test]
fn survivors_of_a_fault_in_shared_memory_know_it_in_time_and_go_on() {
    faults(Carrier::Memory);
}

#[test]
fn survivors_of_a_fault_over_tcp_know_it_in_time_and_go_on() {
    faults(Carrier::Tcp);
}

#[test]
#[ignore = "a rank, started as a process by a test here"]
fn one_rank_of_a_world() {
    let place = std::env::var(parent::ENVIRONMENT).unwrap();
    let words: Vec<&str> = place.split(' ').collect();
    let [seed, number, carrier, patience] = words[..] else {
        panic!("{place} is no place")
    };
    let carrier = match carrier {
        "Memory" => Carrier::Memory,
        _ => Carrier::Tcp,
    };
    let plan = Plan::new(
        seed.parse().unwrap(),
        number.parse().unwrap(),
        carrier,
        patience.parse().unwrap(),
    );
    rank::live(&plan);
}
