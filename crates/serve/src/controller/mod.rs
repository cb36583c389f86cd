//! The decisions of one phase: a pure state machine without clocks, threads and files.
//!
//! - Input: accepted steps, commands (re-plan now, a rank is down), and the options of decisions.
//! - Output: proposals, each with its decision. A proposal takes effect when it is applied.
//!
//! `state` processes steps, and `trigger` reports when a decision is due. `propose` computes the new
//! placements, `candidate` compares them with the current ones, and `select` selects changes under the
//! budgets. `calibration` corrects expected gains by earlier ones. `price` holds the cost of transfers,
//! `history` the imbalance of past steps, `rise_detector` its rise, and `snapshot` the stored form of the
//! state.

pub(crate) mod calibration;
pub(crate) mod candidate;
pub(crate) mod config;
pub(crate) mod history;
pub(crate) mod price;
pub(crate) mod propose;
mod rise_detector;
pub(crate) mod select;
pub(crate) mod snapshot;
pub(crate) mod state;
mod time_verdict;
mod trigger;
mod view;
