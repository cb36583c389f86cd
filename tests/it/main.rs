//! Tests of the planning library: policies, splits, plans, exports.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/api.rs"]
mod api_support;

mod constraints;
mod dynamic_slots;
mod eplb;
mod export;
mod foreign_types;
mod growing;
mod link_budget;
mod lplb;
mod placement_referee;
mod plan;
mod planner;
mod public_api;
mod recourse;
mod workspace;
