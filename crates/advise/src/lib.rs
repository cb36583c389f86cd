//! Advice on deployments of MoE models: how many GPUs, which parallelism, replicas or not.
//!
//! A [`ModelSpec`] and a GPU give the times of all operations ([`StepTimes`]), a trace gives the balance of
//! every placement ([`BalanceTable`]), and [`search()`] prices all deployments that fit into memory.
//! [`Advice`] is the answer in words and figures. docs/advise.md states the model and its errors against
//! published services.

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
pub use balance::{BalanceError, BalanceFigures, BalancePolicy};
pub use batches::{BatchPool, DRAWN_BATCHES, TracePart, holds_sums};
pub use comparison::ComparedPolicy;
pub use exchange_times::{ExchangeLoad, ExchangeMode};
pub use figures::{BalanceChoice, BalanceKey, BalanceTable};
pub use gpu_counts::{GpuCounts, WrongGpuCounts};
pub use launch::{LaunchCommand, PlacementFiles, STACKS, launch_commands};
pub use memory::{MemoryLoad, MemoryUse, USABLE_SHARE, activation_bytes, memory_use};
pub use model::{Attention, ModelError, ModelSpec, Window};
pub use parallelism::Parallelism;
pub use search::{AdviceRequest, Deployment, PrefillChoice, SearchResult, search};
pub use step::{Phase, StepTime, StepWork, step_time};
pub use table::DEPLOYMENT_COLUMNS;
pub use times::{GemmShape, StepTimes, TimeSource, TimesError};
pub use workload::{Serving, Workload, WorkloadError};
