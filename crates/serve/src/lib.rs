//! The online planner: a service that receives expert loads, decides when to re-plan, and serves plans over
//! HTTP.
//!
//! - Input: token counts per step, posted by the engine or fetched from files.
//! - Output: plans, and the reason of every decision.
//!
//! One service holds several models. Prefill and decode have separate plans if their loads arrive separately.
//! docs/serve.md is the manual for operators.
//!
//! **Path of a step.**
//!
//! 1. `http` receives the request. [`Loads::from_json`] or [`binary`] parses it.
//! 2. `store::dedup` separates new steps from repetitions.
//! 3. `store` makes the new steps durable, many posts per commit. The post is acknowledged only after that.
//! 4. The thread of the phase (`runtime::worker`) takes the steps in the order of acceptance. The
//!    [`PhaseState`] computes the imbalance of each step on the current plan.
//! 5. When a decision is due, `controller::propose` re-plans, compares both plans and states its reasons. The
//!    result is stored, published and sent to listeners.
//!
//! **Determinism.** A [`PhaseState`] is a pure state machine. The same steps in the same order give the same
//! decisions, whether live, after a crash, or in a replay without a server. Clocks serve display only. The
//! timing of threads changes when a decision is known, never its content. One exception exists and is
//! recorded: the service skips a decision if it is too far behind.
//!
//! **Module map.**
//!
//! - [`wire`]: the documents that cross HTTP (posted loads, receipts, decisions, events, states).
//! - `controller`: the state machine of a phase, and its decisions. `controller::price` holds the cost of
//!   transfers and their share of the time.
//! - `store`: the log of accepted steps, snapshots, decisions and plans. `store::dedup` recognises
//!   repetitions.
//! - `runtime`: the models, their threads and queues, and fetched loads (`runtime::sources`).
//! - `http`: one file per resource; `http::auth`, `http::rate_limit` and `http::slots` limit access.
//! - `backtest`: the controller on a recorded trace.
//! - Configuration: [`config`], `limits`, `ranges`, `tokens`, `files`.
//! - Process: `server`, `connections`, `timed_stream`, `tls`, `reload`.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backtest;
pub mod config;
mod connections;
mod controller;
mod files;
mod http;
mod limits;
mod ranges;
mod reload;
mod runtime;
mod server;
mod store;
mod timed_stream;
mod tls;
mod tokens;
pub mod wire;

pub use backtest::{Backtest, backtest, replan_every_batch};
pub use config::{ConfigError, ServiceConfig};
pub use controller::config::{ControllerConfig, ModelSpec, STATED_PRICE_HORIZON, SpecError};
pub use controller::price::{DEFAULT_COPY_SHARE, DEFAULT_GPU, DEFAULT_LINK_GBPS, DEFAULT_MODEL};
pub use controller::propose::{PhaseCommand, Proposal};
pub use controller::state::{AcceptedStep, PhaseError, PhaseState, StepOutcome};
pub use runtime::error::{ModelError, ServeError};
pub use server::{ServerControl, ServerSetup, serve};
pub use store::error::StateStoreError;
pub use store::{OPENER_THREAD, SCHEMA};
pub use wire::{
    CopyStatus, Decision, DecisionOutcome, GainEstimate, GainStatus, HistoryPoint, Imbalances, LayerPreview,
    Loads, LoadsBody, LoadsError, MAX_POSTED_STEPS, MoveRecord, Phase, PlanPreview, Receipt, Refusal,
    StepBody, StepLoads, Trigger, binary, counts_digest,
};

pub(crate) use runtime::worker::PhaseWorker;

/// The largest distance of a posted step number above the highest of its run: 2^48, nine years of
/// microseconds.
pub const MAX_STEP_JUMP: u64 = 1 << 48;

/// The receiver of the service's log lines.
pub type LogCallback = std::sync::Arc<dyn Fn(&str) + Send + Sync>;
