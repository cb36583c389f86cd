//! The Python module `evenkeel._native`: the library's objects with NumPy arrays in and out.
//!
//! Arrays of the expected type are read in place, others are converted. Calls release the interpreter's lock
//! while they work. Each call of a planning function starts its own threads and ends them, so a process may
//! fork after it.

#![allow(clippy::needless_pass_by_value, reason = "pyo3 passes arguments of Python by value")]

mod advise;
mod arrays;
mod convert;
mod device;
mod errors;
mod fork_safe;
mod graph;
mod judge;
mod plan;
mod planner;
mod policy;
mod rebalance;
mod stack;
mod trace;

use pyo3::prelude::*;

/// Load-balancing planner for Mixture-of-Experts models under expert parallelism (native part).
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::advise::advise;
    #[pymodule_export]
    use super::device::{DevicePlanner, devices};
    #[pymodule_export]
    use super::graph::replicate;
    #[pymodule_export]
    use super::judge::imbalance;
    #[pymodule_export]
    use super::plan::{Plan, plan};
    #[pymodule_export]
    use super::planner::{Planner, Split};
    #[pymodule_export]
    use super::policy::{named_split, with_split};
    #[pymodule_export]
    use super::rebalance::{inverse, rebalance, replan};
    #[pymodule_export]
    use super::stack::StackRouter;
    #[pymodule_export]
    use super::trace::{Trace, read_trace};

    use super::errors;
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        module.add("Error", py.get_type::<errors::Error>())?;
        module.add("Unavailable", py.get_type::<errors::Unavailable>())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
