//! Times of the operations of a step on one GPU: measured where a table has them, by the data sheet
//! elsewhere.
//!
//! In: a GPU, a framework, and a [`CostDatabase`] of measured operations. Out: microseconds of attention,
//! products, exchanges and reductions, the kernel of the experts, and the [`TimeSource`] of each. A framework
//! without a measured operation takes that of another framework on the same GPU.

use crate::exchange_times::{ExchangeKind, ExchangeLoad, ExchangeMode};
use crate::model::{Attention, ModelSpec};
use crate::parallelism::Parallelism;
use crate::step::{Phase, StepWork};
use evenkeel::cluster::{Network, NetworkError};
use evenkeel::gpu::GpuSpec;
use evenkeel::model::Precision;
use evenkeel::split::{CostModel, Roofline, TILE_TOKENS};
use evenkeel_cost::operations::{
    AttentionWork, CollectiveKind, CollectiveWork, ExchangePhase, GemmWork, MlaBmmWork, MlaWork,
    OperationEntry, OperationKind, OperationWork,
};
use evenkeel_cost::{
    CacheState, CostDatabase, CostError, Dtype, Hardware, KernelEntry, KernelTable, ModelShape, MoeShape,
    RankKernel, builtin_gpus,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// Share of a data sheet's rates that kernels reach if none is measured.
const DATA_SHEET_SHARE: f64 = 0.7;
/// Time of a kernel without work if none is measured, microseconds.
const LAUNCH_US: f64 = 4.0;
/// Relative error of a time by the data sheet.
pub const DATA_SHEET_ERROR: f64 = 0.5;
/// Error of a built-in database or network.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TimesError {
    /// The database cannot be read.
    #[error(transparent)]
    Costs(#[from] CostError),
    /// The network cannot be read.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Source of a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TimeSource {
    /// The operation: experts, attention, products or exchange.
    pub part: String,
    /// Framework, version and kernel, or `data sheet`.
    pub kernel: String,
    /// Median relative error on held-out measurements.
    pub median_error: f64,
}

/// A dense product `[m, k] x [k, n]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GemmShape {
    /// Rows: tokens.
    pub m: f64,
    /// Output width.
    pub n: u64,
    /// Input width.
    pub k: u64,
}

/// Times of operations on one GPU in one framework.
#[derive(Debug, Clone)]
pub struct StepTimes {
    gpu: GpuSpec,
    pub(crate) network: Network,
    database: Option<CostDatabase>,
    pub(crate) hardware: Hardware,
    pub(crate) framework: String,
    pub(crate) exchange: ExchangeMode,
    pub(crate) is_deepseek: bool,
    decode: Option<OperationEntry>,
    prefill: Option<OperationEntry>,
    /// Products of narrow weights, and of 16-bit weights.
    products: [Option<OperationEntry>; 2],
    latent: Option<OperationEntry>,
    block: [Option<OperationEntry>; 2],
    pub(crate) exchanges: BTreeMap<(ExchangeKind, ExchangePhase), OperationEntry>,
}

impl StepTimes {
    /// Creates the times of a model on a GPU. Without a database, all times follow from the data sheet.
    /// `network` connects the ranks. `kv_bytes` is the size of a number in the cache.
    pub fn new(
        model: &ModelSpec,
        gpu: GpuSpec,
        network: Network,
        database: Option<CostDatabase>,
        framework: &str,
        kv_bytes: f64,
    ) -> Self {
        let hardware = database.as_ref().map_or_else(|| data_sheet(&gpu), |database| database.hardware);
        let mut times = Self {
            gpu,
            network,
            database,
            hardware,
            framework: framework.to_owned(),
            // SGLang balances experts with all-to-all kernels only; the others have both.
            exchange: if framework == "sglang" { ExchangeMode::AllToAll } else { ExchangeMode::Fastest },
            is_deepseek: matches!(model.attention, Attention::Latent { query_rank: 1_536, .. })
                && model.moe.hidden == 7_168,
            decode: None,
            prefill: None,
            products: [None, None],
            latent: None,
            block: [None, None],
            exchanges: BTreeMap::new(),
        };
        let cache: &[&str] = if kv_bytes < 1.5 { &["fp8"] } else { &["bfloat16", "float16"] };
        let prefill: &[&str] =
            if kv_bytes < 1.5 { &["bfloat16_kv_fp8", "fp8", "bfloat16"] } else { &["bfloat16", "float16"] };
        let weights: &[&str] = match model.moe.precision {
            Precision::Fp8 if model.dtype == Dtype::Fp8 => &["fp8", "fp8_block"],
            Precision::Fp8 => &["fp8_block", "fp8"],
            _ => &["bfloat16"],
        };
        times.products = [weights, &["bfloat16"]].map(|formats| times.find(OperationKind::Gemm, formats));
        match model.attention {
            Attention::Grouped { heads, kv_heads, head_dim, .. } => {
                let work = AttentionWork { batch: 1, context: 1, heads, kv_heads, head_dim, window: None };
                times.decode = times.find(OperationKind::DecodeAttention(work.grouping()), cache);
                times.prefill = times.find(OperationKind::PrefillAttention, prefill);
            }
            Attention::Latent { .. } => {
                times.decode = times.find(OperationKind::MlaDecode, cache);
                times.prefill = times.find(OperationKind::MlaPrefill, prefill);
                times.latent = times.find(OperationKind::MlaBmm, &["bfloat16", "fp8"]);
                if times.is_deepseek {
                    let block: &[&str] = match (model.moe.precision, kv_bytes < 1.5) {
                        (Precision::Fp8, true) => &["fp8_block_kv_fp8", "fp8_block"],
                        (Precision::Fp8, false) => &["fp8_block"],
                        (_, true) => &["bfloat16_kv_fp8", "bfloat16"],
                        _ => &["bfloat16"],
                    };
                    let of = |kind| times.find(kind, block);
                    times.block = [of(OperationKind::MlaBlockDecode), of(OperationKind::MlaBlockPrefill)];
                }
            }
        }
        times.exchanges = times.find_exchanges();
        times
    }

    /// Creates the times of a model on machines with a GPU, by their usual network. GPUs whose links are
    /// not known have PCIe and InfiniBand. Without a database the built-in one of the GPU is used, if there
    /// is one.
    ///
    /// # Errors
    /// Fails if a built-in database or network cannot be read.
    pub fn of_gpu(
        model: &ModelSpec,
        gpu: GpuSpec,
        database: Option<CostDatabase>,
        framework: &str,
        kv_bytes: f64,
    ) -> Result<Self, TimesError> {
        let network = match Network::of_gpu(gpu.name) {
            Some(network) => network,
            None => "ib-xdr+ib-ndr".parse()?,
        };
        let database = match database {
            None if builtin_gpus().contains(&gpu.name) => Some(CostDatabase::builtin(gpu.name)?),
            given => given,
        };
        Ok(Self::new(model, gpu, network, database, framework, kv_bytes))
    }

    /// Returns true if a database gives at least some of the times.
    pub fn is_measured(&self) -> bool {
        self.database.is_some()
    }

    /// Returns the measured operation of a kind in the first of the formats, for the framework if there is
    /// one, else for another.
    pub(crate) fn find(&self, kind: OperationKind, formats: &[&str]) -> Option<OperationEntry> {
        let database = self.database.as_ref()?;
        let own = formats.iter().find_map(|dtype| database.operation(kind, &self.framework, dtype));
        let of_others = || {
            let all = || database.operations_of(kind);
            let of_format =
                |dtype: &&str| all().filter(|entry| entry.dtype == **dtype).max_by_key(|entry| entry.rows);
            formats.iter().find_map(of_format)
        };
        own.or_else(of_others).cloned()
    }

    /// Sets the kernels of the exchange.
    #[must_use]
    pub fn with_exchange(mut self, exchange: ExchangeMode) -> Self {
        self.exchange = exchange;
        self
    }

    /// Returns the GPUs that share a node, or a rack with one fast link.
    pub fn linked(&self) -> u64 {
        self.gpu.linked
    }

    /// Returns the GPU.
    pub fn gpu(&self) -> &GpuSpec {
        &self.gpu
    }

    pub(crate) fn time(&self, entry: Option<&OperationEntry>, work: &OperationWork) -> Option<f64> {
        // Other layers run in between, so that the cache is cold.
        entry?.operation.time_us(work, &self.hardware, CacheState::Cold)
    }

    /// Returns the time of a product whose weights have `bytes` bytes each.
    pub fn gemm_us(&self, shape: GemmShape, bytes: f64) -> f64 {
        if shape.m <= 0.0 || shape.n == 0 || shape.k == 0 {
            return 0.0;
        }
        let work = GemmWork { m: whole(shape.m), n: shape.n, k: shape.k };
        let measured = self.products[usize::from(bytes > 1.5)].as_ref();
        self.time(measured, &OperationWork::Gemm(work)).unwrap_or_else(|| {
            let (n, k) = (shape.n as f64, shape.k as f64);
            let read = (n * k * bytes + shape.m * (n + k) * 2.0) / self.bytes_per_us();
            LAUNCH_US + read.max(2.0 * shape.m * n * k / self.operations_per_us(bytes))
        })
    }

    fn bytes_per_us(&self) -> f64 {
        self.gpu.bandwidth as f64 * 1e3 * DATA_SHEET_SHARE
    }

    fn operations_per_us(&self, bytes: f64) -> f64 {
        let peak = if bytes < 1.5 { self.gpu.fp8 } else { self.gpu.bf16 };
        peak as f64 * 1e6 * DATA_SHEET_SHARE
    }

    /// Returns the time of an operation that only reads and writes `bytes`. NVIDIA's AIConfigurator uses the
    /// same 80 % of the bandwidth, and 3 us.
    pub fn elementwise_us(&self, bytes: f64) -> f64 {
        3.0 + bytes / (self.gpu.bandwidth as f64 * 1e3 * 0.8)
    }

    /// Returns the time of both norms of a layer with their residual additions. Each reads and writes two
    /// tensors in bfloat16.
    pub fn norms_us(&self, hidden: u64, tokens: f64) -> f64 {
        2.0 * self.elementwise_us(8.0 * hidden as f64 * tokens)
    }

    /// Returns true if the attention's time includes its projections.
    pub fn has_attention_block(&self, work: &StepWork) -> bool {
        self.block[usize::from(matches!(work.phase, Phase::Prefill { .. }))].is_some()
    }

    /// Returns the time of the attention kernel of one layer on a GPU that holds `1 / tp` of the heads.
    /// `tokens` are those of its attention group.
    pub fn attention_us(&self, attention: &Attention, tp: u64, work: &StepWork, tokens: f64) -> f64 {
        match work.phase {
            Phase::Decode { context } => {
                // Drafts of a request share its cache.
                let requests = (tokens / work.tokens_per_request.max(1.0)).max(1.0);
                self.decode_us(attention, tp, requests, context, work.kv_bytes)
            }
            Phase::Prefill { prompt } => {
                let prompts = tokens / prompt.max(1) as f64;
                let once = |prompts: f64| self.prefill_us(attention, tp, prompts, prompt, work.kv_bytes);
                // A part of a prompt is that part of the work.
                if prompts >= 1.0 { once(prompts) } else { once(1.0) * prompts }
            }
        }
    }

    fn decode_us(&self, attention: &Attention, tp: u64, requests: f64, context: u64, kv_bytes: f64) -> f64 {
        match *attention {
            Attention::Grouped { heads, kv_heads, head_dim, window } => {
                let of_window = |tokens: Option<u64>| {
                    let work = AttentionWork {
                        batch: whole(requests),
                        context,
                        heads: heads.div_ceil(tp),
                        kv_heads: kv_heads.div_ceil(tp),
                        head_dim,
                        window: tokens,
                    };
                    let found = self.time(self.decode.as_ref(), &OperationWork::Attention(work));
                    found.unwrap_or_else(|| {
                        let kept = tokens.map_or(context, |tokens| tokens.min(context)) as f64;
                        let bytes = requests * kept * (2 * work.kv_heads * head_dim) as f64 * kv_bytes;
                        2.0 * LAUNCH_US + bytes / self.bytes_per_us()
                    })
                };
                mean_over_windows(window.map(|window| (window.tokens, window.layer_percent)), of_window)
            }
            Attention::Latent { heads, kv_rank, rope, .. } => {
                let heads = heads.div_ceil(tp);
                let work = MlaWork { batch: whole(requests), context, heads };
                let measured = self.block[0].as_ref().or(self.decode.as_ref());
                self.time(measured, &OperationWork::Mla(work)).unwrap_or_else(|| {
                    let read =
                        requests * context as f64 * (kv_rank + rope) as f64 * kv_bytes / self.bytes_per_us();
                    let operations = 2.0 * requests * context as f64 * (heads * (2 * kv_rank + rope)) as f64;
                    2.0 * LAUNCH_US + read.max(operations / self.operations_per_us(2.0))
                })
            }
        }
    }

    fn prefill_us(&self, attention: &Attention, tp: u64, prompts: f64, prompt: u64, kv_bytes: f64) -> f64 {
        let length = prompt as f64;
        let by_data_sheet = |operations: f64, bytes: f64| {
            let arithmetic = operations / self.operations_per_us(2.0);
            2.0 * LAUNCH_US + arithmetic.max(bytes / self.bytes_per_us())
        };
        match *attention {
            Attention::Grouped { heads, kv_heads, head_dim, window } => {
                let of_window = |tokens: Option<u64>| {
                    let work = AttentionWork {
                        batch: whole(prompts),
                        context: prompt,
                        heads: heads.div_ceil(tp),
                        kv_heads: kv_heads.div_ceil(tp),
                        head_dim,
                        window: tokens,
                    };
                    self.time(self.prefill.as_ref(), &OperationWork::Attention(work)).unwrap_or_else(|| {
                        let width = tokens.map_or(length / 2.0, |tokens| (tokens as f64).min(length / 2.0));
                        let pairs = prompts * length * width;
                        let bytes = prompts * length * (2 * kv_heads * head_dim) as f64 * kv_bytes;
                        by_data_sheet(4.0 * pairs * (work.heads * head_dim) as f64, bytes)
                    })
                };
                mean_over_windows(window.map(|window| (window.tokens, window.layer_percent)), of_window)
            }
            Attention::Latent { heads, key_dim, rope, value_dim, .. } => {
                let heads = heads.div_ceil(tp);
                let work = MlaWork { batch: whole(prompts), context: prompt, heads };
                let measured = self.block[1].as_ref().or(self.prefill.as_ref());
                self.time(measured, &OperationWork::Mla(work)).unwrap_or_else(|| {
                    let pairs = prompts * length * length / 2.0;
                    by_data_sheet(2.0 * pairs * (heads * (key_dim + rope + value_dim)) as f64, 0.0)
                })
            }
        }
    }

    /// Returns the time of the two batched products with which latent attention decodes: the query and the
    /// result through the halves of the up-projection.
    pub fn latent_products_us(&self, heads: u64, tokens: f64) -> f64 {
        let work = MlaBmmWork { tokens: whole(tokens), heads };
        let one = self.time(self.latent.as_ref(), &OperationWork::MlaBmm(work)).unwrap_or_else(|| {
            let weights = heads as f64 * 65_536.0 * 2.0;
            LAUNCH_US + (weights + heads as f64 * 1_280.0 * tokens) / self.bytes_per_us()
        });
        2.0 * one
    }

    /// Returns the time to add up `bytes` of every one of `gpus` GPUs on all of them.
    pub fn all_reduce_us(&self, gpus: u64, bytes: f64) -> f64 {
        if gpus <= 1 {
            return 0.0;
        }
        let work = CollectiveWork { bytes: whole(bytes), ranks: gpus };
        let all = self.database.iter().flat_map(|database| {
            database.operations_of(OperationKind::Collective(CollectiveKind::AllReduce))
        });
        // Frameworks take their own kernel for small sizes and NCCL for large ones.
        let measured = all.filter_map(|entry| self.time(Some(entry), &OperationWork::Collective(work)));
        measured.reduce(f64::min).unwrap_or_else(|| {
            let share = 2.0 * (gpus - 1) as f64 / gpus as f64;
            let link = &self.network.node;
            2.0 * LAUNCH_US + share * bytes / (link.gb_s * 1e3)
        })
    }

    /// Returns the time to send `bytes` to a GPU of another node.
    pub fn point_to_point_us(&self, bytes: f64) -> f64 {
        let link = &self.network.cross;
        link.alpha_us + bytes / (link.gb_s * 1e3)
    }

    /// Returns the measured kernel of the experts for a phase, if there is one.
    fn expert_entry(&self, model: &ModelSpec, is_prefill: bool, is_parallel: bool) -> Option<&KernelEntry> {
        let database = self.database.as_ref()?;
        let wide = match (self.framework.as_str(), is_prefill) {
            ("sglang", true) => Some(KernelTable::WideEpContext),
            ("sglang", false) => Some(KernelTable::WideEpGeneration),
            ("trtllm", _) => Some(KernelTable::WideEp),
            _ => None,
        };
        let shape = ModelShape::from(&model.moe);
        let is_measured = |entry: &&KernelEntry| entry.models.contains(&shape);
        let of_wide = wide.filter(|_| is_parallel).and_then(|table| {
            let found = database.kernel_of_model(table, &self.framework, model.dtype, shape).ok();
            found.filter(is_measured)
        });
        let formats: &[Dtype] = match model.dtype {
            Dtype::Fp8Block => &[Dtype::Fp8Block, Dtype::Fp8],
            Dtype::Fp8 => &[Dtype::Fp8, Dtype::Fp8Block],
            ref other => std::slice::from_ref(other),
        };
        // SGLang's general kernels also pay for rows of other ranks, so that others stand in for DeepEP's.
        let order: &[&str] = match self.framework.as_str() {
            "sglang" if is_parallel => &["trtllm", "vllm", "sglang"],
            "vllm" => &["vllm", "trtllm", "sglang"],
            "trtllm" => &["trtllm", "vllm", "sglang"],
            _ => &["sglang", "trtllm", "vllm"],
        };
        of_wide.or_else(|| {
            order.iter().find_map(|framework| {
                formats.iter().find_map(|&dtype| {
                    database.kernel_of_model(KernelTable::Moe, framework, dtype, shape).ok()
                })
            })
        })
    }

    /// Returns the times of a rank's experts, for the slots of all groups, the groups that hold different
    /// experts, and the ranks that share every expert.
    pub fn expert_kernel(
        &self,
        model: &ModelSpec,
        (slots, groups, expert_tp): (u64, u64, u64),
        is_prefill: bool,
    ) -> Arc<dyn CostModel> {
        let moe = MoeShape::of_model(&model.moe, slots, groups);
        let shape = MoeShape { intermediate: moe.intermediate.div_ceil(expert_tp.max(1)), ..moe };
        if let Some(entry) = self.expert_entry(model, is_prefill, groups > 1 && expert_tp == 1) {
            return Arc::new(RankKernel::new(entry, &self.hardware, shape, CacheState::Cold));
        }
        let parameters = (shape.matrices * shape.hidden * shape.intermediate) as f64;
        let read = parameters * model.dtype.bytes_per_weight() / self.bytes_per_us();
        let width = if model.moe.precision == Precision::Fp8 { 1.0 } else { 2.0 };
        let token = 2.0 * parameters / self.operations_per_us(width);
        Arc::new(Roofline { read: (read * 1e6) as u64, token: (token * 1e6) as u64, tile: TILE_TOKENS })
    }

    /// Returns the sources of the times of a phase.
    pub fn sources(
        &self,
        model: &ModelSpec,
        phase: Phase,
        exchange: &ExchangeLoad,
        parallel: &Parallelism,
    ) -> Vec<TimeSource> {
        let is_parallel = parallel.is_expert_parallel() && parallel.expert_tp == 1;
        let is_prefill = matches!(phase, Phase::Prefill { .. });
        let of_entry = |part: &str, entry: Option<&OperationEntry>| TimeSource {
            part: part.to_owned(),
            kernel: entry.map_or_else(
                || "data sheet".to_owned(),
                |entry| format!("{} {} {} {}", entry.framework, entry.version, entry.kernel, entry.dtype),
            ),
            median_error: entry.map_or(DATA_SHEET_ERROR, |entry| entry.errors.median / 100.0),
        };
        let attention = self.block[usize::from(is_prefill)].as_ref().or(if is_prefill {
            self.prefill.as_ref()
        } else {
            self.decode.as_ref()
        });
        let expert = self.expert_entry(model, is_prefill, is_parallel);
        let errors = expert.and_then(|entry| entry.errors.skewed.or(entry.errors.balanced));
        let mut found = vec![
            TimeSource {
                part: "experts".into(),
                kernel: expert.map_or_else(
                    || "data sheet".to_owned(),
                    |entry| format!("{} {} {} {}", entry.framework, entry.version, entry.kernel, entry.dtype),
                ),
                median_error: errors.map_or(DATA_SHEET_ERROR, |errors| errors.model.median / 100.0),
            },
            of_entry("attention", attention),
            of_entry("products", self.products[0].as_ref()),
        ];
        if !parallel.has_all_tokens() {
            found.push(of_entry("exchange", self.exchange_entry(exchange, ExchangePhase::Dispatch)));
        }
        found
    }
}

/// Returns the mean over layers with and without a window.
fn mean_over_windows(window: Option<(u64, u64)>, time: impl Fn(Option<u64>) -> f64) -> f64 {
    match window {
        None => time(None),
        Some((tokens, percent)) => {
            let share = percent as f64 / 100.0;
            share * time(Some(tokens)) + (1.0 - share) * time(None)
        }
    }
}

pub(crate) fn whole(number: f64) -> u64 {
    (number.round() as u64).max(1)
}

/// Returns the figures of a GPU without measurements.
fn data_sheet(gpu: &GpuSpec) -> Hardware {
    Hardware {
        bandwidth: gpu.bandwidth * 1_000_000_000,
        flops_16bit: gpu.bf16 * 1_000_000_000_000,
        flops_8bit: gpu.fp8 * 1_000_000_000_000,
        flops_4bit: gpu.fp8 * 1_000_000_000_000,
        multiprocessors: 132,
        l2_bytes: 50_000_000,
    }
}
