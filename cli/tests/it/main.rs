//! Tests of the `evenkeel` program as users run it.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/support/command.rs"]
mod command;
#[path = "../../../tests/support/driver.rs"]
mod driver_support;
#[path = "../../../tests/support/exec.rs"]
mod exec_support;
#[path = "../../../tests/support/processes.rs"]
mod processes_support;
#[path = "../../../tests/support/repository.rs"]
mod repository;
#[path = "../../../tests/support/serve.rs"]
mod serve_support;
#[path = "../../../tests/support/skip.rs"]
mod skip_support;
#[path = "../../../tests/support/trace.rs"]
mod trace_support;

mod advise;
mod cases_plans;
mod cases_readers;
mod cli;
mod config;
mod costs;
mod dynamic_cli;
mod economics;
mod exec_calibrate;
mod exec_checkpoint;
mod exec_cuda_cli;
mod exec_nccl;
mod exec_run;
mod link_cli;
mod network;
mod plan_target;
mod real_traces;
mod replan;
mod replan_ranks;
mod serve_api;
mod serve_core;
mod serve_documents;
mod serve_price;
mod serve_replay;
mod serve_runs;
mod serve_sources;
mod serve_tls;
mod serve_top;
mod serve_watch;
mod skips;
mod snapshots;
mod stack_dispatch;
mod totals_cli;
mod trace_cli;
mod trace_seeds;
