//! Search in one phase: all candidates priced as decode steps or prefill passes.
//!
//! In: an [`AdviceRequest`] and divisions of the GPUs. Out: priced choices. A candidate is a division with a
//! placement and a split; it is priced at all batch sizes that fit into memory.

use crate::balance::{BalanceError, BalanceFigures, BalancePolicy};
use crate::figures::{BalanceChoice, BalanceKey, BalanceTable};
use crate::memory::{MemoryLoad, MemoryUse, memory_use};
use crate::parallelism::Parallelism;
use crate::search::{AdviceRequest, PrefillChoice, TIE};
use crate::step::{Phase, StepTime, StepWork};
use evenkeel::evaluate::Progress;
use evenkeel::split::CostModel;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Requests per GPU that are considered.
const BATCHES: [u64; 17] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512, 768];
/// Prompt tokens per GPU and pass that are considered.
const PASSES: [u64; 5] = [2_048, 4_096, 8_192, 16_384, 32_768];
/// Tiles of attention that are considered.
const TILES: [u64; 4] = [1, 2, 4, 8];

/// Priced work of one phase.
pub(crate) struct Priced<T> {
    pub(crate) found: Vec<T>,
    pub(crate) count: usize,
    pub(crate) too_large: usize,
}

/// A decode step before it is joined with a prefill.
#[derive(Debug, Clone)]
pub(crate) struct DecodeChoice {
    pub(crate) parallel: Parallelism,
    pub(crate) choice: BalanceChoice,
    pub(crate) batch: u64,
    pub(crate) overlap: bool,
    pub(crate) step: StepTime,
    pub(crate) memory: MemoryUse,
    pub(crate) imbalance: f64,
    pub(crate) variation: f64,
}

/// A priced choice with two figures: a higher rate and a shorter wait are better.
pub(crate) trait PricedChoice: Send {
    fn rate(&self) -> f64;
    fn wait(&self) -> f64;
}

impl PricedChoice for DecodeChoice {
    fn rate(&self) -> f64 {
        self.batch as f64 / self.step.total_ms()
    }

    fn wait(&self) -> f64 {
        self.step.total_ms()
    }
}

impl PricedChoice for PrefillChoice {
    fn rate(&self) -> f64 {
        self.tokens_per_s_per_gpu
    }

    fn wait(&self) -> f64 {
        self.ttft_ms
    }
}

/// A division of the GPUs with a placement and a split.
pub(crate) type Candidate = (Parallelism, BalanceChoice);

/// Method that prices a candidate, by its figures or by those of perfect balance.
pub(crate) type PriceOne<'a, T> = fn(&PhaseSearch<'a>, &Candidate, Balance) -> Priced<T>;

/// Figures by which a candidate is priced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Balance {
    /// Those of its placement on the trace.
    Placed,
    /// Those of ranks with equal loads, which no placement beats.
    Perfect,
}

/// Search in one phase.
pub(crate) struct PhaseSearch<'a> {
    request: &'a AdviceRequest<'a>,
    pub(crate) table: BalanceTable<'a>,
    kernels: KernelCache<'a>,
    progress: &'a dyn Progress,
}

/// Slots of all groups, groups of ranks, and ranks that share an expert.
type KernelKey = (u64, u64, u64);

/// Kernels of the experts by slots, groups of ranks, and ranks that share an expert. Each is made once.
struct KernelCache<'a> {
    request: &'a AdviceRequest<'a>,
    is_prefill: bool,
    made: Mutex<BTreeMap<KernelKey, Arc<dyn CostModel>>>,
}

impl KernelCache<'_> {
    /// Returns the kernel of the experts on slots of all groups.
    fn get(&self, slots: u64, groups: u64, expert_tp: u64) -> Arc<dyn CostModel> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = made.entry((slots, groups, expert_tp)).or_insert_with(|| {
            self.request.times.expert_kernel(self.request.model, (slots, groups, expert_tp), self.is_prefill)
        });
        Arc::clone(kernel)
    }
}

impl<'a> PhaseSearch<'a> {
    pub(crate) fn new(
        request: &'a AdviceRequest<'a>,
        is_prefill: bool,
        table: BalanceTable<'a>,
        progress: &'a dyn Progress,
    ) -> Self {
        let kernels = KernelCache { request, is_prefill, made: Mutex::new(BTreeMap::new()) };
        Self { request, table, kernels, progress }
    }

    /// Returns the choices of a division.
    fn choices(&self, shape: &Parallelism) -> Vec<BalanceChoice> {
        let experts = self.request.model.moe.experts as u64;
        if !shape.is_expert_parallel() {
            let policy = BalancePolicy::Nothing;
            return vec![BalanceChoice { ranks: 1, redundant: 0, policy, exact: false }];
        }
        BalanceChoice::of_ranks(shape.expert_groups(), experts, self.request.max_redundant)
    }

    /// Prices all candidates. Recourse, which takes longest to plan, is planned only where perfect balance
    /// would be more than one percent beyond the Pareto front of the phase. No point of the front moves by
    /// more.
    pub(crate) fn price_all<T: PricedChoice>(
        &mut self,
        shapes: &[Parallelism],
        price: PriceOne<'a, T>,
    ) -> Result<Priced<T>, BalanceError> {
        let all: Vec<Candidate> = shapes
            .iter()
            .flat_map(|shape| self.choices(shape).into_iter().map(move |choice| (*shape, choice)))
            .filter(|candidate| self.fits_at_all(candidate))
            .collect();
        let (slow, quick): (Vec<Candidate>, Vec<Candidate>) =
            all.into_iter().partition(|(_, choice)| choice.policy == BalancePolicy::Recourse);
        self.compute(&quick)?;
        let this = &*self;
        let mut found =
            collect(quick.par_iter().map(|candidate| price(this, candidate, Balance::Placed)).collect());
        let front = front_of(&found.found);
        let is_promising = |candidate: &&Candidate| {
            let bound = price(this, candidate, Balance::Perfect).found;
            bound
                .iter()
                .any(|point| !is_beaten(&front, (1.0 - TIE) * point.rate(), point.wait() / (1.0 - TIE)))
        };
        let promising: Vec<Candidate> = slow.par_iter().filter(is_promising).copied().collect();
        self.compute(&promising)?;
        let this = &*self;
        let more =
            collect(promising.par_iter().map(|candidate| price(this, candidate, Balance::Placed)).collect());
        found.found.extend(more.found);
        found.count += more.count;
        found.too_large += more.too_large;
        Ok(found)
    }

    /// Returns false if the weights alone exceed the memory.
    fn fits_at_all(&self, candidate: &Candidate) -> bool {
        self.memory(candidate, &self.memory_load([1.0, 1.0], [1.0, 1.0])).is_some()
    }

    /// Returns the load of a GPU that holds the cache of requests with a mean context, and of its passes with
    /// tokens and their imbalance.
    fn memory_load(&self, [requests, context]: [f64; 2], [pass_tokens, imbalance]: [f64; 2]) -> MemoryLoad {
        let kv_bytes = self.request.workload.kv_bytes;
        MemoryLoad { requests, context, pass_tokens, imbalance, attention_tiles: 1, kv_bytes }
    }

    /// Returns the memory of a candidate's GPU, and the bytes of it that are read from the host. `None` if
    /// the candidate does not fit.
    fn memory(&self, (shape, choice): &Candidate, load: &MemoryLoad) -> Option<(MemoryUse, f64)> {
        let slots = self.request.model.moe.experts as u64 + choice.redundant;
        let memory = memory_use(self.request.model, shape, slots, load);
        self.request.streamed(&memory).map(|streamed| (memory, streamed))
    }

    /// Returns the tokens per rank for which figures are needed: whole batches and their halves.
    fn sizes(&self) -> Vec<u64> {
        let of = |sizes: &[u64]| -> Vec<u64> {
            sizes
                .iter()
                .flat_map(|&size| [self.tokens(size as f64), self.tokens(size as f64 / 2.0)])
                .collect()
        };
        let mut sizes = if self.is_prefill() { of(&PASSES) } else { of(&BATCHES) };
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn is_prefill(&self) -> bool {
        self.kernels.is_prefill
    }

    fn key(&self, shape: &Parallelism, choice: BalanceChoice, tokens: u64) -> BalanceKey {
        BalanceKey { choice, expert_tp: shape.expert_tp, is_prefill: self.is_prefill(), tokens }
    }

    /// Computes the figures of expert-parallel candidates.
    fn compute(&mut self, candidates: &[Candidate]) -> Result<(), BalanceError> {
        let sizes = self.sizes();
        let mut keys: Vec<BalanceKey> = candidates
            .iter()
            .filter(|(shape, _)| shape.is_expert_parallel())
            .flat_map(|(shape, choice)| {
                sizes.iter().map(|&each| self.key(shape, *choice, each * shape.ranks))
            })
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let kernels = &self.kernels;
        let kernel = |slots: u64, key: &BalanceKey| kernels.get(slots, key.choice.ranks, key.expert_tp);
        self.table.compute(&keys, &kernel, self.progress)
    }

    /// Returns the balance of a candidate for `tokens` tokens per rank.
    fn figures(&self, (shape, choice): &Candidate, tokens: u64, balance: Balance) -> Option<BalanceFigures> {
        let of_all = tokens * shape.ranks;
        if !shape.is_expert_parallel() {
            // Every rank holds all experts, or a part of each: its rows are those of the whole batch.
            let moe = &self.request.model.moe;
            let kernel = self.kernels.get(moe.experts as u64, 1, shape.expert_tp);
            let us = kernel.rank_ps(&self.table.typical_loads(of_all), 1) as f64 / 1e6;
            return Some(BalanceFigures { experts_us: us, even_us: us, ..BalanceFigures::EVEN });
        }
        match balance {
            Balance::Placed => self.table.get(&self.key(shape, *choice, of_all)).copied(),
            Balance::Perfect => {
                // EPLB with the same slots was judged before; the even time does not depend on the policy.
                let known = BalanceChoice { policy: BalancePolicy::Eplb, exact: false, ..*choice };
                let even_us = self.table.get(&self.key(shape, known, of_all))?.even_us;
                Some(BalanceFigures { experts_us: even_us, even_us, ..BalanceFigures::EVEN })
            }
        }
    }

    pub(crate) fn price_decode(&self, candidate: &Candidate, balance: Balance) -> Priced<DecodeChoice> {
        let request = self.request;
        let (shape, choice) = candidate;
        let mut priced = Priced { found: vec![], count: 0, too_large: 0 };
        for &batch in &BATCHES {
            let whole_batch = request.decode_work(shape, batch);
            let Some(whole) = self.figures(candidate, self.tokens(batch as f64), balance) else { continue };
            let requests = (batch * shape.pp * shape.attention_tp) as f64;
            let load = self.memory_load(
                [requests, request.workload.mean_context() as f64],
                [whole_batch.tokens, whole.imbalance],
            );
            let Some((memory, streamed)) = self.memory(candidate, &load) else {
                priced.too_large += 1;
                continue;
            };
            for overlap in [false, true] {
                let part = if overlap { batch as f64 / 2.0 } else { batch as f64 };
                if overlap && (batch < 2 || !shape.is_expert_parallel()) {
                    continue;
                }
                let Some(figures) = self.figures(candidate, self.tokens(part), balance) else { continue };
                let work = StepWork { overlap, planned: choice.exact, ..whole_batch };
                let step = request.pass_time(shape, &work, &figures, streamed);
                priced.count += 1;
                priced.found.push(DecodeChoice {
                    parallel: *shape,
                    choice: *choice,
                    batch,
                    overlap,
                    step,
                    memory,
                    imbalance: whole.imbalance,
                    variation: self.variation(&figures, &step, overlap),
                });
            }
        }
        priced
    }

    pub(crate) fn price_prefill(&self, candidate: &Candidate, balance: Balance) -> Priced<PrefillChoice> {
        let (request, workload) = (self.request, &self.request.workload);
        let (shape, choice) = candidate;
        let mut priced = Priced { found: vec![], count: 0, too_large: 0 };
        for &pass in &PASSES {
            let Some(whole) = self.figures(candidate, pass, balance) else { continue };
            let group = (pass * shape.attention_tp) as f64;
            let requests = group / workload.input.max(1) as f64;
            let load = self.memory_load([requests, workload.input as f64], [pass as f64, whole.imbalance]);
            // Tiles only save memory, so that the fewest that fit are best.
            let fitting = TILES.into_iter().find_map(|attention_tiles| {
                let (memory, streamed) = self.memory(candidate, &MemoryLoad { attention_tiles, ..load })?;
                Some((attention_tiles, memory, streamed))
            });
            let Some((attention_tiles, memory, streamed)) = fitting else {
                priced.too_large += 1;
                continue;
            };
            for overlap in [false, true] {
                if overlap && !shape.is_expert_parallel() {
                    continue;
                }
                let part = if overlap { pass / 2 } else { pass };
                let Some(figures) = self.figures(candidate, part, balance) else { continue };
                let work = StepWork {
                    phase: Phase::Prefill { prompt: workload.input },
                    tokens: pass as f64,
                    tokens_per_request: 1.0,
                    attention_tiles,
                    attention_imbalance: 1.0,
                    overlap,
                    planned: choice.exact,
                    kv_bytes: workload.kv_bytes,
                };
                let time = request.pass_time(shape, &work, &figures, streamed);
                let ms = time.total_ms();
                priced.count += 1;
                priced.found.push(PrefillChoice {
                    parallel: *shape,
                    choice: *choice,
                    tokens: pass,
                    attention_tiles,
                    overlap,
                    pass: time,
                    memory,
                    imbalance: whole.imbalance,
                    variation: self.variation(&figures, &time, overlap),
                    ttft_ms: ms * (workload.input as f64 / group).ceil().max(1.0),
                    tokens_per_s_per_gpu: pass as f64 / ms * 1e3,
                });
            }
        }
        priced
    }

    /// Returns the tokens of a rank's batch: with drafts if it decodes.
    fn tokens(&self, batch: f64) -> u64 {
        let each = if self.is_prefill() { 1.0 } else { self.request.workload.verified };
        ((batch * each).round() as u64).max(1)
    }

    /// Returns the standard error of a step over the batches of the trace, as a share of it.
    fn variation(&self, figures: &BalanceFigures, step: &StepTime, overlap: bool) -> f64 {
        let halves = if overlap { 2.0 } else { 1.0 };
        let layers = self.request.model.moe.layers as f64;
        layers * halves * figures.error_us / 1e3 / step.total_ms().max(f64::MIN_POSITIVE)
    }
}

/// Returns the points (rate, wait) that no other beats, by descending rate and wait.
fn front_of<T: PricedChoice>(found: &[T]) -> Vec<[f64; 2]> {
    let mut points: Vec<[f64; 2]> = found.iter().map(|point| [point.rate(), point.wait()]).collect();
    points.sort_by(|a, b| b[0].total_cmp(&a[0]).then(a[1].total_cmp(&b[1])));
    let mut least = f64::INFINITY;
    points.retain(|point| {
        let is_new = point[1] < least;
        least = least.min(point[1]);
        is_new
    });
    points
}

/// Returns true if a point of a front has at least this rate and at most this wait.
fn is_beaten(front: &[[f64; 2]], rate: f64, wait: f64) -> bool {
    // Of the points with enough rate, the last one has the shortest wait.
    let enough = front.partition_point(|point| point[0] >= rate);
    enough > 0 && front[enough - 1][1] <= wait
}

fn collect<T>(parts: Vec<Priced<T>>) -> Priced<T> {
    let mut all = Priced { found: vec![], count: 0, too_large: 0 };
    for part in parts {
        all.found.extend(part.found);
        all.count += part.count;
        all.too_large += part.too_large;
    }
    all
}
