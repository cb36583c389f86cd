//! Tests of the solver: exactness, certificates, objectives, engines.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod copies;
#[cfg(feature = "oracle")]
mod copies_referee;
mod exact;
mod incremental;
mod input;
#[cfg(feature = "lp")]
mod lp;
mod lplb;
mod objective_balance;
mod objective_combine;
mod objective_heuristics;
mod objective_measures;
mod objective_traffic;
#[cfg(feature = "oracle")]
mod oracle;
mod verify;
