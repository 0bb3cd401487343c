//! What browsers and scrapers may ask for. Files hold no data and are open; `GET /api/…` and `/metrics` show the run,
//! `POST /api/…` changes it.
//!
//! A page of somebody else's must not reach a run through the browser of a person who may: answers forbid frames, other
//! origins and code that is not ours; a POST must carry the header `X-Lockstep`, which no form can send; and a coordinator
//! on a loopback address answers only to the names of the loopback, so that no foreign name can be made to point to it.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::sse::Sse;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};
use tonic::Status;

use crate::dashboard::Board;
use crate::dashboard::answers::{COMMANDS, Place};
use crate::dashboard::orders::Form;
use crate::dashboard::{events, export, prometheus};
use crate::run::{Effect, Event, Refusal};
use crate::service::Caller;
use crate::service::{Letter, Mailbox};

/// Pages that may follow the run at a time.
const SEATS: usize = 256;
/// Points of a history that says nothing else, and the most that can be asked for.
const POINTS: usize = 2000;
const MOST_POINTS: usize = 20_000;
/// What a page may load and run: what comes from here, and nothing written into the page itself.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'";

/// What every answer is made from.
#[derive(Clone)]
struct Desk {
    board: Arc<Board>,
    mailbox: Mailbox,
    seats: Arc<Semaphore>,
}

/// The page, its data and its commands. `is_local`: the coordinator listens on a loopback address.
pub(crate) fn router(board: Arc<Board>, mailbox: Mailbox, is_local: bool) -> Router {
    let desk = Desk {
        board,
        mailbox,
        seats: Arc::new(Semaphore::new(SEATS)),
    };
    let file =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    let guarded = Router::new()
        .route("/api/state", get(state))
        .route("/api/history", get(history))
        .route("/api/events", get(events))
        .route("/api/command", post(command))
        .route("/api/set", post(set))
        .route("/metrics", get(metrics))
        .layer(from_fn(is_ours))
        .layer(from_fn(move |request, next| is_of_here(is_local, request, next)));
    Router::new()
        .route("/", file("text/html; charset=utf-8", export::PAGE))
        .route("/page.css", file("text/css; charset=utf-8", export::STYLE))
        .route("/page.js", file("text/javascript; charset=utf-8", export::SCRIPT))
        .route("/icon.svg", file("image/svg+xml", export::ICON))
        .merge(guarded)
        .fallback(nothing)
        .with_state(desk)
        .layer(middleware::map_response(with_safe_headers))
}

async fn with_safe_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn refused(code: StatusCode, sentence: impl Into<String>) -> Response {
    (code, Json(json!({ "error": sentence.into() }))).into_response()
}

/// A POST comes from our page, or from a program that means it.
async fn is_ours(request: Request, next: Next) -> Response {
    if request.method() == Method::POST && !request.headers().contains_key("x-lockstep") {
        return refused(
            StatusCode::FORBIDDEN,
            "a command must carry the header X-Lockstep: 1, which keeps other sites' pages from giving it",
        );
    }
    next.run(request).await
}

/// On a loopback address only the loopback's own names are answered to.
async fn is_of_here(is_local: bool, request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| request.uri().authority().map(axum::http::uri::Authority::as_str));
    if is_local && !host.is_some_and(names_loopback) {
        return refused(
            StatusCode::MISDIRECTED_REQUEST,
            "this coordinator listens on a loopback address and answers to localhost, 127.0.0.1 and [::1] only",
        );
    }
    next.run(request).await
}

fn names_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_address = |name: &str| {
        name.parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
    };
    name.eq_ignore_ascii_case("localhost") || is_address(name)
}

async fn state(State(desk): State<Desk>) -> Json<Value> {
    let mut state = desk.board.state();
    // Who may not is shown no control at all; that orders are refused to them is the guard's part.
    state["may_order"] = json!(Caller::present().may_order());
    Json(state)
}

/// Which part of a history.
#[derive(Deserialize)]
struct Span {
    from: Option<u64>,
    to: Option<u64>,
    points: Option<usize>,
}

async fn history(State(desk): State<Desk>, span: Query<Span>) -> Response {
    // Columns of a long run take some milliseconds, for which nobody else shall wait.
    let text = tokio::task::spawn_blocking(move || {
        let points = span.points.unwrap_or(POINTS).clamp(1, MOST_POINTS);
        let view = (desk.board.lock().history).view(span.from.unwrap_or(0), span.to.unwrap_or(u64::MAX), points);
        serde_json::to_string(&view)
    })
    .await;
    match text {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        _ => refused(StatusCode::INTERNAL_SERVER_ERROR, "the history could not be written"),
    }
}

/// Where a page stands that does not send `Last-Event-ID`, since it comes for the first time.
#[derive(Deserialize)]
struct Since {
    since: Option<String>,
}

async fn events(State(desk): State<Desk>, since: Query<Since>, headers: HeaderMap) -> Response {
    let Ok(seat) = desk.seats.try_acquire_owned() else {
        return refused(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{SEATS} pages follow this run already; close one"),
        );
    };
    let last = headers.get("last-event-id").and_then(|last| last.to_str().ok());
    let place = last
        .or(since.since.as_deref())
        .and_then(|place| place.parse::<Place>().ok());
    let place = place.unwrap_or_else(|| desk.board.place());
    Sse::new(events::stream(desk.board, place, seat)).into_response()
}

/// What an operator asks for.
#[derive(Deserialize)]
struct Asked {
    command: String,
}

async fn command(State(desk): State<Desk>, Json(asked): Json<Asked>) -> Response {
    let event = match asked.command.as_str() {
        "pause" => Event::Pause,
        "resume" => Event::Resume,
        "checkpoint" => Event::Checkpoint,
        "stop" => Event::Stop,
        other => {
            let known: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
            let sentence = format!("there is no command {other:?}; there are {}", known.join(", "));
            return refused(StatusCode::BAD_REQUEST, sentence);
        }
    };
    give(&desk, event).await
}

/// What an operator sets, and first what that would do.
async fn set(State(desk): State<Desk>, Json(form): Json<Form>) -> Response {
    match form.order() {
        Ok(order) => give(&desk, Event::Ordered(Box::new(order))).await,
        Err(sentence) => refused(StatusCode::BAD_REQUEST, sentence),
    }
}

/// Has the machine decide on an operator's order, and tells what it answered.
async fn give(desk: &Desk, event: Event) -> Response {
    let (answer, answered) = oneshot::channel();
    let reply = Box::new(move |decided: Result<(String, Option<Effect>), Refusal>| {
        // The page may have gone; then nobody misses the answer.
        let _told = answer.send(decided);
    });
    let sent = desk
        .mailbox
        .operators
        .send(Letter::Command(event, Caller::present(), reply));
    let decided = match sent {
        Ok(()) => answered.await.ok(),
        Err(_) => None,
    };
    match decided {
        Some(Ok((sentence, effect))) => {
            let step = effect.map(|effect| effect.step);
            Json(json!({ "sentence": sentence, "step": step })).into_response()
        }
        Some(Err(refusal)) => refused(StatusCode::CONFLICT, refusal.reason),
        None => refused(StatusCode::GONE, "the run is over and its coordinator is going away"),
    }
}

async fn metrics(State(desk): State<Desk>) -> Response {
    ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], desk.board.metrics()).into_response()
}

/// Neither a page nor a service.
async fn nothing(headers: HeaderMap) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        return Status::unimplemented("there is no such service here").into_http();
    }
    refused(
        StatusCode::NOT_FOUND,
        "there is nothing here; the page of the run is at /",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_loopback_are_names_of_the_loopback() {
        for name in [
            "localhost:40001",
            "LOCALHOST",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]:40001",
            "[::1]",
        ] {
            assert!(names_loopback(name), "{name}");
        }
        for name in [
            "evil.example:40001",
            "127.0.0.1.evil.example",
            "10.0.0.1:80",
            "",
            "[::2]:1",
            "localhost.evil",
        ] {
            assert!(!names_loopback(name), "{name}");
        }
    }
}
