//! The probe for a GPU never panics: without a driver, and with a driver that finds no device.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use crate::skip_support::skipped;
use evenkeel_cuda::{CudaError, GpuContext, probe_devices};
use std::process::Command;

/// A driver library without a device: `CUDA_ERROR_NO_DEVICE` is 100.
const NO_DEVICE: &str = "int cuInit(unsigned flags) { (void)flags; return 100; }";

/// Prints the GPUs of this machine when run directly. In a process of the tests below it prints the answer of
/// their driver.
#[test]
fn what_this_machine_has() {
    match probe_devices() {
        Ok(devices) => println!("found: {devices:?}"),
        Err(error) => {
            println!("none: {error}");
            let opened = GpuContext::open(0).unwrap_err();
            assert_eq!(opened.to_string(), error.to_string());
            assert!(matches!(error, CudaError::NoDriver | CudaError::NoDevice(_)), "{error}");
        }
    }
}

#[test]
fn a_driver_without_devices_is_a_clean_error() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("fake.c");
    std::fs::write(&source, NO_DEVICE).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(folder.path().join("libcuda.so"))
        .arg(&source)
        .status();
    if !built.is_ok_and(|status| status.success()) {
        skipped("no C compiler");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cuda_probe::what_this_machine_has", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("none: no usable CUDA device: CUDA_ERROR_NO_DEVICE"), "{said}");
}
