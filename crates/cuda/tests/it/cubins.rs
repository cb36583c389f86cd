//! Every kernel compiles for every supported architecture, without a GPU.
#![allow(clippy::unwrap_used)]

use crate::skip_support::skipped;
use evenkeel_cuda::tables::source::{EXEC_UNITS, SPLIT_UNITS};
use evenkeel_cuda::{CudaError, compile, compile_cached, compile_with_log, nvrtc_version};

const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_90", "sm_90a", "sm_100"];

/// Returns whether NVRTC is available, and prints a notice if not. If NVRTC is required
/// (`EVENKEEL_NVRTC=required`), its absence is a failure.
fn nvrtc() -> bool {
    match nvrtc_version() {
        Ok(version) => {
            println!("NVRTC {version}");
            true
        }
        Err(error) => {
            assert!(std::env::var_os("EVENKEEL_NVRTC").is_none(), "{error}");
            skipped(&format!("no NVRTC ({error})"));
            false
        }
    }
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    if !nvrtc() {
        return;
    }
    for arch in ARCHITECTURES {
        for unit in SPLIT_UNITS.into_iter().chain(EXEC_UNITS) {
            let compiled = compile_with_log(unit, arch).unwrap();
            let cubin = compiled.cubin;
            assert_eq!(compiled.log, "", "{} for {arch}", unit.name);
            assert!(cubin.starts_with(b"\x7fELF"), "{} for {arch} is no cubin", unit.name);
            for kernel in unit.kernels {
                let holds = cubin.windows(kernel.len()).any(|window| window == kernel.as_bytes());
                assert!(holds, "{} for {arch} lacks {kernel}", unit.name);
            }
            println!("{arch:>7} {:<8} {} bytes", unit.name, cubin.len());
        }
    }
}

#[test]
fn what_cannot_be_compiled_says_why() {
    if !nvrtc() {
        return;
    }
    let error = compile(SPLIT_UNITS[0], "sm_1").unwrap_err();
    assert!(matches!(error, CudaError::Compile { .. }), "{error}");
    assert!(error.to_string().contains("sm_1"), "{error}");
}

#[test]
fn compiled_kernels_are_kept_and_broken_ones_made_again() {
    if !nvrtc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = SPLIT_UNITS[2];
    let first = compile_cached(unit, "sm_80", folder.path()).unwrap();
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let sealed = std::fs::read(&file).unwrap();
    assert!(sealed.ends_with(&first) && sealed.len() == first.len() + 32);

    std::fs::write(&file, &sealed[..sealed.len() - 1]).unwrap();
    assert_eq!(compile_cached(unit, "sm_80", folder.path()).unwrap(), first);
    assert_eq!(std::fs::read(&file).unwrap(), sealed);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no part is left behind");
}
