//! Tables of latent attention, in milliseconds.
//!
//! - `generation_mla`, `context_mla`: attention alone.
//! - `mla_generation_module`, `mla_context_module`: the whole block of TensorRT-LLM and vLLM.
//! - `wideep_generation_mla`, `wideep_context_mla`: the whole block of SGLang. The column `isl` holds the
//!   context of decode. The cache is labelled fp8, but was measured in bfloat16.
//!
//! In every table the context is `isl + step`, and heads are those on one GPU.

use super::attention_tables::{UNFITTED, cache_bytes, joined_dtype};
use super::rows::{RowCollector, RowKernel};
use crate::import::parquet_columns::{ContentError, LabelColumn, ParquetTable};
use crate::operations::{
    MlaBlockDecode, MlaBlockPrefill, MlaBmm, MlaBmmWork, MlaDecode, MlaPrefill, MlaProjections, MlaWork,
    Operation, OperationWork,
};

/// Columns that all tables of latent attention have.
struct MlaColumns {
    kernel: LabelColumn,
    attention_dtype: LabelColumn,
    cache_dtype: LabelColumn,
    work: Vec<MlaWork>,
    microseconds: Vec<f64>,
}

impl MlaColumns {
    fn read(file: &ParquetTable) -> Result<Self, ContentError> {
        let [batch, isl, step, heads] =
            ["batch_size", "isl", "step", "num_heads"].map(|name| file.integers(name));
        let (batch, isl, step, heads) = (batch?, isl?, step?, heads?);
        let work = |at: usize| MlaWork { batch: batch[at], context: isl[at] + step[at], heads: heads[at] };
        Ok(Self {
            kernel: file.labels("kernel_source")?,
            attention_dtype: file.labels("mla_dtype")?,
            cache_dtype: file.labels("kv_cache_dtype")?,
            work: (0..file.row_count()).map(work).collect(),
            microseconds: file.numbers("latency")?.into_iter().map(|time| time * 1e3).collect(),
        })
    }

    fn add(&self, at: usize, dtype: &str, template: Operation, rows: &mut RowCollector) {
        let kernel = RowKernel { kernel: self.kernel.label(at), dtype, template };
        rows.add(&kernel, OperationWork::Mla(self.work[at]), self.microseconds[at]);
    }
}

fn decode(kv_bytes: f64) -> MlaDecode {
    MlaDecode {
        kv_bytes,
        floor_us: 1.0,
        split_us: 1.0,
        split_tokens: 1.0,
        tb_s: 1.0,
        l2_mb: 1.0,
        l2_ratio: 1.0,
        unit_us: 1.0,
        tflop_s: 1.0,
        p: 1.0,
    }
}

pub(super) fn read_decode(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let columns = MlaColumns::read(file)?;
    for at in 0..file.row_count() {
        let dtype = columns.cache_dtype.label(at);
        columns.add(at, dtype, Operation::MlaDecode(decode(cache_bytes(dtype))), rows);
    }
    Ok(())
}

pub(super) fn read_prefill(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let columns = MlaColumns::read(file)?;
    for at in 0..file.row_count() {
        let dtype = joined_dtype(columns.attention_dtype.label(at), columns.cache_dtype.label(at));
        // The fit tries both forms.
        columns.add(at, &dtype, Operation::MlaPrefill(MlaPrefill { absorbed: false, rates: UNFITTED }), rows);
    }
    Ok(())
}

/// Number formats of a block.
struct BlockFormat {
    /// Name of the weights' format, and of the cache's if it differs from that of SGLang's table.
    dtype: String,
    weight_bytes: f64,
    kv_bytes: f64,
}

/// Returns the formats of all rows.
fn block_formats(file: &ParquetTable, columns: &MlaColumns) -> Result<Vec<BlockFormat>, ContentError> {
    let weights = if file.has_column("gemm_type") { Some(file.labels("gemm_type")?) } else { None };
    let format = |at: usize| {
        let (attention, cache) = (columns.attention_dtype.label(at), columns.cache_dtype.label(at));
        let weights = weights.as_ref().map_or(attention, |weights| weights.label(at));
        let weight_bytes = weight_bytes(weights);
        // SGLang's table names the weights' format in place of the attention's.
        if attention.ends_with("_block") {
            return BlockFormat { dtype: weights.to_owned(), weight_bytes, kv_bytes: 2.0 };
        }
        let dtype = match (attention, cache) {
            ("bfloat16", "bfloat16") => weights.to_owned(),
            ("bfloat16", _) => format!("{weights}_kv_{cache}"),
            _ => format!("{weights}_attention_{attention}"),
        };
        BlockFormat { dtype, weight_bytes, kv_bytes: cache_bytes(cache) }
    };
    Ok((0..file.row_count()).map(format).collect())
}

fn weight_bytes(dtype: &str) -> f64 {
    match dtype {
        "nvfp4" | "fp4" => 0.5625,
        "fp8" | "fp8_block" => 1.0,
        _ => 2.0,
    }
}

fn projections(weight_bytes: f64) -> MlaProjections {
    MlaProjections { weight_bytes, weight_tb_s: 1.0, gemm_tflop_s: 1.0, gemm_p: 1.0 }
}

pub(super) fn read_block_decode(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let columns = MlaColumns::read(file)?;
    for (at, format) in block_formats(file, &columns)?.into_iter().enumerate() {
        let template = Operation::MlaBlockDecode(MlaBlockDecode {
            projections: projections(format.weight_bytes),
            attention: decode(format.kv_bytes),
        });
        columns.add(at, &format.dtype, template, rows);
    }
    Ok(())
}

pub(super) fn read_block_prefill(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let columns = MlaColumns::read(file)?;
    for (at, format) in block_formats(file, &columns)?.into_iter().enumerate() {
        let template = Operation::MlaBlockPrefill(MlaBlockPrefill {
            projections: projections(format.weight_bytes),
            attention: MlaPrefill { absorbed: false, rates: UNFITTED },
        });
        columns.add(at, &format.dtype, template, rows);
    }
    Ok(())
}

/// Reads the batched multiplications before and after attention. Both have the same sizes.
pub(super) fn read_bmm(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let (names, dtypes) = (file.labels("kernel_source")?, file.labels("bmm_dtype")?);
    let (tokens, heads) = (file.integers("num_tokens")?, file.integers("num_heads")?);
    for (at, milliseconds) in file.numbers("latency")?.into_iter().enumerate() {
        let dtype = dtypes.label(at);
        let template = Operation::MlaBmm(MlaBmm {
            weight_bytes: weight_bytes(dtype),
            floor_us: 1.0,
            tb_s: 1.0,
            tflop_s: 1.0,
            unit_us: 1.0,
            p: 1.0,
        });
        let work = MlaBmmWork { tokens: tokens[at], heads: heads[at] };
        let kernel = RowKernel { kernel: names.label(at), dtype, template };
        rows.add(&kernel, OperationWork::MlaBmm(work), milliseconds * 1e3);
    }
    Ok(())
}
