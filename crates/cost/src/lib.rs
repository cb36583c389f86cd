//! Measured times of MoE kernels, and of the other operations of a step.
//!
//! A [`CostDatabase`] holds fitted kernels of one GPU: coefficients, provenance and errors on held-out
//! shapes. Databases of some GPUs are part of the crate. [`RankKernel`] computes the time of one rank's
//! experts from the rows of each, as a [`CostModel`](evenkeel::split::CostModel). [`import`] fits kernels
//! to the tables of NVIDIA's package `aiconfigurator-core`, and [`check`] compares a database with them.
//! [`operations`] has exchange, collectives, attention and dense layers.
//!
//! ```
//! use evenkeel::split::CostModel;
//! use evenkeel_cost::{CostDatabase, Dtype, MoeShape, RankKernel};
//!
//! let database = CostDatabase::builtin("h100")?;
//! // DeepSeek-V3 on 32 ranks: 8 experts per rank.
//! let shape =
//!     MoeShape { hidden: 7168, intermediate: 2048, top_k: 8, experts: 256, slots: 8, matrices: 3 };
//! let kernel = RankKernel::find(&database, "trtllm", Dtype::Fp8Block, shape)?;
//! let (even, skewed) = (kernel.rank_ps(&[512; 8], 1), kernel.rank_ps(&[1024; 8], 1));
//! assert!(even < skewed);
//! # Ok::<(), evenkeel_cost::CostError>(())
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

mod builtin;
#[cfg(feature = "import")]
pub mod check;
mod database;
mod dtype;
mod features;
mod hardware;
#[cfg(feature = "import")]
pub mod import;
mod kernel_entry;
mod moe_shape;
pub mod nnls;
pub mod operations;
mod rank_kernel;
mod rank_load;
pub mod routing;

pub use builtin::builtin_gpus;
pub use database::{CostDatabase, CostError, FORMAT, Provenance};
pub use dtype::{ActivationWidth, Dtype, UnknownDtype};
pub use features::{FEATURE_COUNT, Feature};
pub use hardware::Hardware;
pub use kernel_entry::{ErrorQuantiles, HeldOutErrors, KernelEntry, KernelTable, MethodErrors};
pub use moe_shape::{ModelShape, MoeShape};
pub use operations::{Operation, OperationEntry, OperationKind, OperationWork};
pub use rank_kernel::{CacheState, MeasuredExperts, RankKernel};
pub use rank_load::RankLoad;
