//! Times of the operations of a step on one GPU: measured where a table has them, by the data sheet
//! elsewhere.
//!
//! In: a GPU, a framework, and a [`CostDatabase`] of measured operations. Out: microseconds of products, the
//! kernel of the experts, and the [`TimeSource`] of each time. Attention and exchanges have their own files.
//! A framework without a measured operation takes that of another framework on the same GPU.

use crate::attention_times::AttentionEntries;
use crate::exchange_times::{ExchangeEntries, ExchangeLoad, ExchangeMode};
use crate::model::ModelSpec;
use crate::parallelism::Parallelism;
use evenkeel::cluster::Network;
use evenkeel::gpu::{DATA_SHEET_ERROR, DATA_SHEET_SHARE, GpuSpec};
use evenkeel::model::Precision;
use evenkeel::split::{CostModel, Roofline, TILE_TOKENS};
use evenkeel_cost::operations::{GemmWork, OperationEntry, OperationKind, OperationWork};
use evenkeel_cost::{
    CacheState, CostDatabase, CostError, Dtype, Hardware, KernelEntry, KernelTable, ModelShape, MoeShape,
    RankKernel, builtin_gpus,
};
use serde::Serialize;
use std::sync::Arc;
use thiserror::Error;

/// Time of a kernel without work if none is measured, microseconds.
pub(crate) const LAUNCH_US: f64 = 4.0;

/// Error of a GPU without a network, or of its database.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TimesError {
    /// The database cannot be read.
    #[error(transparent)]
    Costs(#[from] CostError),
    /// The links of machines with the GPU are not known.
    #[error("no network is known for GPU \"{0}\"")]
    Network(&'static str),
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
pub(crate) struct GemmShape {
    /// Rows: tokens.
    pub(crate) m: f64,
    /// Output width.
    pub(crate) n: u64,
    /// Input width.
    pub(crate) k: u64,
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
    pub(crate) attention: AttentionEntries,
    /// Products of narrow weights, and of 16-bit weights.
    products: [Option<OperationEntry>; 2],
    pub(crate) exchanges: ExchangeEntries,
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
            attention: AttentionEntries::default(),
            products: [None, None],
            exchanges: ExchangeEntries::default(),
        };
        let weights: &[&str] = match model.moe.precision {
            Precision::Fp8 if model.dtype == Dtype::Fp8 => &["fp8", "fp8_block"],
            Precision::Fp8 => &["fp8_block", "fp8"],
            _ => &["bfloat16"],
        };
        times.products = [weights, &["bfloat16"]].map(|formats| times.find(OperationKind::Gemm, formats));
        times.attention = AttentionEntries::find(&times, model, kv_bytes);
        times.exchanges = ExchangeEntries::find(&times);
        times
    }

    /// Creates the times of a model on machines with a GPU, by their usual network. Without a database the
    /// built-in one of the GPU is used, if there is one.
    ///
    /// # Errors
    /// Fails if no network is known for the GPU, or if the built-in database cannot be read.
    pub fn of_gpu(
        model: &ModelSpec,
        gpu: GpuSpec,
        database: Option<CostDatabase>,
        framework: &str,
        kv_bytes: f64,
    ) -> Result<Self, TimesError> {
        let network = Network::of_gpu(gpu.name).ok_or(TimesError::Network(gpu.name))?;
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

    /// Returns all measured operations of a kind.
    pub(crate) fn find_all(&self, kind: OperationKind) -> Vec<OperationEntry> {
        self.database.iter().flat_map(|database| database.operations_of(kind)).cloned().collect()
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
    pub(crate) fn gemm_us(&self, shape: GemmShape, bytes: f64) -> f64 {
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

    pub(crate) fn bytes_per_us(&self) -> f64 {
        self.gpu.bandwidth as f64 * 1e3 * DATA_SHEET_SHARE
    }

    pub(crate) fn operations_per_us(&self, bytes: f64) -> f64 {
        let peak = if bytes < 1.5 { self.gpu.fp8 } else { self.gpu.bf16 };
        peak as f64 * 1e6 * DATA_SHEET_SHARE
    }

    /// Returns the time of an operation that only reads and writes `bytes`. NVIDIA's AIConfigurator uses the
    /// same 80 % of the bandwidth, and 3 us.
    pub(crate) fn elementwise_us(&self, bytes: f64) -> f64 {
        3.0 + bytes / (self.gpu.bandwidth as f64 * 1e3 * 0.8)
    }

    /// Returns the time of both norms of a layer with their residual additions. Each reads and writes two
    /// tensors in bfloat16.
    pub(crate) fn norms_us(&self, hidden: u64, tokens: f64) -> f64 {
        2.0 * self.elementwise_us(8.0 * hidden as f64 * tokens)
    }

    /// Returns the time to send `bytes` to a GPU of another node.
    pub(crate) fn point_to_point_us(&self, bytes: f64) -> f64 {
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
    pub(crate) fn expert_kernel(
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

    /// Returns the sources of the times of the phase of an exchange.
    pub(crate) fn sources(
        &self,
        model: &ModelSpec,
        exchange: &ExchangeLoad,
        parallel: &Parallelism,
    ) -> Vec<TimeSource> {
        let is_parallel = parallel.is_expert_parallel() && parallel.expert_tp == 1;
        let is_prefill = exchange.phase.is_prefill();
        let of_entry = |part: &str, entry: Option<&OperationEntry>| TimeSource {
            part: part.to_owned(),
            kernel: entry.map_or_else(
                || "data sheet".to_owned(),
                |entry| format!("{} {} {} {}", entry.framework, entry.version, entry.kernel, entry.dtype),
            ),
            median_error: entry.map_or(DATA_SHEET_ERROR, |entry| entry.errors.median / 100.0),
        };
        let expert = self.expert_entry(model, is_prefill, is_parallel);
        let mut found = vec![
            TimeSource {
                part: "experts".into(),
                kernel: expert.map_or_else(
                    || "data sheet".to_owned(),
                    |entry| format!("{} {} {} {}", entry.framework, entry.version, entry.kernel, entry.dtype),
                ),
                median_error: expert.and_then(KernelEntry::median_error).unwrap_or(DATA_SHEET_ERROR),
            },
            of_entry("attention", self.attention.entry(is_prefill)),
            of_entry("products", self.products[0].as_ref()),
        ];
        if parallel.ranks > 1 {
            found.push(of_entry("exchange", self.exchange_source(exchange, parallel)));
        }
        found
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
