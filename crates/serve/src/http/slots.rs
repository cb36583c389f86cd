//! Requests that stay open: event streams and waiting plan requests. Each kind has its own slots, in all and
//! per address.

use super::auth::RequestPeer;
use super::error::ApiError;
use crate::connections::client_network;
use crate::limits::RequestLimits;
use crate::runtime::service::Service;
use axum::http::StatusCode;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// A kind of request that stays open.
#[derive(Debug, Clone, Copy)]
enum SlotKind {
    Streams,
    Waits,
}

/// The slots of one kind.
#[derive(Debug, Clone)]
pub(crate) struct RequestSlots {
    kind: SlotKind,
    counts: Arc<Mutex<SlotCounts>>,
}

#[derive(Debug, Default)]
struct SlotCounts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A taken slot, which is free again after its drop.
#[derive(Debug)]
pub(crate) struct RequestSlot {
    counts: Arc<Mutex<SlotCounts>>,
    address: Option<IpAddr>,
}

impl RequestSlots {
    /// Returns the slots of event streams.
    pub(super) fn for_streams() -> Self {
        Self { kind: SlotKind::Streams, counts: Arc::default() }
    }

    /// Returns the slots of waiting plan requests.
    pub(super) fn for_waits() -> Self {
        Self { kind: SlotKind::Waits, counts: Arc::default() }
    }

    /// Takes a slot.
    pub(super) fn acquire_slot(
        &self,
        peer: Option<&RequestPeer>,
        service: &Service,
    ) -> Result<RequestSlot, ApiError> {
        let config = service.context.config();
        self.try_acquire(peer.map(|peer| client_network(peer.address)), &config.limits)
            .map_err(|error| ApiError::retry_later(StatusCode::SERVICE_UNAVAILABLE, error, 5))
    }

    fn try_acquire(
        &self,
        address: Option<IpAddr>,
        limits: &RequestLimits,
    ) -> Result<RequestSlot, &'static str> {
        let mut taken = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (most, error) = match self.kind {
            SlotKind::Streams => (limits.streams, "too many open event streams (limits.streams)"),
            SlotKind::Waits => (limits.waits, "too many waiting plan requests (limits.waits)"),
        };
        if taken.all >= most {
            return Err(error);
        }
        if let Some(address) = address {
            let own = taken.by_address.entry(address).or_default();
            if *own >= limits.streams_per_address {
                return Err("too many open requests of this address (limits.streams_per_address)");
            }
            *own += 1;
        }
        taken.all += 1;
        Ok(RequestSlot { counts: self.counts.clone(), address })
    }
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        let mut taken = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(address) = self.address
            && let Some(own) = taken.by_address.get_mut(&address)
        {
            *own -= 1;
            if *own == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_its_own_places_only() {
        let limits = RequestLimits { streams: 3, streams_per_address: 2, ..RequestLimits::default() };
        let slots = RequestSlots::for_streams();
        let address = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        let first = slots.try_acquire(address(1), &limits).unwrap();
        let _second = slots.try_acquire(address(1), &limits).unwrap();
        assert!(slots.try_acquire(address(1), &limits).unwrap_err().contains("streams_per_address"));
        let _third = slots.try_acquire(address(2), &limits).unwrap();
        assert!(slots.try_acquire(address(3), &limits).unwrap_err().contains("limits.streams)"));
        drop(first);
        let _fourth = slots.try_acquire(address(3), &limits).unwrap();
        assert!(
            RequestSlots::for_waits().try_acquire(address(1), &limits).is_ok(),
            "waits have places of their own"
        );
    }
}
