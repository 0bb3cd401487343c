//! Many members on one coordinator, each with a connection of its own.
#![allow(clippy::unwrap_used)]

mod trainers;

use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_config::RunConfig;
use lockstep_coordinator::{BegunRun, Coordinator, CoordinatorOptions, Running};
use lockstep_proto::domain::{
    CoordinatorBody, FromCoordinator, FromMember, Header, JoinInfo, MemberBody, Outcome, Ready, RunEvent, Stamp,
};
use lockstep_proto::v1::training_client::TrainingClient;
use tempfile::{TempDir, tempdir};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use trainers::{Behaviour, train};

/// The last name in the order of ranks.
const DEAF: &str = "trainer-9999";

fn options(folder: &TempDir, ranks: u32) -> CoordinatorOptions {
    let text = r#"
        [run]
        name = "many"
        steps = 12
        lanes = 256
        [data]
        path = "data"
        sequence_length = 16
        [model]
        kind = "gpt2"
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 1
        schedule = 256
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
        [fault]
        snapshot_every = 4
        [security]
        connections_per_address = 1000
    "#;
    CoordinatorOptions {
        config: RunConfig::parse(text, "test", &[]).unwrap(),
        run_dir: folder.path().join("run"),
        begun: BegunRun::LeftAlone,
        vocabulary: 257,
        ranks,
        training_samples: 1000,
        data_hash: "data".to_owned(),
    }
}

/// Says what it must to become a rank, then reads nothing more: its machine still answers, its process takes nothing.
async fn join_and_stop_reading(running: &Running, config_hash: String) -> impl Sized {
    let address = format!("http://{}", running.address());
    let endpoint = Endpoint::from_shared(address).unwrap().initial_stream_window_size(1024);
    let (sender, receiver) = mpsc::channel(8);
    let mut client = TrainingClient::new(endpoint.connect().await.unwrap());
    let mut stream = client.attach(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let say = async |stamp: Stamp, body: MemberBody| {
        let run_id = running.run_id().to_owned();
        let header = Header { run_id, stamp };
        sender.send((&FromMember { header, body }).into()).await.unwrap();
    };
    loop {
        let message = FromCoordinator::try_from(stream.message().await.unwrap().unwrap()).unwrap();
        match message.body {
            CoordinatorBody::Welcome { .. } => {
                let info = JoinInfo {
                    member: DEAF.to_owned(),
                    pid: 1,
                    host: "elsewhere".to_owned(),
                    build: "build".to_owned(),
                    config_hash: config_hash.clone(),
                    data_hash: "data".to_owned(),
                    fingerprint: "avx2, 1 thread".to_owned(),
                    ..JoinInfo::default()
                };
                say(message.header.stamp, MemberBody::Join(info)).await;
            }
            CoordinatorBody::CommId(_) => {
                let ready = Ready {
                    hash: trainers::hash_of(0, 0),
                    transports: Vec::new(),
                };
                say(message.header.stamp, MemberBody::Ready(ready)).await;
                return (sender, stream, client);
            }
            _ => {}
        }
    }
}

#[test]
fn two_hundred_members_make_every_step_with_one_generation() {
    let folder = tempdir().unwrap();
    let options = options(&folder, 200);
    let hash = options.config.hash();
    let running = Coordinator::start(options).unwrap();
    let behaviour = Behaviour {
        snapshot_every: 4,
        ..Behaviour::default()
    };
    train(&running, &hash, &vec![behaviour; 200]);
    let end = running.wait();
    assert_eq!((end.outcome, end.last_step), (Outcome::Completed, 12));
}

#[test]
fn a_member_that_does_not_take_what_it_is_told_is_cut_off_and_named_and_the_others_go_on() {
    let folder = tempdir().unwrap();
    let options = options(&folder, 20);
    let hash = options.config.hash();
    let running = Coordinator::start(options).unwrap();
    let mut events = running.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let is_cut = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| train(&running, &hash, &[Behaviour::default(); 19]));
        let _deaf = runtime.block_on(join_and_stop_reading(&running, hash.clone()));
        // Each of these is a word to every rank.
        let handle = running.handle();
        scope.spawn(move || {
            for _ in 0..2000 {
                let answered = handle.pause().and_then(|_| handle.resume());
                if answered.is_err() || is_cut.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let mut cut = None;
        let end = loop {
            match events.blocking_next().unwrap() {
                RunEvent::Decided { reason } if reason.contains("does not take what it is told") => {
                    is_cut.store(true, Ordering::Relaxed);
                    cut = Some(reason);
                }
                RunEvent::Ended(end) => break end,
                _ => {}
            }
        };
        let cut = cut.expect("it is said why the member is cut off");
        assert!(cut.contains(DEAF) && cut.contains("rank 19"), "{cut}");
        assert_eq!((end.outcome, end.last_step), (Outcome::Completed, 12));
    });
    running.wait();
}
