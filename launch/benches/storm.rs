//! What operators cost a run: steps of four ranks while many of them call at the pace of people, beside steps in calm, turn
//! about. `cargo bench -p lockstep --bench storm`.
//!
//! `LOCKSTEP_STORM_CLIENTS` (50) operators make `LOCKSTEP_STORM_PACE` (25) calls a second together, each on a connection that
//! stays open (`LOCKSTEP_STORM_KEEP=0`: a new one for each call, as each command of `lockstep` makes it), for
//! `LOCKSTEP_STORM_CALLS` (10000) in all, in turns of `LOCKSTEP_STORM_SECONDS` (10). Calls that are there to change the work
//! itself are left out: the batch, pauses, checkpoints. `LOCKSTEP_STORM_RANK_CORES` and `LOCKSTEP_STORM_OTHER_CORES` name the
//! cores of the ranks and of the coordinator (as `taskset -c` takes them; start the program itself on the latter): without them
//! all of it shares all cores. What a step costs is wall time ÷ committed steps.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/storm/calls.rs"]
mod calls;
#[path = "../tests/stage/mod.rs"]
mod stage;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use calls::{Call, Process, RANKS, Way, any_call, coordinator, number, steps, trainer};
use lockstep_proto::v1;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stage::{Stage, wait_until};

/// Long enough a step, and two threads for four ranks, as on a small machine that is full.
const MORE: &str = "--set batch.micro_batch=4 --set batch.schedule=32 --set coordinator.plan_window_seconds=1";

/// A call that leaves the work of a step as it is.
fn call(random: &mut StdRng) -> Call {
    loop {
        match any_call(random) {
            Call::Pause | Call::Checkpoint => {}
            Call::Set(request) if request.batch.is_some() || request.checkpoint_every.is_some() => {}
            call => return call,
        }
    }
}

/// Calls of one operator until `end`; how many, how many again, and how long each took.
async fn operate(address: String, seed: u64, pause: Duration, end: Instant) -> (u64, u64, Vec<Duration>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut way = Way::new(address, number("LOCKSTEP_STORM_KEEP", 1) == 1);
    let mut times = Vec::new();
    let mut next = Instant::now() + pause.mul_f64(random.random());
    while next < end {
        tokio::time::sleep_until(next.into()).await;
        next += pause;
        let command = v1::Command {
            key: format!("{seed}-{}", times.len()),
            if_step_before: None,
            dry_run: random.random_ratio(1, 10),
        };
        // Refusals are answers too.
        let (_answer, took) = way.insist(&call(&mut random), &command).await;
        times.push(took);
    }
    (times.len() as u64, way.again, times)
}

/// Steps so far: each is a line, and there are no validations.
fn committed(stage: &Stage) -> usize {
    let text = std::fs::read(stage.path("runs/storm/metrics.jsonl")).unwrap();
    text.iter().filter(|byte| **byte == b'\n').count()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let (calls, clients) = (
        number("LOCKSTEP_STORM_CALLS", 10_000),
        number("LOCKSTEP_STORM_CLIENTS", 50),
    );
    let (pace, seconds) = (number("LOCKSTEP_STORM_PACE", 25), number("LOCKSTEP_STORM_SECONDS", 10));
    let pairs = calls.div_ceil(pace * seconds).max(1);
    let stage = Stage::new();
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let serving = coordinator(&stage, &address, MORE);
    let trainers: Vec<Process> = (0..RANKS).map(|rank| trainer(&stage, &address, rank)).collect();
    wait_until("the run trains", || steps(&stage).len() >= 50);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (mut ratios, mut pairs_ms) = (Vec::new(), Vec::new());
    let (mut made, mut again, mut times) = (0, 0, Vec::new());
    let length = Duration::from_secs(seconds);
    for pair in 0..pairs {
        let mut cost = [0.0; 2];
        // Which comes first changes, so that a machine that slows down does not count against one of them.
        let order = if pair % 2 == 0 { [false, true] } else { [true, false] };
        for is_stormy in order {
            let (before, began) = (committed(&stage), Instant::now());
            if is_stormy {
                let pause = Duration::from_secs_f64(clients as f64 / pace as f64);
                let end = began + length;
                let done = runtime.block_on(async {
                    let operators: Vec<_> = (0..clients)
                        .map(|client| tokio::spawn(operate(address.clone(), pair * clients + client, pause, end)))
                        .collect();
                    let mut done = Vec::new();
                    for operator in operators {
                        done.push(operator.await.unwrap());
                    }
                    tokio::time::sleep_until(end.into()).await;
                    done
                });
                for (calls, more, took) in done {
                    (made, again) = (made + calls, again + more);
                    times.extend(took);
                }
            } else {
                std::thread::sleep(length);
            }
            let (count, elapsed) = (committed(&stage) - before, began.elapsed());
            cost[usize::from(is_stormy)] = elapsed.as_secs_f64() * 1e3 / count.max(1) as f64;
        }
        println!(
            "pair {}: {:.3} ms a step in calm, {:.3} ms in the storm",
            pair + 1,
            cost[0],
            cost[1]
        );
        ratios.push(cost[1] / cost[0]);
        pairs_ms.push(cost);
    }
    let of = |at: usize| median(&mut pairs_ms.iter().map(|cost| cost[at]).collect::<Vec<_>>());
    times.sort();
    let quantile = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    println!(
        "{made} calls of {clients} operators at {pace} a second, {again} sent again; answered in {:?} (median), {:?} (99 %)",
        quantile(0.5),
        quantile(0.99)
    );
    println!(
        "a step takes {:.3} ms in calm and {:.3} ms in the storm (medians of {pairs}); ratio {:.4} (median; {:.4} to {:.4})",
        of(0),
        of(1),
        median(&mut ratios.clone()),
        ratios.iter().copied().fold(f64::INFINITY, f64::min),
        ratios.iter().copied().fold(0.0, f64::max)
    );
    drop((trainers, serving));
}
