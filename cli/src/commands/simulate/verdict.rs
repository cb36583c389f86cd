//! The time that a comparison is about, and the sentence that answers "is balancing worth it?".
//!
//! In: a comparison, a model and a GPU. Out: predicted times of all rows. Measured kernels of the GPU give
//! the times of experts, if the program has them, and the GPU's data sheet otherwise. The network is the
//! preset of machines with this GPU.

use crate::args::expert_time::{FrameworkKernel, data_sheet_times};
use crate::args::model::ModelOnGpu;
use crate::output::StderrBar;
use crate::render::table::render_table;
use anyhow::bail;
use evenkeel::cluster::Network;
use evenkeel::gpu::{DATA_SHEET_ERROR, DATA_SHEET_SHARE};
use evenkeel::model::MoeModel;
use evenkeel::split::{CostModel, PLANNING_US};
use evenkeel::trace::Trace;
use evenkeel_simulate::network::{PredictionInput, StepCostModel, predict_steps};
use evenkeel_simulate::{SimulationConfig, SimulationResult, TimedRow, Verdict, VerdictSetting, format_ms};
use serde_json::{Value, json};
use std::sync::Arc;

/// A verdict with the sources of its times.
#[derive(Debug)]
pub(crate) struct TimedComparison {
    pub(crate) verdict: Verdict,
    on: ModelOnGpu,
    network: String,
    /// The kernel of the times; `None` for the data sheet.
    kernel: Option<FrameworkKernel>,
}

/// Refuses a model whose layers have other experts than the trace.
pub(super) fn check_experts(model: &MoeModel, trace: &Trace) -> anyhow::Result<()> {
    if model.experts != trace.experts() {
        let (name, experts, found) = (model.name, model.experts, trace.experts());
        bail!("--model {name} has {experts} experts per layer, the trace {found}");
    }
    Ok(())
}

impl TimedComparison {
    /// Predicts the times of all rows of a comparison. Returns `None` if no network is known for the GPU, or
    /// if no row does nothing.
    ///
    /// # Errors
    /// Fails if the model has other experts than the trace.
    pub(crate) fn predict(
        trace: &Trace,
        config: &SimulationConfig,
        outcome: &SimulationResult,
        on: ModelOnGpu,
    ) -> anyhow::Result<Option<Self>> {
        check_experts(&on.model, trace)?;
        let Some(network) = Network::of_gpu(on.gpu.name) else { return Ok(None) };
        let kernel = FrameworkKernel::measured(on.gpu.name, &on.model, &config.cluster);
        let cost: Arc<dyn CostModel> = match &kernel {
            Some(kernel) => Arc::new(kernel.times.clone()),
            None => Arc::new(data_sheet_times(&on.model, &on.gpu, DATA_SHEET_SHARE)),
        };
        let error = kernel.as_ref().and_then(FrameworkKernel::median_error).unwrap_or(DATA_SHEET_ERROR);
        let name = network.to_string();
        let pace = StepCostModel::for_model(network, &on.model, Arc::clone(&cost));
        let bar = StderrBar::for_layers();
        let predictions = predict_steps(PredictionInput::Counts(trace), config, outcome, &pace, &bar)?;
        drop(bar);
        let tokens = predictions.first().map_or(0.0, |row| row.tokens);
        let tokens_per_expert = tokens * on.model.top_k as f64 / on.model.experts.max(1) as f64;
        let of_rank = |share: f64| {
            let each = (tokens_per_expert * share).ceil() as u64;
            cost.rank_ps(&vec![each; config.cluster.slots_per_rank()], 1)
        };
        let is_read_bound = of_rank(2.0) as f64 <= 1.25 * of_rank(1.0) as f64;
        let setting = VerdictSetting { error, tokens_per_expert, is_read_bound };
        let verdict = Verdict::from_predictions(outcome, &predictions, on.model.layers, setting);
        Ok(verdict.map(|verdict| Self { verdict, on, network: name, kernel }))
    }

    /// Returns the verdict, the table of times, and their sources.
    pub(crate) fn to_text(&self, outcome: &SimulationResult) -> String {
        let row = |row: &TimedRow| {
            let share = |share: f64| format!("{:.1}%", 100.0 * share);
            vec![
                outcome.planned[row.planned].policy.clone(),
                row.method.to_string(),
                format_ms(row.step_ms),
                share(row.gain),
                share(row.communication_share),
                share(row.imbalance_share),
            ]
        };
        let header = ["policy", "split", "step ms", "saved", "comm.", "imbalance"];
        let no_kernel = || {
            format!(
                "{:.0} % of the data sheet's rates, since no kernel is measured",
                100.0 * DATA_SHEET_SHARE
            )
        };
        let source = self.kernel.as_ref().map_or_else(no_kernel, FrameworkKernel::describe);
        format!(
            "{}\n\n{}\nTimes of the {} MoE layers of {} on {}: experts by {source}, network {}, {PLANNING_US} us to \
             split a batch by its counts. Attention and dense layers are left out.\n\n",
            self.verdict.to_sentences(),
            render_table(&header, self.verdict.rows.iter().map(row).collect(), 2),
            self.on.model.layers,
            self.on.model,
            self.on.gpu,
            self.network,
        )
    }

    pub(crate) fn to_json(&self, outcome: &SimulationResult) -> Value {
        let verdict = &self.verdict;
        let row = |row: &TimedRow| {
            json!({
                "policy": outcome.planned[row.planned].policy,
                "split": row.method.to_string(),
                "step_ms": row.step_ms,
                "gain": row.gain,
                "communication_share": row.communication_share,
                "imbalance_share": row.imbalance_share,
            })
        };
        json!({
            "text": verdict.to_sentences(),
            "is_worth_it": verdict.is_worth_it(),
            "gain": verdict.gain(),
            "error": verdict.setting.error,
            "tokens_per_expert": verdict.setting.tokens_per_expert,
            "is_read_bound": verdict.setting.is_read_bound,
            "best": verdict.best,
            "nothing": verdict.nothing,
            "model": self.on.model.to_string(),
            "gpu": self.on.gpu.to_string(),
            "network": self.network,
            "kernel": self.kernel.as_ref().map(FrameworkKernel::to_json),
            "planning_us": PLANNING_US,
            "results": verdict.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// The missing part of a verdict without a model and a GPU.
pub(crate) const MISSING_MODEL: &str =
    "Worth it? Times are not known: state the model and the GPU, as in --model deepseek-r1,h100.\n\n";

/// The missing part of a verdict without a row that does nothing.
pub(super) const MISSING_BASELINE: &str =
    "Worth it? Nothing to compare with: --policies needs contiguous, and --splits needs even.\n\n";
