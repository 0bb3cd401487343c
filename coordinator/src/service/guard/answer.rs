//! Why a call is not served, as gRPC or HTTP says it.

use http::{Response, StatusCode, header};
use tonic::body::Body;
use tonic::{Code, Status};

/// Why a call is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: Kind,
    /// One sentence.
    pub(super) reason: String,
}

/// What kind of reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nobody knows who calls.
    Unknown,
    /// The caller is known, and may not.
    Denied,
    /// It comes too often.
    TooOften,
    /// There is no such call.
    NoSuchCall,
}

impl Refusal {
    pub(super) fn new(kind: Kind, reason: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            reason: reason.into(),
        }
    }

    pub(super) fn answer(&self, is_grpc: bool) -> Response<Body> {
        let (code, status) = match self.kind {
            Kind::Unknown => (Code::Unauthenticated, StatusCode::UNAUTHORIZED),
            Kind::Denied => (Code::PermissionDenied, StatusCode::FORBIDDEN),
            Kind::TooOften => (Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS),
            Kind::NoSuchCall => (Code::Unimplemented, StatusCode::NOT_FOUND),
        };
        let mut response = match is_grpc {
            true => Status::new(code, &self.reason).into_http(),
            false => text(status, "text/plain; charset=utf-8", format!("{}\n", self.reason)),
        };
        let headers = response.headers_mut();
        match self.kind {
            Kind::Unknown if !is_grpc => {
                headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            }
            // Clients tell by it that they may come again.
            Kind::TooOften => {
                headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

/// A short answer over HTTP.
pub(super) fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}
