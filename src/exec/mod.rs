//! A real expert-parallel MoE forward pass, so that plans are executed and checked, not only simulated.
//!
//! In: tokens, a model's shape, placements. Out: the layers' outputs, what every rank served, and how long each phase took.

pub mod random;
pub mod router;
