//! Tests of the trace readers and writers.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../../tests/support/repository.rs"]
mod repository;
#[path = "../../../../tests/support/skip.rs"]
mod skip_support;
#[path = "../../../../tests/support/trace.rs"]
mod trace_support;

mod trace_csv;
mod trace_foreign;
mod trace_parquet;
mod trace_parts;
mod trace_real;
