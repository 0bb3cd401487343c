//! `POST /api/login` and `/api/logout`: a browser shows its token once, and from then on as a cookie that no script of a page
//! can read and no other site can have sent.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use lockstep_security::{Identity, Keys, Token};
use serde_json::json;
use tonic::body::Body;

use crate::service::guard::answer::{Kind, Refusal, text};

/// The cookie's name.
const COOKIE: &str = "lockstep_token";
/// Bytes of a body that should be a token.
const MOST_BYTES: usize = 256;

/// The tokens that a request shows as cookies.
pub(super) fn tokens(headers: &HeaderMap) -> impl Iterator<Item = Token> + '_ {
    let lines = headers.get_all(header::COOKIE).into_iter();
    let cookies = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'));
    let values = cookies.filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='));
    values.filter_map(|value| Token::parse(value).ok())
}

/// Takes a token in the body, and gives it back as a cookie. `is_secured`: whether callers have to prove who they are.
pub(super) async fn log_in(
    body: Body,
    keys: &Keys,
    is_secured: bool,
    is_tls: bool,
) -> Result<(Response<Body>, Option<Identity>), Refusal> {
    let unknown = |reason: &str| Refusal::new(Kind::Unknown, reason);
    let body = Limited::new(body, MOST_BYTES).collect().await;
    let body = body.map_err(|_| unknown("the body is no token: it is too long or broke off"))?;
    if !is_secured {
        return Ok((welcome("operator", "this machine", None), None));
    }
    let token = String::from_utf8(body.to_bytes().into()).map_err(|_| unknown("the body is no token"))?;
    let token = Token::parse(&token).map_err(|error| unknown(&format!("the body is no token: {error}")))?;
    let identity = keys.of_token(&token).ok_or_else(|| unknown("the token is not known"))?;
    let cookie = cookie(token.reveal(), is_tls, "");
    let answer = welcome(identity.role.word(), &identity.name, cookie);
    Ok((answer, Some(identity)))
}

/// Takes the cookie away.
pub(super) fn log_out(is_tls: bool) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Some(cookie) = cookie("", is_tls, "; Max-Age=0") {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

fn welcome(role: &str, name: &str, cookie: Option<HeaderValue>) -> Response<Body> {
    let body = json!({ "role": role, "name": name }).to_string();
    let mut response = text(StatusCode::OK, "application/json", body);
    if let Some(cookie) = cookie {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

fn cookie(value: &str, is_tls: bool, end: &str) -> Option<HeaderValue> {
    let secure = if is_tls { "; Secure" } else { "" };
    let line = format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{end}");
    let mut value = HeaderValue::try_from(line).ok()?;
    value.set_sensitive(true);
    Some(value)
}
