//! The trace of a real run at a collector that speaks OTLP: a coordinator with its services, trainers through real sockets, one
//! of which is lost, and calls. And runs whose collector is away, or wants nothing, which end as ever.
#![allow(clippy::unwrap_used)]

#[path = "trainers/mod.rs"]
mod trainers;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use lockstep_config::RunConfig;
use lockstep_coordinator::{BegunRun, Coordinator, CoordinatorOptions, Running};
use lockstep_proto::domain::{Outcome, RunEnd};
use lockstep_proto::v1::control_client::ControlClient;
use lockstep_proto::{PROTOCOL_VERSION, v1};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use tempfile::tempdir;

use trainers::{Behaviour, train};

/// Takes what is posted to it, each request with its path, and answers the same to all.
struct Collector {
    url: String,
    requests: Arc<Mutex<Vec<(String, ExportTraceServiceRequest)>>>,
}

impl Collector {
    fn start(answer: &'static str) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = requests.clone();
        // They end with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = kept.clone();
                std::thread::spawn(move || serve(stream.unwrap(), answer, &kept));
            }
        });
        Collector { url, requests }
    }

    fn spans(&self) -> Vec<ResourceSpans> {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .flat_map(|(_, request)| request.resource_spans.clone())
            .collect()
    }
}

/// Serves a connection until it is closed.
fn serve(mut stream: TcpStream, answer: &str, kept: &Mutex<Vec<(String, ExportTraceServiceRequest)>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut head, mut length) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse().unwrap();
            }
            head.push(line);
        }
        assert!(
            head.contains(&"content-type: application/x-protobuf".to_owned()),
            "{head:?}"
        );
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        kept.lock().unwrap().push((head[0].clone(), request));
        let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
    }
}

fn options(folder: &Path, otlp: &str) -> CoordinatorOptions {
    let text = format!(
        r#"
        [run]
        name = "traced"
        lanes = 8
        steps = 12
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
        schedule = 4
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
        [telemetry]
        otlp = "{otlp}"
    "#
    );
    CoordinatorOptions {
        config: RunConfig::parse(&text, "test", &[]).unwrap(),
        begun: BegunRun::LeftAlone,
        vocabulary: 257,
        run_dir: folder.to_owned(),
        ranks: 3,
        training_samples: 1000,
        data_hash: "data".to_owned(),
    }
}

/// A pause, its end, and an order that cannot be carried out, before anybody trains.
fn order(running: &Running) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let address = format!("http://{}", running.address());
    runtime.block_on(async {
        let mut control = ControlClient::connect(address).await.unwrap();
        let header = Some(v1::Header {
            protocol_version: PROTOCOL_VERSION,
            ..v1::Header::default()
        });
        let rewind = v1::RewindRequest {
            header,
            command: None,
            to_step: 10,
        };
        control.rewind(rewind).await.unwrap_err();
    });
    running.handle().pause().unwrap();
    running.handle().resume().unwrap();
}

/// Twelve steps on three ranks, the last of which is lost after step 7. With the run's id.
fn record(otlp: &str) -> (RunEnd, String) {
    let folder = tempdir().unwrap();
    let options = options(folder.path(), otlp);
    let config_hash = options.config.hash();
    let running = Coordinator::start(options).unwrap();
    let run_id = running.run_id().to_owned();
    order(&running);
    let behaviours = [0, 1, 2].map(|rank| Behaviour {
        snapshot_every: 3,
        dies_after: (rank == 2).then_some(7),
        ..Behaviour::default()
    });
    train(&running, &config_hash, &behaviours);
    (running.wait(), run_id)
}

fn value(attributes: &[KeyValue], key: &str) -> Value {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    found
        .and_then(|it| it.value.clone()?.value)
        .unwrap_or_else(|| panic!("{key} is none of {attributes:?}"))
}

fn whole(span: &Span, key: &str) -> i64 {
    match value(&span.attributes, key) {
        Value::IntValue(value) => value,
        other => panic!("{other:?}"),
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Value::StringValue(value) => value,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_with_a_lost_member_and_calls_is_a_trace() {
    let collector = Collector::start("200 OK");
    let (end, run_id) = record(&collector.url);
    assert_eq!(end.outcome, Outcome::Completed, "{end:?}");
    let resources = collector.spans();
    for resource in &resources {
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        assert_eq!(text(attributes, "service.name"), "lockstep-coordinator");
        assert_eq!(text(attributes, "service.instance.id"), format!("{run_id}/1"));
    }
    for (head, _) in collector.requests.lock().unwrap().iter() {
        assert_eq!(head, "post /v1/traces http/1.1");
    }
    let spans: Vec<Span> = resources
        .into_iter()
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect();
    let by_id: BTreeMap<_, _> = spans.iter().map(|span| (span.span_id.clone(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "every span is sent once");
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();

    // One trace, in which every span lies within its parent.
    let [run] = named("run")[..] else { panic!("{spans:#?}") };
    assert_eq!(text(&run.attributes, "lockstep.run_id"), run_id);
    assert_eq!(run.parent_span_id, Vec::<u8>::new());
    for span in &spans {
        assert_eq!(span.trace_id, run.trace_id);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        if let Some(parent) = by_id.get(&span.parent_span_id) {
            let is_within = parent.start_time_unix_nano <= span.start_time_unix_nano
                && span.end_time_unix_nano <= parent.end_time_unix_nano;
            // A call has its time from the ledger, whose seconds are less fine.
            assert!(is_within || span.name == "call", "{span:?} in {parent:?}");
        } else {
            assert_eq!(span.name, "run", "{span:?}");
        }
    }

    // Two generations, the first of which ends with the loss.
    let [first, second] = named("generation")[..] else {
        panic!("{spans:#?}")
    };
    let figures = |span| {
        [
            "lockstep.term",
            "lockstep.generation",
            "lockstep.ranks",
            "lockstep.from_step",
        ]
        .map(|key| whole(span, key))
    };
    assert_eq!((figures(first), figures(second)), ([1, 1, 3, 0], [1, 2, 2, 6]));
    assert!(first.end_time_unix_nano <= second.start_time_unix_nano);
    let how = text(&first.attributes, "lockstep.ended");
    assert!(how.contains("trainer-2") && how.contains("was lost"), "{how}");
    assert_eq!(first.status.as_ref().unwrap().message, how);
    let decided: Vec<_> = first
        .events
        .iter()
        .map(|event| text(&event.attributes, "lockstep.reason"))
        .collect();
    assert!(decided.contains(&how), "{decided:?}");
    assert_eq!(text(&second.attributes, "lockstep.ended"), end.reason);
    assert_eq!(second.status, None);

    // In each of them: how it was formed, and its steps, each once and one after the other.
    let mut next = 1;
    for generation in [first, second] {
        let inside = |name| {
            let spans = named(name).into_iter();
            spans
                .filter(|span| span.parent_span_id == generation.span_id)
                .collect::<Vec<_>>()
        };
        let [forming] = inside("forming")[..] else {
            panic!("{spans:#?}")
        };
        assert_eq!(forming.start_time_unix_nano, generation.start_time_unix_nano);
        let mut free_from = forming.end_time_unix_nano;
        for steps in inside("steps") {
            assert!(steps.start_time_unix_nano >= free_from, "{steps:?}");
            free_from = steps.end_time_unix_nano;
            assert_eq!(whole(steps, "lockstep.first_step"), next);
            next = whole(steps, "lockstep.last_step") + 1;
        }
        assert_eq!(next, if generation == first { 8 } else { 13 });
    }
    assert_eq!(named("waiting").len(), 2, "for members, and for the others to leave");

    // And the calls, with what they were answered.
    let calls: Vec<_> = named("call")
        .iter()
        .map(|span| {
            assert_eq!(span.parent_span_id, run.span_id);
            let [call, who] = ["rpc.method", "lockstep.who"].map(|key| text(&span.attributes, key));
            let refused = value(&span.attributes, "lockstep.refused");
            (call, who, refused == Value::BoolValue(true), span.status.is_some())
        })
        .collect();
    let call = |call: &str, who: &str, refused| (call.to_owned(), who.to_owned(), refused, refused);
    assert_eq!(
        calls,
        [
            call("/lockstep.v1.Control/Rewind", "this machine", true),
            call("pause", "this process", false),
            call("resume", "this process", false),
        ]
    );
}

#[test]
fn a_run_whose_collector_is_away_or_wants_nothing_ends_as_ever() {
    // Nobody listens there any more.
    let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Connections are made there, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (refusing, busy) = (
        Collector::start("400 Bad Request"),
        Collector::start("503 Service Unavailable"),
    );
    let usual = record(&Collector::start("200 OK").url).0;
    assert_eq!(usual.outcome, Outcome::Completed);
    for url in [
        format!("http://{away}"),
        format!("http://{}", silent.local_addr().unwrap()),
        refusing.url.clone(),
        busy.url.clone(),
    ] {
        assert_eq!(record(&url).0, usual);
    }
    for collector in [refusing, busy] {
        assert!(!collector.spans().is_empty(), "it was asked");
    }
}
