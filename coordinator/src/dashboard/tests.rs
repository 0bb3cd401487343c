//! What a page is told: history, news, state and metrics, from a board without a server; and what its routes take.

use std::sync::Arc;

use lockstep_proto::domain::{CommittedStep, JoinInfo, Plan, Stamp, StepMetrics};

use super::routes::router;
use super::*;
use crate::branches::Rewind;
use crate::changes::{Ask, Setting};
use crate::run::{Commit, Effect, Event, Order, Wanted};
use crate::service::{Caller, Letter, mailbox};

/// A step of a run that learns.
pub(crate) fn step(number: u64) -> CommittedStep {
    CommittedStep {
        step: number,
        total_steps: 100_000,
        samples: number * 8,
        tokens: number * 128,
        loss: 3.0 + 100.0 / (number + 9) as f64,
        learning_rate: 1e-3,
        effective_learning_rate: 9e-4,
        batch: 8,
        grad_norm: 1.5,
        update_norm: 0.25,
        tokens_per_second: 1280.0,
        step_ms: 100.0,
        phases: vec![("forward_ms".to_owned(), 40.0), ("backward_ms".to_owned(), 50.0)],
        generation: 1,
        ranks: 2,
        parameter_hash: [7; 32],
        polar_factors: 0,
        model_value: None,
        dual_norm: None,
        lower_bound: None,
        gradient_variance: None,
        gradient_square: None,
        noise_scale: None,
        orthogonality: None,
        skipped: None,
    }
}

pub(crate) fn rewind(number: u64, to: u64) -> Rewind {
    Rewind {
        number,
        unusable: to + 9,
        to,
        skipped: to * 8..(to + 9) * 8,
        rate_factor: 1.0,
        term: 1,
        generation: 1,
        samples: to * 8,
        tokens: to * 128,
        parameter_hash: None,
        reason: "the loss is NaN".to_owned(),
        by_operator: false,
        stopped_after: None,
    }
}

pub(crate) fn commit(number: u64) -> Commit {
    let step = step(number);
    Commit {
        stamp: Stamp { term: 1, generation: 1 },
        plan: Plan {
            step: number,
            learning_rate: step.learning_rate,
            micro_batches: 4,
            first_sample: (number - 1) * 8,
            samples: 8,
            validate: false,
            last: false,
            version: 1,
            checkpoint: false,
            momentum: None,
            weight_decay: None,
            stop: false,
        },
        parameter_hash: step.parameter_hash,
        metrics: StepMetrics {
            loss: step.loss,
            tokens: 128,
            grad_norm: step.grad_norm,
            update_norm: step.update_norm,
            learning_rate: step.learning_rate,
            effective_learning_rate: step.effective_learning_rate,
            step_ms: step.step_ms,
            phases: step.phases,
            ..StepMetrics::default()
        },
        ranks: 2,
        samples: step.samples,
        tokens: step.tokens,
        noise_scale: None,
    }
}

/// A board of a run of so many steps.
pub(crate) fn board(steps: u64) -> Board {
    let entries = (1..=steps)
        .map(|number| Entry::Step(Box::new(commit(number))))
        .collect();
    let story = Story {
        name: "a \"run\"".to_owned(),
        run_id: "run-1".to_owned(),
        folder: PathBuf::from("."),
        lanes: 4,
        total_steps: 100_000,
        entries,
        generations: Vec::new(),
        decisions: Vec::new(),
        end: None,
    };
    Board::new(story, AlertsSection::default())
}

pub(crate) fn status(phase: &str) -> RunStatus {
    RunStatus {
        header: lockstep_proto::domain::Header::default(),
        name: "run".to_owned(),
        phase: phase.to_owned(),
        reason: "all is well".to_owned(),
        step: 3,
        total_steps: 100_000,
        ranks: 2,
        members: 2,
        backend: "host".to_owned(),
        loss: Some(3.0),
        validation_loss: None,
        tokens_per_second: Some(1280.0),
        transports: Vec::new(),
        skipped_steps: 1,
        last_skip: Some("a spike".to_owned()),
        rewinds: 2,
        last_rewind: None,
        alerts: Vec::new(),
    }
}

fn member(rank: u32) -> MemberStatus {
    MemberStatus {
        info: JoinInfo {
            member: format!("m{rank}"),
            host: "here".to_owned(),
            pid: 7,
            ..JoinInfo::default()
        },
        place: Some((rank, rank * 2..rank * 2 + 2)),
        reported_step: 3,
        phase: "forward".to_owned(),
        transports: Vec::new(),
        waits: false,
    }
}

#[test]
fn a_page_is_told_what_is_new_once_and_in_order() {
    let board = board(3);
    let place = board.place();
    board.recorded(&Record::Committed(Box::new(commit(4))));
    board.recorded(&Record::Decision {
        reason: "rank 1 was lost".to_owned(),
    });
    board.observed(status("training"), vec![member(0), member(1)], None);
    let (news, place) = board.news(place);
    assert_eq!(news["history"]["step"], serde_json::json!([4]));
    assert_eq!(news["decisions"][0]["reason"], "rank 1 was lost");
    assert_eq!(news["state"]["members"][1]["lanes"], serde_json::json!([2, 4]));
    assert_eq!(news["state"]["phase"], "training");
    let (again, _) = board.news(place);
    assert_eq!(again["history"]["step"], serde_json::json!([]));
    assert_eq!(again["decisions"], serde_json::json!([]));
}

#[test]
fn a_page_that_missed_a_rewind_is_told_to_begin_anew_and_loses_no_decision() {
    let board = board(20);
    let place = board.place();
    board.recorded(&Record::Rewound(rewind(1, 12)));
    for number in 0..MOST_DECISIONS + 5 {
        board.recorded(&Record::Decision {
            reason: number.to_string(),
        });
    }
    let (news, _) = board.news(place);
    assert_eq!(news["reset"], true);
    let decisions = news["decisions"].as_array().unwrap();
    assert_eq!(decisions.len(), MOST_DECISIONS, "as many as are kept");
    assert_eq!(decisions.last().unwrap()["reason"], (MOST_DECISIONS + 4).to_string());
}

#[test]
fn buttons_are_there_for_what_can_be_done_now() {
    let board = board(3);
    let possible = |board: &Board| -> Vec<String> {
        let commands = board.state()["commands"].clone();
        let commands = commands
            .as_array()
            .unwrap()
            .iter()
            .filter(|command| command["possible"] == true);
        commands
            .map(|command| command["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(possible(&board).is_empty(), "the run was not looked at yet");
    board.observed(status("training"), Vec::new(), None);
    assert_eq!(possible(&board), ["pause", "checkpoint", "stop"]);
    board.observed(status("paused"), Vec::new(), None);
    assert_eq!(possible(&board), ["resume", "stop"]);
    board.ended(&RunEnd {
        outcome: lockstep_proto::domain::Outcome::Completed,
        reason: "done".to_owned(),
        last_step: 3,
    });
    assert!(possible(&board).is_empty());
    assert_eq!(board.state()["end"]["outcome"], "completed");
}

#[test]
fn a_hundred_thousand_steps_are_all_in_a_view_that_is_small() {
    let board = board(100_000);
    let text = serde_json::to_string(&board.lock().history.view(0, u64::MAX, 2000)).unwrap();
    let view: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(view["steps"], 100_000);
    assert!(text.len() < 2_000_000, "{} bytes", text.len());
}

#[test]
fn metrics_are_what_a_parser_of_prometheus_takes() {
    let board = board(3);
    board.observed(status("training"), vec![member(0)], None);
    let nan = CommittedStep {
        loss: f64::NAN,
        grad_norm: f64::INFINITY,
        ..step(4)
    };
    board.lock().history.push(&nan);
    let text = board.metrics();
    let parsed =
        openmetrics_parser::prometheus::parse_prometheus(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    for name in [
        "step",
        "loss",
        "phase_seconds",
        "alerts",
        "ranks",
        "skipped_steps_total",
        "learning_rate",
    ] {
        assert!(
            parsed.families.contains_key(&format!("lockstep_{name}")),
            "{name} is missing in\n{text}"
        );
    }
    assert!(text.contains("lockstep_step{run=\"a \\\"run\\\"\"} 4\n"), "{text}");
    assert!(
        text.contains("lockstep_gradient_norm{run=\"a \\\"run\\\"\"} +Inf\n"),
        "{text}"
    );
    assert!(text.contains(",phase=\"forward\"} 0.04\n"), "{text}");
    assert_eq!(text.matches("lockstep_alerts{").count(), Kind::ALL.len());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.contains("{run="), "{line}");
    }
}

#[test]
fn the_page_in_one_file_holds_everything_and_loads_nothing() {
    let board = board(50);
    board.recorded(&Record::Decision {
        reason: "</script><b>".to_owned(),
    });
    let page = export::page_of(&board);
    for outside in ["src=\"", "href=\"/", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("</script>").count(), 2);
    let data = page
        .split("id=\"data\">")
        .nth(1)
        .unwrap()
        .split("</script>")
        .next()
        .unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["history"]["step"].as_array().unwrap().len(), 50);
    assert_eq!(data["state"]["decisions"][0]["reason"], "</script><b>");
}

#[test]
fn a_certificate_that_is_about_to_expire_is_told() {
    let board = board(1);
    board.certificate_expires(Some(SystemTime::now() + std::time::Duration::from_secs(86_400)));
    board.observed(status("training"), Vec::new(), None);
    assert_eq!(board.raised()[0].kind, "certificate");
    board.certificate_expires(None);
}

#[tokio::test]
async fn the_webhook_is_told_of_an_alert_and_of_its_end_and_tries_again() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let alerts = AlertsSection {
        webhook: Some(format!("http://{}/hush", receiver.local_addr().unwrap())),
        ..AlertsSection::default()
    };
    let hook = webhook::Webhook::of(&alerts).unwrap().unwrap();
    let board = Arc::new(board(1));
    board.recorded(&Record::Checkpoint(lockstep_proto::domain::Checkpoint {
        term: 1,
        generation: 1,
        step: 1,
    }));
    let carried = tokio::spawn(hook.carry(board.clone()));
    board
        .lock()
        .alerts
        .happened(Kind::Checkpoint, "", "the disk is full".to_owned(), now());
    board.tell();
    let mut states = Vec::new();
    for answer in ["500 Oh", "200 OK", "200 OK"] {
        let (mut stream, _) = receiver.accept().await.unwrap();
        let mut request = Vec::new();
        // The body ends with the object's brace.
        while request.last() != Some(&b'}') {
            stream.read_buf(&mut request).await.unwrap();
        }
        let request = String::from_utf8(request).unwrap();
        assert!(request.starts_with("POST /hush "), "{request}");
        let body: serde_json::Value = serde_json::from_str(request.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(
            (&body["kind"], &body["run_id"]),
            (&"checkpoint".into(), &"run-1".into())
        );
        states.push(body["state"].as_str().unwrap().to_owned());
        let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        if states.len() == 2 {
            board.ended(&RunEnd {
                outcome: lockstep_proto::domain::Outcome::Completed,
                reason: "done".to_owned(),
                last_step: 1,
            });
        }
    }
    assert_eq!(
        states,
        ["raised", "raised", "cleared"],
        "the first try failed and was repeated"
    );
    carried.await.unwrap();
}

/// Answers of the page's routes, with a run that takes every order and says that it holds from step 12 on.
struct Desk {
    router: axum::Router,
    orders: tokio::sync::mpsc::UnboundedReceiver<Event>,
}

impl Desk {
    fn new() -> Desk {
        let (mailbox, mut letters) = mailbox();
        let (heard, orders) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(letter) = letters.next().await {
                if let Letter::Command(event, _, reply) = letter {
                    heard.send(event).unwrap();
                    let (step, version) = (12, 2);
                    reply(Ok(("from step 12 on".to_owned(), Some(Effect { step, version }))));
                }
            }
        });
        let board = Arc::new(board(3));
        board.observed(status("training"), Vec::new(), None);
        Desk {
            router: router(board, mailbox, false),
            orders,
        }
    }

    /// The status and the JSON that a caller is answered; the headers are those of our page.
    async fn ask(&mut self, request: http::request::Builder, body: &str, may_order: bool) -> (u16, serde_json::Value) {
        let request = request.header("content-type", "application/json");
        let request = request.body(axum::body::Body::from(body.to_owned())).unwrap();
        let caller = Caller::new("somebody", "here", "a call").with_orders(may_order);
        let answer = caller
            .serve(tower_service::Service::call(&mut self.router, request))
            .await
            .unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn set(&mut self, body: &str) -> (u16, serde_json::Value) {
        let post = http::Request::post("/api/set").header("x-lockstep", "1");
        self.ask(post, body, true).await
    }
}

#[tokio::test]
async fn what_is_set_on_the_page_is_the_order_that_the_command_line_gives() {
    let mut desk = Desk::new();
    let form = r#"{"learning_rate":"3e-4","batch":" 64 ","momentum":"schedule","weight_decay":"x0.5","key":"page-1","dry_run":true}"#;
    let (code, answer) = desk.set(form).await;
    assert_eq!((code, &answer["step"]), (200, &serde_json::json!(12)), "{answer}");
    assert_eq!(answer["sentence"], "from step 12 on");
    let ask = Ask {
        learning_rate: Some(Setting::Value(3e-4)),
        batch: Some(Setting::Value(64.0)),
        momentum: Some(Setting::Schedule),
        weight_decay: Some(Setting::Factor(0.5)),
        ..Ask::default()
    };
    let order = Order {
        wanted: Wanted::Change(ask),
        key: "page-1".to_owned(),
        if_step_before: None,
        dry_run: true,
    };
    assert_eq!(desk.orders.try_recv().unwrap(), Event::Ordered(Box::new(order)));
    // A field that is left empty stays as it is.
    desk.set(r#"{"learning_rate":"","batch":"8","momentum":"","weight_decay":""}"#)
        .await;
    let Event::Ordered(order) = desk.orders.try_recv().unwrap() else {
        panic!("no order")
    };
    let only_the_batch = Ask {
        batch: Some(Setting::Value(8.0)),
        ..Ask::default()
    };
    assert_eq!((order.wanted, order.dry_run), (Wanted::Change(only_the_batch), false));
}

#[tokio::test]
async fn words_that_are_no_setting_are_refused_by_field_and_no_other_page_can_set_anything() {
    let mut desk = Desk::new();
    for (field, words) in [
        ("learning_rate", "fast"),
        ("batch", "xx"),
        ("momentum", "nan"),
        ("weight_decay", "x"),
    ] {
        let (code, answer) = desk.set(&format!("{{\"{field}\":\"{words}\"}}")).await;
        let said = answer["error"].as_str().unwrap();
        assert_eq!(code, 400);
        assert!(
            said.starts_with(&field.replace('_', " ")) && said.contains(words),
            "{said}"
        );
    }
    let (code, answer) = desk
        .set(&format!("{{\"batch\":\"8\",\"key\":\"{}\"}}", "k".repeat(129)))
        .await;
    assert!(
        code == 400 && answer["error"].as_str().unwrap().contains("128"),
        "{answer}"
    );
    let (code, _) = desk.set(r#"{"epochs":"3"}"#).await;
    assert_eq!(code, 422, "there is no such field");
    // A form of another site cannot set the header.
    let (code, answer) = desk
        .ask(http::Request::post("/api/set"), r#"{"batch":"8"}"#, true)
        .await;
    assert!(
        code == 403 && answer["error"].as_str().unwrap().contains("X-Lockstep"),
        "{answer}"
    );
    let (code, _) = desk
        .ask(http::Request::get("/api/set").header("x-lockstep", "1"), "", true)
        .await;
    assert_eq!(code, 405);
    assert!(desk.orders.try_recv().is_err(), "nothing has reached the run");
}

#[tokio::test]
async fn the_page_is_told_whether_its_reader_may_order_and_whether_anything_can_be_set_now() {
    let mut desk = Desk::new();
    for may in [true, false] {
        let (code, state) = desk.ask(http::Request::get("/api/state"), "", may).await;
        assert_eq!(
            (code, &state["may_order"], &state["may_set"]),
            (200, &may.into(), &true.into())
        );
    }
    let board = board(1);
    for (phase, may_set) in [
        ("paused", true),
        ("regrouping", true),
        ("stopping", false),
        ("finishing", false),
    ] {
        board.observed(status(phase), Vec::new(), None);
        assert_eq!(board.state()["may_set"], may_set, "{phase}");
    }
}

#[test]
fn every_field_of_the_form_has_a_label_and_a_name_that_the_route_takes() {
    let page = super::export::PAGE;
    for field in ["learning_rate", "batch", "momentum", "weight_decay"] {
        assert!(page.contains(&format!("<label for=\"set-{field}\">")), "{field}");
        assert!(
            page.contains(&format!("<input id=\"set-{field}\" name=\"{field}\"")),
            "{field}"
        );
    }
}
