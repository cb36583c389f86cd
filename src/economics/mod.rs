//! Economics of moves: the time that moves save against the time that their transfers take.
//!
//! In: the placement that runs now, candidates for another one, the latest batches, and [`MoveEconomics`].
//! Out: a [`MoveVerdict`] on the moves of a layer ([`MoveJudge`]), and a choice among the candidates of all
//! layers within a budget ([`select_moves`]). Planning, replay, runs and the service decide by this module
//! alone, so the same loads give the same answer.
//!
//! The unit is time. A batch is split exactly and takes as long as its slowest rank, by a
//! [`CostModel`](crate::split::CostModel). The transfers take as long as the rank that receives the most
//! experts, because ranks receive at the same time, each over its own link.

mod knapsack;
mod moves;
mod select;

pub use knapsack::{LayerOption, allocate_slots};
pub use moves::{
    MoveEconomics, MoveJudge, MoveVerdict, PlacementFigures, PricedPlacement, TransferCharge,
    busiest_receiver,
};
pub use select::{MoveBudget, MoveOption, select_moves};
