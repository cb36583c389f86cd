//! Packages with one fault each: one error, with the file and the expected content.

use crate::package_writer::{Columns, MoeRow, Values, columns, write_table};
use evenkeel_cost::import::import_package;
use std::path::Path;

fn import_error(path: &Path) -> String {
    let error = import_package(path, &[], &|_, _, _| {}).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn row() -> MoeRow {
    MoeRow {
        kernel: "k",
        dtype: "fp8",
        distribution: "balanced",
        tokens: 1,
        model: [64, 32, 2, 8],
        tensor_ranks: 1,
        ranks: 1,
        milliseconds: 0.1,
    }
}

#[test]
fn foreign_paths_are_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(import_error(&folder.path().join("absent")).contains("absent"));
    let error = import_error(folder.path());
    assert!(error.contains("GPU/moe/FRAMEWORK/VERSION/moe_perf.parquet"), "{error}");
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "no wheel").unwrap();
    let error = import_error(&text);
    assert!(error.contains("notes.txt") && error.contains("wheel of aiconfigurator-core"), "{error}");
    write_table(folder.path(), ["b60", "vllm", "0.24.0"], &columns(&[row()]));
    assert!(import_error(folder.path()).contains("no tables of MoE kernels"));
}

#[test]
fn unknown_gpus_list_the_known_ones() {
    let folder = tempfile::tempdir().unwrap();
    write_table(folder.path(), ["h200_sxm", "vllm", "0.24.0"], &columns(&[row()]));
    let error = import_package(folder.path(), &["h100"], &|_, _, _| {}).unwrap_err().to_string();
    assert!(error.contains("\"h100\"") && error.contains("h200"), "{error}");
}

#[test]
fn tables_with_a_fault_are_named() {
    let fault = |change: &dyn Fn(&mut Columns), parts: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let mut table = columns(&[row()]);
        change(&mut table);
        write_table(folder.path(), ["h100_sxm", "vllm", "0.24.0"], &table);
        let error = import_error(folder.path());
        assert!(error.contains("moe_perf.parquet"), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    };
    fault(&|table| table.retain(|(name, _)| *name != "topk"), &["columns kernel_source", "topk of integers"]);
    fault(&|table| table[3].1 = Values::Integers(vec![-4]), &["-4", "num_tokens of integers from 0"]);
    fault(&|table| table[3].1 = Values::Numbers(vec![1.5]), &["1.5", "num_tokens"]);
    fault(&|table| table[0].1 = Values::Integers(vec![1]), &["INT64", "kernel_source of strings"]);
    fault(&|table| table[10].1 = Values::Numbers(vec![f64::NAN]), &["NaN", "latency of finite numbers"]);
    fault(&|table| table[2].1 = Values::Text(vec!["zipf".into()]), &["zipf", "power_law_EXPONENT"]);
}

#[test]
fn damaged_files_are_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_table(folder.path(), ["h100_sxm", "vllm", "0.24.0"], &columns(&[row()]));
    let good = std::fs::read(&path).unwrap();
    for length in [0, 3, 8, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        let error = import_error(folder.path());
        assert!(error.contains("a readable Parquet file"), "{length}: {error}");
    }
}
