//! Whom a request is addressed to. A page on the web can make a browser send requests to a server on this machine
//! under the page's own name (DNS rebinding); such a request names a host that is not this one.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::header::{HOST, HeaderValue, ORIGIN};
use axum::middleware::Next;
use axum::response::Response;

use crate::ServerState;
use crate::error::ApiError;

/// The address that a connection came in on; `accept` gives it to every request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalAddress(pub(crate) SocketAddr);

/// Refuses requests for other hosts, and from pages of other hosts, where the server is this machine's own or has a
/// list of its names.
pub(crate) async fn require_known_host(
    State(state): State<ServerState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let allowed = &state.config.allowed_hosts;
    let address = request.extensions().get::<LocalAddress>();
    let is_local = address.is_some_and(|LocalAddress(address)| address.ip().is_loopback());
    if is_local || !allowed.is_empty() {
        let authority = request.uri().authority().map(|authority| authority.as_str());
        let headers = request.headers();
        let host = authority.or_else(|| headers.get(HOST).map(text));
        for name in [host.map(host_of_authority), headers.get(ORIGIN).map(text).map(host_of_origin)] {
            if let Some(name) = name
                && !is_known(name.unwrap_or(""), allowed)
            {
                return Err(ApiError::UnknownHost { name: name.unwrap_or("").to_owned() });
            }
        }
    }
    Ok(next.run(request).await)
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or("")
}

/// `name`, `name:port`, `[v6]:port` without the port.
fn host_of_authority(authority: &str) -> Option<&str> {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(address, _)| address),
        None => authority.split(':').next(),
    }
}

/// The host in `scheme://host:port`.
fn host_of_origin(origin: &str) -> Option<&str> {
    let (_, authority) = origin.split_once("://")?;
    host_of_authority(authority).filter(|host| !host.is_empty())
}

fn is_known(host: &str, allowed: &[String]) -> bool {
    let host = host.trim_end_matches('.');
    let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || host.eq_ignore_ascii_case("localhost") || allowed.iter().any(|name| name.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_and_configured_ones_are_known() {
        let allowed = ["box.lan".to_owned()];
        for host in ["localhost", "LOCALHOST.", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000", "box.lan:80"] {
            assert!(is_known(host_of_authority(host).unwrap(), &allowed), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", "10.0.0.1"] {
            assert!(!is_known(host_of_authority(host).unwrap(), &allowed), "{host}");
        }
    }

    #[test]
    fn origins_are_urls() {
        assert_eq!(host_of_origin("http://localhost:3000"), Some("localhost"));
        assert_eq!(host_of_origin("https://[::1]:3000"), Some("::1"));
        assert_eq!(host_of_origin("null"), None);
        assert_eq!(host_of_origin("file://"), None);
    }
}
