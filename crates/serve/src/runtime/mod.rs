//! The threads of the service and their queues.
//!
//! - Input: admitted posts, commands, and loads that a source fetches.
//! - Output: stored decisions, published plans, and events to listeners.
//!
//! `service` holds all models. Each phase of a model has a `worker`, and `worker_loop` is the main function
//! of its thread. `mailbox` holds the queues of that thread. `dry_run` computes plans outside the thread, and
//! `plan_text` keeps the texts of a published plan. `sources` fetches loads.

pub(crate) mod dry_run;
pub(crate) mod error;
pub(crate) mod mailbox;
pub(crate) mod plan_text;
pub(crate) mod service;
pub(crate) mod sources;
pub(crate) mod worker;
pub(crate) mod worker_loop;

/// Returns the seconds since 1970, or 0 for a clock set before that.
pub(crate) fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
