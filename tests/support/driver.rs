//! Builds the CUDA and NCCL simulators of the host as a shared library that the loader finds instead of the
//! real ones.
//!
//! Their sources are `driver.cpp` and `nccl.cpp` in `crates/cuda/tests/cuda-sim/`.
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::skip_support::skipped;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the simulated driver. Without a C++ compiler, it reports a skip and returns `None`.
pub(crate) fn host_driver(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    let built = Command::new(compiler)
        .args(["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"])
        .arg("-I")
        .arg(crate::repository::root().join("crates/cuda/kernels"))
        .arg("-I")
        .arg(crate::repository::root().join("crates/cuda/tests"))
        .args(flags)
        .args(
            ["driver.cpp", "nccl.cpp"]
                .map(|name| crate::repository::root().join("crates/cuda/tests/cuda-sim").join(name)),
        )
        .arg("-o")
        .arg(folder.join("libcuda.so"))
        .output();
    let Ok(built) = built else {
        skipped("no C++ compiler");
        return None;
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    for other in ["libnvrtc.so", "libcublas.so", "libnccl.so.2"] {
        let link = folder.join(other);
        // One library under three names is loaded once.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink("libcuda.so", link).unwrap();
    }
    Some(folder)
}
