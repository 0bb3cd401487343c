//! The calls of a storm of operators, how they are sent, and the processes of the run that they are sent to.
#![allow(dead_code)] // The test and the measurement use their parts.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockstep_proto::PROTOCOL_VERSION;
use lockstep_proto::v1::{self, extend_request, setting};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;
use tonic::Code;

use crate::stage::{PATIENCE, Stage, real_trainer};

pub(crate) type Client = v1::control_client::ControlClient<tonic::transport::Channel>;

pub(crate) const SETS: &str = "--set run.name=storm --set run.steps=1000000 --set run.lanes=8 --set batch.schedule=16 \
                    --set optimizer.method=muonmax --set validation.every=0 --set fault.snapshot_every=50 \
                    --set coordinator.plan_window_seconds=0.1 --set security.calls_per_second=1000000 \
                    --set security.failures_per_minute=1000000 --set fault.patience_seconds=20";
pub(crate) const RANKS: usize = 4;

/// A number from the environment.
pub(crate) fn number(name: &str, ordinary: u64) -> u64 {
    std::env::var(name).map_or(ordinary, |text| text.parse().unwrap())
}

/// A process that is killed when this is dropped.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program, on the processor cores that an environment variable names, if it does.
fn on_cores(variable: &str, program: &Path) -> Command {
    let Ok(cores) = std::env::var(variable) else {
        return Command::new(program);
    };
    let mut command = Command::new("taskset");
    command.args(["-c", &cores]).arg(program);
    command
}

pub(crate) fn coordinator(stage: &Stage, address: &str, more: &str) -> Process {
    let program = real_trainer().with_file_name("lockstep-coordinator");
    let mut command = on_cores("LOCKSTEP_STORM_OTHER_CORES", &program);
    command
        .args(["--config", "run.toml", "--listen", address, "--run-dir", "runs/storm"])
        .args(["--ranks", &RANKS.to_string()])
        .args(SETS.split_whitespace())
        .args(more.split_whitespace())
        .current_dir(stage.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Process(command.spawn().unwrap())
}

pub(crate) fn trainer(stage: &Stage, address: &str, rank: usize) -> Process {
    let mut command = on_cores("LOCKSTEP_STORM_RANK_CORES", &real_trainer());
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
pub(crate) fn steps(stage: &Stage) -> Vec<Value> {
    let text = std::fs::read_to_string(stage.path("runs/storm/metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["parameter_hash"].is_string()).collect()
}

/// One call, as it is sent and sent again.
#[derive(Clone, Debug)]
pub(crate) enum Call {
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

pub(crate) fn any_call(random: &mut StdRng) -> Call {
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

pub(crate) async fn send(
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

/// An operator's way to the coordinator.
pub(crate) struct Way {
    address: String,
    /// Whether the connection stays open for the next call, as a client's does; else each call has one of its own, as each
    /// command of `lockstep` has.
    is_kept: bool,
    client: Option<Client>,
    /// Calls that were sent again.
    pub(crate) again: u64,
    /// How long the call took that took longest.
    pub(crate) slowest: Duration,
}

impl Way {
    pub(crate) fn new(address: String, is_kept: bool) -> Way {
        Way {
            address,
            is_kept,
            client: None,
            again: 0,
            slowest: Duration::ZERO,
        }
    }

    /// Sends a call until it is answered, as every command of `lockstep` does; the answer, and how long it took.
    pub(crate) async fn insist(
        &mut self,
        call: &Call,
        command: &v1::Command,
    ) -> (Result<Option<v1::CommandReply>, tonic::Status>, Duration) {
        let began = Instant::now();
        loop {
            let client = match self.client.take() {
                Some(client) => Some(client),
                None => Client::connect(format!("http://{}", self.address)).await.ok(),
            };
            if let Some(mut client) = client {
                let asked = Instant::now();
                match send(&mut client, call, command).await {
                    Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {}
                    answer => {
                        let took = asked.elapsed();
                        self.slowest = self.slowest.max(took);
                        self.client = Some(client).filter(|_| self.is_kept);
                        return (answer, took);
                    }
                }
            }
            self.again += 1;
            assert!(began.elapsed() < PATIENCE, "{call:?} was never answered");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
