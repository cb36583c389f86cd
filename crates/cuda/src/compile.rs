//! Kernels compiled by NVRTC, and kept.
//!
//! In: a [`Unit`] and an architecture. Out: a cubin. No GPU is needed. libnvrtc is found by the dynamic loader: first
//! in the folders of `LD_LIBRARY_PATH`, then in those of the system; the names tried are `libnvrtc.so`, `libnvrtc.so.13`
//! and some older ones. A machine without CUDA gets it by `make kernels`, which asks pip.

use super::CudaError;
use crate::kernels::source::Unit;
use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

/// The version of NVRTC, such as (13, 0).
///
/// # Errors
/// [`CudaError::NoCompiler`] without libnvrtc.
pub fn nvrtc_version() -> Result<(u32, u32), CudaError> {
    #[allow(unsafe_code, reason = "loads libnvrtc, whose initialisers are trusted, and lets go of it")]
    let present = unsafe { sys::is_culib_present() };
    if !present {
        return Err(CudaError::NoCompiler);
    }
    let (mut major, mut minor) = (0, 0);
    #[allow(unsafe_code, reason = "the library is there, and both pointers are to live integers")]
    let status = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    status.result().map_err(|_| CudaError::NoCompiler)?;
    Ok((major as u32, minor as u32))
}

/// Compiles a unit for an architecture such as `sm_90`, into a cubin.
///
/// # Errors
/// [`CudaError::NoCompiler`] without libnvrtc; [`CudaError::Compile`] with the compiler's words if it refuses.
pub fn compile(unit: Unit, arch: &str) -> Result<Vec<u8>, CudaError> {
    compile_with_log(unit, arch).map(|(cubin, _)| cubin)
}

/// As [`compile`], with what the compiler had to say: nothing, unless it warns.
///
/// # Errors
/// As [`compile`].
pub fn compile_with_log(unit: Unit, arch: &str) -> Result<(Vec<u8>, String), CudaError> {
    nvrtc_version()?;
    let failed = |log: String| CudaError::Compile { unit: unit.name, arch: arch.to_owned(), log };
    let text = CString::new(unit.text()).map_err(|_| failed("the text holds a zero".into()))?;
    let name =
        CString::new(format!("{}.cu", unit.name)).map_err(|_| failed("the name holds a zero".into()))?;
    let program =
        result::create_program(&text, Some(&name)).map_err(|error| failed(format!("{:?}", error.0)))?;
    let cubin = build(program, arch).map_err(failed);
    #[allow(unsafe_code, reason = "the program was created above and is not used again")]
    // Nothing is lost but memory if this fails.
    let _ = unsafe { result::destroy_program(program) };
    cubin
}

/// Compiles a created program: the cubin and the compiler's log, which is the error if there is one.
fn build(program: sys::nvrtcProgram, arch: &str) -> Result<(Vec<u8>, String), String> {
    if arch.contains('\0') {
        return Err("the architecture holds a zero".into());
    }
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
    #[allow(unsafe_code, reason = "the caller created the program and destroys it afterwards")]
    let compiled = unsafe { result::compile_program(program, &options) };
    #[allow(unsafe_code, reason = "the caller created the program and destroys it afterwards")]
    let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let log: Vec<u8> = log.into_iter().map(|c| c.to_ne_bytes()[0]).collect();
    let log = CStr::from_bytes_until_nul(&log).map_or_else(|_| String::new(), |l| l.to_string_lossy().into());
    compiled.map_err(|error| format!("{:?}\n{log}", error.0))?;
    let no_cubin = |error: result::NvrtcError| format!("no cubin: {:?}", error.0);
    let mut size = 0usize;
    #[allow(unsafe_code, reason = "the program is compiled, and the pointer is to a live integer")]
    let status = unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) };
    status.result().map_err(no_cubin)?;
    let mut cubin = vec![0u8; size];
    #[allow(unsafe_code, reason = "the buffer has the size that NVRTC asked for")]
    let status = unsafe { sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()) };
    status.result().map_err(no_cubin)?;
    Ok((cubin, log))
}

/// Where compiled kernels are kept: `EVENKEEL_CACHE`, else `evenkeel` in `XDG_CACHE_HOME` or in `~/.cache`; nowhere if
/// none of them is set.
pub fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("EVENKEEL_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|base| base.join("evenkeel")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/evenkeel")))
}

/// As [`compile`], but a cubin that was made before from the same text, for the same architecture, by the same NVRTC is
/// read back from `folder`. What lies there broken is made again.
///
/// # Errors
/// As [`compile`]; [`CudaError::Cache`] if the folder cannot be written.
pub fn compile_cached(unit: Unit, arch: &str, folder: &Path) -> Result<Vec<u8>, CudaError> {
    let (major, minor) = nvrtc_version()?;
    let key = Sha256::digest(format!("{arch} {major}.{minor} {}", unit.text()));
    let key = key.iter().take(16).fold(String::new(), |key, byte| key + &format!("{byte:02x}"));
    let path = folder.join(format!("{}-{arch}-{key}.cubin", unit.name));
    if let Some(cubin) = std::fs::read(&path).ok().and_then(|sealed| unseal(&sealed)) {
        return Ok(cubin);
    }
    let cubin = compile(unit, arch)?;
    let failed = |source| CudaError::Cache { path: path.clone(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    // Written beside and renamed, so that no one reads half a file.
    let part = path.with_extension(format!("part{}", std::process::id()));
    let mut sealed = Sha256::digest(&cubin).to_vec();
    sealed.extend_from_slice(&cubin);
    std::fs::write(&part, sealed).map_err(failed)?;
    std::fs::rename(&part, &path).map_err(failed)?;
    Ok(cubin)
}

/// A cached file is the digest of a cubin and the cubin.
fn unseal(sealed: &[u8]) -> Option<Vec<u8>> {
    let (digest, cubin) = sealed.split_at_checked(32)?;
    (Sha256::digest(cubin).as_slice() == digest).then(|| cubin.to_vec())
}
