//! The CUDA driver and the NCCL on the host, `kernels/host/driver.cpp` and `nccl.cpp`, as a shared library that the loader finds in the
//! place of the real ones.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the driver on the host; `None`, after saying so, without a C++ compiler.
pub(crate) fn host_driver(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    let built = Command::new(compiler)
        .args(["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"])
        .args(flags)
        .args(
            ["driver.cpp", "nccl.cpp"]
                .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host").join(name)),
        )
        .arg("-o")
        .arg(folder.join("libcuda.so"))
        .output();
    let Ok(built) = built else {
        println!("skipped: no C++ compiler");
        return None;
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    for other in ["libnvrtc.so", "libcublas.so", "libnccl.so.2"] {
        let link = folder.join(other);
        // One library under three names, loaded once.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink("libcuda.so", link).unwrap();
    }
    Some(folder)
}
