//! The tables `[limits]` and `[history]`: bounds of requests, and of the kept history.

use serde::{Deserialize, Serialize};

/// The limits of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RequestLimits {
    /// The largest request body, in MiB.
    pub body_mib: usize,
    /// The memory of all parsed request bodies and of all replies in progress, in MiB.
    pub memory_mib: usize,
    /// The most connections at a time.
    pub connections: usize,
    /// The most connections of one address at a time.
    pub connections_per_address: usize,
    /// The most open event streams at a time.
    pub streams: usize,
    /// The most waiting plan requests at a time.
    pub waits: usize,
    /// The most open event streams of one address at a time. The same limit holds for its waiting plan
    /// requests.
    pub streams_per_address: usize,
    /// The most requests per second from one address, and twice as many in a burst. 0 means no limit.
    pub requests_per_second: u32,
    /// The seconds within which a request's headers have to arrive.
    pub header_seconds: u64,
    /// The seconds within which a request's body has to arrive.
    pub body_seconds: u64,
    /// The seconds within which a client has to take the next 64 KiB of a reply.
    pub write_seconds: u64,
    /// The most accepted steps that may wait to be processed. Further posts are refused with status 429.
    pub lag_steps: u64,
    /// The same limit in MiB of counts.
    pub lag_mib: u64,
    /// The memory of the steps of all planning windows, all phases together, in MiB.
    pub window_mib: u64,
    /// The most models at a time.
    pub models: usize,
    /// The seconds that open requests have to finish after the service begins to stop.
    pub shutdown_seconds: u64,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            body_mib: 64,
            memory_mib: 1024,
            connections: 256,
            connections_per_address: 128,
            streams: 64,
            waits: 64,
            streams_per_address: 32,
            requests_per_second: 2000,
            header_seconds: 10,
            body_seconds: 30,
            write_seconds: 30,
            lag_steps: 4096,
            lag_mib: 512,
            window_mib: 2048,
            models: 64,
            shutdown_seconds: 10,
        }
    }
}

impl RequestLimits {
    /// Returns the memory that requests may take, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_mib.saturating_mul(1 << 20)
    }
}

/// The limits of the kept history, apart from the planning window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct HistoryLimits {
    /// The number of step ids per phase that are kept to recognise repetitions.
    pub ids: usize,
    /// The number of decisions per phase.
    pub decisions: usize,
    /// The number of plans per phase.
    pub plans: usize,
    /// The age in days after which history points and decisions are deleted.
    pub days: u64,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { ids: 65_536, decisions: 1024, plans: 64, days: 30 }
    }
}
