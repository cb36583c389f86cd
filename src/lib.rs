//! Load-balancing planner for Mixture-of-Experts models under expert parallelism.
pub mod trace;
