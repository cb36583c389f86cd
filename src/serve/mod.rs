//! The sidecar: fed loads, it keeps history, decides when to plan again, and serves plans.
//!
//! In: posted or fetched token counts, step by step. Out: plans, over HTTP, and why each was made. Several models at once, and
//! prefill and decode apart where they are fed apart. docs/serve.md is for those who run it.
//!
//! **The way of a step.** `api` takes a request, [`loads`](Loads) and [`binary`] read it; `ingest` tells what is new; `store`
//! makes it durable, many posts at a time, and only then is it acknowledged. The thread of its `feed` takes it from there,
//! in the order of acceptance: the [`Lane`] works out how the plan in force serves it; when a decision is due, `decide`
//! plans again, compares and gives its reasons; what follows is stored, published and told.
//!
//! **What depends on what.** A [`Lane`] is a pure state machine: the same steps in the same order give the same decisions,
//! live, after a crash, or in a replay without a server. Clocks are for display. Threads only decide when something is known,
//! never what; the one exception, a decision passed over because the service was too far behind, is on record.
//!
//! **Module map.** `config`, `options`: what is configured. `phase`, `loads`, `binary`, `record`, `points`, `events`: the data.
//! `lane`, `decide`, `tried`, `weigh`: what follows from steps; `price`: the price of copies, and their share of the time; `online`: the same for a
//! whole trace. `saved`, `store`, `stored`, `store_error`, `ingest`: what survives.
//! `feed`, `think`, `service`: the above, running. `api`, `server`: HTTP. `sources`: loads that are fetched.

mod api;
pub mod binary;
pub mod config;
mod decide;
mod events;
mod feed;
mod ingest;
mod lane;
mod loads;
mod online;
mod options;
mod phase;
mod points;
mod price;
mod record;
mod saved;
mod server;
mod service;
mod sources;
mod store;
mod store_error;
mod stored;
mod think;
mod tried;
mod weigh;

pub use config::{Config, ConfigError};
pub use decide::{Ask, Next, NextLayer, Proposal};
pub use ingest::{Receipt, Refusal};
pub use lane::{Lane, LaneError, Seen, Served};
pub use loads::{Loads, LoadsBody, LoadsError, MAX_POSTED, Step, StepBody, digest};
pub use online::{Online, every_batch, online};
pub use options::{DecideOptions, STATED_PRICE_HORIZON, Shape, SpecError};
pub use phase::Phase;
pub use price::{DEFAULT_COPY_SHARE, DEFAULT_GPU, DEFAULT_LINK_GBPS, DEFAULT_MODEL};
pub use record::{CopyStatus, Decision, Imbalances, MoveRecord, Outcome, Point, Trigger};
pub use server::{Setup, serve};
pub use service::{ModelError, ServeError};
pub use store::SCHEMA;
pub use store_error::StoreError;

pub(crate) use feed::Feed;

/// Where the service's log lines go.
pub type Log = std::sync::Arc<dyn Fn(&str) + Send + Sync>;
