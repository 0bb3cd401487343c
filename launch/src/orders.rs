//! Orders for a live run: from words on the command line to a request, sent until it is answered.
//!
//! Way of data: [`Conditions`] and words → an [`Order`] with a key → the coordinator, again where the connection breaks or a
//! new coordinator takes over: the key makes it one order → the sentence and the step are printed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use lockstep_proto::v1::{extend_request, setting};
use lockstep_security::Channel;

use crate::cli::{
    Conditions, DrainArguments, ExtendArguments, RewindArguments, SetArguments, SkipArguments, StopArguments, Target,
};
use crate::control::{PATIENCE, block_on, connect, find, header, refusal};
use crate::ending::Ending;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// What an operator can order.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Pause,
    Resume,
    Stop { after_step: Option<u64> },
    Checkpoint,
    Set(Box<v1::SetRequest>),
    Extend(extend_request::By),
    SkipSamples(u64),
    Rewind { to_step: u64 },
    Drain(String),
}

/// `lockstep pause`, `resume`, `checkpoint`.
pub(crate) fn plain(target: &Target, conditions: &Conditions, order: Order) -> Result<(), Ending> {
    send(target, conditions, &order)
}

/// `lockstep stop`.
pub(crate) fn stop(arguments: &StopArguments) -> Result<(), Ending> {
    let after_step = arguments.after;
    send(&arguments.target, &arguments.conditions, &Order::Stop { after_step })
}

/// `lockstep set`.
pub(crate) fn set(arguments: &SetArguments) -> Result<(), Ending> {
    let (run, pairs) = match arguments.words.split_first() {
        Some((run, pairs)) if !run.contains('=') => (Some(run.clone()), pairs),
        _ => (None, &arguments.words[..]),
    };
    let mut request = v1::SetRequest::default();
    for pair in pairs {
        place(&mut request, pair)?;
    }
    if pairs.is_empty() {
        return Err(Ending::BadInput(format!("nothing is to be set: {EXPECTED}")));
    }
    let target = Target {
        run,
        coordinator: arguments.coordinator.clone(),
        credentials: arguments.credentials.clone(),
    };
    send(&target, &arguments.conditions, &Order::Set(Box::new(request)))
}

/// `lockstep extend`.
pub(crate) fn extend(arguments: &ExtendArguments) -> Result<(), Ending> {
    let by = &arguments.by;
    let given = (by.steps.map(extend_request::By::Steps))
        .or(by.samples.map(extend_request::By::Samples))
        .or(by.tokens.map(extend_request::By::Tokens))
        .or(by.epochs.map(extend_request::By::Epochs));
    let given = given
        .ok_or_else(|| Ending::BadInput("say by how much: --steps, --samples, --tokens or --epochs".to_owned()))?;
    send(&arguments.target, &arguments.conditions, &Order::Extend(given))
}

/// `lockstep skip`.
pub(crate) fn skip(arguments: &SkipArguments) -> Result<(), Ending> {
    send(
        &arguments.target,
        &arguments.conditions,
        &Order::SkipSamples(arguments.samples),
    )
}

/// `lockstep rewind`.
pub(crate) fn rewind(arguments: &RewindArguments) -> Result<(), Ending> {
    let to_step = arguments.to;
    send(&arguments.target, &arguments.conditions, &Order::Rewind { to_step })
}

/// `lockstep drain`.
pub(crate) fn drain(arguments: &DrainArguments) -> Result<(), Ending> {
    send(
        &arguments.target,
        &arguments.conditions,
        &Order::Drain(arguments.member.clone()),
    )
}

const EXPECTED: &str = "write learning_rate=3e-4 (this), learning_rate=x0.5 (the schedule's, halved) or learning_rate=schedule; \
                        likewise batch, momentum and weight_decay; validate_every=N, checkpoint_every=N";

/// Puts a `key=value` into the request.
fn place(request: &mut v1::SetRequest, pair: &str) -> Result<(), Ending> {
    let refuse = || Ending::BadInput(format!("{pair:?} cannot be set: {EXPECTED}"));
    let (key, value) = pair.split_once('=').ok_or_else(refuse)?;
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
    let kind = match value {
        "schedule" => Some(setting::Kind::Schedule(setting::Schedule {})),
        _ => match value.strip_prefix('x') {
            Some(factor) => number(factor).map(setting::Kind::Factor),
            None => number(value).map(setting::Kind::Value),
        },
    };
    let place = match key {
        "learning_rate" => &mut request.learning_rate,
        "batch" => &mut request.batch,
        "momentum" => &mut request.momentum,
        "weight_decay" => &mut request.weight_decay,
        "validate_every" | "checkpoint_every" => {
            let every = Some(value.parse().map_err(|_| refuse())?);
            match key {
                "validate_every" => request.validate_every = every,
                _ => request.checkpoint_every = every,
            }
            return Ok(());
        }
        _ => return Err(refuse()),
    };
    *place = Some(v1::Setting {
        kind: Some(kind.ok_or_else(refuse)?),
    });
    Ok(())
}

/// Sends an order until it is answered, and prints the answer.
fn send(target: &Target, conditions: &Conditions, order: &Order) -> Result<(), Ending> {
    let command = v1::Command {
        key: conditions.order_key.clone().unwrap_or_else(own_key),
        if_step_before: conditions.if_step_before,
        dry_run: conditions.dry_run,
    };
    let reply = block_on(async {
        let began = Instant::now();
        loop {
            // Found anew each time: another coordinator may have taken over, at another address.
            let address = find(target)?;
            let tried = match connect(&address, target).await {
                Ok(mut client) => {
                    let asked = tokio::time::timeout(PATIENCE, give(&mut client, order, &command)).await;
                    match asked {
                        Ok(Ok(reply)) => return Ok(reply.into_inner()),
                        Ok(Err(status)) if is_worth_another_try(&status) => refusal(&address, &status),
                        Ok(Err(status)) => return Err(refusal(&address, &status)),
                        Err(_) => Ending::Failed(format!(
                            "the coordinator at {address} gave no answer in {} s",
                            PATIENCE.as_secs()
                        )),
                    }
                }
                Err(ending @ Ending::BadInput(_)) => return Err(ending),
                Err(ending) => ending,
            };
            if began.elapsed() >= PATIENCE {
                return Err(tried);
            }
            tokio::time::sleep(PAUSE).await;
        }
    })?;
    println!("{}", reply.reason);
    Ok(())
}

/// Whether the coordinator may have gone before it answered.
fn is_worth_another_try(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled
    )
}

/// A key that no other order has.
fn own_key() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("lockstep-{}-{}", std::process::id(), since.as_nanos())
}

/// Gives an order to a coordinator.
pub(crate) async fn give(
    client: &mut ControlClient<Channel>,
    order: &Order,
    command: &v1::Command,
) -> Result<tonic::Response<v1::CommandReply>, tonic::Status> {
    let (header, command) = (header(), Some(command.clone()));
    match order.clone() {
        Order::Pause => client.pause(v1::PauseRequest { header, command }).await,
        Order::Resume => client.resume(v1::ResumeRequest { header, command }).await,
        Order::Stop { after_step } => {
            let request = v1::StopRequest {
                header,
                command,
                after_step,
            };
            client.stop(request).await
        }
        Order::Checkpoint => client.checkpoint(v1::CheckpointRequest { header, command }).await,
        Order::Set(request) => {
            let request = v1::SetRequest {
                header,
                command,
                ..*request
            };
            client.set(request).await
        }
        Order::Extend(by) => {
            let by = Some(by);
            client.extend(v1::ExtendRequest { header, command, by }).await
        }
        Order::SkipSamples(count) => {
            client
                .skip_samples(v1::SkipSamplesRequest { header, command, count })
                .await
        }
        Order::Rewind { to_step } => {
            let request = v1::RewindRequest {
                header,
                command,
                to_step,
            };
            client.rewind(request).await
        }
        Order::Drain(member) => {
            let request = v1::DrainRequest {
                header,
                command,
                member,
            };
            client.drain(request).await
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn placed(pair: &str) -> Result<v1::SetRequest, Ending> {
        let mut request = v1::SetRequest::default();
        place(&mut request, pair).map(|()| request)
    }

    #[test]
    fn a_pair_says_a_value_a_factor_or_the_schedule() {
        let kind = |pair: &str| placed(pair).ok().and_then(|request| request.learning_rate?.kind);
        assert_eq!(kind("learning_rate=3e-4"), Some(setting::Kind::Value(3e-4)));
        assert_eq!(kind("learning_rate=x0.5"), Some(setting::Kind::Factor(0.5)));
        assert_eq!(
            kind("learning_rate=schedule"),
            Some(setting::Kind::Schedule(setting::Schedule {}))
        );
        assert_eq!(
            placed("validate_every=0")
                .ok()
                .and_then(|request| request.validate_every),
            Some(0)
        );
        for pair in [
            "learning_rate",
            "learning_rate=",
            "learning_rate=nan",
            "rate=1",
            "batch=xx",
            "validate_every=-1",
        ] {
            let ending = placed(pair).unwrap_err();
            assert_eq!(ending.code(), 2, "{pair}");
            assert!(ending.sentence().unwrap_or_default().contains(pair), "{ending:?}");
        }
    }
}
