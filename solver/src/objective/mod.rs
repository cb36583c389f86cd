//! Second objectives, and other measures of load.
//!
//! The exact split ([`solve`](crate::solve)) makes the peak as small as it can be. Mostly many splits do. The modules
//! here choose among them, or measure load otherwise. One file per objective, each with its own statement, method and
//! proof; docs/objectives.md has figures.
//!
//! - [`balance()`]: the whole load vector, decreasingly minimal. Exact.
//! - [`Traffic`]: among the splits of least peak, or of decreasingly minimal vector, the fewest tokens served off their
//!   source's node, then off their source's rank. Exact.
//! - [`Tiles`]: load counted in tiles of rows. Exact.
//! - [`Active`]: load counted in active items. Exact; tokens come second, by a heuristic.
//! - [`MinPiece`]: no piece below so many tokens. A heuristic with a lower bound.
//! - [`Rooflines`]: a piece costs its read or its tiles, whichever is more. A heuristic with a lower bound.
//! - [`Objective`]: the peak of any of these costs, then the vector, then traffic.

mod active;
mod balance;
mod check;
mod check_traffic;
mod classes;
mod combine;
mod cost_flow;
mod graph;
mod level;
mod local;
mod min_piece;
mod residual;
mod roofline;
mod tiles;
mod traffic;

pub use active::{Active, ActiveSplit, verify_active};
pub use balance::{Workspace, balance, balance_into};
pub use check::verify_balanced;
pub use check_traffic::verify_traffic;
pub use combine::{Cost, Left, Objective, Objectives, Outcome};
pub use level::Level;
pub use min_piece::{MinPiece, MinPieceSplit};
pub use roofline::{Bound, Roofline, RooflineSplit, Rooflines};
pub use tiles::{TileSplit, Tiles, verify_tiles};
pub use traffic::{Keep, Traffic, TrafficSplit, node_cost};
