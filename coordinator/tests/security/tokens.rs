//! Tokens: unknown, of another role, taken away while they are in use; as cookies of a browser; and nowhere to be read.

use std::io::Write;
use std::sync::Mutex;

use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use lockstep_security::{Role, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing_subscriber::fmt::MakeWriter;

use crate::stage::{Came, PATIENCE, Stage, all_bytes, call, plain_request, status, until};

/// Everything that is logged in this process.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        Log
    }
}

#[tokio::test]
async fn streams_that_are_open_end_when_their_token_is_taken_away_and_others_go_on() {
    let (stage, [viewer, ..]) = Stage::with_tokens();
    let kept = stage.add_token(Role::Viewer, "another");
    until("the new token is taken", async || {
        status(&mut stage.plain().await, &kept).await.code == Some(0)
    })
    .await;
    let watch = async |token: &Token| {
        let bearer = format!("Bearer {}", token.reveal()).parse().unwrap();
        let header = Some((&lockstep_proto::domain::Header::default()).into());
        let mut request = tonic::Request::new(v1::WatchRequest { header });
        request.metadata_mut().insert("authorization", bearer);
        let mut client = ControlClient::new(stage.plain().await);
        client.watch(request).await.unwrap().into_inner()
    };
    let (mut lost, mut stays) = (watch(&viewer).await, watch(&kept).await);
    let page = format!(
        "GET /api/events HTTP/1.1\nhost: localhost\nconnection: close\nauthorization: Bearer {}\n\n",
        viewer.reveal()
    );
    let lines = std::fs::read_to_string(stage.path("tokens")).unwrap();
    let rest: Vec<&str> = lines.lines().filter(|line| !line.contains("a-viewer")).collect();
    let page = http(&stage, &page);
    let taken = async {
        stage.write("tokens", &rest.join("\n"));
        loop {
            match lost.message().await {
                Ok(Some(_)) => {}
                end => return end,
            }
        }
    };
    // The page's stream ends by itself, or its text would never be whole.
    let (text, end) = tokio::time::timeout(PATIENCE, async { tokio::join!(page, taken) })
        .await
        .expect("both streams end");
    assert!(text.contains("text/event-stream"), "{text}");
    let refusal = end.unwrap_err();
    assert_eq!(refusal.code(), tonic::Code::Unauthenticated, "{refusal:?}");
    assert!(refusal.message().contains("taken away"), "{refusal:?}");
    assert_eq!(status(&mut stage.plain().await, &kept).await.code, Some(0));
    let still = tokio::time::timeout(std::time::Duration::from_millis(300), async {
        while let Ok(Some(_)) = stays.message().await {}
    });
    assert!(still.await.is_err(), "the other one's stream goes on");
}

/// Says a request over HTTP/1.1, and gives the whole answer as text.
async fn http(stage: &Stage, request: &str) -> String {
    let mut stream = TcpStream::connect(stage.address()).await.unwrap();
    let request = request.replace('\n', "\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_token_that_is_taken_away_is_refused_from_then_on() {
    let (stage, [viewer, ..]) = Stage::with_tokens();
    let mut channel = stage.plain().await;
    assert_eq!(status(&mut channel, &viewer).await.code, Some(0));
    let kept = stage.add_token(Role::Viewer, "another");
    until("the new token is taken", async || {
        status(&mut stage.plain().await, &kept).await.code == Some(0)
    })
    .await;
    let lines = std::fs::read_to_string(stage.path("tokens")).unwrap();
    let rest: Vec<&str> = lines.lines().filter(|line| !line.contains("a-viewer")).collect();
    stage.write("tokens", &rest.join("\n"));
    until("the old one is refused", async || {
        status(&mut stage.plain().await, &viewer).await.code == Came::UNAUTHENTICATED
    })
    .await;
    let again = status(&mut channel, &viewer).await;
    assert_eq!(
        again.code,
        Came::UNAUTHENTICATED,
        "on the connection that it had: {again:?}"
    );
    assert_eq!(status(&mut channel, &kept).await.code, Some(0));
    // A file that cannot be read changes nothing, and that is said.
    stage.write("tokens", "viewer somebody");
    until("that is in the ledger", async || {
        stage
            .calls()
            .iter()
            .any(|row| row.is_refused && row.answer.contains("line 1 of"))
    })
    .await;
    assert_eq!(status(&mut channel, &kept).await.code, Some(0));
    stage.finish();
}

#[tokio::test]
async fn what_is_no_token_is_refused_with_a_sentence() {
    let (stage, [viewer, ..]) = Stage::with_tokens();
    let mut channel = stage.plain().await;
    let long = format!("Bearer {}", "a".repeat(8000));
    let upper = format!("Bearer {}", viewer.reveal().to_uppercase());
    let basic = format!("Basic {}", viewer.reveal());
    let twice = format!("Bearer {0} {0}", viewer.reveal());
    for shown in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer lst_",
        "x",
        &long,
        &upper,
        &basic,
        &twice,
    ] {
        let came = call(
            &mut channel,
            "/lockstep.v1.Control/Status",
            Some(shown),
            &plain_request(),
        )
        .await;
        assert_eq!(came.code, Came::UNAUTHENTICATED, "{shown:.40}: {came:?}");
        assert!(
            !came.message.is_empty() && !came.message.contains("lst_aaa"),
            "{came:?}"
        );
    }
    assert_eq!(status(&mut channel, &viewer).await.code, Some(0));
    stage.finish();
}

#[tokio::test]
async fn who_fails_too_often_is_cut_short_and_holds_up_nobody_else() {
    let mut stage = Stage::new();
    let viewer = stage.add_token(Role::Viewer, "a-viewer");
    stage.start(|section, path| {
        section.tokens = Some(path("tokens"));
        section.failures_per_minute = 5;
        section.calls_per_second = 20;
    });
    let mut channel = stage.plain().await;
    let wrong = Token::generate().unwrap();
    let mut codes = Vec::new();
    for _ in 0..100 {
        codes.push(status(&mut channel, &wrong).await.code);
    }
    let unknown = codes.iter().filter(|code| **code == Came::UNAUTHENTICATED).count();
    let too_often = codes.iter().filter(|code| **code == Came::TOO_OFTEN).count();
    assert!(
        (5..50).contains(&unknown) && unknown + too_often == 100,
        "{unknown} and {too_often}"
    );
    assert_eq!(
        status(&mut channel, &viewer).await.code,
        Some(0),
        "from the same address"
    );
    let refused = || stage.calls().iter().filter(|row| row.is_refused).count();
    until("the first ones are in the ledger", async || refused() >= 5).await;
    assert!(refused() < 30, "{} rows for 100 refused calls", refused());
    let mut burst = Vec::new();
    for _ in 0..500 {
        burst.push(status(&mut channel, &viewer).await.code);
    }
    assert!(
        burst.contains(&Came::TOO_OFTEN) && burst[0] == Some(0),
        "a known caller has its limit too"
    );
    stage.finish();
}

#[tokio::test]
async fn a_browser_logs_in_once_and_is_known_by_its_cookie() {
    let (stage, [viewer, ..]) = Stage::with_tokens();
    let host = stage.address();
    let login = |token: &str| {
        let length = token.len();
        format!("POST /api/login HTTP/1.1\nHost: {host}\nConnection: close\nContent-Length: {length}\n\n{token}")
    };
    let answer = http(&stage, &login(Token::generate().unwrap().reveal())).await;
    assert!(
        answer.starts_with("HTTP/1.1 401") && !answer.contains("set-cookie"),
        "{answer}"
    );
    let answer = http(&stage, &login(&"x".repeat(1000))).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let answer = http(&stage, &login(viewer.reveal())).await;
    let cookie = answer
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .unwrap_or_else(|| panic!("{answer}"));
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{cookie}"
    );
    assert!(answer.contains(r#"{"name":"a-viewer","role":"viewer"}"#), "{answer}");
    let cookie = cookie.split(';').next().unwrap();
    let get = |path: &str, cookie: &str| {
        format!("GET {path} HTTP/1.1\nHost: {host}\nConnection: close\nCookie: other=1; {cookie}\n\n")
    };
    for (request, code) in [
        (get("/api/status", "other=2"), 401),
        (get("/metrics", "lockstep_token=lst_1"), 401),
        (get("/", "other=2"), 0),
        (get("/page.js", "other=2"), 0),
        (get("/nothing", "other=2"), 401),
        (get("/nothing", cookie), 404),
        (get("/api/status", cookie), 0),
        (get("/api/status", cookie).replace("GET", "POST"), 403),
        (get("/api/pause", cookie).replace("GET", "DELETE"), 404),
    ] {
        let answer = http(&stage, &request).await;
        let refused = [401, 403, 404, 429]
            .iter()
            .any(|code| answer.starts_with(&format!("HTTP/1.1 {code}")));
        match code {
            // Let through by the guard, whatever is behind it.
            0 => assert!(
                !refused || answer.starts_with("HTTP/1.1 404") && !answer.contains("token"),
                "{request}{answer}"
            ),
            _ => assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{request}{answer}"),
        }
    }
    let out = format!("POST /api/logout HTTP/1.1\nHost: {host}\nConnection: close\nContent-Length: 0\n\n");
    let answer = http(&stage, &out).await;
    assert!(
        answer.contains("lockstep_token=;") && answer.contains("Max-Age=0"),
        "{answer}"
    );
    stage.finish();
}

#[tokio::test]
async fn on_an_open_coordinator_a_page_from_elsewhere_reaches_nothing() {
    let mut stage = Stage::new();
    stage.start(|_, _| {});
    let host = stage.address();
    let stop = "POST /lockstep.v1.Control/Stop HTTP/1.1\nConnection: close\nContent-Type: application/grpc\nContent-Length: 0\n";
    for headers in [
        "Host: evil.example\n".to_owned(),
        format!("Host: evil.example:{}\n", host.port()),
        format!("Host: {host}\nOrigin: http://evil.example\n"),
        format!("Host: {host}\nOrigin: null\n"),
    ] {
        let answer = http(&stage, &format!("{stop}{headers}\n")).await;
        assert!(answer.contains("grpc-status: 7"), "{headers}{answer}");
    }
    let get = http(
        &stage,
        "GET /api/status HTTP/1.1\nConnection: close\nHost: evil.example\n\n",
    )
    .await;
    assert!(get.starts_with("HTTP/1.1 403"), "{get}");
    let mut channel = stage.plain().await;
    let came = call(&mut channel, "/lockstep.v1.Control/Status", None, &plain_request()).await;
    assert_eq!(came.code, Some(0), "{came:?}");
    let (_, contents, _folder) = stage.finish();
    let refused: Vec<_> = contents.calls.iter().filter(|row| row.is_refused).collect();
    assert_eq!(refused.len(), 5, "{refused:?}");
}

#[tokio::test]
async fn secrets_are_nowhere_to_be_read() {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(Log)
        .finish();
    // Another test of this process may be the first; its log is as good.
    let _first = tracing::subscriber::set_global_default(subscriber);
    let (stage, tokens) = Stage::with_tokens();
    let mut channel = stage.plain().await;
    let wrong = Token::generate().unwrap();
    let mut said = String::new();
    for token in tokens.iter().chain([&wrong]) {
        said += &format!("{:?}", status(&mut channel, token).await);
        let bearer = format!("Bearer {}", token.reveal());
        for path in [
            "/lockstep.v1.Control/Pause",
            "/lockstep.v1.Control/Members",
            "/api/status",
        ] {
            said += &format!("{:?}", call(&mut channel, path, Some(&bearer), &plain_request()).await);
        }
        let host = stage.address();
        let length = token.reveal().len();
        let login = format!("POST /api/login HTTP/1.1\nHost: {host}\nConnection: close\nContent-Length: {length}\n\n");
        let answer = http(&stage, &(login + token.reveal())).await;
        said += answer.split("set-cookie").next().unwrap();
    }
    drop(channel);
    let (_, contents, folder) = stage.finish();
    said += &format!("{contents:?}");
    let written = all_bytes(folder.path());
    let logged = LOG.lock().unwrap().clone();
    assert!(!logged.is_empty());
    for token in tokens.iter().chain([&wrong]) {
        let secret = &token.reveal()[4..];
        let is_in = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!said.contains(secret), "an answer or the ledger says it");
        assert!(!is_in(&written), "a file of the run holds it");
        assert!(!is_in(&logged), "the log holds it");
    }
}
