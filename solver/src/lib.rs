//! Exact integer min-max load splitting with certificates.
//!
//! **The problem.** *Items* carry integer *loads*; each item may be served by any of its *hosts*, a
//! set of *ranks*; rank `r` works at speed `s_r` and already carries a base load. Split every item's
//! load into integer *quotas* over its hosts so that the *peak*, the largest `load_r / s_r`, is as
//! small as possible.
//!
//! **The theorem** (max-flow min-cut on the bipartite graph items – ranks). The best peak is decided
//! by one rank set `S`: the items whose hosts all lie in `S` cannot escape it, so no split has a peak
//! `T` at which `S` has no room for them, and some `S` is tight. That set is the *certificate*: with it
//! anyone can check in linear time that the peak cannot be lower ([`verify`]). The flow matrix is
//! totally unimodular, so whole tokens cost nothing.
//!
//! **The method** ([`solve`]) is a max-flow in integers: no tolerance, no rounding, no randomness. The
//! quotas are a pure function of the problem and the loads: the same on every machine, bit for bit.
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
//! **Module map.** `hosts`, `problem`: what is asked. `net`: both compiled for the solver; `compiled`: that as
//! plain data. `exact`: the flow
//! (`gather`: items with one host; `level`: the least admissible peak; `fill`: a greedy start; `forest`, `search`,
//! `block`: residual paths, drains and blocking flows). `split`, `peak`: the answer. `verify`: the check, which
//! shares no code with the solver. [`objective`]: which of the optimal splits, and other measures of load. For
//! comparison: [`affine`], LPLB's interior point iteration; [`edge`], coordinate
//! descent; `lp` (feature `lp`), the same problem as a linear programme; `bench`, the corpus that all are timed on.
//!
//! **Features.** None by default: no dependency beyond `thiserror`. `lp` adds the linear programme with a
//! pure-Rust engine, `highs` adds HiGHS to it, `oracle` is the set that the tests want.

mod compiled;
mod error;
mod exact;
mod hosts;
mod net;
mod peak;
mod problem;
mod split;
mod verify;

pub mod affine;
#[doc(hidden)]
pub mod bench;
pub mod edge;
#[cfg(feature = "lp")]
pub mod lp;
pub mod objective;

pub use compiled::Compiled;
pub use error::Error;
pub(crate) use exact::Count;
pub use exact::{Warm, Workspace, solve, solve_counts_into, solve_into};
pub use hosts::Hosts;
pub use peak::Peak;
pub use problem::Problem;
pub use split::Split;
pub use verify::{Violation, verify};
