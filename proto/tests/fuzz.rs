//! Bytes that anybody may send, for every message type of the protocol: they are decoded and converted, or refused with a
//! sentence; nothing panics. `LOCKSTEP_FUZZ=N` tries N inputs a type; `LOCKSTEP_FUZZ_SEED` repeats a run.
#![allow(clippy::unwrap_used)]

mod random;

use std::collections::BTreeSet;

use lockstep_proto::{domain, v1};
use prost::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Inputs of each type in an ordinary run.
const ORDINARY: u64 = 400;

/// What takes bytes of a type; whether they could be decoded.
type Taker = fn(&[u8]) -> bool;

macro_rules! takers {
    ($($name:literal: $kind:ty $(=> $domain:ty)?),* $(,)?) => {
        &[$(($name, (|bytes| match <$kind>::decode(bytes) {
            Ok(message) => {
                // Whatever it means or why it means nothing: it is said, and in the protocol's own words it is sent again.
                let _size = message.encoded_len();
                $(let _understood = <$domain>::try_from(message.clone()).map_err(|error| error.to_string());)?
                let _printed = format!("{message:?}");
                true
            }
            Err(_refused) => false,
        }) as Taker)),*]
    };
}

/// Every message type with the domain type that it becomes, if it becomes one by itself.
const TAKERS: &[(&str, Taker)] = takers![
    "Abort": v1::Abort,
    "Acknowledged": v1::Acknowledged,
    "Alert": v1::Alert => domain::Alert,
    "BlockRun": v1::BlockRun,
    "Checkpoint": v1::Checkpoint,
    "CheckpointRequest": v1::CheckpointRequest,
    "CommId": v1::CommId,
    "Command": v1::Command,
    "CommandReply": v1::CommandReply,
    "CommittedStep": v1::CommittedStep,
    "CoordinatorMessage": v1::CoordinatorMessage => domain::FromCoordinator,
    "Decided": v1::Decided,
    "Directive": v1::Directive,
    "DrainRequest": v1::DrainRequest,
    "ExtendRequest": v1::ExtendRequest,
    "FetchRequest": v1::FetchRequest,
    "Finished": v1::Finished,
    "Generation": v1::Generation,
    "Header": v1::Header => domain::Header,
    "Holds": v1::Holds,
    "Join": v1::Join,
    "Leaving": v1::Leaving,
    "MemberMessage": v1::MemberMessage => domain::FromMember,
    "MemberPlace": v1::MemberPlace => domain::MemberPlace,
    "MemberStatus": v1::MemberStatus => domain::MemberStatus,
    "MembersReply": v1::MembersReply,
    "MembersRequest": v1::MembersRequest,
    "Orthogonality": v1::Orthogonality => domain::Orthogonality,
    "Outcome": v1::Outcome => domain::Outcome,
    "Outcome.Completed": v1::outcome::Completed,
    "Outcome.Failed": v1::outcome::Failed,
    "Outcome.Stopped": v1::outcome::Stopped,
    "OverviewReply": v1::OverviewReply => domain::Overview,
    "OverviewRequest": v1::OverviewRequest,
    "Part": v1::Part,
    "PartChunk": v1::PartChunk,
    "PartPlace": v1::PartPlace,
    "PastDecision": v1::PastDecision,
    "PauseRequest": v1::PauseRequest,
    "Phase": v1::Phase,
    "Plan": v1::Plan,
    "PlanWindow": v1::PlanWindow,
    "Progress": v1::Progress,
    "Ready": v1::Ready,
    "Release": v1::Release,
    "Resume": v1::Resume,
    "ResumeRequest": v1::ResumeRequest,
    "Return": v1::Return,
    "RewindRequest": v1::RewindRequest,
    "RunEnd": v1::RunEnd,
    "SetRequest": v1::SetRequest,
    "Setting": v1::Setting,
    "Setting.Schedule": v1::setting::Schedule,
    "SkipSamplesRequest": v1::SkipSamplesRequest,
    "SnapshotStands": v1::SnapshotStands,
    "StateChange": v1::StateChange,
    "StatusReply": v1::StatusReply => domain::RunStatus,
    "StatusRequest": v1::StatusRequest,
    "StepMetrics": v1::StepMetrics,
    "StepReport": v1::StepReport,
    "StepValidation": v1::StepValidation,
    "StopRequest": v1::StopRequest,
    "Stopped": v1::Stopped,
    "TransportPairs": v1::TransportPairs,
    "Validation": v1::Validation,
    "WatchEvent": v1::WatchEvent => domain::RunEvent,
    "WatchRequest": v1::WatchRequest,
    "Welcome": v1::Welcome,
    "Word": v1::Word,
    "Wrote": v1::Wrote,
];

#[test]
fn whatever_is_sent_as_a_message_is_understood_or_refused() {
    let (seed, count) = random::seed_and_count(ORDINARY);
    let mut random = StdRng::seed_from_u64(seed);
    let messages = random::messages();
    let short = |name: &str| name.trim_start_matches("lockstep.v1.").to_owned();
    let named: BTreeSet<String> = messages.iter().map(|message| short(message.full_name())).collect();
    let taken: BTreeSet<String> = TAKERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let unfuzzed: Vec<&String> = named.difference(&taken).collect();
    assert!(unfuzzed.is_empty(), "name these messages in TAKERS: {unfuzzed:?}");
    let (mut executions, mut decoded) = (0u64, 0u64);
    for descriptor in &messages {
        let name = short(descriptor.full_name());
        let (_, take) = TAKERS.iter().find(|(known, _)| *known == name).unwrap();
        for _ in 0..count {
            let bytes = random::message(descriptor, &mut random, 4).encode_to_vec();
            assert!(take(&bytes), "{name}: a whole message is decoded");
            decoded += u64::from(take(&random::mutated(bytes, &mut random)));
            executions += 2;
        }
    }
    println!(
        "{executions} executions of {} message types, {decoded} of the changed ones decoded",
        messages.len()
    );
}
