//! Who may ask, and how often.

use super::error::ApiError;
use crate::serve::service::Service;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use subtle::ConstantTimeEq as _;

/// Addresses whose rates are remembered at a time.
const MOST_ADDRESSES: usize = 4096;

/// The address a request came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// What each address may still ask: tokens that flow in at the limit's rate, at most those of two seconds.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<HashMap<IpAddr, (f64, Instant)>>);

impl Rates {
    fn admit(&self, peer: IpAddr, per_second: u32, now: Instant) -> bool {
        if per_second == 0 {
            return true;
        }
        let (rate, most) = (f64::from(per_second), 2.0 * f64::from(per_second));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST_ADDRESSES && !all.contains_key(&peer) {
            // Full ones are as good as unknown ones.
            all.retain(|_, (left, since)| *left + now.duration_since(*since).as_secs_f64() * rate < most);
            if all.len() >= MOST_ADDRESSES {
                return false;
            }
        }
        let (left, since) = all.entry(peer).or_insert((most, now));
        *left = (*left + now.duration_since(*since).as_secs_f64() * rate).min(most);
        *since = now;
        let admitted = *left >= 1.0;
        if admitted {
            *left -= 1.0;
        }
        admitted
    }
}

/// Everything that requests pass first.
pub(crate) async fn guard(
    State((service, rates)): State<(Arc<Service>, Arc<Rates>)>,
    request: Request,
    next: Next,
) -> Response {
    let response = match check(&service, &rates, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let class = usize::from(response.status().as_u16() / 100).clamp(1, 5) - 1;
    service.hub.counters.replies[class].fetch_add(1, Ordering::Relaxed);
    response
}

fn check(service: &Service, rates: &Rates, request: &Request) -> Result<(), ApiError> {
    let per_second = service.hub.config().limits.requests_per_second;
    if let Some(Peer(peer)) = request.extensions().get::<Peer>()
        && !rates.admit(*peer, per_second, Instant::now())
    {
        let error = format!("more than {per_second} requests a second from {peer}");
        return Err(ApiError::later(StatusCode::TOO_MANY_REQUESTS, error, 1));
    }
    // A browser says where a request comes from: pages of others may not have anything done here, not even on loopback.
    let site = request.headers().get("sec-fetch-site").map(HeaderValue::as_bytes);
    if !request.method().is_safe() && site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        let error = "a page of another site asked";
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            error,
            "the page at / of this service, or a program",
        ));
    }
    let open = ["/", "/healthz", "/readyz", "/openapi.json"];
    let path = request.uri().path();
    if open.contains(&path) || path.starts_with(super::page::PARTS) {
        return Ok(());
    }
    let tokens = service.tokens.read().unwrap_or_else(PoisonError::into_inner);
    if tokens.is_empty() {
        // Without tokens a name is no proof either: a page of others may have let its own name point here.
        let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
        if host.is_none_or(is_here) {
            return Ok(());
        }
        let error = "asked for by a name that is not this machine's";
        let expected =
            "localhost or an address as host, or a token (--token-file), with which any name will do";
        return Err(ApiError::new(StatusCode::FORBIDDEN, error, expected));
    }
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    // All are compared, each in constant time, so that the time says nothing of how near a guess is.
    let mut right = subtle::Choice::from(0);
    for token in tokens.iter() {
        right |= token.as_bytes().ct_eq(given.unwrap_or_default().as_bytes());
    }
    if given.is_some() && bool::from(right) {
        return Ok(());
    }
    let error = if given.is_some() { "this token is not known" } else { "no token" };
    Err(ApiError::new(StatusCode::UNAUTHORIZED, error, "the header Authorization: Bearer TOKEN"))
}

/// Is a `Host` header `localhost` or an address, with or without a port?
fn is_here(host: &[u8]) -> bool {
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
    use std::time::Duration;

    #[test]
    fn names_of_others_are_not_here() {
        for here in ["localhost", "LocalHost:8787", "127.0.0.1", "127.0.0.1:8787", "[::1]:8787", "[::1]"] {
            assert!(is_here(here.as_bytes()), "{here}");
        }
        for there in
            ["example.com", "example.com:8787", "localhost.example.com", "127.0.0.1.example.com", "", "[::1"]
        {
            assert!(!is_here(there.as_bytes()), "{there}");
        }
        assert!(!is_here(b"\xff"));
    }

    #[test]
    fn a_rate_allows_a_burst_and_then_its_pace() {
        let rates = Rates::default();
        let (peer, begun) = (IpAddr::from([127, 0, 0, 1]), Instant::now());
        let admitted = (0..100).filter(|_| rates.admit(peer, 10, begun)).count();
        assert_eq!(admitted, 20);
        let later = begun + Duration::from_millis(500);
        assert_eq!((0..100).filter(|_| rates.admit(peer, 10, later)).count(), 5);
        assert!((0..100).all(|_| rates.admit(peer, 0, later)));
        assert!(rates.admit(IpAddr::from([10, 0, 0, 1]), 10, later), "others are not held to it");
    }
}
