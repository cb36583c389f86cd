//! Load-balancing planner for Mixture-of-Experts models under expert parallelism.
//!
//! MoE models route each token to a few of many experts. The experts live on different ranks (GPUs). Routing
//! is uneven, and every step waits for the busiest rank. evenkeel turns routing statistics into a placement
//! of redundant replicas. For each batch it computes the exact split of tokens over the replicas.
//!
//! # The street
//!
//! Data flows in one direction. Each station is a module that takes plain data and returns plain data.
//!
//! | station | module | in | out |
//! |---|---|---|---|
//! | trace | [`trace`] | recorded loads | tokens per step, layer and expert |
//! | forecast | [`forecast`] | a trace | the history that planning may read |
//! | place | [`place`] | a layer's history, a [`cluster`] | the expert in each slot |
//! | split | [`split`] | a placement, the loads of one batch | whole tokens per slot with a certificate, and the share of each source |
//! | economics | [`economics`] | placements before and after, the time of a transfer | the moves that pay |
//!
//! [`planner`] combines the last two stations in one call for a serving loop: top-k ids in, slots out.
//! [`evaluate`] judges a placement by splitting every batch. [`plan`] is the artefact that leaves the street.
//! [`export`] writes a plan in the dialects of the serving stacks. [`model`] and [`gpu`] give the size of an
//! expert and the time to read it. The optimisation itself lives in the crate [`evenkeel_solver`].
//!
//! Other crates of the workspace read trace files (`evenkeel-trace`), simulate (`evenkeel-simulate`), plan on
//! a GPU (`evenkeel-cuda`), execute (`evenkeel-exec`), draw reports (`evenkeel-report`) and serve plans
//! (`evenkeel-serve`).
//!
//! # Example
//!
//! ```
//! use evenkeel::cluster::Cluster;
//! use evenkeel::forecast::History;
//! use evenkeel::place::{self, PlaceRequest};
//! use evenkeel::split::{SplitMethod, Split, Splitter};
//! use evenkeel::trace::Trace;
//!
//! // Two steps of one layer with eight experts, and four ranks with one redundant slot each.
//! let loads = vec![90, 10, 10, 10, 10, 10, 10, 10, 70, 30, 10, 10, 10, 10, 10, 10];
//! let trace = Trace::from_loads(8, vec![0], vec!["0".into(), "1".into()], loads)?;
//! let cluster = Cluster::builder().ranks(4).experts(8).redundant_slots(4).build()?;
//!
//! let history = History::from_trace(&trace, 0);
//! let placed = place::policy("eplb", 1, &cluster)?.place(&PlaceRequest::new(&history, &cluster))?;
//! let mut splitter = Splitter::new(placed.placement, SplitMethod::Exact)?;
//! let mut split = Split::default();
//! splitter.split(trace.loads(0, 0), &mut split)?;
//! splitter.check(trace.loads(0, 0), &split)?; // feasible, conserving, certified
//! // 160 tokens on 4 ranks: 40 each would be perfect, but on this placement no split has a peak below 44 ...
//! assert_eq!(split.peak(), 44);
//! // ... because the experts that live on these ranks alone need that much.
//! assert!(!split.certificate.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::exit))]

pub mod cluster;
pub mod economics;
mod error;
pub mod evaluate;
pub mod export;
pub mod forecast;
pub mod gpu;
pub mod model;
pub mod place;
pub mod plan;
pub mod planner;
pub mod rng;
pub mod split;
pub mod trace;
mod write_atomic;

pub use error::error_chain;
pub use write_atomic::write_atomic;
