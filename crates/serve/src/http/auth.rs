//! Access control: tokens and origins. Also counts the memory of replies.

use super::body::discard_body;
use super::error::ApiError;
use super::memory::{MemoryPart, MemoryReservation};
use super::rate_limit::RateLimiter;
use crate::connections::{ClientConnection, client_network};
use crate::runtime::service::Service;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Body as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;
use subtle::ConstantTimeEq as _;

/// The largest reply, in bytes, whose memory is not counted.
const SMALL_REPLY_BYTES: usize = 16 << 10;

/// The address and connection of a request.
#[derive(Debug, Clone)]
pub(crate) struct RequestPeer {
    pub(crate) address: IpAddr,
    pub(crate) connection: Arc<ClientConnection>,
}

/// The mark of a reply whose text is shared with other replies.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedReply;

/// Checks a request before its handler runs, and counts its reply.
pub(crate) async fn guard_request(
    State((service, rates)): State<(Arc<Service>, Arc<RateLimiter>)>,
    request: Request,
    next: Next,
) -> Response {
    let response = match check_access(&service, &rates, &request) {
        Ok(()) => hold_reply(&service, next.run(request).await).await,
        Err(error) => {
            // A client that is still sending gets to read the refusal.
            discard_body(request.into_body()).await;
            error.into_response()
        }
    };
    let class = usize::from(response.status().as_u16() / 100).clamp(1, 5) - 1;
    service.context.counters.replies[class].fetch_add(1, Ordering::Relaxed);
    response
}

/// Counts the bytes of a reply until the last of them is sent. Small replies, streams and shared texts do not
/// count.
async fn hold_reply(service: &Service, response: Response) -> Response {
    let length = response.body().size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let shared = response.extensions().get::<SharedReply>().is_some();
    let Some(length) = length.filter(|&length| length > SMALL_REPLY_BYTES && !shared) else {
        return response;
    };
    let mut reserved = service.memory.reserve(MemoryPart::Replies);
    if !reserved.try_grow(length, service.context.config().limits.memory_bytes()) {
        let error = "too many replies are being sent (limits.memory_mib)";
        return ApiError::retry_later(StatusCode::SERVICE_UNAVAILABLE, error, 1).into_response();
    }
    let (parts, body) = response.into_parts();
    match axum::body::to_bytes(body, length).await {
        Ok(bytes) => {
            Response::from_parts(parts, Bytes::from_owner(HeldReply { bytes, _reserved: reserved }).into())
        }
        Err(error) => ApiError::internal_error(error.to_string()).into_response(),
    }
}

/// The bytes of a reply with the memory that counts for them.
struct HeldReply {
    bytes: Bytes,
    _reserved: MemoryReservation,
}

impl AsRef<[u8]> for HeldReply {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn check_access(service: &Service, rates: &RateLimiter, request: &Request) -> Result<(), ApiError> {
    let given = bearer_token(request);
    let tokens = service.tokens.read().unwrap_or_else(PoisonError::into_inner);
    let proven = given.is_some_and(|given| is_known_token(&tokens, given));
    if let Some(peer) = request.extensions().get::<RequestPeer>() {
        // Clients without a token must not use up the rate of those with one at the same address.
        let per_second = service.context.config().limits.requests_per_second;
        if !rates.admit_request((client_network(peer.address), proven), per_second, Instant::now()) {
            let error = format!("more than {per_second} requests a second from {}", peer.address);
            return Err(ApiError::retry_later(StatusCode::TOO_MANY_REQUESTS, error, 1));
        }
        if proven {
            peer.connection.mark_authenticated();
        }
    }
    same_origin(request)?;
    let open = ["/", "/healthz", "/readyz", "/openapi.json"];
    let path = request.uri().path();
    if open.contains(&path) || path.starts_with(super::page::PARTS_PATH) || proven {
        return Ok(());
    }
    if tokens.is_empty() {
        // Without tokens, the name in `Host` must be checked: another site may have pointed its own name to
        // this machine.
        let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
        if host.is_none_or(is_local_host) {
            return Ok(());
        }
        let error = "the host name of the request is not one of this machine";
        let expected =
            "localhost or an address as host, or a token (--token-file), which allows any host name";
        return Err(ApiError::new(StatusCode::FORBIDDEN, error, expected));
    }
    let error = if given.is_some() { "unknown token" } else { "no token" };
    Err(ApiError::new(StatusCode::UNAUTHORIZED, error, "the header Authorization: Bearer TOKEN"))
}

/// Refuses cross-site requests for changes.
///
/// Browsers report the site in `Sec-Fetch-Site`, older ones only in `Origin`. A page can set neither. With
/// `same-origin` the name in `Origin` is not compared, because a proxy may have changed `Host`.
fn same_origin(request: &Request) -> Result<(), ApiError> {
    if request.method().is_safe() {
        return Ok(());
    }
    let value = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
    let (found, same) = match (value("sec-fetch-site"), value("origin")) {
        (Some(b"same-origin"), _) | (None | Some(b"none"), None) => return Ok(()),
        (None | Some(b"none"), Some(origin)) => ("Origin", is_same_host(origin, value("host"))),
        (Some(_), _) => ("Sec-Fetch-Site", false),
    };
    if same {
        return Ok(());
    }
    let error = format!("cross-site request refused ({found})");
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        error,
        "a request from the page of this service, or from a program",
    ))
}

/// Returns whether an `Origin` header names the requested host.
fn is_same_host(origin: &[u8], host: Option<&[u8]>) -> bool {
    let Ok(origin) = std::str::from_utf8(origin) else { return false };
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.zip(host).is_some_and(|(authority, host)| authority.as_bytes().eq_ignore_ascii_case(host))
}

/// Returns the bearer token of a request.
fn bearer_token(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Returns whether a token is known. Compares it with all tokens in constant time, so that the time reveals
/// nothing about them.
fn is_known_token(tokens: &[String], given: &str) -> bool {
    let mut known = subtle::Choice::from(0);
    for token in tokens {
        known |= token.as_bytes().ct_eq(given.as_bytes());
    }
    bool::from(known)
}

/// Returns whether a `Host` header is `localhost` or an address, with or without a port.
fn is_local_host(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost")
        || host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|ip| ip.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_not_here() {
        for here in ["localhost", "LocalHost:8787", "127.0.0.1", "127.0.0.1:8787", "[::1]:8787", "[::1]"] {
            assert!(is_local_host(here.as_bytes()), "{here}");
        }
        for there in
            ["example.com", "example.com:8787", "localhost.example.com", "127.0.0.1.example.com", "", "[::1"]
        {
            assert!(!is_local_host(there.as_bytes()), "{there}");
        }
        assert!(!is_local_host(b"\xff"));
    }

    #[test]
    fn an_origin_is_that_of_the_host_asked() {
        for (origin, host, own) in [
            ("http://localhost:8787", "localhost:8787", true),
            ("https://Balancer.example", "balancer.example", true),
            ("http://localhost:8788", "localhost:8787", false),
            ("http://localhost", "localhost:8787", false),
            ("http://evil.example", "localhost:8787", false),
            ("null", "localhost:8787", false),
            ("file://", "", false),
        ] {
            assert_eq!(is_same_host(origin.as_bytes(), Some(host.as_bytes())), own, "{origin} {host}");
        }
        assert!(!is_same_host(b"http://localhost", None));
    }
}
