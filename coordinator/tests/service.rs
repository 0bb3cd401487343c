//! The services through a real socket: commands and questions, rich refusals, health, reflection; and what keeps a
//! coordinator from starting.
#![allow(clippy::unwrap_used)]

use lockstep_config::RunConfig;
use lockstep_coordinator::{BegunRun, Coordinator, CoordinatorOptions, Running, StartError};
use lockstep_proto::domain::{
    FromMember, Header, JoinInfo, MemberBody, MemberStatus, Outcome, RunEvent, RunStatus, Stamp,
};
use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use lockstep_proto::v1::training_client::TrainingClient;
use tempfile::{TempDir, tempdir};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

fn options(folder: &TempDir) -> CoordinatorOptions {
    let text = r#"
        [run]
        name = "served"
        steps = 5
        [data]
        path = "data"
        sequence_length = 16
        [model]
        kind = "gpt2"
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 2
        schedule = 8
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
    "#;
    CoordinatorOptions {
        config: RunConfig::parse(text, "test", &[]).unwrap(),
        run_dir: folder.path().join("run"),
        begun: BegunRun::LeftAlone,
        vocabulary: 257,
        ranks: 2,
        training_samples: 10,
        data_hash: "data".to_owned(),
    }
}

async fn connect(running: &Running) -> Channel {
    let address = format!("http://{}", running.address());
    tonic::transport::Endpoint::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap()
}

fn header(run_id: &str) -> Header {
    Header {
        run_id: run_id.to_owned(),
        stamp: Stamp { term: 1, generation: 0 },
    }
}

/// Attaches and sends one message; the outgoing half stays open as long as the sender lives.
async fn attach(
    channel: Channel,
    message: v1::MemberMessage,
) -> (mpsc::Sender<v1::MemberMessage>, Streaming<v1::CoordinatorMessage>) {
    let (sender, receiver) = mpsc::channel(4);
    let stream = TrainingClient::new(channel)
        .attach(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    sender.send(message).await.unwrap();
    (sender, stream)
}

async fn refusal(stream: &mut Streaming<v1::CoordinatorMessage>) -> Status {
    loop {
        match stream.message().await {
            Ok(Some(_welcome)) => {}
            Ok(None) => panic!("the stream ended without a refusal"),
            Err(status) => return status,
        }
    }
}

fn join(running: &Running, info: JoinInfo) -> v1::MemberMessage {
    (&FromMember {
        header: header(running.run_id()),
        body: MemberBody::Join(info),
    })
        .into()
}

fn member(config: &RunConfig) -> JoinInfo {
    JoinInfo {
        member: "trainer-0".to_owned(),
        pid: 77,
        config_hash: config.hash(),
        data_hash: "data".to_owned(),
        ..JoinInfo::default()
    }
}

fn finish(running: Running) -> lockstep_proto::domain::RunEnd {
    running.handle().stop();
    running.wait()
}

#[tokio::test]
async fn operators_see_status_members_and_events_and_stop_the_run() {
    let folder = tempdir().unwrap();
    let options = options(&folder);
    let config = options.config.clone();
    let running = Coordinator::start(options).unwrap();
    let channel = connect(&running).await;
    let mut control = ControlClient::new(channel.clone());
    let asked = || Some((&header("")).into());
    let mut watched = control
        .watch(v1::WatchRequest { header: asked() })
        .await
        .unwrap()
        .into_inner();
    let first = RunEvent::try_from(watched.message().await.unwrap().unwrap()).unwrap();
    assert!(matches!(first, RunEvent::State { phase, .. } if phase == "waiting-for-members"));
    let (_sender, _stream) = attach(channel, join(&running, member(&config))).await;
    for expected in ["trainer-0", "1 of 2"] {
        let event = RunEvent::try_from(watched.message().await.unwrap().unwrap()).unwrap();
        let reason = match &event {
            RunEvent::Decided { reason } | RunEvent::State { reason, .. } => reason,
            _ => panic!("{event:?}"),
        };
        assert!(reason.contains(expected), "{event:?}");
    }

    let status = control
        .status(v1::StatusRequest { header: asked() })
        .await
        .unwrap()
        .into_inner();
    let status = RunStatus::try_from(status).unwrap();
    assert_eq!(
        (status.name.as_str(), status.members, status.ranks, status.total_steps),
        ("served", 1, 2, 5)
    );
    assert_eq!(status.header.run_id, running.run_id());
    let members = control
        .members(v1::MembersRequest { header: asked() })
        .await
        .unwrap()
        .into_inner()
        .members;
    let members: Vec<_> = members.into_iter().map(MemberStatus::from).collect();
    assert_eq!((members.len(), members[0].info.pid, &members[0].place), (1, 77, &None));

    let paused = control
        .pause(v1::PauseRequest {
            header: asked(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert!(paused.reason.contains("will pause"), "{}", paused.reason);
    control
        .resume(v1::ResumeRequest {
            header: asked(),
            ..Default::default()
        })
        .await
        .unwrap();
    let stopped = control
        .stop(v1::StopRequest {
            header: asked(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert!(
        stopped.reason.contains("stopped before its first step"),
        "{}",
        stopped.reason
    );
    let end = loop {
        match RunEvent::try_from(watched.message().await.unwrap().unwrap()).unwrap() {
            RunEvent::Ended(end) => break end,
            _ => continue,
        }
    };
    assert_eq!(end.outcome, Outcome::Stopped);
    let refused = control
        .pause(v1::PauseRequest {
            header: asked(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "RUN_OVER");
    let waited = tokio::task::spawn_blocking(move || running.wait()).await.unwrap();
    assert_eq!(waited, end);
}

#[tokio::test]
async fn refusals_carry_details_for_programs_and_a_sentence_for_people() {
    let folder = tempdir().unwrap();
    let options = options(&folder);
    let config = options.config.clone();
    let running = Coordinator::start(options).unwrap();
    let channel = connect(&running).await;

    let mut message = join(&running, member(&config));
    message.header.as_mut().unwrap().protocol_version = 9;
    let (_sender, mut stream) = attach(channel.clone(), message).await;
    let status = refusal(&mut stream).await;
    let info = status.get_details_error_info().unwrap();
    assert_eq!(
        (status.code(), info.reason.as_str(), &info.metadata["theirs"][..]),
        (Code::FailedPrecondition, "PROTOCOL_VERSION", "9")
    );

    let other_data = JoinInfo {
        data_hash: "elsewhere".to_owned(),
        ..member(&config)
    };
    let (_sender, mut stream) = attach(channel.clone(), join(&running, other_data)).await;
    let status = refusal(&mut stream).await;
    assert!(status.message().contains("elsewhere"), "{}", status.message());
    let violations = status.get_details_precondition_failure().unwrap().violations;
    assert_eq!(
        (violations[0].r#type.as_str(), violations[0].subject.as_str()),
        ("DATA_DIFFERS", "trainer-0")
    );

    let stranger = FromMember {
        header: header("another-run"),
        body: MemberBody::Join(member(&config)),
    };
    let (_sender, mut stream) = attach(channel.clone(), (&stranger).into()).await;
    let status = refusal(&mut stream).await;
    assert_eq!(status.get_details_error_info().unwrap().reason, "OTHER_RUN");
    let mut ahead = join(&running, member(&config));
    ahead.header.as_mut().unwrap().term = 9;
    let (_sender, mut stream) = attach(channel.clone(), ahead).await;
    let status = refusal(&mut stream).await;
    assert_eq!(status.get_details_error_info().unwrap().reason, "OLDER_TERM");
    let other = Some((&header("another-run")).into());
    let status = ControlClient::new(channel)
        .status(v1::StatusRequest { header: other })
        .await
        .unwrap_err();
    assert_eq!(status.get_details_error_info().unwrap().reason, "OTHER_RUN");
    let end = tokio::task::spawn_blocking(move || finish(running)).await.unwrap();
    assert_eq!(end.outcome, Outcome::Stopped, "none of them was part of the run");
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let folder = tempdir().unwrap();
    let running = Coordinator::start(options(&folder)).unwrap();
    let channel = connect(&running).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let service = "lockstep.v1.Training".to_owned();
    let answer = health
        .check(tonic_health::pb::HealthCheckRequest { service })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        answer.status(),
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );

    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request,
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"lockstep.v1.Control".to_owned()), "{names:?}");
    tokio::task::spawn_blocking(move || finish(running)).await.unwrap();
}

#[test]
fn a_folder_in_use_a_taken_port_and_an_impossible_world_are_refused() {
    let folder = tempdir().unwrap();
    let running = Coordinator::start(options(&folder)).unwrap();
    let error = Coordinator::start(options(&folder)).unwrap_err().to_string();
    assert!(
        error.contains("in use by the process") && error.contains(&std::process::id().to_string()),
        "{error}"
    );

    let elsewhere = tempdir().unwrap();
    let mut taken = options(&elsewhere);
    taken.config.coordinator.bind = running.address();
    let error = Coordinator::start(taken).unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
    let mut crowded = options(&elsewhere);
    crowded.ranks = 40;
    let error = Coordinator::start(crowded).unwrap_err().to_string();
    assert!(
        error.contains("run.lanes is 4") && error.contains("40 ranks"),
        "{error}"
    );
    assert!(!elsewhere.path().join("run").exists(), "nothing was written");

    finish(running);
    // Nobody had trained in it, so the folder may be used again, in the next term.
    let running = Coordinator::start(options(&folder)).unwrap();
    assert!(running.run_id().starts_with("served-"));
    finish(running);
}
