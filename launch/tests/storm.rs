//! Many operators at once, who say sensible things, nonsense, and the same thing twice, while a run trains and its coordinator is
//! killed: what is acknowledged is carried out once and from the step that was said, and the ledger proves it.
//!
//! `LOCKSTEP_STORM_CALLS`, `LOCKSTEP_STORM_CLIENTS` and `LOCKSTEP_STORM_SEED` change what is played; the seed is printed.
#![allow(clippy::unwrap_used)]

mod stage;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lockstep_proto::PROTOCOL_VERSION;
use lockstep_proto::v1::{self, extend_request, setting};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use stage::{PATIENCE, Stage, real_trainer, said, wait_at_most, wait_until};
use tonic::Code;

type Client = v1::control_client::ControlClient<tonic::transport::Channel>;

const SETS: &str = "--set run.name=storm --set run.steps=1000000 --set run.lanes=8 --set batch.schedule=16 \
                    --set optimizer.method=muonmax --set validation.every=0 --set fault.snapshot_every=50 \
                    --set coordinator.plan_window_seconds=0.1 --set security.calls_per_second=1000000 \
                    --set security.failures_per_minute=1000000 --set fault.patience_seconds=20";
const RANKS: usize = 4;

/// A number from the environment.
fn number(name: &str, ordinary: u64) -> u64 {
    std::env::var(name).map_or(ordinary, |text| text.parse().unwrap())
}

/// A process that is killed when this is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn coordinator(stage: &Stage, address: &str) -> Process {
    let mut command = Command::new(real_trainer().with_file_name("lockstep-coordinator"));
    command
        .args(["--config", "run.toml", "--listen", address, "--run-dir", "runs/storm"])
        .args(["--ranks", &RANKS.to_string()])
        .args(SETS.split_whitespace())
        .current_dir(stage.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Process(command.spawn().unwrap())
}

fn trainer(stage: &Stage, address: &str, rank: usize) -> Process {
    let mut command = Command::new(real_trainer());
    command
        .args(["train", "--coordinator", &format!("http://{address}")])
        .args(["--member", &format!("trainer-{rank}")])
        .envs([("OMP_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1")])
        .current_dir(stage.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Process(command.spawn().unwrap())
}

/// The committed steps so far.
fn steps(stage: &Stage) -> Vec<Value> {
    let text = std::fs::read_to_string(stage.path("runs/storm/metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["parameter_hash"].is_string()).collect()
}

/// One call, as it is sent and sent again.
#[derive(Clone, Debug)]
enum Call {
    Set(v1::SetRequest),
    Extend(v1::ExtendRequest),
    Skip(v1::SkipSamplesRequest),
    Stop(v1::StopRequest),
    Drain(v1::DrainRequest),
    Rewind(v1::RewindRequest),
    Pause,
    Resume,
    Checkpoint,
    Status,
    Members,
}

fn header() -> Option<v1::Header> {
    Some(v1::Header {
        protocol_version: PROTOCOL_VERSION,
        ..v1::Header::default()
    })
}

fn value(kind: setting::Kind) -> Option<v1::Setting> {
    Some(v1::Setting { kind: Some(kind) })
}

fn any_call(random: &mut StdRng) -> Call {
    let header = header();
    match random.random_range(0..100) {
        0..=19 => Call::Set(v1::SetRequest {
            header,
            learning_rate: value(match random.random_range(0..6) {
                0 => setting::Kind::Schedule(setting::Schedule {}),
                1 => setting::Kind::Factor(random.random_range(0.5..2.0)),
                2 => setting::Kind::Value(-1.0),
                3 => setting::Kind::Value(f64::NAN),
                _ => setting::Kind::Value(random.random_range(1e-5..1e-3)),
            }),
            ..v1::SetRequest::default()
        }),
        20..=34 => Call::Set(v1::SetRequest {
            header,
            batch: value(match random.random_range(0..5) {
                0 => setting::Kind::Schedule(setting::Schedule {}),
                1 => setting::Kind::Value(0.5),
                _ => setting::Kind::Value(f64::from(random.random_range(1..40_u32))),
            }),
            weight_decay: random
                .random_ratio(1, 3)
                .then(|| value(setting::Kind::Value(0.01)).unwrap()),
            ..v1::SetRequest::default()
        }),
        35..=44 => Call::Set(v1::SetRequest {
            header,
            momentum: value(setting::Kind::Value(random.random_range(0.5..1.1))),
            checkpoint_every: random.random_ratio(1, 2).then_some(1000),
            ..v1::SetRequest::default()
        }),
        45..=49 => Call::Set(v1::SetRequest {
            header,
            ..v1::SetRequest::default()
        }),
        50..=57 => Call::Extend(v1::ExtendRequest {
            header,
            by: match random.random_range(0..4) {
                0 => Some(extend_request::By::Samples(9)),
                1 => None,
                _ => Some(extend_request::By::Steps(random.random_range(0..50))),
            },
            ..v1::ExtendRequest::default()
        }),
        58..=63 => Call::Skip(v1::SkipSamplesRequest {
            header,
            count: random.random_range(0..30),
            ..v1::SkipSamplesRequest::default()
        }),
        64..=67 => Call::Stop(v1::StopRequest {
            header,
            // Long ago, or so far ahead that it is never come to, or taken back.
            after_step: Some([1, 900_000, 0][random.random_range(0..3)]),
            ..v1::StopRequest::default()
        }),
        68..=69 => Call::Drain(v1::DrainRequest {
            header,
            member: "nobody".to_owned(),
            ..v1::DrainRequest::default()
        }),
        70..=71 => Call::Rewind(v1::RewindRequest {
            header,
            // Never committed.
            to_step: 900_000,
            ..v1::RewindRequest::default()
        }),
        72 => Call::Pause,
        73..=77 => Call::Resume,
        78 => Call::Checkpoint,
        79..=89 => Call::Status,
        _ => Call::Members,
    }
}

async fn send(
    client: &mut Client,
    call: &Call,
    command: &v1::Command,
) -> Result<Option<v1::CommandReply>, tonic::Status> {
    let (header, command) = (header(), Some(command.clone()));
    let reply = match call.clone() {
        Call::Set(request) => client.set(v1::SetRequest { command, ..request }).await,
        Call::Extend(request) => client.extend(v1::ExtendRequest { command, ..request }).await,
        Call::Skip(request) => client.skip_samples(v1::SkipSamplesRequest { command, ..request }).await,
        Call::Stop(request) => client.stop(v1::StopRequest { command, ..request }).await,
        Call::Rewind(request) => client.rewind(v1::RewindRequest { command, ..request }).await,
        Call::Drain(request) => client.drain(v1::DrainRequest { command, ..request }).await,
        Call::Pause => client.pause(v1::PauseRequest { header, command }).await,
        Call::Resume => client.resume(v1::ResumeRequest { header, command }).await,
        Call::Checkpoint => client.checkpoint(v1::CheckpointRequest { header, command }).await,
        Call::Status => return client.status(v1::StatusRequest { header }).await.map(|_| None),
        Call::Members => return client.members(v1::MembersRequest { header }).await.map(|_| None),
    };
    reply.map(|reply| Some(reply.into_inner()))
}

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

/// Sends a call until it is answered, as every command of `lockstep` does.
async fn insist(
    address: &str,
    call: &Call,
    command: &v1::Command,
    operator: &mut Operator,
) -> Result<Option<v1::CommandReply>, tonic::Status> {
    let began = Instant::now();
    loop {
        if let Ok(mut client) = Client::connect(format!("http://{address}")).await {
            let asked = Instant::now();
            match send(&mut client, call, command).await {
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {}
                answer => {
                    operator.slowest = operator.slowest.max(asked.elapsed());
                    return answer;
                }
            }
        }
        operator.again += 1;
        assert!(began.elapsed() < PATIENCE, "{call:?} was never answered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn operate(address: String, number: u64, seed: u64, calls: u64, made: Arc<AtomicUsize>) -> Operator {
    let mut random = StdRng::seed_from_u64(seed ^ number);
    let mut operator = Operator::default();
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
            answers.push(insist(&address, &call, &command, &mut operator).await);
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
    let mut serving = coordinator(&stage, &address);
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
        serving = coordinator(&stage, &address);
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
