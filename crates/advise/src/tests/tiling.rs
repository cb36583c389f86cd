//! Two published figures about batch tiling, with their inputs.

/// Returns the share of communication in an MoE layer of bfloat16 rows. `remote` of all visits leave the GPU.
fn communication_share(intermediate: f64, remote: f64, gb_s: f64, tflop_s: f64) -> f64 {
    // Per visit and hidden element: two bytes out and two back, and three products of the inner width.
    let communication = 4.0 * remote / (gb_s * 1e9);
    let experts = 6.0 * intermediate / (tflop_s * 1e12);
    communication / (communication + experts)
}

#[test]
fn communication_takes_77_percent_of_a_layer_on_8_h100() {
    // Qwen3-30B-A3B, EP8. The published rate of arithmetic is that of sparse matrices.
    let share = |tflop_s| communication_share(768.0, 7.0 / 8.0, 450.0, tflop_s);
    assert!((share(1_979.0) - 0.7696).abs() < 5e-5, "{}", share(1_979.0));
    assert!((share(989.0) - 0.625).abs() < 1e-3, "{}", share(989.0));
}

#[test]
fn sparsity_of_64_lowers_arithmetic_intensity_by_98_percent() {
    // Rows per expert are T k / E: with 64 times as many experts per active one, 64 times fewer.
    let rows = |experts: f64| 4_096.0 * 1.0 / experts;
    assert!((1.0 - rows(64.0) / rows(1.0) - 0.984).abs() < 5e-4);
}
