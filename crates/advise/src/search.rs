//! Search over deployments: divisions of the GPUs, replicas, policies, splits, batches and overlap.
//!
//! In: an [`AdviceRequest`]. Out: all [`Deployment`]s that fit into memory, with the exact Pareto front of
//! tokens per second per GPU against tokens per second per user. Decode and prefill are priced apart and then
//! joined: `output / (input / prefill rate + output / decode rate)` output tokens per second and GPU.

use crate::balance::{BalanceError, BalanceFigures};
use crate::figures::{BalanceChoice, BalanceTable};
use crate::memory::{MemoryUse, USABLE_SHARE};
use crate::model::ModelSpec;
use crate::parallelism::Parallelism;
use crate::phase_search::{DecodeChoice, PhaseSearch};
use crate::step::{Phase, StepTime, StepWork, step_time};
use crate::times::StepTimes;
use crate::workload::{Serving, Workload};
use evenkeel::evaluate::Progress;
use evenkeel::trace::Trace;
use std::collections::BTreeMap;

/// Question to answer.
#[derive(Debug)]
pub struct AdviceRequest<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    /// Times of its operations.
    pub times: &'a StepTimes,
    /// Recorded routing.
    pub trace: &'a Trace,
    /// Requests and limits.
    pub workload: Workload,
    /// Numbers of GPUs of an instance to consider.
    pub gpus: Vec<u64>,
    /// Highest number of redundant slots per rank.
    pub max_redundant: u64,
    /// Seed of all random choices.
    pub seed: u64,
}

/// One way to deploy the model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Deployment {
    /// Division of the model among the GPUs of a decoding instance.
    pub parallel: Parallelism,
    /// Placement and split of the experts.
    pub choice: BalanceChoice,
    /// Requests per GPU that decode at the same time.
    pub batch: u64,
    /// Flag that is set if two halves of a decode batch overlap.
    pub overlap: bool,
    /// Time of a decode step with its parts.
    pub decode: StepTime,
    /// Memory of a decoding GPU.
    pub memory: MemoryUse,
    /// Rows of the fullest rank over the mean when decoding.
    pub imbalance: f64,
    /// Standard error of the decode step over the trace's batches, as a share of it.
    pub variation: f64,
    /// Time per output token, milliseconds.
    pub tpot_ms: f64,
    /// Output tokens per second and GPU, over the GPUs of both phases.
    pub tokens_per_s_per_gpu: f64,
    /// True if the time per output token is within the limit.
    pub within_limits: bool,
    /// The prefill that serves it. It is within the limit of the time to the first token.
    pub prefill: PrefillChoice,
}

/// One way to prefill.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PrefillChoice {
    /// Division of the model among the GPUs of an instance.
    pub parallel: Parallelism,
    /// Placement and split of the experts.
    pub choice: BalanceChoice,
    /// Tokens of a pass per GPU.
    pub tokens: u64,
    /// Tiles on which attention runs one after the other.
    pub attention_tiles: u64,
    /// Flag that is set if two halves of a pass overlap.
    pub overlap: bool,
    /// Time of a pass with its parts.
    pub pass: StepTime,
    /// Memory of a GPU.
    pub memory: MemoryUse,
    /// Rows of the fullest rank over the mean.
    pub imbalance: f64,
    /// Standard error of the pass over the trace's batches, as a share of it.
    pub variation: f64,
    /// Time from the start of a prompt to its first token, without queueing, milliseconds.
    pub ttft_ms: f64,
    /// Prompt tokens per second and GPU.
    pub tokens_per_s_per_gpu: f64,
}

/// Result of a search.
#[derive(Debug)]
#[non_exhaustive]
pub struct SearchResult {
    /// Deployments within memory, by descending tokens per second per GPU.
    pub deployments: Vec<Deployment>,
    /// Indices of the Pareto front, by ascending tokens per second per GPU.
    pub front: Vec<usize>,
    /// Number of deployments that were priced.
    pub priced: usize,
    /// Number of deployments that do not fit into memory.
    pub too_large: usize,
    /// Number of placements that were planned.
    pub planned: usize,
}

/// Difference below which two deployments count as equal.
pub(crate) const TIE: f64 = 0.01;

/// Searches all deployments. `progress` receives the numbers of planned and of all placements.
///
/// # Errors
/// Fails if a placement cannot be planned or judged.
pub(crate) fn search(
    request: &AdviceRequest<'_>,
    progress: &dyn Progress,
) -> Result<SearchResult, BalanceError> {
    let shapes = request.shapes();
    let table =
        BalanceTable::new(request.trace, request.model.moe.top_k, request.times.linked(), request.seed);
    let mut prefill = PhaseSearch::new(request, true, table, progress);
    let passes = prefill.price_all(&shapes, PhaseSearch::price_prefill)?;
    let mut decode = PhaseSearch::new(request, false, prefill.table, progress);
    let steps = decode.price_all(&shapes, PhaseSearch::price_decode)?;
    let priced = passes.count + steps.count;
    let too_large = passes.too_large + steps.too_large;
    let mut deployments = request.join(&steps.found, &passes.found);
    deployments.sort_by(|a, b| {
        let order = b.tokens_per_s_per_gpu.total_cmp(&a.tokens_per_s_per_gpu);
        order.then(a.parallel.cmp(&b.parallel)).then(a.choice.cmp(&b.choice)).then(a.batch.cmp(&b.batch))
    });
    let front = pareto_front(&deployments);
    let planned = decode.table.planned();
    Ok(SearchResult { deployments, front, priced, too_large, planned })
}

/// Returns the indices of the deployments that no other beats in both rates, by ascending rate per GPU.
/// `deployments` are sorted by descending rate per GPU.
fn pareto_front(deployments: &[Deployment]) -> Vec<usize> {
    let mut front = Vec::new();
    let mut fastest = f64::INFINITY;
    for (at, deployment) in deployments.iter().enumerate() {
        if deployment.tpot_ms < fastest {
            fastest = deployment.tpot_ms;
            front.push(at);
        }
    }
    front.reverse();
    front
}

impl AdviceRequest<'_> {
    /// Returns the divisions of all numbers of GPUs, each once.
    fn shapes(&self) -> Vec<Parallelism> {
        let linked = self.times.linked();
        let heads = self.model.heads();
        let mut shapes: Vec<Parallelism> =
            self.gpus.iter().flat_map(|&gpus| Parallelism::divisions(gpus, linked, heads)).collect();
        shapes.retain(|shape| shape.expert_groups() <= self.model.moe.experts as u64);
        shapes.sort_unstable();
        shapes.dedup();
        shapes
    }

    pub(crate) fn memory_limit(&self) -> f64 {
        self.times.gpu().memory as f64 * 1e9 * USABLE_SHARE
    }

    /// Returns the bytes of experts that are read from the host in every pass. `None` if the deployment does
    /// not fit.
    pub(crate) fn streamed(&self, memory: &MemoryUse) -> Option<f64> {
        let streamed = memory.streamed(self.memory_limit())?;
        (streamed <= 0.0 || self.workload.stream_gb_s.is_some()).then_some(streamed)
    }

    /// Returns the work of a GPU in a decode step of `batch` requests, without overlap and planning.
    pub(crate) fn decode_work(&self, shape: &Parallelism, batch: u64) -> StepWork {
        let workload = &self.workload;
        StepWork {
            phase: Phase::Decode { context: workload.mean_context() },
            tokens: batch as f64 * workload.verified,
            tokens_per_request: workload.verified,
            attention_tiles: 1,
            attention_imbalance: self.attention_imbalance(shape, batch),
            overlap: false,
            planned: false,
            kv_bytes: workload.kv_bytes,
        }
    }

    /// Returns the load of the fullest of many attention groups over the mean, by the expectation of the
    /// maximum of normal numbers.
    fn attention_imbalance(&self, shape: &Parallelism, batch: u64) -> f64 {
        let groups = shape.attention_dp().max(1) as f64;
        let requests = (batch * shape.attention_tp).max(1) as f64;
        1.0 + self.workload.length_spread * (2.0 * groups.ln()).sqrt() / requests.sqrt()
    }

    /// Returns the time of a pass in which `streamed` bytes of experts are read from the host.
    pub(crate) fn pass_time(
        &self,
        shape: &Parallelism,
        work: &StepWork,
        figures: &BalanceFigures,
        streamed: f64,
    ) -> StepTime {
        let step = step_time(self.model, shape, self.times, work, figures);
        // Every stage reads its experts for every micro-batch.
        self.workload.stream_gb_s.map_or(step, |rate| step.with_streamed(streamed * shape.pp as f64, rate))
    }

    /// Joins decode steps with the prefill of the same policy that gives the highest rate: with any division
    /// of the GPUs if phases are disaggregated, else with the same.
    fn join(&self, steps: &[DecodeChoice], passes: &[PrefillChoice]) -> Vec<Deployment> {
        let workload = &self.workload;
        let is_in_time = |pass: &&PrefillChoice| workload.ttft_ms.is_none_or(|limit| pass.ttft_ms <= limit);
        let class = |choice: &BalanceChoice| (choice.policy, choice.exact);
        let best_of =
            |of: &dyn Fn(&PrefillChoice) -> bool| {
                let candidates = passes.iter().filter(is_in_time).filter(|pass| of(pass));
                candidates.reduce(|best, pass| {
                    if pass.tokens_per_s_per_gpu > best.tokens_per_s_per_gpu { pass } else { best }
                })
            };
        let mut best: BTreeMap<_, Option<&PrefillChoice>> = BTreeMap::new();
        let mut found = Vec::new();
        for step in steps {
            let is_mixed = workload.serving == Serving::Mixed;
            let own = is_mixed.then_some((step.parallel, step.choice.redundant));
            let prefill = *best.entry((class(&step.choice), own)).or_insert_with(|| {
                best_of(&|pass| {
                    let same = own.is_none_or(|(parallel, redundant)| {
                        pass.parallel == parallel && pass.choice.redundant == redundant
                    });
                    same && (class(&pass.choice) == class(&step.choice)
                        || (!is_mixed && pass.choice.policy == step.choice.policy))
                })
            });
            let Some(prefill) = prefill else { continue };
            let step_ms = step.step.total_ms();
            let rates = (prefill.tokens_per_s_per_gpu, workload.decode_rate(step.batch, step_ms));
            let [prefill_s, decode_s] = workload.gpu_seconds(rates.0, rates.1);
            // Prefill delays the steps of a mixed instance by its share of the time.
            let delay = if is_mixed { 1.0 + prefill_s / decode_s } else { 1.0 };
            let tpot_ms = step_ms / workload.accepted * delay;
            found.push(Deployment {
                parallel: step.parallel,
                choice: step.choice,
                batch: step.batch,
                overlap: step.overlap,
                decode: step.step,
                memory: step.memory,
                imbalance: step.imbalance,
                variation: step.variation,
                tpot_ms,
                tokens_per_s_per_gpu: workload.output_rate(rates.0, rates.1),
                within_limits: workload.tpot_ms.is_none_or(|limit| tpot_ms <= limit),
                prefill: prefill.clone(),
            });
        }
        found
    }
}
