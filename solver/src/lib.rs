//! Exact integer min-max load splitting with certificates.
//!
//! **The problem.** *Items* carry integer *loads*. Each item may be served by any of its *hosts*, a set of
//! *ranks*. Rank `r` works at speed `s_r` and already carries a base load. The solver splits every item's
//! load into integer *quotas* over its hosts. The result has the smallest possible *peak*, the largest
//! `load_r / s_r`.
//!
//! **The theorem** (max-flow min-cut on the bipartite graph items – ranks). One rank set `S` decides the best
//! peak. The items whose hosts all lie in `S` cannot escape it. No split has a peak `T` at which `S` has no
//! room for them, and some `S` is tight. That set is the *certificate*. It lets anyone check in linear time
//! that the peak cannot be lower ([`verify`]). The flow matrix is totally unimodular, so whole tokens do not
//! raise the peak.
//!
//! **The method** ([`solve`]) is a max-flow in integers, without tolerance, rounding or randomness. The
//! quotas are a pure function of the problem and the loads. They are the same on every machine, bit for bit.
//!
//! ```
//! use evenkeel_solver::{Hosts, Problem, Workspace, solve, verify};
//!
//! // Three ranks; item 0 lives on ranks 0 and 1, item 1 on ranks 1 and 2, items 2 to 4 on one rank each.
//! let hosts = Hosts::new(3, [&[0, 1][..], &[1, 2], &[0], &[1], &[2]])?;
//! let problem = Problem::new(hosts);
//! let loads = [60, 30, 50, 10, 20];
//!
//! let mut workspace = Workspace::new(&problem);
//! let split = solve(&problem, &loads, &mut workspace)?;
//!
//! // Items 0, 2 and 3 cannot leave ranks 0 and 1: 120 tokens on two ranks, so 60 is the least peak ...
//! assert_eq!((split.peak.load, split.certificate.as_slice()), (60, &[0, 1][..]));
//! // ... and it is reached by giving rank 0 no more than 10 tokens of item 0, and rank 2 all of item 1.
//! assert_eq!((split.quotas_of(0), split.quotas_of(1)), (&[10, 50][..], &[0, 30][..]));
//! verify(&problem, &loads, &split)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Module map.** `hosts` and `problem` define the input. `network` compiles both for the solver, and
//! `network::tables` is the same as plain data. `exact` is the flow. Its parts are `fixed_items` (items with
//! one host), `level` (the least admissible peak) and `fill` (a greedy start). `forest`, `search` and
//! `blocking_flow` find residual paths, drains and blocking flows. `incremental` repairs the splits of many
//! batches while items change slots. Its parts `slot_table` and `residual_paths` also serve [`copies`], which
//! chooses copies of items for each batch. `split` and `peak` define the result.
//! `verify` is the check, which shares no code with the solver. [`objective`] chooses among the optimal
//! splits and minimises other measures of load. Three modules serve comparisons. [`affine_scaling`] is LPLB's
//! interior point iteration, and [`coordinate_descent`] is coordinate descent. `lp` (feature `lp`) solves the
//! same problem as a linear programme. `bench` holds the corpus on which all of them are timed.
//!
//! **Features.** None is on by default, and `thiserror` is then the only dependency. `lp` adds the linear
//! programme with a pure-Rust engine. `highs` adds HiGHS to it. `oracle` is the set that the tests need.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod exact;
mod hosts;
mod incremental;
mod network;
mod peak;
mod problem;
mod residual_paths;
mod slot_table;
mod split;
mod verify;

pub mod affine_scaling;
#[doc(hidden)]
pub mod bench;
pub mod coordinate_descent;
pub mod copies;
#[cfg(feature = "lp")]
pub mod lp;
pub mod objective;

pub use error::SolverError;
pub(crate) use exact::Count;
pub use exact::{WarmSplitter, Workspace, solve, solve_counts_into, solve_into};
pub use hosts::Hosts;
pub use incremental::{IncrementalSplits, ProvedPeak};
pub use network::tables::SolverTables;
pub use peak::Peak;
pub use problem::Problem;
pub use slot_table::SlotChange;
pub use split::RankSplit;
pub use verify::{Violation, verify};
