//! The tables that are part of the crate.

use evenkeel_cost::{CostDatabase, Dtype, KernelTable, MoeShape, RankKernel, builtin_gpus};

#[test]
fn tables_parse_and_print_themselves() {
    assert_eq!(builtin_gpus(), ["a100", "h100", "h200", "b200", "b300", "gb200", "gb300", "l40s"]);
    for gpu in builtin_gpus() {
        let database = CostDatabase::builtin(gpu).unwrap();
        assert_eq!((database.gpu.as_str(), database.provenance.version.as_str()), (gpu, "0.12.0"));
        assert!(database.provenance.licence.contains("Apache-2.0"));
        assert_eq!(CostDatabase::from_json(&database.to_json().unwrap()).unwrap(), database);
        for kernel in &database.kernels {
            assert!(kernel.coefficients.values().all(|&value| value > 0.0), "{gpu} {}", kernel.kernel);
            assert!(kernel.rows > kernel.broken_rows && !kernel.models.is_empty(), "{gpu} {}", kernel.kernel);
        }
    }
}

#[test]
fn the_most_measured_kernel_is_chosen() {
    let database = CostDatabase::builtin("h100").unwrap();
    let kernel = database.kernel("trtllm", Dtype::Bfloat16).unwrap();
    // Release 1.3.0rc23 measured a few further models and does not displace the main version.
    assert_eq!((kernel.version.as_str(), kernel.kernel.as_str()), ("1.3.0rc20", "moe_torch_flow_cutlass"));
    let nemotron = [2688, 1856, 6, 128].into();
    let kernel = database.kernel_of_model(KernelTable::Moe, "trtllm", Dtype::Bfloat16, nemotron).unwrap();
    assert_eq!(kernel.kernel, "moe_torch_flow_nongated");
    let unmeasured = [1, 2, 3, 4].into();
    let kernel = database.kernel_of_model(KernelTable::Moe, "trtllm", Dtype::Bfloat16, unmeasured).unwrap();
    assert_eq!(kernel.kernel, "moe_torch_flow_cutlass");
}

/// Mixtral under tensor parallelism: SGLang has tuned tiles for a quarter of the width, and none for less.
#[test]
fn tuned_tiles_are_faster() {
    let database = CostDatabase::builtin("h100").unwrap();
    let time_us = |intermediate| {
        let shape = MoeShape { hidden: 4096, intermediate, top_k: 2, experts: 8, slots: 8, matrices: 3 };
        let kernel = RankKernel::find(&database, "sglang", Dtype::Bfloat16, shape).unwrap();
        kernel.time_us(&[1024; 8], 4096)
    };
    let (tuned, narrower) = (time_us(3584), time_us(3456));
    assert!(tuned < 0.6 * narrower, "{tuned} us, and {narrower} us with default tiles");
}

#[test]
fn unknown_names_list_the_known_ones() {
    let error = CostDatabase::builtin("h300").unwrap_err().to_string();
    assert!(error.contains("h300") && error.contains("gb200"), "{error}");
    let database = CostDatabase::builtin("h100").unwrap();
    let error = database.kernel("tgi", Dtype::Nvfp4).unwrap_err().to_string();
    assert!(error.contains("tgi with nvfp4") && error.contains("sglang fp8_block"), "{error}");
}
