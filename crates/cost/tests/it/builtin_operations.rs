//! The operations in the tables of the crate: complete, monotone, and never faster with a cold cache.

use evenkeel_cost::operations::{
    AttentionWork, CollectiveKind, CollectiveWork, ExchangePhase, ExchangeWork, GemmWork, Grouping,
    MlaBmmWork, MlaWork,
};
use evenkeel_cost::{CacheState, CostDatabase, OperationKind, OperationWork, builtin_gpus};
use proptest::prelude::*;

fn databases() -> Vec<CostDatabase> {
    builtin_gpus().into_iter().map(|gpu| CostDatabase::builtin(gpu).unwrap()).collect()
}

#[test]
fn every_gpu_has_the_operations_of_a_step() {
    for database in databases() {
        let gpu = database.gpu.as_str();
        for framework in ["sglang", "trtllm", "vllm"] {
            assert!(database.operation(OperationKind::Gemm, framework, "bfloat16").is_some(), "{gpu}");
            let kind = OperationKind::PrefillAttention;
            assert!(database.operation(kind, framework, "bfloat16").is_some(), "{gpu} {framework}");
        }
        for kind in [CollectiveKind::AllReduce, CollectiveKind::AllGather, CollectiveKind::ReduceScatter] {
            assert!(database.operation(OperationKind::Collective(kind), "nccl", "half").is_some(), "{gpu}");
        }
        let decode = OperationKind::DecodeAttention(Grouping::MultiHead);
        assert!(database.operation(decode, "vllm", "bfloat16").is_some(), "{gpu}");
    }
}

#[test]
fn deepep_is_measured_where_it_runs() {
    for gpu in ["h100", "h200", "b200", "b300", "gb200", "gb300"] {
        let database = CostDatabase::builtin(gpu).unwrap();
        for (phase, dtype) in [(ExchangePhase::Dispatch, "fp8"), (ExchangePhase::Combine, "bfloat16")] {
            for kind in [OperationKind::LowLatencyExchange(phase), OperationKind::NormalExchange(phase)] {
                assert!(database.operation(kind, "sglang", dtype).is_some(), "{gpu} {kind}");
            }
        }
    }
    let between_nodes = OperationKind::NodeExchange(ExchangePhase::Dispatch);
    assert!(CostDatabase::builtin("h100").unwrap().operation(between_nodes, "sglang", "fp8").is_some());
}

/// The decode rows of TensorRT-LLM 1.0.0 for A100 read up to 1.7 times as fast as its memory.
#[test]
fn impossible_measurements_are_left_out() {
    let database = CostDatabase::builtin("a100").unwrap();
    for grouping in [Grouping::Grouped, Grouping::MultiHead] {
        let kind = OperationKind::DecodeAttention(grouping);
        assert!(database.operation(kind, "trtllm", "bfloat16").is_none());
        assert!(database.operation(kind, "sglang", "bfloat16").is_some());
    }
}

/// Returns two pieces of every kind of work, of which the second is larger.
fn works(small: u64, large: u64, size: u64) -> Vec<(OperationWork, OperationWork)> {
    let exchange = |tokens, nodes| {
        OperationWork::Exchange(ExchangeWork {
            tokens,
            hidden: size,
            top_k: 8,
            experts: 256,
            ranks: 8 * nodes,
            nodes,
            node_limit: None,
            multiprocessors: 20,
        })
    };
    let attention = |batch, context, window| {
        let (heads, kv_heads, head_dim) = (32, 8, 128);
        OperationWork::Attention(AttentionWork { batch, context, heads, kv_heads, head_dim, window })
    };
    let mla = |batch, context| OperationWork::Mla(MlaWork { batch, context, heads: 128 });
    let gemm = |m| OperationWork::Gemm(GemmWork { m, n: size, k: size });
    let collective = |bytes| OperationWork::Collective(CollectiveWork { bytes, ranks: 8 });
    let bmm = |tokens| OperationWork::MlaBmm(MlaBmmWork { tokens, heads: 128 });
    vec![
        (exchange(small, 1), exchange(large, 1)),
        (exchange(small, 4), exchange(large, 4)),
        (attention(size, small, None), attention(size, large, None)),
        (attention(small, size, Some(128)), attention(large, size, Some(128))),
        (mla(size, small), mla(size, large)),
        (mla(small, size), mla(large, size)),
        (gemm(small), gemm(large)),
        (collective(small), collective(large)),
        (bmm(small), bmm(large)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn more_work_never_takes_less_time(
        small in prop_oneof![1u64..40, 1u64..3000, 1u64..70_000],
        more in prop_oneof![1u64..3, 1u64..500],
        size in prop::sample::select(vec![16u64, 512, 2048, 7168]),
    ) {
        for database in databases() {
            for entry in &database.operations {
                for (small, large) in works(small, small + more, size) {
                    for cache in [CacheState::Cold, CacheState::Warm] {
                        let time = |work| entry.operation.time_us(work, &database.hardware, cache);
                        let (Some(less), Some(more)) = (time(&small), time(&large)) else { continue };
                        prop_assert!(less.is_finite() && less > 0.0, "{entry:?}");
                        prop_assert!(less <= more * (1.0 + 1e-12), "{} {less} {more} {entry:?}", database.gpu);
                    }
                    let time = |cache| entry.operation.time_us(&large, &database.hardware, cache);
                    if let (Some(cold), Some(warm)) = (time(CacheState::Cold), time(CacheState::Warm)) {
                        prop_assert!(warm <= cold * (1.0 + 1e-12), "{} {entry:?}", database.gpu);
                    }
                }
            }
        }
    }
}
