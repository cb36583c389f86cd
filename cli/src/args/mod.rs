//! Arguments that several commands share.
//!
//! Arguments are read in two stages. A clap struct (`*Args`) mirrors the command line. Its `resolve` checks
//! the options against each other and returns a struct (`*Spec`, `*Request`) that the command runs on. Errors
//! about combinations of options come from `resolve` alone; errors about files come later.

pub(crate) mod blend;
pub(crate) mod cluster;
pub(crate) mod cluster_grid;
pub(crate) mod dynamic_slots;
pub(crate) mod expert_time;
pub(crate) mod model;
#[cfg(feature = "serve")]
pub(crate) mod move_price;
pub(crate) mod network;
pub(crate) mod planning;
pub(crate) mod replan;
pub(crate) mod stated;
pub(crate) mod trace;
mod unused_options;
