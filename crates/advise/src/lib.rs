//! Advice on deployments of MoE models: how many GPUs, which parallelism, replicas or not.
//!
//! A [`ModelSpec`] and a GPU give the times of all operations ([`StepTimes`]). A trace gives the balance of
//! every placement. [`Advice::find`] prices all deployments of an [`AdviceRequest`] that fit into memory. It
//! answers in words and figures. docs/advise.md states the model and its errors against published services.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod advice;
mod attention_times;
mod balance;
mod batches;
mod comparison;
mod document;
mod exchange_times;
mod figures;
mod gpu_counts;
mod launch;
mod memory;
mod model;
mod parallelism;
mod phase_search;
mod search;
mod step;
mod table;
#[cfg(test)]
mod tests;
mod times;
mod workload;

pub use advice::{Advice, AdviceError, Role};
pub use balance::{BalanceError, BalancePolicy};
pub use batches::{DRAWN_BATCHES, holds_sums};
pub use comparison::ComparedPolicy;
pub use exchange_times::ExchangeMode;
pub use figures::BalanceChoice;
pub use gpu_counts::{GpuCounts, WrongGpuCounts};
pub use launch::{LaunchCommand, PlacementFiles, launch_commands};
pub use memory::MemoryUse;
pub use model::{Attention, ModelError, ModelSpec, Window};
pub use parallelism::Parallelism;
pub use search::{AdviceRequest, Deployment, PrefillChoice, SearchResult};
pub use step::StepTime;
pub use table::DEPLOYMENT_COLUMNS;
pub use times::{StepTimes, TimeSource, TimesError};
pub use workload::{Serving, Workload, WorkloadError};
