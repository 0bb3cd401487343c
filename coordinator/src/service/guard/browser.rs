//! What a browser must not do for somebody else: any page that a person opens can have the browser call a coordinator on
//! that person's machine. Pure functions of a request.

use std::net::IpAddr;

use http::uri::Authority;
use http::{HeaderMap, Method, Uri, header};

/// Why a request is refused, if it is. `only_loopback`: the coordinator lets everybody on this machine in, so that a name
/// which leads here from outside (DNS rebinding) must not.
pub(super) fn refusal(method: &Method, uri: &Uri, headers: &HeaderMap, only_loopback: bool) -> Option<String> {
    let host = host_of(uri, headers);
    if only_loopback && !host.as_ref().is_some_and(|host| is_loopback(host.host())) {
        return Some(format!(
            "this coordinator lets this machine in without asking who calls, and so only under a loopback address or \
             localhost, not under {}",
            host.map_or("no name at all".to_owned(), |host| format!("{:?}", host.as_str()))
        ));
    }
    let origin = headers.get(header::ORIGIN)?;
    if matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let is_own = match (origin.as_ref().and_then(Uri::authority), &host) {
        (Some(origin), Some(host)) => origin == host,
        _ => false,
    };
    (!is_own).then(|| "a page of another origin asks for it".to_owned())
}

/// The name under which the coordinator was called.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    match uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => headers.get(header::HOST)?.to_str().ok()?.parse().ok(),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, host: &str, origin: Option<&str>, only_loopback: bool) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        refusal(&method, &"/api/pause".parse().unwrap(), &headers, only_loopback).is_none()
    }

    #[test]
    fn an_open_coordinator_is_called_under_loopback_names_only() {
        for host in [
            "127.0.0.1:4000",
            "localhost:4000",
            "LOCALHOST",
            "[::1]:4000",
            "127.8.9.1",
        ] {
            assert!(asked(Method::GET, host, None, true), "{host}");
        }
        for host in [
            "evil.example:4000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "10.0.0.1",
            "[::2]:1",
            "",
        ] {
            assert!(!asked(Method::GET, host, None, true), "{host}");
            assert!(host.is_empty() || asked(Method::GET, host, None, false), "{host}");
        }
        let uri: Uri = "http://evil.example/".parse().unwrap();
        let mut headers = HeaderMap::new();
        assert!(refusal(&Method::POST, &uri, &headers, true).is_some());
        headers.insert(header::HOST, "localhost".parse().unwrap());
        assert!(
            refusal(&Method::POST, &uri, &headers, true).is_some(),
            "the address of HTTP/2 counts"
        );
    }

    #[test]
    fn a_page_of_another_origin_cannot_give_orders() {
        let post = |origin| asked(Method::POST, "localhost:4000", origin, true);
        assert!(post(None) && post(Some("http://localhost:4000")));
        for origin in [
            "http://localhost:4001",
            "http://evil.example",
            "null",
            "localhost:4000/x y",
            "",
        ] {
            assert!(!post(Some(origin)), "{origin}");
            assert!(asked(Method::GET, "localhost:4000", Some(origin), true), "{origin}");
        }
    }
}
