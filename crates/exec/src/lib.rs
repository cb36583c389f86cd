//! A real expert-parallel MoE forward pass, so that plans are executed and checked, not only simulated.
//!
//! In: tokens, a model's shape and weights, placements. Out: the tokens after all layers, what every rank served, and how
//! long each phase took ([`forward::step`]). A layer runs
//!
//! ```text
//! norm, route -> count -> all-gather counts -> split -> dispatch -> FFN per slot -> combine -> residual
//! ```
//!
//! on whatever implements [`Backend`]: [`cpu`] on any machine, `cuda` on NVIDIA GPUs. What comes out does not depend on placement or
//! split: [`mod@reference`] is the same layer in one memory and `f64`, without any of them.

pub mod activations;
mod backend;
pub mod calibrate;
pub mod checkpoint;
pub mod clock;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod feed;
pub mod forward;
pub mod links;
pub mod moves;
mod numbers;
pub mod overlap;
pub mod random;
pub mod reference;
pub mod router;
pub mod run;
pub mod transport;
pub mod weights;

pub use backend::{
    Aggregate, Backend, ExecConfig, LayerInput, LayerRun, Phase, Routed, SourceRouting, Times,
};
pub use error::ExecError;
