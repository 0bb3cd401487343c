//! Many operators at once, who say sensible things, nonsense, and the same thing twice, while a run trains and its coordinator is
//! killed: what is acknowledged is carried out once and from the step that was said, and the ledger proves it.
//!
//! `LOCKSTEP_STORM_CALLS`, `LOCKSTEP_STORM_CLIENTS` and `LOCKSTEP_STORM_SEED` change what is played; the seed is printed.
#![allow(clippy::unwrap_used)]

mod calls;
#[path = "../stage/mod.rs"]
mod stage;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use calls::{Call, Process, RANKS, Way, any_call, coordinator, number, steps, trainer};
use lockstep_proto::v1;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use stage::{PATIENCE, Stage, said, wait_at_most, wait_until};
use tonic::Code;

/// A change that was acknowledged.
#[derive(Debug)]
struct Acknowledged {
    key: String,
    step: u64,
    version: u64,
}

/// What one operator did.
#[derive(Default)]
struct Operator {
    changes: Vec<Acknowledged>,
    refused: u64,
    again: u64,
    slowest: Duration,
}

async fn operate(address: String, number: u64, seed: u64, calls: u64, made: Arc<AtomicUsize>) -> Operator {
    let mut random = StdRng::seed_from_u64(seed ^ number);
    let mut operator = Operator::default();
    // Of two operators one keeps its connection, and the other makes one for each call.
    let mut way = Way::new(address, number % 2 == 0);
    for index in 0..calls {
        let call = any_call(&mut random);
        let command = v1::Command {
            key: format!("{number}-{index}"),
            if_step_before: random.random_ratio(1, 10).then(|| random.random_range(0..100_000)),
            dry_run: random.random_ratio(1, 10),
        };
        let times = if random.random_ratio(1, 5) { 2 } else { 1 };
        let mut answers = Vec::new();
        for _ in 0..times {
            answers.push(way.insist(&call, &command).await.0);
        }
        made.fetch_add(1, Ordering::Relaxed);
        let is_change =
            matches!(call, Call::Set(_) | Call::Extend(_) | Call::Skip(_) | Call::Stop(_)) && !command.dry_run;
        match answers.remove(0) {
            Ok(Some(reply)) if is_change => {
                if let Some(again) = answers.pop() {
                    // Asked again, it is answered again.
                    let again = again.unwrap().unwrap();
                    assert_eq!((again.step, &again.reason), (reply.step, &reply.reason), "{call:?}");
                }
                operator.changes.push(Acknowledged {
                    key: command.key,
                    step: reply.step.unwrap(),
                    version: reply.version,
                });
            }
            Ok(_) => {}
            Err(status) => {
                let expected = [Code::InvalidArgument, Code::FailedPrecondition];
                assert!(expected.contains(&status.code()), "{call:?}: {status:?}");
                operator.refused += 1;
            }
        }
    }
    (operator.again, operator.slowest) = (way.again, way.slowest);
    operator
}

/// The rows of a table of the ledger, by key.
fn table(stage: &Stage, name: &str) -> BTreeMap<u64, Value> {
    let output = stage.lockstep(&format!("ledger show runs/storm --json --table {name}"));
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| (row["key"].as_u64().unwrap(), row["record"].clone()))
        .collect()
}

/// Mean milliseconds of the newest steps.
fn pace(stage: &Stage, from: usize) -> f64 {
    let times: Vec<f64> = steps(stage)[from..]
        .iter()
        .map(|step| step["step_ms"].as_f64().unwrap())
        .collect();
    times.iter().sum::<f64>() / times.len() as f64
}

#[test]
fn what_is_acknowledged_in_a_storm_is_carried_out_once_and_at_the_step_that_was_said() {
    let (calls, clients) = (
        number("LOCKSTEP_STORM_CALLS", 1000),
        number("LOCKSTEP_STORM_CLIENTS", 10),
    );
    let seed = number("LOCKSTEP_STORM_SEED", rand::random::<u32>().into());
    println!("seed {seed}, {calls} calls of {clients} clients (LOCKSTEP_STORM_SEED, _CALLS, _CLIENTS)");
    let stage = Stage::new();
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let mut serving = coordinator(&stage, &address, "");
    let mut trainers: Vec<Process> = (0..RANKS).map(|rank| trainer(&stage, &address, rank)).collect();
    wait_until("the run trains", || steps(&stage).len() >= 60);
    let (calm_from, calm_until) = (20, steps(&stage).len());
    let calm = pace(&stage, calm_from);

    let made = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let operators: Vec<_> = (0..clients)
        .map(|number| {
            let made = Arc::clone(&made);
            runtime.spawn(operate(address.clone(), number, seed, calls / clients, made))
        })
        .collect();
    for part in [1, 2] {
        wait_at_most(PATIENCE * 10, "a third of the calls is made", &mut || {
            made.load(Ordering::Relaxed) as u64 >= calls / clients * clients * part / 3
        });
        serving.0.kill().unwrap();
        serving.0.wait().unwrap();
        serving = coordinator(&stage, &address, "");
    }
    let operators = runtime.block_on(async {
        let mut done = Vec::new();
        for operator in operators {
            done.push(operator.await.unwrap());
        }
        done
    });
    let stormy = pace(&stage, calm_until);
    for order in ["resume", "stop"] {
        let output = stage.lockstep(&format!("{order} --coordinator http://{address}"));
        assert!(output.status.success(), "{}", said(&output));
    }
    let mut status = None;
    wait_until("the run has stopped", || {
        status = serving.0.try_wait().unwrap();
        status.is_some()
    });
    wait_until("the trainers have ended", || {
        trainers
            .iter_mut()
            .all(|trainer| trainer.0.try_wait().unwrap().is_some())
    });

    for proof in ["audit", "replay"] {
        let output = stage.lockstep(&format!("ledger {proof} runs/storm"));
        assert_eq!(output.status.code(), Some(0), "{proof}: {}", said(&output));
    }
    let acknowledged: Vec<&Acknowledged> = operators.iter().flat_map(|operator| &operator.changes).collect();
    let (changes, answers, plans) = (
        table(&stage, "changes"),
        table(&stage, "answers"),
        table(&stage, "plans"),
    );
    assert_eq!(
        changes.len(),
        acknowledged.len(),
        "every acknowledged change was made once, and no other"
    );
    let mut by_key: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for answer in answers.values() {
        by_key.entry(answer["key"].as_str().unwrap()).or_default().push(answer);
    }
    for change in acknowledged {
        let kept = &by_key[change.key.as_str()];
        assert_eq!(kept.len(), 1, "{change:?} is kept once");
        assert_eq!(kept[0]["effect"]["step"], change.step, "{change:?}");
        let version = |step: u64| plans.get(&step).map(|plan| plan["version"].as_u64().unwrap());
        // The run may have been stopped before the step came.
        if let Some(made) = version(change.step) {
            assert!(
                made >= change.version,
                "{change:?}: its step has a plan of version {made}"
            );
        }
        let before = version(change.step - 1).unwrap();
        assert!(
            before < change.version,
            "{change:?}: the step before has a plan of version {before}"
        );
    }
    let sum = |of: fn(&Operator) -> u64| operators.iter().map(of).sum::<u64>();
    println!(
        "{} changes acknowledged, {} calls refused, {} tries again, slowest answer {:?}; step {calm:.2} ms before, {stormy:.2} ms in the storm",
        changes.len(),
        sum(|operator| operator.refused),
        sum(|operator| operator.again),
        operators.iter().map(|operator| operator.slowest).max().unwrap()
    );
    stage.nothing_runs();
}
