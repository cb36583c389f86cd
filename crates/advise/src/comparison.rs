//! The advised deployment compared with other policies, its error, and the gain of renewed plans.
//!
//! In: an [`AdviceRequest`] and deployments of its search. Out: figures for an [`Advice`](crate::Advice).

use crate::balance::{BalanceError, BalancePolicy};
use crate::exchange_times::ExchangeLoad;
use crate::figures::{BalanceKey, BalanceTable};
use crate::search::{AdviceRequest, Deployment};
use crate::step::{Phase, StepTime, StepWork};
use crate::times::TimeSource;
use crate::workload::Serving;

/// One policy on the GPUs of the advised deployment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ComparedPolicy {
    /// Name of the policy and its split, or `perfect balance`.
    pub name: String,
    /// Redundant slots of all ranks.
    pub redundant: u64,
    /// Parts of a decode step.
    pub decode: StepTime,
    /// Output tokens per second and GPU.
    pub tokens_per_s_per_gpu: f64,
    /// Rows of the fullest rank over the mean when decoding.
    pub imbalance: f64,
}

impl AdviceRequest<'_> {
    /// Returns the relative error of a deployment's rate: the kernels' median errors by their share of the
    /// time, and two standard errors of the trace's variation.
    pub fn error_of(&self, deployment: &Deployment) -> f64 {
        let workload = &self.workload;
        let decode_rate = workload.decode_rate(deployment.batch, deployment.decode.total_ms());
        let [prefill_s, decode_s] =
            workload.gpu_seconds(deployment.prefill.tokens_per_s_per_gpu, decode_rate);
        let phases = [
            (decode_s, &deployment.decode, deployment.variation, false),
            (prefill_s, &deployment.prefill.pass, deployment.prefill.variation, true),
        ];
        let all = decode_s + prefill_s;
        let (mut kernels, mut variation) = (0.0, 0.0);
        for (seconds, step, varies, is_prefill) in phases {
            let sources = self.phase_sources(deployment, is_prefill);
            let of = |part: &str| {
                sources.iter().find(|source| source.part == part).map_or(0.0, |source| source.median_error)
            };
            let total = step.total_ms().max(f64::MIN_POSITIVE);
            let sum = of("attention") * step.attention_ms
                + of("products") * step.dense_ms
                + of("experts") * (step.experts_ms + step.imbalance_ms)
                + of("exchange") * (step.exchange_ms + step.planning_ms);
            kernels += seconds / all * sum / total;
            variation += seconds / all * varies;
        }
        (kernels * kernels + 4.0 * variation * variation).sqrt()
    }

    fn phase_sources(&self, deployment: &Deployment, is_prefill: bool) -> Vec<TimeSource> {
        let (parallel, phase, tokens, overlap) = if is_prefill {
            let prefill = &deployment.prefill;
            let phase = Phase::Prefill { prompt: self.workload.input };
            (&prefill.parallel, phase, prefill.tokens as f64, prefill.overlap)
        } else {
            let work = self.decode_work(&deployment.parallel, deployment.batch);
            (&deployment.parallel, work.phase, work.tokens, deployment.overlap)
        };
        let part = if overlap { tokens / 2.0 } else { tokens };
        let exchange = ExchangeLoad::even(self.model, parallel, self.times.linked(), phase, part);
        self.times.sources(self.model, &exchange, parallel)
    }

    /// Returns the sources of both phases, each once.
    pub(crate) fn sources(&self, deployment: &Deployment) -> Vec<TimeSource> {
        let mut found = Vec::new();
        for (name, is_prefill) in [("decode", false), ("prefill", true)] {
            for source in self.phase_sources(deployment, is_prefill) {
                found.push(TimeSource { part: format!("{name} {}", source.part), ..source });
            }
        }
        found
    }

    /// Returns the best deployment of every policy with the division and batch of `best`, and perfect
    /// balance. If nothing is balanced on other GPUs only, `nothing` stands for it.
    pub(crate) fn compare(
        &self,
        all: &[Deployment],
        best: &Deployment,
        nothing: Option<&Deployment>,
    ) -> Vec<ComparedPolicy> {
        let same = |found: &&Deployment| found.parallel == best.parallel && found.batch == best.batch;
        let mut compared = Vec::new();
        for policy in [BalancePolicy::Nothing, BalancePolicy::Eplb, BalancePolicy::Recourse] {
            let of_policy = |found: &&Deployment| same(found) && found.choice.policy == policy;
            let other = nothing.filter(|_| policy == BalancePolicy::Nothing);
            let Some(found) = all.iter().find(of_policy).or(other) else { continue };
            compared.push(ComparedPolicy {
                name: match policy {
                    BalancePolicy::Nothing if !same(&found) => {
                        format!("nothing ({} GPUs, batch {})", found.parallel.gpus(), found.batch)
                    }
                    BalancePolicy::Nothing => "nothing".into(),
                    _ if found.choice.redundant == 0 => policy.name().into(),
                    _ => format!("{}, {} split", policy.name(), found.choice.split()),
                },
                redundant: found.choice.redundant,
                decode: found.decode,
                tokens_per_s_per_gpu: found.tokens_per_s_per_gpu,
                imbalance: found.imbalance,
            });
        }
        let perfect = StepTime { imbalance_ms: 0.0, planning_ms: 0.0, ..best.decode };
        let mut prefill = best.prefill.clone();
        let pass = StepTime { imbalance_ms: 0.0, planning_ms: 0.0, ..prefill.pass };
        prefill.tokens_per_s_per_gpu *= prefill.pass.total_ms() / pass.total_ms().max(f64::MIN_POSITIVE);
        compared.push(ComparedPolicy {
            name: "perfect balance".into(),
            redundant: best.choice.redundant,
            decode: perfect,
            tokens_per_s_per_gpu: self.workload.output_rate(
                prefill.tokens_per_s_per_gpu,
                self.workload.decode_rate(best.batch, perfect.total_ms()),
            ),
            imbalance: 1.0,
        });
        compared
    }

    /// Returns the share of a decode step that a plan of the judged batches themselves would save.
    pub(crate) fn replan_gain(&self, best: &Deployment) -> Result<Option<f64>, BalanceError> {
        let half = if best.overlap { 2.0 } else { 1.0 };
        let whole_batch = self.decode_work(&best.parallel, best.batch);
        let part = ((whole_batch.tokens / half).round().max(1.0) as u64) * best.parallel.ranks;
        let table = BalanceTable::new(self.trace, self.model.moe.top_k, self.times.linked(), self.seed);
        let slots = self.model.moe.experts as u64 + best.choice.redundant;
        let kernel =
            self.times.expert_kernel(self.model, (slots, best.choice.ranks, best.parallel.expert_tp), false);
        let key = BalanceKey {
            choice: best.choice,
            expert_tp: best.parallel.expert_tp,
            is_prefill: false,
            tokens: part,
        };
        let Some(figures) = table.hindsight(&key, kernel.as_ref())? else { return Ok(None) };
        let work = StepWork { overlap: best.overlap, planned: best.choice.exact, ..whole_batch };
        let Some(streamed) = self.streamed(&best.memory) else { return Ok(None) };
        let renewed = self.pass_time(&best.parallel, &work, &figures, streamed);
        Ok(Some(1.0 - renewed.total_ms() / best.decode.total_ms()))
    }

    /// Returns true if one instance prefills and decodes in turn.
    pub fn is_mixed(&self) -> bool {
        self.workload.serving == Serving::Mixed
    }
}
