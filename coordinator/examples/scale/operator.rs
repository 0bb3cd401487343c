//! Somebody who watches and steers while the members train: calls of the control service at a steady rate, each timed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_proto::domain::Header;
use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use tonic::Status;
use tonic::transport::Channel;

/// Largest answer that is taken.
const ANSWER: usize = 256 << 20;

/// What calls took, by name, and what was answered to those that failed.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) times: BTreeMap<&'static str, Vec<Duration>>,
    pub(crate) failures: BTreeMap<&'static str, (u32, String)>,
}

/// Calls until `over`, one call every `pause`.
pub(crate) async fn call(address: String, pause: Duration, over: &AtomicBool) -> anyhow::Result<Calls> {
    let mut control = ControlClient::connect(address).await?.max_decoding_message_size(ANSWER);
    let mut calls = Calls::default();
    let mut clock = tokio::time::interval(pause);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 0_u64.. {
        clock.tick().await;
        if over.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        let (name, answer) = one(&mut control, number).await;
        match answer {
            Ok(()) => calls.times.entry(name).or_default().push(began.elapsed()),
            Err(status) => {
                let failed = calls.failures.entry(name).or_default();
                *failed = (failed.0 + 1, status.message().to_owned());
            }
        }
    }
    Ok(calls)
}

async fn one(control: &mut ControlClient<Channel>, number: u64) -> (&'static str, Result<(), Status>) {
    let header = Some((&Header::default()).into());
    let set = |dry_run| v1::SetRequest {
        header: Some((&Header::default()).into()),
        command: Some(v1::Command {
            dry_run,
            ..v1::Command::default()
        }),
        learning_rate: Some(v1::Setting {
            kind: Some(v1::setting::Kind::Factor(1.0 + (number % 7) as f64 / 100.0)),
        }),
        ..v1::SetRequest::default()
    };
    match number % 6 {
        0 | 3 => ("status", control.status(v1::StatusRequest { header }).await.map(drop)),
        1 => (
            "overview",
            control.overview(v1::OverviewRequest { header }).await.map(drop),
        ),
        2 => ("set", control.set(set(false)).await.map(drop)),
        4 => (
            "members",
            control.members(v1::MembersRequest { header }).await.map(drop),
        ),
        _ => ("set, dry run", control.set(set(true)).await.map(drop)),
    }
}
