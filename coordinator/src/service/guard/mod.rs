//! Stands before everything that the coordinator serves: gRPC services and the web page alike.
//!
//! Way of a request: the browser's rules (`browser`) → who calls: a token in the header or the cookie, else the client
//! certificate of its connection → which role the call needs, and whether the caller has it → whether it comes too often →
//! the service, with the [`Caller`] beside it; else an `answer`, and a row in the `journal`. `login` turns a token into
//! a cookie; the answer is `lasting` only while the token counts.

mod answer;
mod browser;
mod journal;
mod lasting;
mod login;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use http::{HeaderMap, Request, Response, header};
use lockstep_config::SecuritySection;
use lockstep_security::{Access, Buckets, Identity, Keeper, Keys, Role, Token, required};
use tokio::sync::watch;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::service::caller::Caller;
use crate::service::guard::answer::{Kind, Refusal};
pub(crate) use crate::service::guard::journal::Journal;
use crate::service::guard::lasting::{Lasting, Shown};

/// Callers, and addresses that failed, that are remembered at a time.
const REMEMBERED: usize = 4096;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// Whether it talks TLS.
    pub(crate) is_tls: bool,
    /// Whom its client certificate names, if it showed one; or why that names nobody.
    pub(crate) certificate: Option<Result<Identity, String>>,
}

/// Who is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Everybody on this machine.
    ThisMachine,
    /// Everybody.
    Anybody,
    /// Whoever proves who it is.
    Known,
}

/// What stands before the services.
#[derive(Clone)]
pub(crate) struct Guard(Arc<Rules>);

struct Rules {
    keeper: Arc<Keeper>,
    /// Rises when its files were read again.
    reloads: watch::Receiver<u64>,
    journal: Arc<Journal>,
    mode: Mode,
    calls: Mutex<Buckets<(Option<Identity>, IpAddr)>>,
    failures: Mutex<Buckets<IpAddr>>,
}

/// A call that is served.
struct Admitted {
    caller: Caller,
    /// The token that lets it in, if that is what does.
    shown: Option<Shown>,
    /// Whether it is an order, which leaves a row in the ledger whatever comes of it.
    is_order: bool,
}

impl Guard {
    pub(crate) fn new(
        section: &SecuritySection,
        (keeper, reloads): (Arc<Keeper>, watch::Receiver<u64>),
        journal: Arc<Journal>,
        bound: SocketAddr,
    ) -> Guard {
        let mode = match (section.knows_callers(), bound.ip().is_loopback()) {
            (true, _) => Mode::Known,
            (false, true) => Mode::ThisMachine,
            (false, false) => Mode::Anybody,
        };
        let (calls, failures) = (section.calls_per_second as f64, section.failures_per_minute as f64);
        Guard(Arc::new(Rules {
            keeper,
            reloads,
            journal,
            mode,
            calls: Mutex::new(Buckets::new(calls, 2.0 * calls, REMEMBERED)),
            failures: Mutex::new(Buckets::new(failures / 60.0, failures, REMEMBERED)),
        }))
    }
}

impl Rules {
    /// Who calls and may; else why not, with the caller as far as it is known.
    fn admit(&self, request: &Request<Body>, peer: &Peer, keys: &Keys) -> Result<Admitted, (Caller, Refusal)> {
        let (method, path) = (request.method(), request.uri().path());
        let from = peer.address.to_string();
        let refused = |who: &str, refusal: Refusal| (Caller::new(who, &from, path), refusal);
        // No browser speaks HTTP/2 in clear: who does is a trainer or a command, perhaps behind a forwarder.
        let only_loopback = self.mode == Mode::ThisMachine && request.version() != http::Version::HTTP_2;
        if let Some(reason) = browser::refusal(method, request.uri(), request.headers(), only_loopback) {
            return Err(refused("nobody known", Refusal::new(Kind::Denied, reason)));
        }
        let access = required(method.as_str(), path);
        let (who, identity, token) = match self.mode {
            Mode::ThisMachine => ("this machine".to_owned(), None, None),
            Mode::Anybody => ("anybody".to_owned(), None, None),
            Mode::Known if access == Access::Open => ("anybody".to_owned(), None, None),
            Mode::Known => match identify(request.headers(), peer, keys) {
                Ok((identity, token)) => (identity.to_string(), Some(identity), token),
                Err(reason) => return Err(refused("nobody known", self.failed(peer, reason))),
            },
        };
        if access == Access::Nobody {
            return Err(refused(&who, Refusal::new(Kind::NoSuchCall, "there is no such call")));
        }
        if self.mode == Mode::Known && !self.may_call(identity.clone(), peer) {
            let reason = "too many calls; wait a second (security.calls_per_second)";
            return Err(refused(&who, Refusal::new(Kind::TooOften, reason)));
        }
        if let Some(identity) = &identity
            && !identity.role.may(access)
        {
            let needed = match access {
                Access::Needs(role) => role.word(),
                Access::Open | Access::Nobody => "no role",
            };
            let reason = format!("this call needs the role {needed}, and {identity} does not have it");
            return Err(refused(&who, Refusal::new(Kind::Denied, reason)));
        }
        // Where nobody is asked who they are, everybody may.
        let may_order = match &identity {
            Some(identity) => identity.role.may(Access::Needs(Role::Operator)),
            None => self.mode != Mode::Known,
        };
        Ok(Admitted {
            caller: Caller::new(&who, &from, path).with_orders(may_order),
            is_order: access == Access::Needs(Role::Operator),
            shown: token.zip(identity),
        })
    }

    /// Somebody failed to prove who it is. Whoever can prove it is never held up by those who cannot.
    fn failed(&self, peer: &Peer, reason: String) -> Refusal {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.take(peer.address.ip(), Instant::now()) {
            true => Refusal::new(Kind::Unknown, reason),
            false => Refusal::new(
                Kind::TooOften,
                "too many refused calls from this address; wait a minute",
            ),
        }
    }

    fn may_call(&self, identity: Option<Identity>, peer: &Peer) -> bool {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.take((identity, peer.address.ip()), Instant::now())
    }

    /// The whole way of a request.
    async fn pass<S>(&self, request: Request<Body>, inner: &mut S) -> Result<Response<Body>, Infallible>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let is_grpc = is_grpc(request.headers());
        let Some(peer) = request.extensions().get::<Arc<Peer>>().cloned() else {
            // Every connection has one; without it nobody could say who calls.
            return Ok(Refusal::new(Kind::Unknown, "the connection has no address").answer(is_grpc));
        };
        let keys = self.keeper.keys();
        let admitted = match self.admit(&request, &peer, &keys) {
            Ok(admitted) => admitted,
            Err((caller, refusal)) => {
                let answer = refusal.answer(is_grpc);
                self.journal.refused(caller, refusal.reason);
                return Ok(answer);
            }
        };
        let Admitted {
            caller,
            is_order,
            shown,
        } = admitted;
        match (request.method().as_str(), request.uri().path()) {
            ("POST", "/api/login") => return Ok(self.log_in(request, &peer, &keys, caller).await),
            ("POST", "/api/logout") => return Ok(login::log_out(peer.is_tls)),
            _ => {}
        }
        let answer = caller.clone().serve(inner.call(request)).await?;
        if is_order && !caller.is_noted() {
            self.journal.note(
                &caller,
                outcome(&answer)
                    .as_ref()
                    .map_or_else(|why| Err(why.as_str()), |()| Ok("done")),
            );
        }
        let Some(shown) = shown else {
            return Ok(answer);
        };
        let (keeper, reloads) = (self.keeper.clone(), self.reloads.clone());
        Ok(answer.map(|body| Body::new(Lasting::new(body, shown, keeper, reloads, is_grpc))))
    }

    async fn log_in(&self, request: Request<Body>, peer: &Peer, keys: &Keys, caller: Caller) -> Response<Body> {
        match login::log_in(request.into_body(), keys, self.mode == Mode::Known, peer.is_tls).await {
            Ok((answer, Some(identity))) => {
                tracing::info!("{identity} from {} logged in", peer.address);
                answer
            }
            Ok((answer, None)) => answer,
            Err(refusal) => {
                let refusal = self.failed(peer, refusal.reason);
                let answer = refusal.answer(false);
                self.journal.refused(caller, refusal.reason);
                answer
            }
        }
    }
}

/// What a service answered to an order that did not reach the run's thread.
fn outcome(answer: &Response<Body>) -> Result<(), String> {
    match tonic::Status::from_header_map(answer.headers()) {
        Some(status) if status.code() != tonic::Code::Ok => Err(status.message().to_owned()),
        _ if answer.status().is_client_error() || answer.status().is_server_error() => Err(answer.status().to_string()),
        _ => Ok(()),
    }
}

/// Who calls, and by which token. One in the header decides, if there is one; then a cookie that is known; then the certificate.
fn identify(headers: &HeaderMap, peer: &Peer, keys: &Keys) -> Result<(Identity, Option<Token>), String> {
    if let Some(shown) = headers.get(header::AUTHORIZATION) {
        let shown = shown.to_str().unwrap_or_default();
        let (scheme, token) = shown.split_once(' ').unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err("the authorization header is not `Bearer TOKEN`".to_owned());
        }
        let token = Token::parse(token).map_err(|error| format!("the token cannot be read: {error}"))?;
        let identity = keys.of_token(&token).ok_or_else(|| "the token is not known".to_owned());
        return identity.map(|identity| (identity, Some(token)));
    }
    let mut tried = false;
    for token in login::tokens(headers) {
        if let Some(identity) = keys.of_token(&token) {
            return Ok((identity, Some(token)));
        }
        tried = true;
    }
    match &peer.certificate {
        Some(identity) => identity.clone().map(|identity| (identity, None)),
        None if tried => Err("the token in the cookie is not known; log in again".to_owned()),
        None => {
            Err("show a token (LOCKSTEP_TOKEN_FILE) or a client certificate (LOCKSTEP_CERT, LOCKSTEP_KEY)".to_owned())
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            rules: self.0.clone(),
            inner,
        }
    }
}

/// A service behind the guard.
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    rules: Arc<Rules>,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that was asked whether it is ready serves this call, and its copy the next one.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let rules = self.rules.clone();
        Box::pin(async move { rules.pass(request, &mut inner).await })
    }
}
