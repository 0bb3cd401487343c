//! Faults of every kind at random moments, in worlds whose ranks are processes: whoever survives is told in time by a typed
//! error that names the guilty, never gets a wrong value, meets in a new generation, and has nothing left of the old one.
//!
//! - `plan`: what goes wrong, a pure function of a seed
//! - `rank`: a rank's process; `rounds`: the calls that it makes; `leftovers`: what it holds
//! - `parent`: starts the ranks and judges them; `proxy`, `intruders`: what it puts in their way; `load`: what is in its own
//!
//! `LOCKSTEP_FAULTS` says how many for each carrier, `LOCKSTEP_SEED` repeats a run, and `LOCKSTEP_FAULT` one world of it.
#![allow(clippy::unwrap_used)]

mod intruders;
mod leftovers;
mod load;
mod parent;
mod plan;
mod proxy;
mod rank;
mod rounds;

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parent::Impatient;
use plan::{Carrier, Plan};
use rand::Rng;

/// Faults for each carrier where nothing else is said.
const FAULTS: u64 = 40;
/// Times as long as ranks should need to: another try of a world with more of it tells a busy machine from a defect.
const PATIENCE: [u32; 3] = [1, 4, 16];
/// Most of a world's time is waiting.
const AT_ONCE: usize = 4;

fn told(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// What became of a kind of fault.
#[derive(Default)]
struct Row {
    count: u64,
    harmless: u64,
    /// What survivors may wait before they say that somebody is silent, where nothing else tells them.
    waits: Duration,
    /// How long after the fault the last survivor knew.
    slowest: Duration,
}

/// By fault.
type Table = BTreeMap<&'static str, Row>;

/// Plays one world; with more patience where the machine was too busy for it. None where it did not end as it should.
fn play(seed: u64, number: u64, carrier: Carrier) -> Option<(Plan, Option<Duration>)> {
    for patience in PATIENCE {
        let plan = Plan::new(seed, number, carrier, patience);
        let what = format!("LOCKSTEP_SEED={seed} LOCKSTEP_FAULT={number}: {plan:?}");
        match catch_unwind(|| parent::play(&plan, number, seed)) {
            Ok(Ok(slowest)) => return Some((plan, slowest)),
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
    let seed = told("LOCKSTEP_SEED").unwrap_or_else(|| rand::rng().random_range(0..1 << 40));
    println!("LOCKSTEP_SEED={seed}");
    let (first, end) = match told("LOCKSTEP_FAULT") {
        Some(one) => (one, one + 1),
        None => (0, told("LOCKSTEP_FAULTS").unwrap_or(FAULTS)),
    };
    let (next, failed) = (AtomicU64::new(first), AtomicU64::new(0));
    let (table, started) = (Mutex::new(Table::new()), Instant::now());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return;
                    }
                    let Some((plan, slowest)) = play(seed, number, carrier) else {
                        failed.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    let mut table = table.lock().unwrap();
                    let row = table.entry(plan.name).or_default();
                    row.count += 1;
                    row.harmless += u64::from(slowest.is_none());
                    row.waits = row.waits.max(plan.waits());
                    row.slowest = row.slowest.max(slowest.unwrap_or_default());
                }
            });
        }
    });
    println!("{carrier:?}, {} faults in {:.1?}", end - first, started.elapsed());
    println!(
        "{:<36} {:>5} {:>9} {:>8} {:>10}",
        "fault", "count", "harmless", "waits s", "slowest s"
    );
    for (name, row) in table.into_inner().unwrap() {
        let Row { count, harmless, .. } = row;
        let (waits, slowest) = (row.waits.as_secs_f64(), row.slowest.as_secs_f64());
        println!("{name:<36} {count:>5} {harmless:>9} {waits:>8.1} {slowest:>10.3}");
    }
    let failed = failed.into_inner();
    assert!(
        failed == 0,
        "{failed} of the faults did not end as they should: each is named above"
    );
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
