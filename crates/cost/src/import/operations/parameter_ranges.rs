//! Ranges and starting values of the parameters, by their names.
//!
//! In: a parameter's name, the figures of the GPU, and the peak rate of the number format. Out: bounds, and
//! the value with which a fit begins.

use super::levenberg::Bounds;
use crate::hardware::Hardware;
use crate::operations::Operation;

/// Value at which a time or a size counts as zero.
pub(super) const NEARLY_ZERO: f64 = 1e-5;

/// Range of a parameter and its starting value.
#[derive(Debug, Clone, Copy)]
pub(super) struct ParameterRange {
    pub(super) start: f64,
    pub(super) bounds: Bounds,
    /// True if the lower bound stands for zero.
    pub(super) can_vanish: bool,
}

/// Peak rates that no kernel exceeds.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeakRates {
    /// Memory, terabytes per second.
    memory_tb_s: f64,
    /// Arithmetic in the number format, 10^12 operations per second.
    tflop_s: f64,
    /// L2 cache, megabytes.
    l2_mb: f64,
}

impl PeakRates {
    /// Returns the rates of a GPU for a number format of a table.
    pub(super) fn new(hardware: &Hardware, dtype: &str) -> Self {
        let flops = if dtype.contains("fp4") {
            hardware.flops_4bit
        } else if dtype.contains("fp8") || dtype.contains("int8") || dtype == "sq" {
            hardware.flops_8bit
        } else {
            hardware.flops_16bit
        };
        Self {
            memory_tb_s: hardware.bandwidth as f64 / 1e12,
            tflop_s: flops as f64 / 1e12,
            l2_mb: hardware.l2_bytes as f64 / 1e6,
        }
    }
}

/// Returns the range of a parameter of an operation.
pub(super) fn parameter_range(name: &str, operation: &Operation, peak: &PeakRates) -> ParameterRange {
    let time = |start: f64, high: f64| ParameterRange {
        start,
        bounds: Bounds { low: NEARLY_ZERO, high },
        can_vanish: true,
    };
    let rate = |start: f64, low: f64, high: f64| ParameterRange {
        start,
        bounds: Bounds { low, high },
        can_vanish: false,
    };
    let is_block = matches!(operation, Operation::MlaBlockDecode(_) | Operation::MlaBlockPrefill(_));
    let is_gemm = matches!(operation, Operation::Gemm(_));
    match name {
        "floor_us" => time(if is_block { 40.0 } else { 5.0 }, 5e3),
        "split_us" => time(5.0, 200.0),
        "split_tokens" => time(800.0, 1e5),
        "unit_us" | "unit_head_us" => time(1.0, 1e3),
        "k_us" => time(0.1, 10.0),
        "half_tile" => time(3.0, 20.0),
        "half_head_dim" => time(32.0, 1e3),
        "tile_tokens" => time(128.0, 2e3),
        "chain_share" => rate(0.5, 0.01, 1.0),
        "tb_s" | "weight_tb_s" => rate(0.8 * peak.memory_tb_s, 0.02 * peak.memory_tb_s, peak.memory_tb_s),
        "quantise_tb_s" => rate(peak.memory_tb_s, 0.05 * peak.memory_tb_s, 5.0 * peak.memory_tb_s),
        // A multiplication alternates between operands, so its effective cache may seem larger.
        "l2_mb" if is_gemm => rate(0.6 * peak.l2_mb, 0.1 * peak.l2_mb, 2.0 * peak.l2_mb),
        "l2_mb" => rate(0.6 * peak.l2_mb, 0.3 * peak.l2_mb, peak.l2_mb),
        "l2_ratio" => rate(2.0, 1.0, 6.0),
        "tflop_s" | "gemm_tflop_s" => rate(0.5 * peak.tflop_s, 0.005 * peak.tflop_s, peak.tflop_s),
        "p" | "q" | "gemm_p" => rate(2.0, 1.0, 8.0),
        "alpha_us" | "small_alpha_us" => time(if name == "alpha_us" { 20.0 } else { 8.0 }, 5e3),
        "cross_alpha_us" => time(30.0, 1e3),
        "wide_alpha_us" => time(120.0, 2e3),
        "cross_alpha_per_node" => time(0.2, 5.0),
        "message_us" => time(0.02, 10.0),
        "trays_us" => time(2.0, 100.0),
        "token_us" => time(1.0, 100.0),
        "token_ns" => time(20.0, 1e4),
        "row_bytes" => time(500.0, 1e6),
        "token_bytes" => time(5000.0, 1e6),
        "node_gb_s_per_sm" | "gb_s_per_sm" => rate(20.0, 0.5, 500.0),
        "cross_gb_s" => rate(45.0, 1.0, 500.0),
        "wide_gb_s" => rate(15.0, 1.0, 500.0),
        // It begins below all others, or forwarding would never be the slowest part.
        "forward_gb_s" => rate(120.0, 1.0, 3000.0),
        "small_gb_s" => rate(30.0, 0.05, 3000.0),
        // Rates of links.
        _ => rate(300.0, 1.0, 3000.0),
    }
}
