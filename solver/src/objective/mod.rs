//! Second objectives, and other measures of load.
//!
//! The exact split ([`solve`](crate::solve)) makes the peak as low as possible. In most batches many splits
//! do. These modules choose among them, or use another measure of load. Each objective has one file with its
//! own statement, method and proof. docs/objectives.md has figures.
//!
//! - [`balance()`]: the whole load vector, decreasingly minimal. Exact.
//! - [`TrafficSplitter`]: among the splits of lowest peak, or of decreasingly minimal vector, the fewest
//!   tokens served off their source's node, then off their source's rank. Exact.
//! - [`TileSplitter`]: load counted in tiles of rows. Exact.
//! - [`ActiveSplitter`]: load counted in active items. Exact. Tokens come second, by a heuristic.
//! - [`MinPieceSplitter`]: no piece below a given number of tokens. A heuristic with a lower bound.
//! - [`RooflineSplitter`]: a piece costs its read or its tiles, whichever is more. A heuristic with a lower
//!   bound.
//! - [`Objective`]: the peak of any of these costs, then the vector, then traffic.

mod active;
mod balance;
mod check;
mod check_traffic;
mod cost_flow;
mod decomposition;
mod graph;
mod lexicographic;
mod load_levels;
mod local_search;
mod min_piece;
mod residual;
mod roofline;
mod tiles;
mod traffic;

pub use active::{ActiveSplit, ActiveSplitter, verify_active};
pub use balance::{BalanceWorkspace, balance, balance_into};
pub use check::verify_balanced;
pub use check_traffic::verify_traffic;
pub use lexicographic::{Cost, Objective, ObjectiveResult, ObjectiveSolver, TrafficTotals};
pub use load_levels::Level;
pub use min_piece::{MinPieceSplit, MinPieceSplitter};
pub use roofline::{Roofline, RooflineBound, RooflineSplit, RooflineSplitter};
pub use tiles::{TileSplit, TileSplitter, verify_tiles};
pub use traffic::{PrimaryObjective, TrafficSplit, TrafficSplitter, node_cost};
