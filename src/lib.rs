//! Load-balancing planner for Mixture-of-Experts models under expert parallelism.
//!
//! MoE models route each token to a few of many experts; the experts live on different ranks (GPUs), routing is
//! uneven, and every step waits for the busiest rank. evenkeel turns routing statistics into a placement of
//! redundant expert copies and, batch by batch, into an exact share-out of tokens between the copies.
//!
//! # The street
//!
//! Data has one natural direction; each station is a module that takes plain data and returns plain data.
//!
//! | station | module | in | out |
//! |---|---|---|---|
//! | trace | [`trace`] | files | tokens per step, layer and expert |
//! | forecast | [`forecast`] | a trace | what planning may look at |
//! | place | [`place`] | a layer's history, a [`cluster`] | which slot holds which expert |
//! | split | [`split`] | a placement, one batch's loads | whole tokens per slot, with proof; each source's share |
//! | execute | [`exec`] | tokens, weights, placements | tokens, what every rank served and how long it took |
//!
//! [`planner`] is the last two stations as one call inside a serving loop: top-k ids in, physical slots out. The module
//! `cuda` is the same on a GPU, and [`kernels`] what it reads there.
//! [`simulate`] walks the whole street over a recorded trace and measures; [`plan`] is the artefact that leaves
//! it, [`report`] the picture, [`export`] the plan as serving stacks read it; [`model`] and [`gpu`] know what an expert weighs and how fast that is read. The
//! optimisation itself lives in the crate [`evenkeel_solver`].
//!
//! # Example
//!
//! ```
//! use evenkeel::cluster::Cluster;
//! use evenkeel::forecast::History;
//! use evenkeel::place;
//! use evenkeel::split::{Method, Split, Splitter};
//! use evenkeel::trace::Trace;
//!
//! // Two steps of one layer with eight experts, and four ranks with one redundant slot each.
//! let loads = vec![90, 10, 10, 10, 10, 10, 10, 10, 70, 30, 10, 10, 10, 10, 10, 10];
//! let trace = Trace::from_loads(8, vec![0], vec!["0".into(), "1".into()], loads)?;
//! let cluster = Cluster::new(4, 1, 8, 4)?;
//!
//! let placement = place::policy("eplb", 1, &cluster)?.place(&History::whole(&trace, 0), &cluster)?;
//! let mut splitter = Splitter::new(placement, Method::Exact)?;
//! let mut split = Split::default();
//! splitter.split(trace.loads(0, 0), &mut split)?;
//! splitter.check(trace.loads(0, 0), &split)?; // feasible, conserving, certified
//! // 160 tokens on 4 ranks: 40 each would be perfect, but on this placement no split has a peak below 44 ...
//! assert_eq!(split.peak(), 44);
//! // ... because the experts that live on these ranks alone need that much.
//! assert!(!split.certificate.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::exit))]

pub mod cluster;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod exec;
pub mod export;
pub mod forecast;
pub mod gpu;
pub mod kernels;
pub mod model;
pub mod place;
pub mod plan;
pub mod planner;
pub mod report;
#[cfg(feature = "serve")]
pub mod serve;
pub mod simulate;
pub mod split;
pub mod trace;
mod words;

pub use words::in_words;
