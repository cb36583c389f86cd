//! Tables of dense multiplication, in milliseconds.

use super::rows::{RowCollector, RowKernel};
use crate::import::parquet_columns::{ContentError, ParquetTable};
use crate::operations::{Gemm, GemmWork, Operation, OperationWork};

/// Bytes per weight and per activation of a number format.
#[derive(Debug, Clone, Copy, PartialEq)]
struct OperandBytes {
    weight: f64,
    activation: f64,
}

/// Returns the bytes of a format. `None` for formats without a model, such as integers of other eras.
fn operand_bytes(dtype: &str) -> Option<OperandBytes> {
    let (weight, activation) = match dtype {
        "bfloat16" => (2.0, 2.0),
        "fp8" => (1.0, 1.0),
        "fp8_block" => (1.0 + 4.0 / 16_384.0, 1.0 + 1.0 / 32.0),
        "nvfp4" => (0.5625, 0.5625),
        _ => return None,
    };
    Some(OperandBytes { weight, activation })
}

pub(super) fn read_gemm(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let (names, dtypes) = (file.labels("kernel_source")?, file.labels("gemm_dtype")?);
    let (m, n, k) = (file.integers("m")?, file.integers("n")?, file.integers("k")?);
    for (at, milliseconds) in file.numbers("latency")?.into_iter().enumerate() {
        let dtype = dtypes.label(at);
        let Some(bytes) = operand_bytes(dtype) else { continue };
        let template = Operation::Gemm(Gemm {
            weight_bytes: bytes.weight,
            activation_bytes: bytes.activation,
            floor_us: 1.0,
            k_us: 1.0,
            tflop_s: 1.0,
            half_tile: 1.0,
            split_us: 1.0,
            tb_s: 1.0,
            l2_mb: 1.0,
            l2_ratio: 1.0,
            p: 1.0,
            quantise_tb_s: (dtype != "bfloat16").then_some(1.0),
        });
        let work = GemmWork { m: m[at], n: n[at], k: k[at] };
        let kernel = RowKernel { kernel: names.label(at), dtype, template };
        rows.add(&kernel, OperationWork::Gemm(work), milliseconds * 1e3);
    }
    Ok(())
}
