//! Instances, solvers and measurement of the benchmarks of splits. The interface is not stable.

pub mod copy_corpus;
pub mod copy_measure;
pub mod copy_rules;
pub mod corpus;
mod engine;
pub mod measure;
