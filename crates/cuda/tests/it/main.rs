//! Tests of the CUDA kernels: on the host, compiled for GPUs, and on a GPU if there is one.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../../tests/support/kernels.rs"]
mod kernels_support;
#[path = "../../../../tests/support/repository.rs"]
mod repository;
#[path = "../../../../tests/support/skip.rs"]
mod skip_support;

mod cubins;
mod cuda;
mod cuda_probe;
mod kernels;
mod kernels_tokens;
