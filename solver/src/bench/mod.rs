//! Instances, solvers and measurement of the benchmarks of splits. The interface is not stable.

pub mod corpus;
mod engine;
pub mod measure;
