//! `--backend cuda` as users run it: without a driver, without a device, and on the simulated driver.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::driver_support::host_driver;
use crate::skip_support::skipped;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

const RUN: &str = "run --model deepseek-v2-lite --hidden 64 --intermediate 48 --experts 16 --experts-per-token 3 --ranks 4 \
                   --redundant 4 --batch-tokens 100 --backend cuda";

fn evenkeel(folder: &Path, args: &str, environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(args.split_whitespace())
        .env("LD_LIBRARY_PATH", folder)
        .env("EVENKEEL_CACHE", folder)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

/// Returns the only line of a command that must fail with exit code 1.
fn refusal(folder: &Path, args: &str, environment: &[(&str, &str)]) -> String {
    refusal_of(evenkeel(folder, args, environment))
}

fn refusal_of(output: Output) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("note: ")).collect();
    assert!(errors.len() == 1 && errors[0].starts_with("error: "), "{stderr}");
    errors[0].to_owned()
}

/// Tests a driver that lists no device, and a broken one: `CUDA_ERROR_NO_DEVICE` is 100, `CUDA_ERROR_UNKNOWN`
/// 999.
#[test]
fn a_driver_that_finds_nothing_is_one_message() {
    for (code, name) in [(100, "CUDA_ERROR_NO_DEVICE"), (999, "CUDA_ERROR_UNKNOWN")] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("fake.c");
        std::fs::write(&source, format!("int cuInit(unsigned f) {{ (void)f; return {code}; }}")).unwrap();
        let library = folder.path().join("libcuda.so");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(&source).status();
        if !built.is_ok_and(|status| status.success()) {
            skipped("no C compiler");
            return;
        }
        for args in [RUN, "calibrate experts --model qwen3-30b-a3b --backend cuda"] {
            let message = refusal(folder.path(), args, &[]);
            assert!(
                message.contains("the cuda backend is not available") && message.contains(name),
                "{message}"
            );
        }
    }
}

#[test]
fn no_driver_is_one_message() {
    if evenkeel_cuda::probe_devices().is_ok() {
        skipped("this machine has a GPU");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for args in [RUN, "calibrate experts --model qwen3-30b-a3b --backend cuda"] {
        let message = refusal(folder.path(), args, &[]);
        assert!(message.contains("the cuda backend is not available: no"), "{message}");
    }
}

#[test]
fn a_run_is_checked_and_served_to_the_token() {
    let Some(folder) = host_driver("cli", &["-O2"]) else { return };
    for more in [
        "--ffn own --steps 4",
        "--ffn cublas --steps 12 --replan-every 3 --router sigmoid",
        "--dynamic 1 --steps 6",
        "--dynamic 2 --slot-memory kept --ffn cublas --steps 6",
    ] {
        let output = evenkeel(&folder, &format!("{RUN} {more} --check --json"), &[]);
        assert!(output.status.success(), "{more}: {}", String::from_utf8_lossy(&output.stderr));
        let run: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&run["backend"], &run["check"]["ok"]),
            (&"cuda".into(), &true.into()),
            "{more}: {}",
            run["check"]
        );
        assert_eq!(run["imbalance"]["to_the_token"], true);
        assert!(run["check"]["max_rel_err"].as_f64().unwrap() > 0.0);
    }
    let fitted = "calibrate experts --backend cuda --model qwen3-30b-a3b --hidden 64 --intermediate 48 --tokens 1,16 --experts 1,3 \
                  --rounds 1 --json";
    let output = evenkeel(&folder, fitted, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&file["backend"], file["points"].as_array().unwrap().len()), (&"cuda".into(), 4));
}

#[test]
fn what_does_not_fit_is_one_message() {
    let Some(folder) = host_driver("cli-refused", &["-O1"]) else { return };
    // The plan decides how many experts each rank holds, and so at which limit which message comes.
    let mut refused = BTreeSet::new();
    for memory in (1..).map(|step| (step * 100_000).to_string()) {
        let output = evenkeel(&folder, RUN, &[("EK_MEMORY", &memory)]);
        if output.status.success() {
            break;
        }
        let message = refusal_of(output);
        let what = message.strip_prefix("error: memory for ").and_then(|rest| rest.split_once(':'));
        let Some((what, rest)) = what else { panic!("{memory}: {message}") };
        assert!(rest.contains("MiB needed") && rest.contains("MiB free"), "{message}");
        refused.insert(what.to_owned());
    }
    assert_eq!(refused.iter().map(String::as_str).collect::<Vec<_>>(), ["buffers", "experts", "weights"]);
    let message = refusal(&folder, &format!("{RUN} --gpu 3"), &[]);
    assert!(message.contains("there is no CUDA device 3: this machine has 1"), "{message}");
    for args in [
        format!("{RUN} --dtype f32"),
        "calibrate experts --backend cuda --dtype f32 --model qwen3-30b-a3b".into(),
    ] {
        let message = refusal(&folder, &args, &[]);
        assert!(message.contains("bf16"), "{message}");
    }
}
