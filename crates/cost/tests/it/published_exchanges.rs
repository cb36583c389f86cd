//! Times that DeepEP publishes, against the fitted exchange.
//!
//! DeepEP's own figures are of H800, with the network of H100 and half of its NVLink. Times that the network
//! decides are comparable; times inside a node are not. `docs/operation-times.md` has the printed tables.

use evenkeel_cost::operations::{ExchangePhase, ExchangeWork};
use evenkeel_cost::{CacheState, CostDatabase, OperationKind, OperationWork};

/// Returns an exchange of DeepSeek-V3 as DeepEP's benchmarks make it.
fn work(tokens: u64, ranks: u64, multiprocessors: u64) -> ExchangeWork {
    ExchangeWork {
        tokens,
        hidden: 7168,
        top_k: 8,
        experts: 256,
        ranks,
        nodes: ranks / 8,
        node_limit: Some(4),
        multiprocessors,
    }
}

fn time_us(gpu: &str, kind: OperationKind, dtype: &str, work: ExchangeWork) -> f64 {
    let database = CostDatabase::builtin(gpu).unwrap();
    let entry = database.operation(kind, "sglang", dtype).unwrap();
    let work = OperationWork::Exchange(work);
    entry.operation.time_us(&work, &database.hardware, CacheState::Cold).unwrap()
}

/// Low-latency kernels with 128 tokens per rank. The fit saw 2 to 8 nodes.
#[test]
fn low_latency_kernels_between_nodes() {
    for (ranks, dispatch, combine) in
        [(16, 118.0, 195.0), (32, 155.0, 273.0), (64, 173.0, 314.0), (128, 192.0, 369.0), (256, 194.0, 360.0)]
    {
        for (phase, dtype, published) in
            [(ExchangePhase::Dispatch, "fp8", dispatch), (ExchangePhase::Combine, "bfloat16", combine)]
        {
            let kind = OperationKind::LowLatencyNodeExchange(phase);
            // The low-latency router has no limit.
            let work = ExchangeWork { node_limit: None, ..work(128, ranks, 0) };
            let found = time_us("h100", kind, dtype, work);
            println!("EP{ranks} {kind}: {found:.0} us, published {published:.0}");
            assert!((found / published - 1.0).abs() < 0.2, "EP{ranks} {kind}: {found}");
        }
    }
}

/// Normal kernels on 4 nodes, where the network is the slowest part: 58 and 57 GB/s over the rows to all
/// nodes.
#[test]
fn normal_kernels_on_four_nodes() {
    for (phase, dtype, row, published) in
        [(ExchangePhase::Dispatch, "fp8", 7392.0, 58.0), (ExchangePhase::Combine, "bfloat16", 14_336.0, 57.0)]
    {
        let kind = OperationKind::NodeExchange(phase);
        let found = time_us("h100", kind, dtype, work(4096, 32, 24));
        // A token visits a node with probability 1 - C(192, 8) / C(256, 8).
        let visits: f64 =
            1.0 - (0..8).map(|drawn| (192.0 - drawn as f64) / (256.0 - drawn as f64)).product::<f64>();
        let rate = 4096.0 * 4.0 * visits * row / found / 1e3;
        println!("EP32 {kind}: {found:.0} us, {rate:.1} GB/s, published {published}");
        assert!((rate / published - 1.0).abs() < 0.15, "{kind}: {rate}");
    }
}

/// Normal kernels on 8 nodes. The table has a third of the rate that DeepEP publishes, so the fit has as
/// well.
#[test]
fn normal_kernels_on_eight_nodes_are_slower_than_published() {
    let kind = OperationKind::NodeExchange(ExchangePhase::Dispatch);
    let found = time_us("h100", kind, "fp8", work(4096, 64, 24));
    let visits: f64 =
        1.0 - (0..8).map(|drawn| (96.0 - drawn as f64) / (128.0 - drawn as f64)).product::<f64>();
    let rate = 4096.0 * 4.0 * visits * 7392.0 / found / 1e3;
    println!("EP64 {kind}: {found:.0} us, {rate:.1} GB/s, published 51");
    assert!((12.0..25.0).contains(&rate), "{rate}");
}
