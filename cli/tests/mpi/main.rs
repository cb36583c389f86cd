//! Tests of ranks as processes over MPI.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/support/driver.rs"]
mod driver_support;
#[path = "../../../tests/support/mpirun.rs"]
mod mpirun_support;
#[path = "../../../tests/support/processes.rs"]
mod processes_support;
#[path = "../../../tests/support/repository.rs"]
mod repository;
#[path = "../../../tests/support/skip.rs"]
mod skip_support;

mod exec_mpi;
mod exec_mpi_cuda;
mod network;
