//! Tables of attention, in milliseconds.
//!
//! Decode sees `isl + step` tokens: one new token after `step` others. The window is 0 if there is none. A
//! prefill has `isl` tokens per sequence.

use super::rows::{RowCollector, RowKernel};
use crate::import::parquet_columns::{ContentError, LabelColumn, ParquetTable};
use crate::operations::{
    AttentionWork, DecodeAttention, Grouping, Operation, OperationWork, PrefillAttention, PrefillRates,
};

/// Columns that both tables have.
struct AttentionColumns {
    kernel: LabelColumn,
    attention_dtype: LabelColumn,
    cache_dtype: LabelColumn,
    batch: Vec<u64>,
    isl: Vec<u64>,
    step: Vec<u64>,
    heads: Vec<u64>,
    kv_heads: Vec<u64>,
    head_dim: Vec<u64>,
    window: Option<Vec<u64>>,
    milliseconds: Vec<f64>,
}

impl AttentionColumns {
    fn read(file: &ParquetTable) -> Result<Self, ContentError> {
        let window = if file.has_column("window_size") { Some(file.integers("window_size")?) } else { None };
        Ok(Self {
            kernel: file.labels("kernel_source")?,
            attention_dtype: file.labels("attn_dtype")?,
            cache_dtype: file.labels("kv_cache_dtype")?,
            batch: file.integers("batch_size")?,
            isl: file.integers("isl")?,
            step: file.integers("step")?,
            heads: file.integers("num_heads")?,
            kv_heads: file.integers("num_key_value_heads")?,
            head_dim: file.integers("head_dim")?,
            window,
            milliseconds: file.numbers("latency")?,
        })
    }

    /// Returns the work of a row. `None` if its heads do not divide.
    fn work(&self, at: usize) -> Option<AttentionWork> {
        let window = self.window.as_ref().map(|window| window[at]).filter(|&window| window > 0);
        let work = AttentionWork {
            batch: self.batch[at],
            context: self.isl[at] + self.step[at],
            heads: self.heads[at],
            kv_heads: self.kv_heads[at],
            head_dim: self.head_dim[at],
            window,
        };
        (work.batch > 0 && work.context > 0 && work.kv_heads > 0 && work.heads >= work.kv_heads)
            .then_some(work)
    }
}

/// Returns the bytes per element of a cache.
pub(super) fn cache_bytes(dtype: &str) -> f64 {
    if dtype.contains("fp8") { 1.0 } else { 2.0 }
}

/// Returns the number format of a kernel that computes in one format and stores in another.
pub(super) fn joined_dtype(arithmetic: &str, cache: &str) -> String {
    if arithmetic == cache { arithmetic.to_owned() } else { format!("{arithmetic}_kv_{cache}") }
}

/// Query heads per head of the cache that TensorRT-LLM's grouped kernel serves.
const MAX_GROUP: u64 = 32;

/// Returns the heads to which a kernel of the table is fitted. `None` if the row is left out. TensorRT-LLM
/// decodes on Ampere and Hopper by two kernels of one name, and wider groups by a third, which no model
/// needs.
fn grouping_of(kernel: &str, device: &str, work: &AttentionWork) -> Option<Grouping> {
    let has_two_kernels = ["A100", "H100", "H200"].iter().any(|name| device.contains(name));
    if kernel != "torch_flow" || !has_two_kernels {
        return Some(Grouping::Any);
    }
    (work.heads <= MAX_GROUP * work.kv_heads).then_some(work.grouping())
}

pub(super) fn read_decode(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let columns = AttentionColumns::read(file)?;
    let device = file.labels("device")?;
    for at in 0..file.row_count() {
        let Some(work) = columns.work(at) else { continue };
        let (kernel, dtype) = (columns.kernel.label(at), columns.cache_dtype.label(at));
        let Some(grouping) = grouping_of(kernel, device.label(at), &work) else { continue };
        let template = Operation::DecodeAttention(DecodeAttention {
            grouping,
            kv_bytes: cache_bytes(dtype),
            floor_us: 1.0,
            split_us: 1.0,
            split_tokens: 1.0,
            tb_s: 1.0,
            l2_mb: 1.0,
            l2_ratio: 1.0,
            unit_us: 1.0,
            unit_head_us: 1.0,
            tflop_s: 1.0,
            p: 1.0,
        });
        let time = columns.milliseconds[at] * 1e3;
        rows.add(&RowKernel { kernel, dtype, template }, OperationWork::Attention(work), time);
    }
    Ok(())
}

/// Rates of a prefill kernel before its fit.
pub(super) const UNFITTED: PrefillRates = PrefillRates {
    floor_us: 1.0,
    unit_us: 1.0,
    tflop_s: 1.0,
    half_head_dim: 0.0,
    tile_tokens: 1.0,
    chain_share: 1.0,
    tb_s: 1.0,
    p: 1.0,
    q: 1.0,
};

pub(super) fn read_prefill(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let columns = AttentionColumns::read(file)?;
    for at in 0..file.row_count() {
        let Some(work) = columns.work(at) else { continue };
        let (kernel, cache) = (columns.kernel.label(at), columns.cache_dtype.label(at));
        let dtype = joined_dtype(columns.attention_dtype.label(at), cache);
        let template =
            Operation::PrefillAttention(PrefillAttention { kv_bytes: cache_bytes(cache), rates: UNFITTED });
        let time = columns.milliseconds[at] * 1e3;
        let kernel = RowKernel { kernel, dtype: &dtype, template };
        rows.add(&kernel, OperationWork::Attention(work), time);
    }
    Ok(())
}
