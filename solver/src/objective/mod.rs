//! Second objectives, and other measures of load.
//!
//! The exact split ([`solve`](crate::solve)) makes the peak as small as it can be. Mostly many splits do. The modules
//! here choose among them, or measure load otherwise. One file per objective, each with its own statement, method and
//! proof; docs/objectives.md has figures.
//!
//! - [`balance()`]: the whole load vector, decreasingly minimal. Exact.

mod balance;
mod check;
mod classes;
mod graph;
mod level;

pub use balance::{Workspace, balance, balance_into};
pub use check::verify_balanced;
pub use level::Level;
