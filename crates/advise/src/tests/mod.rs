//! Comparisons with figures that others published, and with cases whose answer is known. Run them with
//! `--nocapture` to see the tables.

mod aiconfigurator;
mod replan;
mod services;
mod tiling;

use crate::balance::BalanceFigures;
use crate::step::{Phase, StepWork, step_time};
use crate::{ModelSpec, Parallelism, StepTime, StepTimes};
use evenkeel::cluster::Network;
use evenkeel_cost::CostDatabase;

/// Returns the times of a model on a GPU, with the measurements of another GPU if it has none.
fn times_of(model: &ModelSpec, gpu: &str, measured: &str, framework: &str, kv_bytes: f64) -> StepTimes {
    let database = CostDatabase::builtin(measured).unwrap();
    let network = Network::of_gpu(gpu).unwrap();
    StepTimes::new(model, gpu.parse().unwrap(), network, Some(database), framework, kv_bytes)
}

/// One pass in which every expert of `slots` slots has the same load.
fn even_step(
    model: &ModelSpec,
    parallel: &Parallelism,
    times: &StepTimes,
    work: &StepWork,
    slots: u64,
) -> StepTime {
    let halves = if work.overlap { 2.0 } else { 1.0 };
    let visits = work.tokens / halves * (parallel.ranks * model.moe.top_k as u64) as f64;
    let groups = parallel.expert_groups();
    let is_prefill = matches!(work.phase, Phase::Prefill { .. });
    let kernel = times.expert_kernel(model, (slots, groups, parallel.expert_tp), is_prefill);
    let rows = (visits / groups as f64).round() as u64;
    let active = (slots / groups).min(rows.max(1));
    let loads: Vec<u64> = (0..active).map(|at| rows / active + u64::from(at < rows % active)).collect();
    let us = kernel.rank_ps(&loads, 1) as f64 / 1e6;
    let figures = BalanceFigures { experts_us: us, even_us: us, ..BalanceFigures::EVEN };
    step_time(model, parallel, times, work, &figures)
}

/// Returns the parts of a step in a row of a table.
fn parts(step: &StepTime) -> String {
    format!(
        "{:8.2} {:8.2} {:8.2} {:8.2}",
        step.attention_ms, step.dense_ms, step.experts_ms, step.exchange_ms
    )
}
