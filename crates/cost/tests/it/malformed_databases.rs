//! Databases with one fault each: the error names the key, the value and the allowed values.

use evenkeel_cost::CostDatabase;

#[test]
fn faults_are_named() {
    let good = CostDatabase::builtin("h100").unwrap().to_json().unwrap();
    for (from, to, parts) in [
        ("evenkeel.costs/1", "evenkeel.costs/2", &["format", "costs/2", "costs/1"][..]),
        ("\"bandwidth\":3350000000000", "\"bandwidth\":0", &["hardware.bandwidth", "0", "from 1"]),
        ("\"l2_bytes\"", "\"l2_byte\"", &["l2_byte", "l2_bytes"]),
        ("\"launch\":", "\"launch\":-", &["kernels[0].coefficients", "-", "from 0"]),
        ("\"launch\":", "\"lunch\":", &["lunch", "launch"]),
        ("\"table\":\"moe\"", "\"table\":\"mow\"", &["mow", "wide_ep"]),
        ("\"broken_rows\":", "\"broken_rows\":\"x\",\"rows\":", &["x", "u64"]),
        ("\"kernels\":[", "\"kernel\":[", &["kernel", "kernels"]),
        ("{\"format\"", "[\"format\"", &["line 1"]),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        let error = CostDatabase::from_json(&text).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{from}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_kernel_occurs_once() {
    let mut database = CostDatabase::builtin("h100").unwrap();
    database.kernels.push(database.kernels[0].clone());
    let error = database.to_json().unwrap_err().to_string();
    assert!(error.contains("each kernel once"), "{error}");
}

#[test]
fn tuned_shapes_need_coefficients() {
    let mut database = CostDatabase::builtin("h100").unwrap();
    let tuned = database.kernels.iter_mut().find(|kernel| !kernel.tuned_widths.is_empty()).unwrap();
    tuned.tuned_coefficients.clear();
    let error = database.to_json().unwrap_err().to_string();
    assert!(error.contains("tuned_coefficients: found 0 of them"), "{error}");
}
