//! What somebody sends who means harm: nothing of it ends the coordinator, and a good call is answered after all of it.

use std::time::Duration;

use lockstep_proto::domain::{FromMember, Header, JoinInfo, MemberBody, Stamp};
use lockstep_proto::v1;
use lockstep_proto::v1::training_client::TrainingClient;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::random;
use crate::stage::{Stage, call, plain_request};

const STATUS: &str = "/lockstep.v1.Control/Status";

/// Resident memory of this process in MiB.
fn resident_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    (statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096) >> 20
}

async fn answers(stage: &Stage) {
    let came = call(&mut stage.plain().await, STATUS, None, &plain_request()).await;
    assert_eq!(came.code, Some(0), "a good call after all that: {came:?}");
}

#[tokio::test]
async fn noise_oversized_messages_and_bombs_of_headers_are_refused() {
    let mut stage = Stage::new();
    stage.start(|section, _| section.connections_per_address = 64);
    let (seed, count) = random::seed_and_count(200);
    let mut random = StdRng::seed_from_u64(seed);
    let before = resident_mib();
    for round in 0..count {
        let mut stream = TcpStream::connect(stage.address()).await.unwrap();
        let mut bytes = match round % 3 {
            0 => Vec::new(),
            1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec(),
            _ => b"POST /lockstep.v1.Control/Stop HTTP/1.1\r\nHost: localhost\r\n".to_vec(),
        };
        bytes.extend((0..random.random_range(0..2000)).map(|_| random.random::<u8>()));
        // The other end may have hung up already.
        let _sent = stream.write_all(&bytes).await;
    }
    // Connections that say nothing take their places and no more.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(stage.address()).await.unwrap());
    }
    let cut = async {
        let mut cut = 0;
        for stream in &mut silent {
            let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut [0; 1])).await;
            cut += usize::from(read.is_ok());
        }
        cut
    };
    assert!(cut.await >= 100, "more connections than an address may have are closed");
    drop(silent);
    tokio::time::sleep(Duration::from_millis(100)).await;

    let mut channel = stage.plain().await;
    for size in [5 << 20, 20 << 20] {
        let came = call(&mut channel, STATUS, None, &vec![0x0a; size]).await;
        assert_ne!(came.code, Some(0), "{size}: {came:?}");
    }
    for message in [
        &[0xff; 40][..],
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0x0a, 0x02, 0x0a],
    ] {
        let came = call(&mut stage.plain().await, STATUS, None, message).await;
        assert!(came.code.is_some_and(|code| code != 0), "{came:?}");
    }
    let bomb = "x".repeat(15_000);
    for _ in 0..20 {
        let mut bombed = stage.plain().await;
        let came = call(&mut bombed, STATUS, Some(&bomb.repeat(4)), &plain_request()).await;
        assert_ne!(came.code, Some(0), "{came:?}");
    }
    answers(&stage).await;
    let grown = resident_mib().saturating_sub(before);
    assert!(grown < 200, "{grown} MiB more than before");
    let (end, ..) = stage.finish();
    assert_eq!(
        end.reason,
        end.reason.trim(),
        "the run ended as it was asked to: {}",
        end.reason
    );
}

#[tokio::test]
async fn whatever_a_member_says_the_run_goes_on_or_says_why_not() {
    let (seed, count) = random::seed_and_count(10);
    let mut random = StdRng::seed_from_u64(seed);
    let messages = random::messages();
    let member_message = messages
        .iter()
        .find(|of| of.full_name() == "lockstep.v1.MemberMessage")
        .unwrap();
    for round in 0..count {
        let mut stage = Stage::new();
        stage.start(|_, _| {});
        let run_id = stage.running().run_id().to_owned();
        let config_hash = lockstep_config_hash(&stage);
        let mut streams = Vec::new();
        for member in 0..2 {
            let (sender, receiver) = mpsc::channel(64);
            let mut client = TrainingClient::new(stage.plain().await);
            let stream = client.attach(ReceiverStream::new(receiver)).await.unwrap().into_inner();
            let info = JoinInfo {
                member: format!("trainer-{member}"),
                config_hash: config_hash.clone(),
                data_hash: "data".to_owned(),
                ..JoinInfo::default()
            };
            let stamp = Stamp { term: 1, generation: 0 };
            let header = Header {
                run_id: run_id.clone(),
                stamp,
            };
            let join = FromMember {
                header,
                body: MemberBody::Join(info),
            };
            sender.send((&join).into()).await.unwrap();
            streams.push((sender, stream));
        }
        for _ in 0..40 {
            let made = random::message(member_message, &mut random, 4).encode_to_vec();
            let made = match random.random_bool(0.2) {
                true => random::mutated(made, &mut random),
                false => made,
            };
            let Ok(mut message) = v1::MemberMessage::decode(made.as_slice()) else {
                continue;
            };
            let stamp = Stamp {
                term: 1,
                generation: random.random_range(0..3),
            };
            message.header = Some(
                (&Header {
                    run_id: run_id.clone(),
                    stamp,
                })
                    .into(),
            );
            // Refused members are gone, and say nothing more.
            let _said = streams[random.random_range(0..2)].0.send(message).await;
        }
        drop(streams);
        answers_or_ended(&stage, seed, round).await;
        let end = stage.finish().0;
        assert!(!end.reason.is_empty());
    }
}

/// The hash of the stage's config, as its trainers would report it.
fn lockstep_config_hash(stage: &Stage) -> String {
    let text = std::fs::read_to_string(stage.path("run/config.toml")).unwrap();
    lockstep_config::RunConfig::parse(&text, "config.toml", &[])
        .unwrap()
        .hash()
}

/// The coordinator answers, or it has ended the run in order.
async fn answers_or_ended(stage: &Stage, seed: u64, round: u64) {
    let address = format!("http://{}", stage.address());
    let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
    if let Ok(mut channel) = endpoint.connect().await {
        let came = call(&mut channel, STATUS, None, &plain_request()).await;
        assert!(
            came.code == Some(0) || came.http == 0 || came.code == Some(14),
            "seed {seed}, round {round}: {came:?}"
        );
    }
}
