//! The answer: the deployment to run, in words and figures, compared with doing nothing.
//!
//! In: an [`AdviceRequest`]. Out: an [`Advice`]. A gain within its own error counts as none. Among
//! deployments that are equal within one percent, the simplest one is advised.

use crate::balance::{BalanceError, BalancePolicy};
use crate::comparison::ComparedPolicy;
use crate::figures::BalanceChoice;
use crate::memory::USABLE_SHARE;
use crate::search::{AdviceRequest, Deployment, SearchResult, TIE, search};
use crate::times::TimeSource;
use evenkeel::cluster::{Cluster, ClusterError};
use evenkeel::evaluate::Progress;
use evenkeel::place;
use evenkeel::plan::{BatchProvenance, Plan, PlanRequest, PlanRequestError};
use thiserror::Error;

/// Advice on a deployment.
#[derive(Debug)]
#[non_exhaustive]
pub struct Advice {
    /// All deployments.
    pub search: SearchResult,
    /// Index of the advised deployment.
    pub best: usize,
    /// Index of the best deployment that balances nothing. `None` if experts do not divide over any number of
    /// GPUs that fits.
    pub nothing: Option<usize>,
    /// Index of the best deployment that balances.
    pub balanced: Option<usize>,
    /// Gain of balancing in output tokens per second and GPU, as a share; negative if it loses.
    pub gain: f64,
    /// Relative error of the gain, from the kernels' errors and the trace's variation.
    pub error: f64,
    /// True if balancing gains more than the error.
    pub is_worth_it: bool,
    /// The answer in sentences, the verdict first.
    pub sentences: Vec<String>,
    /// Policies on the GPUs of the advised deployment, doing nothing first, perfect balance last.
    pub compared: Vec<ComparedPolicy>,
    /// Sources of the times.
    pub sources: Vec<TimeSource>,
}

/// Work of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It decodes, or does both.
    Decode,
    /// It prefills for others.
    Prefill,
}

impl Role {
    /// Returns the name in files and commands.
    pub fn name(self) -> &'static str {
        match self {
            Role::Decode => "decode",
            Role::Prefill => "prefill",
        }
    }
}

/// Error of a question without an answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdviceError {
    /// No deployment fits into memory.
    #[error(
        "no deployment of {model} fits into {gpus} GPUs of {memory} GB: expected more GPUs (--gpus) or a smaller context"
    )]
    Memory {
        /// Name of the model.
        model: String,
        /// Numbers of GPUs that were tried.
        gpus: String,
        /// Memory of a GPU, gigabytes.
        memory: u64,
    },
    /// No deployment is fast enough.
    #[error("no deployment reaches {limit} ms per output token: the fastest takes {fastest:.1} ms")]
    TooSlow {
        /// The limit, milliseconds.
        limit: f64,
        /// Time per output token of the fastest deployment, milliseconds.
        fastest: f64,
    },
    /// No prefill is fast enough.
    #[error("no deployment reaches the first token within {0} ms: expected a higher --ttft-ms or more GPUs")]
    FirstToken(f64),
    /// A placement cannot be planned or judged.
    #[error(transparent)]
    Balance(#[from] BalanceError),
    /// The cluster of a role cannot exist.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The plan of a role fails.
    #[error(transparent)]
    Plan(#[from] PlanRequestError),
}

impl Advice {
    /// Answers a question. `progress` receives the numbers of planned and of all placements.
    ///
    /// # Errors
    /// Fails if no deployment fits into memory and limits, or if a placement cannot be planned.
    pub fn find(request: &AdviceRequest<'_>, progress: &dyn Progress) -> Result<Self, AdviceError> {
        let search = search(request, progress)?;
        let all = &search.deployments;
        let Some(fastest) = all.iter().map(|found| found.tpot_ms).reduce(f64::min) else {
            return Err(match request.workload.ttft_ms {
                Some(limit) if search.priced > 0 => AdviceError::FirstToken(limit),
                _ => AdviceError::Memory {
                    model: request.model.name.clone(),
                    gpus: join(&request.gpus),
                    memory: request.times.gpu().memory,
                },
            });
        };
        let first = |of: &dyn Fn(&Deployment) -> bool| {
            all.iter().position(|found| found.within_limits && of(found)).map(|at| simplest(all, at, of))
        };
        let is_nothing = |found: &Deployment| found.choice.policy == BalancePolicy::Nothing;
        let nothing = first(&is_nothing);
        let balanced = first(&|found| !is_nothing(found));
        let rate = |at: usize| all[at].tokens_per_s_per_gpu;
        let (gain, error) = match (nothing, balanced) {
            (Some(nothing), Some(balanced)) => {
                (rate(balanced) / rate(nothing) - 1.0, request.error_of(&all[balanced]))
            }
            (None, Some(balanced)) => (f64::INFINITY, request.error_of(&all[balanced])),
            _ => (0.0, nothing.map_or(0.0, |nothing| request.error_of(&all[nothing]))),
        };
        let is_worth_it = balanced.is_some() && gain > error;
        let chosen = if is_worth_it { balanced } else { nothing.or(balanced) };
        let Some(best) = chosen else {
            let limit = request.workload.tpot_ms.unwrap_or_default();
            return Err(AdviceError::TooSlow { limit, fastest });
        };
        let compared = request.compare(all, &all[best], nothing.map(|at| &all[at]));
        let sources = request.sources(&all[best]);
        let mut advice = Self {
            search,
            best,
            nothing,
            balanced,
            gain,
            error,
            is_worth_it,
            sentences: Vec::new(),
            compared,
            sources,
        };
        advice.sentences = advice.write_sentences(request)?;
        Ok(advice)
    }

    /// Returns the advised deployment.
    pub fn best(&self) -> &Deployment {
        &self.search.deployments[self.best]
    }

    /// Plans all layers of the trace for a role of the advised deployment. Returns `None` if nothing is
    /// balanced there, or if no instance has the role.
    ///
    /// # Errors
    /// Fails if the plan fails.
    pub fn plan(
        &self,
        request: &AdviceRequest<'_>,
        role: Role,
        progress: &dyn Progress,
    ) -> Result<Option<Plan>, AdviceError> {
        let best = self.best();
        let (parallel, choice) = match role {
            Role::Decode => (&best.parallel, &best.choice),
            Role::Prefill => (&best.prefill.parallel, &best.prefill.choice),
        };
        if choice.policy == BalancePolicy::Nothing || (role == Role::Prefill && request.is_mixed()) {
            return Ok(None);
        }
        // Groups of GPUs that share experts are the ranks of the plan.
        let nodes = parallel.nodes(request.times.linked()) as usize;
        let ranks = choice.ranks as usize;
        let nodes = if ranks.is_multiple_of(nodes) { nodes } else { 1 };
        let cluster = Cluster::new(ranks, nodes, request.trace.experts(), choice.redundant as usize)?;
        let name = place::policy_name_for_split(choice.policy.name(), choice.split());
        let policy = place::policy(&name, 1, &cluster).map_err(BalanceError::from)?;
        let batches = request.trace.resampling().map_or_else(String::new, ToString::to_string);
        let origin = BatchProvenance::default().seed(request.seed).split(choice.split()).batches(batches);
        let made =
            PlanRequest::new(request.trace, cluster, policy.as_ref()).provenance(origin).run(progress)?;
        Ok(Some(made.plan))
    }

    /// Returns the answer as one text.
    pub fn text(&self) -> String {
        self.sentences.join(" ")
    }

    fn write_sentences(&self, request: &AdviceRequest<'_>) -> Result<Vec<String>, BalanceError> {
        let mut found = vec![self.verdict_sentence(request)];
        found.push(self.parallelism_sentence());
        found.push(self.memory_sentence(request));
        found.extend(self.replan_sentence(request)?);
        Ok(found)
    }

    fn verdict_sentence(&self, request: &AdviceRequest<'_>) -> String {
        let all = &self.search.deployments;
        let rate = |at: usize| format!("{:.0} output tokens/s per GPU", all[at].tokens_per_s_per_gpu);
        match (self.nothing, self.balanced) {
            (Some(nothing), Some(balanced)) if self.is_worth_it => format!(
                "Worth it: {} serves {} instead of {:.0}, {:.0} % more (range {:.0} to {:.0} %).",
                describe(&all[balanced].choice),
                rate(balanced),
                all[nothing].tokens_per_s_per_gpu,
                100.0 * self.gain,
                100.0 * (self.gain - self.error),
                100.0 * (self.gain + self.error),
            ),
            (Some(nothing), Some(_)) => {
                let share = all[nothing].decode.imbalance_ms / all[nothing].decode.total_ms();
                let tokens = all[nothing].batch as f64
                    * all[nothing].parallel.ranks as f64
                    * request.workload.verified;
                let each = tokens * request.model.moe.top_k as f64 / request.model.moe.experts as f64;
                format!(
                    "Not worth it: balancing {} {:.0} %, {} the error of {:.0} %; doing nothing serves {}. Imbalance \
                     is {:.0} % of a decode step with {each:.1} tokens per expert.",
                    if self.gain < 0.0 { "loses" } else { "gains" },
                    100.0 * self.gain.abs(),
                    if self.gain < -self.error { "beyond" } else { "within" },
                    100.0 * self.error,
                    rate(nothing),
                    100.0 * share,
                )
            }
            (None, Some(balanced)) => format!(
                "Experts do not divide over the GPUs without redundant slots: {} serves {}.",
                describe(&all[balanced].choice),
                rate(balanced)
            ),
            _ => format!("Nothing to balance: {} serves it.", self.best().parallel_text()),
        }
    }

    /// Compares expert parallelism with tensor parallelism.
    fn parallelism_sentence(&self) -> String {
        let all = &self.search.deployments;
        let best = self.best();
        let other = |found: &&Deployment| {
            found.within_limits
                && found.parallel.is_expert_parallel() != best.parallel.is_expert_parallel()
                && found.parallel.ranks > 1
        };
        let Some(other) = all.iter().find(other) else {
            return format!("Run {}.", best.parallel_text());
        };
        let more = 100.0 * (best.tokens_per_s_per_gpu / other.tokens_per_s_per_gpu - 1.0);
        let advice =
            if best.parallel.is_expert_parallel() { "Run" } else { "Do not use expert parallelism: run" };
        if more / 100.0 < self.error {
            let kind = if other.parallel.is_expert_parallel() { "expert" } else { "tensor" };
            let difference = 100.0 * (other.tokens_per_s_per_gpu / best.tokens_per_s_per_gpu - 1.0);
            return format!(
                "{advice} {}; {kind} parallelism over {} GPUs is equal within the error ({:.0} % {}).",
                best.parallel_text(),
                other.parallel.gpus(),
                difference.abs(),
                if difference > 0.0 { "more" } else { "less" }
            );
        }
        format!("{advice} {}: {more:.0} % more than {}.", best.parallel_text(), other.parallel_text())
    }

    fn memory_sentence(&self, request: &AdviceRequest<'_>) -> String {
        let best = self.best();
        let memory = &best.memory;
        let total = memory.total() / 1e9;
        let of = request.times.gpu().memory;
        let limit = of as f64 * 1e9 * USABLE_SHARE;
        if let Some(bytes) = memory.streamed(limit).filter(|&bytes| bytes > 0.0) {
            return format!(
                "{:.0} GB of experts per GPU do not fit and are read from the host in every step.",
                bytes / 1e9
            );
        }
        if best.choice.redundant == 0 {
            return format!("No redundant experts; {total:.0} of {of} GB per GPU are used.");
        }
        let context = request.workload.mean_context() as f64;
        let requests = (best.batch * best.parallel.pp * best.parallel.attention_tp) as f64;
        let per_token = memory.kv_cache / (requests * context).max(1.0);
        let lost = memory.redundant / per_token.max(f64::MIN_POSITIVE);
        format!(
            "{} redundant experts take {:.1} GB per GPU, as much as the cache of {:.0} thousand tokens; {total:.0} of {of} GB \
             are used.",
            best.choice.redundant,
            memory.redundant / 1e9,
            lost / 1e3
        )
    }

    /// Answers whether plans should be renewed, from the two halves of the trace.
    fn replan_sentence(&self, request: &AdviceRequest<'_>) -> Result<Option<String>, BalanceError> {
        let best = self.best();
        if best.choice.policy == BalancePolicy::Nothing {
            return Ok(None);
        }
        if request.trace.resampling().is_some() {
            return Ok(Some(
                "Batches are drawn from totals, so that the need to re-plan cannot be judged.".into(),
            ));
        }
        let Some(gain) = request.replan_gain(best)? else { return Ok(None) };
        let percent = 100.0 * gain;
        Ok(Some(if gain > self.error {
            format!("Re-plan: a plan of the newest batches saves {percent:.0} % of a decode step.")
        } else {
            format!(
                "Do not re-plan: a plan of the newest batches saves {percent:.0} % of a decode step, within the error."
            )
        }))
    }
}

/// Returns the simplest deployment that is equal to `at` within [`TIE`] and has its GPUs and batch.
fn simplest(all: &[Deployment], at: usize, of: &dyn Fn(&Deployment) -> bool) -> usize {
    let best = &all[at];
    let is_equal = |found: &Deployment| {
        found.within_limits
            && of(found)
            && found.parallel == best.parallel
            && found.tokens_per_s_per_gpu >= (1.0 - TIE) * best.tokens_per_s_per_gpu
    };
    let effort =
        |found: &Deployment| (found.choice.exact, found.choice.policy, found.choice.redundant, found.overlap);
    let candidates = (at..all.len())
        .take_while(|&other| all[other].tokens_per_s_per_gpu >= (1.0 - TIE) * best.tokens_per_s_per_gpu);
    candidates
        .filter(|&other| is_equal(&all[other]))
        .min_by_key(|&other| (effort(&all[other]), other))
        .unwrap_or(at)
}

/// Returns a choice in words.
fn describe(choice: &BalanceChoice) -> String {
    let split = choice.split();
    match (choice.policy, choice.redundant) {
        (BalancePolicy::Nothing, _) => "doing nothing".into(),
        (policy, 0) => format!("{} without redundant experts", policy.name()),
        (policy, redundant) => {
            format!("{} with {redundant} redundant experts and the {split} split", policy.name())
        }
    }
}

impl Deployment {
    /// Returns the division among GPUs in words.
    pub fn parallel_text(&self) -> String {
        let parallel = &self.parallel;
        let stages =
            if parallel.pp > 1 { format!(", {} pipeline stages", parallel.pp) } else { String::new() };
        if !parallel.is_expert_parallel() {
            return format!("tensor parallelism over {} GPUs{stages}", parallel.ranks);
        }
        let attention = match parallel.attention_tp {
            1 => format!("data-parallel attention over {}", parallel.ranks),
            tp => format!("attention over {} groups of {tp}", parallel.attention_dp()),
        };
        let shared = match parallel.expert_tp {
            1 => String::new(),
            tp => format!(" in groups of {tp}"),
        };
        format!("expert parallelism over {} GPUs{shared}, {attention}{stages}", parallel.ranks)
    }
}

fn join(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}
