//! Import of tables that were computed from known coefficients: the fit predicts them, and so does the
//! check.

use crate::package_writer::{MoeRow, columns, write_table};
use evenkeel_cost::check::{CheckScope, DatabaseCheck, check_database};
use evenkeel_cost::import::{ImportStage, import_package, package_gpus};
use evenkeel_cost::routing::{RoutingShape, balanced_counts};
use evenkeel_cost::{CacheState, CostDatabase, Dtype, KernelTable, MoeShape, RankKernel};
use std::sync::Mutex;

/// Returns the time of a kernel on an H100. The launch takes 20 microseconds. Weights of active experts are
/// read at half of the bandwidth, and rows are multiplied at half of the peak rate.
fn known_time_us(shape: &MoeShape, rows: &[u64]) -> f64 {
    let weights = (3 * shape.hidden * shape.intermediate) as f64;
    let active = rows.iter().filter(|&&count| count > 0).count() as f64;
    let read = active * 2.0 * weights / 3.35e6 * 2.0;
    let arithmetic = rows.iter().sum::<u64>() as f64 * 2.0 * weights / 989e6 * 2.0;
    20.0 + read + arithmetic
}

fn synthetic_rows() -> Vec<MoeRow> {
    let models = [[4096, 1536, 8, 128], [2048, 768, 8, 128], [6144, 2560, 8, 160], [7168, 2048, 8, 256]];
    rows_of("known", &models, known_time_us)
}

/// Returns balanced rows of models under six divisions, with the times of a kernel.
fn rows_of(kernel: &'static str, models: &[[i64; 4]], time_us: fn(&MoeShape, &[u64]) -> f64) -> Vec<MoeRow> {
    let mut rows = Vec::new();
    for &model in models {
        for (tensor_ranks, ranks) in [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1)] {
            for tokens in (0..13).map(|power| 1i64 << power) {
                let [hidden, intermediate, top_k, experts] = model.map(|size| size as u64);
                let intermediate = intermediate / tensor_ranks as u64;
                let slots = experts / ranks as u64;
                let shape = MoeShape { hidden, intermediate, top_k, experts, slots, matrices: 3 };
                let routing = RoutingShape { tokens: tokens as u64, experts, top_k, ranks: ranks as u64 };
                let counts = balanced_counts(&routing);
                rows.push(MoeRow {
                    kernel,
                    dtype: "bfloat16",
                    distribution: "balanced",
                    tokens,
                    model,
                    tensor_ranks,
                    ranks,
                    milliseconds: time_us(&shape, &counts[..slots as usize]) / 1e3,
                });
            }
        }
    }
    rows
}

#[test]
fn known_coefficients_are_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let rows = synthetic_rows();
    write_table(folder.path(), ["h100_sxm", "trtllm", "1.3.0"], &columns(&rows));
    assert_eq!(package_gpus(folder.path()).unwrap(), ["h100"]);
    let stages = Mutex::new(Vec::new());
    let progress = |stage: ImportStage, done: usize, total: usize| {
        if done == total {
            stages.lock().unwrap().push(stage);
        }
    };
    let databases = import_package(folder.path(), &[], &progress).unwrap();
    assert_eq!(*stages.lock().unwrap(), [ImportStage::Reading, ImportStage::Routing, ImportStage::Fitting]);
    let [database] = databases.as_slice() else { panic!("{} databases", databases.len()) };
    let entry = database.kernel("trtllm", Dtype::Bfloat16).unwrap();
    assert_eq!((entry.rows, entry.broken_rows, entry.kernel.as_str()), (rows.len() as u64, 0, "known"));
    assert!(entry.models.contains(&[7168, 2048, 8, 256].into()));
    let errors = entry.errors.balanced.unwrap();
    assert!(errors.model.median < 0.5 && errors.model.p90 < 1.0, "{errors:?}");
    assert!(entry.errors.skewed.is_none());
    // The document keeps every digit of the fit.
    assert_eq!(&CostDatabase::from_json(&database.to_json().unwrap()).unwrap(), database);

    let DatabaseCheck { rows: checked, together, .. } =
        check_database(database, folder.path(), &|_, _, _| {}).unwrap();
    assert_eq!((checked.len(), together), (1, entry.errors));
    assert_eq!((checked[0].table, checked[0].errors), (KernelTable::Moe, entry.errors));
    assert!(checked[0].meets_limits() && checked[0].beats_simpler_methods());
    // Imports are deterministic.
    assert_eq!(import_package(folder.path(), &["h100"], &|_, _, _| {}).unwrap(), databases);
}

#[test]
fn older_versions_and_broken_rows_are_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = synthetic_rows();
    // A rank with half of the experts takes three times as long as one with all: its tactics were not
    // tuned.
    let broken = |row: &MoeRow| row.model[3] == 160 && row.ranks == 2 && row.tokens >= 1024;
    let expected = rows.iter().filter(|row| broken(row)).count() as u64;
    rows.iter_mut().filter(|row| broken(row)).for_each(|row| row.milliseconds *= 5.0);
    write_table(folder.path(), ["h100_sxm", "trtllm", "1.3.0rc20"], &columns(&rows));
    let older: Vec<MoeRow> =
        rows.iter().map(|row| MoeRow { milliseconds: row.milliseconds * 1.5, ..row.clone() }).collect();
    write_table(folder.path(), ["h100_sxm", "trtllm", "1.0.0"], &columns(&older));
    // A GPU without known figures is no obstacle.
    write_table(folder.path(), ["b60", "trtllm", "1.0.0"], &columns(&older));

    let databases = import_package(folder.path(), &["h100"], &|_, _, _| {}).unwrap();
    let versions: Vec<&str> = databases[0].kernels.iter().map(|kernel| kernel.version.as_str()).collect();
    assert_eq!(versions, ["1.3.0rc20"]);
    assert_eq!(databases[0].kernels[0].broken_rows, expected);
    let DatabaseCheck { rows: checked, together, .. } =
        check_database(&databases[0], folder.path(), &|_, _, _| {}).unwrap();
    let scopes: Vec<&CheckScope> = checked.iter().map(|row| &row.scope).collect();
    assert_eq!(scopes, [&CheckScope::HeldOutShapes, &CheckScope::OlderVersion("1.0.0".into())]);
    assert!(checked[0].meets_limits());
    assert_eq!(together, checked[0].errors);
    // All older rows took 1.5 times as long, so the prediction is a third too low.
    let error = checked[1].errors.balanced.unwrap().model.median;
    assert!((error - 33.3).abs() < 1.0, "{error}");
}

/// Returns the time of a kernel that multiplies at the peak rate with tuned tiles, and at a quarter of it
/// with default tiles.
fn tuned_time_us(shape: &MoeShape, rows: &[u64]) -> f64 {
    let is_tuned = [(128, 768), (128, 384), (128, 192), (64, 1536), (64, 768)]
        .contains(&(shape.slots, shape.intermediate));
    let operations = rows.iter().sum::<u64>() as f64 * (6 * shape.hidden * shape.intermediate) as f64;
    20.0 + operations / 989e6 * if is_tuned { 1.0 } else { 4.0 }
}

#[test]
fn tuned_shapes_have_their_own_coefficients() {
    let models = [
        [4096, 1536, 8, 128],
        [4096, 1536, 4, 128],
        [6144, 1536, 8, 128],
        [2048, 768, 8, 128],
        [2048, 768, 4, 128],
        [5120, 768, 8, 128],
    ];
    let import = |models: &[[i64; 4]]| {
        let folder = tempfile::tempdir().unwrap();
        let rows = rows_of("sglang_fused_moe_triton", models, tuned_time_us);
        write_table(folder.path(), ["h100_sxm", "sglang", "0.5.14"], &columns(&rows));
        let databases = import_package(folder.path(), &["h100"], &|_, _, _| {}).unwrap();
        let checked = check_database(&databases[0], folder.path(), &|_, _, _| {}).unwrap().rows;
        let entry = databases[0].kernel("sglang", Dtype::Bfloat16).unwrap().clone();
        assert_eq!(checked[0].errors, entry.errors);
        (entry, databases[0].hardware)
    };
    let (entry, hardware) = import(&models);
    assert!(entry.tuned_widths[&128].contains(&768) && !entry.tuned_widths[&128].contains(&1536));
    // A tuned rank with all experts is faster than one with fewer and default tiles: no row is broken.
    let errors = entry.errors.balanced.unwrap();
    assert!(entry.broken_rows == 0 && errors.model.p90 < 1.0, "{errors:?}");
    for (slots, intermediate) in [(128, 768), (128, 1536), (32, 768)] {
        let shape = MoeShape { hidden: 4096, intermediate, top_k: 8, experts: 128, slots, matrices: 3 };
        let rows = vec![256; slots as usize];
        let (time, known) = (
            RankKernel::new(&entry, &hardware, shape, CacheState::Warm).time_us(&rows, 4096),
            tuned_time_us(&shape, &rows),
        );
        assert!((time / known - 1.0).abs() < 0.02, "{shape:?}: {time}, not {known}");
    }
    // Two models have too few tuned layers.
    assert!(import(&models[..2]).0.tuned_widths.is_empty());
}
