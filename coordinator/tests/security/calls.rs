//! No call of any service succeeds without its role. The list is the one that the server reflects, so that a new call is
//! covered.

use lockstep_proto::FILE_DESCRIPTOR_SET;
use lockstep_security::{Access, Role, Token, required};
use prost::Message;
use prost_reflect::DescriptorPool;
use prost_reflect::prost_types::FileDescriptorProto;
use tonic::Request;
use tonic::transport::Channel;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::stage::{Came, Stage, call, plain_request, status};

/// Asks the server's reflection one thing.
async fn reflect(channel: &Channel, token: &Token, question: MessageRequest) -> MessageResponse {
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let mut request = Request::new(tokio_stream::iter([question]));
    let bearer = format!("Bearer {}", token.reveal()).parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(request)
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap().unwrap().message_response.unwrap()
}

/// Every call of every service that the server reflects, as a path.
async fn reflected(channel: &Channel, token: &Token) -> Vec<String> {
    let list = reflect(channel, token, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(list) = list else {
        panic!("{list:?}")
    };
    let mut paths = Vec::new();
    for service in list.service {
        let question = MessageRequest::FileContainingSymbol(service.name.clone());
        let answer = reflect(channel, token, question).await;
        let MessageResponse::FileDescriptorResponse(files) = answer else {
            panic!("{}: {answer:?}", service.name)
        };
        for file in files.file_descriptor_proto {
            let file = FileDescriptorProto::decode(file.as_slice()).unwrap();
            for described in &file.service {
                if format!("{}.{}", file.package(), described.name()) == service.name {
                    let paths_of = described
                        .method
                        .iter()
                        .map(|method| format!("/{}/{}", service.name, method.name()));
                    paths.extend(paths_of);
                }
            }
        }
    }
    paths
}

fn path_of(path: &str) -> Access {
    required("POST", path)
}

#[tokio::test]
async fn no_call_of_any_service_succeeds_without_its_role() {
    let (stage, tokens) = Stage::with_tokens();
    let mut channel = stage.plain().await;
    let [viewer, operator, trainer] = &tokens;
    let paths = reflected(&channel, viewer).await;
    for service in [
        "lockstep.v1.Control",
        "lockstep.v1.Training",
        "grpc.health.v1.Health",
        "grpc.reflection.v1",
    ] {
        assert!(
            paths.iter().any(|path| path.starts_with(&format!("/{service}"))),
            "{service}: {paths:?}"
        );
    }
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let own = pool.services().flat_map(|service| {
        let methods: Vec<String> = service
            .methods()
            .map(|m| format!("/{}/{}", service.full_name(), m.name()))
            .collect();
        methods
    });
    let mut all: Vec<String> = paths.into_iter().chain(own).collect();
    all.sort();
    all.dedup();
    assert!(all.len() >= 12, "{all:?}");
    let wrong = Token::generate().unwrap();
    for path in &all {
        let access = path_of(path);
        let callers: [(Option<&Token>, Option<Role>); 5] = [
            (None, None),
            (Some(&wrong), None),
            (Some(viewer), Some(Role::Viewer)),
            (Some(operator), Some(Role::Operator)),
            (Some(trainer), Some(Role::Trainer)),
        ];
        for (token, role) in callers {
            let may = access == Access::Open || role.is_some_and(|role| role.may(access));
            if may {
                continue;
            }
            let bearer = token.map(|token| format!("Bearer {}", token.reveal()));
            let came = call(&mut channel, path, bearer.as_deref(), &plain_request()).await;
            let expected = match (role, access) {
                (None, _) => Came::UNAUTHENTICATED,
                (Some(_), Access::Nobody) => Came::UNKNOWN_CALL,
                (Some(_), _) => Came::DENIED,
            };
            assert_eq!(came.code, expected, "{path} as {role:?}: {came:?}");
        }
    }
    for right in [viewer, operator] {
        assert_eq!(status(&mut channel, right).await.code, Some(0));
    }
    let health = call(&mut channel, "/grpc.health.v1.Health/Check", None, &[]).await;
    assert_eq!(health.code, Some(0), "probes show nothing: {health:?}");
    let (_, contents, _folder) = stage.finish();
    let orders: Vec<_> = contents.calls.iter().filter(|row| !row.is_refused).collect();
    assert!(
        orders.iter().all(|row| row.who == "this process"),
        "nobody gave an order: {orders:?}"
    );
    assert!(
        contents
            .calls
            .iter()
            .any(|row| row.is_refused && row.call.starts_with("/lockstep.v1."))
    );
}

#[test]
fn the_table_in_the_documentation_is_the_one_of_the_code() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md");
    let text = std::fs::read_to_string(page).unwrap();
    let mut told = Vec::new();
    for line in text
        .lines()
        .filter(|line| line.starts_with("| `/") || line.starts_with("| `GET /") || line.starts_with("| `POST /"))
    {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        for call in cells[0].split(", ") {
            let call = call.trim_matches('`');
            let (method, path) = call.split_once(' ').unwrap_or(("POST", call));
            let role = match required(method, path) {
                Access::Open => "anybody".to_owned(),
                Access::Needs(role) => role.to_string(),
                Access::Nobody => "nobody".to_owned(),
            };
            assert_eq!(cells[1], role, "{call} in docs/security.md");
            told.push(path.to_owned());
        }
    }
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    for service in pool.services().filter(|service| service.name() != "Parts") {
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let is_only_an_order = path_of(&path) == Access::Needs(Role::Operator);
            assert!(
                is_only_an_order || told.contains(&path),
                "docs/security.md does not tell who may call {path}"
            );
        }
    }
}

#[tokio::test]
async fn an_order_is_in_the_ledger_with_who_gave_it() {
    let (stage, [viewer, operator, _]) = Stage::with_tokens();
    let mut channel = stage.plain().await;
    let bearer = |token: &Token| format!("Bearer {}", token.reveal());
    let pause = "/lockstep.v1.Control/Pause";
    let came = call(&mut channel, pause, Some(&bearer(&operator)), &plain_request()).await;
    assert_eq!(came.code, Some(0), "{came:?}");
    let rows = stage.calls();
    let row = rows
        .iter()
        .find(|row| row.call == pause)
        .expect("it is durable before it is answered");
    assert_eq!((row.who.as_str(), row.is_refused), ("operator a-operator", false));
    assert!(row.from.starts_with("127.0.0.1:") && !row.answer.is_empty(), "{row:?}");
    // An order that no thread of the run has heard of is there too.
    let came = call(&mut channel, pause, Some(&bearer(&operator)), &[]).await;
    assert_eq!(came.code, Some(3), "{came:?}");
    let came = call(&mut channel, pause, Some(&bearer(&viewer)), &plain_request()).await;
    assert_eq!(came.code, Came::DENIED, "{came:?}");
    let (_, contents, folder) = stage.finish();
    let refused: Vec<_> = contents.calls.iter().filter(|row| row.is_refused).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert_eq!(
        (refused[0].who.as_str(), refused[1].who.as_str()),
        ("operator a-operator", "viewer a-viewer")
    );
    let reader = lockstep_coordinator::ledger::Reader::open(&folder.path().join("run")).unwrap();
    let audit = lockstep_coordinator::ledger::audit(&reader).unwrap();
    assert!(audit.is_clean(), "{:?}", audit.proofs);
    let replay = lockstep_coordinator::ledger::replay(&reader).unwrap();
    assert_eq!((replay.difference, replay.unreplayed), (None, None));
}
