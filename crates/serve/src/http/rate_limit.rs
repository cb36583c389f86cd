//! The rate limit of requests (`limits.requests_per_second`), per client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The most addresses whose rates are remembered at a time.
const MAX_ADDRESSES: usize = 4096;

/// An address, and whether its requests have a valid token.
pub(super) type ClientKey = (IpAddr, bool);

/// The token buckets of all clients. Each fills at the rate limit, up to the requests of two seconds.
#[derive(Debug, Default)]
pub(crate) struct RateLimiter(Mutex<HashMap<ClientKey, (f64, Instant)>>);

impl RateLimiter {
    /// Returns whether a request may be served now, and counts it.
    pub(super) fn admit_request(&self, peer: ClientKey, per_second: u32, now: Instant) -> bool {
        if per_second == 0 {
            return true;
        }
        let (rate, most) = (f64::from(per_second), 2.0 * f64::from(per_second));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_ADDRESSES && !all.contains_key(&peer) {
            // A full bucket equals that of an unknown client, so it can be dropped.
            all.retain(|_, (left, since)| *left + now.duration_since(*since).as_secs_f64() * rate < most);
            if all.len() >= MAX_ADDRESSES {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_rate_allows_a_burst_and_then_its_pace() {
        let rates = RateLimiter::default();
        let (peer, begun) = ((IpAddr::from([127, 0, 0, 1]), false), Instant::now());
        let admitted = (0..100).filter(|_| rates.admit_request(peer, 10, begun)).count();
        assert_eq!(admitted, 20);
        let later = begun + Duration::from_millis(500);
        assert_eq!((0..100).filter(|_| rates.admit_request(peer, 10, later)).count(), 5);
        assert!((0..100).all(|_| rates.admit_request(peer, 0, later)));
        assert!(
            rates.admit_request((IpAddr::from([10, 0, 0, 1]), false), 10, later),
            "others are not held to it"
        );
        assert!(rates.admit_request((peer.0, true), 10, later), "nor is who has a token");
    }
}
