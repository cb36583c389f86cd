//! Import of tables of other operations that were computed from known parameters.

use crate::package_writer::{Columns, MoeRow, Values, columns, write_file, write_table};
use evenkeel_cost::check::{CheckScope, check_operations};
use evenkeel_cost::import::import_package;
use evenkeel_cost::operations::{CollectiveKind, CollectiveWork, ExchangePhase, ExchangeWork};
use evenkeel_cost::{CacheState, CostDatabase, OperationKind, OperationWork};
use std::path::Path;

/// Writes a table of experts, without which a package is none.
fn write_experts(root: &Path) {
    let row = MoeRow {
        kernel: "k",
        dtype: "fp8",
        distribution: "balanced",
        tokens: 1,
        model: [64, 32, 2, 8],
        tensor_ranks: 1,
        ranks: 1,
        milliseconds: 0.1,
    };
    write_table(root, ["h100_sxm", "trtllm", "1.3.0"], &columns(&[row]));
}

/// Returns a table of all-gather over 2 and 8 GPUs: 6 us and 300 GB/s. Sizes count elements of 2 bytes.
fn all_gather(factor: f64) -> Columns {
    let sizes: Vec<(i64, i64)> =
        [2, 8].into_iter().flat_map(|ranks| (8..30).map(move |power| (ranks, 1 << power))).collect();
    let text = |value: &str| Values::Text(vec![value.to_owned(); sizes.len()]);
    let milliseconds = |&(ranks, elements): &(i64, i64)| {
        let sent = 2.0 * elements as f64 * (ranks - 1) as f64 / ranks as f64;
        factor * (6.0 + sent / 300e3) / 1e3
    };
    vec![
        ("kernel_source", text("NCCL")),
        ("nccl_dtype", text("half")),
        ("op_name", text("all_gather")),
        ("num_gpus", Values::Integers(sizes.iter().map(|(ranks, _)| *ranks).collect())),
        ("message_size", Values::Integers(sizes.iter().map(|(_, elements)| *elements).collect())),
        ("latency", Values::Numbers(sizes.iter().map(milliseconds).collect())),
    ]
}

/// Returns a table of DeepEP's low-latency kernels in a node of 8 GPUs. Dispatch takes 9 us and a row per
/// visit at 200 GB/s; combine takes twice as long.
fn low_latency() -> Columns {
    let tokens: Vec<i64> = (0..11).map(|power| 1 << power).collect();
    let rows: Vec<(i64, i64)> =
        [2048, 4096, 7168].into_iter().flat_map(|hidden| tokens.iter().map(move |&t| (hidden, t))).collect();
    let dispatch = |&(hidden, tokens): &(i64, i64)| {
        let row = hidden as f64 * 1.03125 + 16.0;
        9.0 + tokens as f64 * 8.0 * 7.0 / 8.0 * row / 200e3
    };
    let integers = |value: i64| Values::Integers(vec![value; rows.len()]);
    let text = |value: &str| Values::Text(vec![value.to_owned(); rows.len()]);
    vec![
        ("kernel_source", text("deepep")),
        ("device", text("NVIDIA H100")),
        ("node_num", integers(1)),
        ("hidden_size", Values::Integers(rows.iter().map(|(hidden, _)| *hidden).collect())),
        ("num_token", Values::Integers(rows.iter().map(|(_, tokens)| *tokens).collect())),
        ("num_topk", integers(8)),
        ("num_experts", integers(256)),
        ("dispatch_avg_t_us", Values::Numbers(rows.iter().map(dispatch).collect())),
        ("combine_avg_t_us", Values::Numbers(rows.iter().map(|row| 2.0 * dispatch(row)).collect())),
    ]
}

fn import(root: &Path) -> CostDatabase {
    let databases = import_package(root, &["h100"], &|_, _, _| {}).unwrap();
    let [database] = databases.as_slice() else { panic!("{} databases", databases.len()) };
    database.clone()
}

#[test]
fn known_lines_are_recovered_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    write_experts(folder.path());
    let table =
        |version: &str| folder.path().join("h100_sxm/comm/nccl").join(version).join("nccl_perf.parquet");
    write_file(&table("2.29.2"), &all_gather(1.0));
    write_file(&table("2.23"), &all_gather(1.5));
    let database = import(folder.path());
    let kind = OperationKind::Collective(CollectiveKind::AllGather);
    let entry = database.operation(kind, "nccl", "half").unwrap();
    assert_eq!((entry.version.as_str(), entry.rows, database.operations.len()), ("2.29.2", 44, 1));
    assert!(entry.errors.p90 < 1.0, "{entry:?}");
    // 3 MB to 8 ranks: 2.625 MB are sent.
    let work = OperationWork::Collective(CollectiveWork { bytes: 3_000_000, ranks: 8 });
    let time = entry.operation.time_us(&work, &database.hardware, CacheState::Cold).unwrap();
    assert!((time / 14.75 - 1.0).abs() < 0.02, "{time}");
    assert!(database.provenance.files.iter().any(|file| file.ends_with("2.29.2/nccl_perf.parquet")));
    assert!(!database.provenance.files.iter().any(|file| file.contains("2.23")));

    let checked = check_operations(&database, folder.path(), &|_, _, _| {}).unwrap();
    let scopes: Vec<&CheckScope> = checked.iter().map(|row| &row.scope).collect();
    assert_eq!(scopes, [&CheckScope::HeldOutShapes, &CheckScope::OlderVersion("2.23".into())]);
    assert_eq!((checked[0].kind, checked[0].errors), (kind, entry.errors));
    // The older version took 1.5 times as long.
    assert!((checked[1].errors.median - 33.3).abs() < 1.0, "{:?}", checked[1]);
    assert_eq!(import(folder.path()), database);
}

#[test]
fn a_known_exchange_is_recovered() {
    let folder = tempfile::tempdir().unwrap();
    write_experts(folder.path());
    let path = folder.path().join("h100_sxm/comm/sglang/0.5.12/wideep_deepep_ll_perf.parquet");
    write_file(&path, &low_latency());
    let database = import(folder.path());
    for (phase, dtype, factor) in
        [(ExchangePhase::Dispatch, "fp8", 1.0), (ExchangePhase::Combine, "bfloat16", 2.0)]
    {
        let kind = OperationKind::LowLatencyExchange(phase);
        let entry = database.operation(kind, "sglang", dtype).unwrap();
        let work = ExchangeWork {
            tokens: 100,
            hidden: 7168,
            top_k: 8,
            experts: 256,
            ranks: 8,
            nodes: 1,
            node_limit: None,
            multiprocessors: 0,
        };
        let work = OperationWork::Exchange(work);
        let time = entry.operation.time_us(&work, &database.hardware, CacheState::Cold).unwrap();
        let expected = factor * (9.0 + 700.0 * 7408.0 / 200e3);
        assert!((time / expected - 1.0).abs() < 0.02, "{time}, {expected}");
    }
}

#[test]
fn a_missing_column_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_experts(folder.path());
    let path = folder.path().join("h100_sxm/comm/nccl/2.29.2/nccl_perf.parquet");
    let table: Columns = all_gather(1.0).into_iter().filter(|(name, _)| *name != "num_gpus").collect();
    write_file(&path, &table);
    let error = import_package(folder.path(), &["h100"], &|_, _, _| {}).unwrap_err().to_string();
    assert!(error.contains("nccl_perf.parquet") && error.contains("num_gpus"), "{error}");
}
