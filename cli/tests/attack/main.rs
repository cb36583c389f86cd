//! Tests that attack the service and the readers: floods, faults, damage, hostile sizes.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/support/serve.rs"]
mod serve_support;

mod allocation_bounds;
mod serve_attack;
mod serve_durability;
mod serve_faults;
mod serve_limits;
mod serve_reload;
