//! Tests of the executor, in one process.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../../tests/support/driver.rs"]
mod driver_support;
#[path = "../../../../tests/support/exec.rs"]
mod exec_support;
#[path = "../../../../tests/support/repository.rs"]
mod repository;
#[path = "../../../../tests/support/skip.rs"]
mod skip_support;

mod exec_cpu;
mod exec_cuda;
mod exec_dynamic;
mod exec_moves;
mod exec_routers;
mod exec_wire;
