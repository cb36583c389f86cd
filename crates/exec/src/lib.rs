//! Runs a real expert-parallel MoE forward pass, so that plans are executed and checked, not only simulated.
//!
//! Input: tokens, a model's shape and weights, placements. Output: the tokens after all layers, the load that
//! every rank served, and the time of each phase ([`forward::run_step`]). A layer runs
//!
//! ```text
//! norm, route -> count -> all-gather counts -> split -> dispatch -> FFN per slot -> combine -> residual
//! ```
//!
//! on any [`Backend`]: [`cpu`] runs on any machine, `cuda` on NVIDIA GPUs. The result depends on neither
//! placement nor split. [`mod@reference`] computes the same layer in one memory and in `f64`, without
//! placement or split.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod activations;
mod backend;
pub mod batch_source;
pub mod calibrate;
pub mod checkpoint;
pub mod clock;
pub mod comm;
mod copy_exchange;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod forward;
pub mod job;
pub mod migration;
pub mod overlap;
mod placement_state;
pub mod random;
mod rank;
pub mod reference;
pub mod router;
pub mod run;
mod simd;
mod step_stats;
pub mod weights;

pub use backend::{
    Aggregate, Backend, ExecConfig, LayerInput, LayerRun, LayerStage, RoutingSource, SourceRouting,
    StageTimes,
};
pub use error::{ExecError, UnknownName};
pub use placement_state::{PlacementState, WeightBytes};
