//! Compiles kernels with NVRTC, and caches them.
//!
//! Input: a [`KernelUnit`] and an architecture. Output: a cubin. No GPU is needed. The dynamic loader finds
//! libnvrtc, first in the folders of `LD_LIBRARY_PATH`, then in those of the system. It tries the names
//! `libnvrtc.so`, `libnvrtc.so.13` and some older ones. On a machine without CUDA, `make kernels` installs it
//! with pip.

use super::CudaError;
use crate::tables::source::KernelUnit;
use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};
use std::ffi::{CStr, CString};
use std::fmt;
use std::path::{Path, PathBuf};

/// A version of NVRTC, written as in `13.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvrtcVersion {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

impl fmt::Display for NvrtcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A compiled unit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompiledUnit {
    /// The code for one architecture.
    pub cubin: Vec<u8>,
    /// The compiler's log, which is empty without warnings.
    pub log: String,
}

/// Returns the version of NVRTC.
///
/// # Errors
/// Returns [`CudaError::NoCompiler`] without libnvrtc.
pub fn nvrtc_version() -> Result<NvrtcVersion, CudaError> {
    #[allow(unsafe_code, reason = "loads libnvrtc, whose initialisers are trusted, and unloads it")]
    let present = unsafe { sys::is_culib_present() };
    if !present {
        return Err(CudaError::NoCompiler);
    }
    let (mut major, mut minor) = (0, 0);
    #[allow(unsafe_code, reason = "the library is there, and both pointers are to live integers")]
    let status = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    status.result().map_err(|_| CudaError::NoCompiler)?;
    Ok(NvrtcVersion { major: major as u32, minor: minor as u32 })
}

/// Compiles a unit for an architecture such as `sm_90`, into a cubin.
///
/// # Errors
/// Returns [`CudaError::NoCompiler`] without libnvrtc, and [`CudaError::Compile`] with the compiler's log if
/// it rejects the unit.
pub fn compile(unit: KernelUnit, arch: &str) -> Result<Vec<u8>, CudaError> {
    compile_with_log(unit, arch).map(|compiled| compiled.cubin)
}

/// Compiles as [`compile`] does, and also returns the compiler's log.
///
/// # Errors
/// Fails as [`compile`] does.
pub fn compile_with_log(unit: KernelUnit, arch: &str) -> Result<CompiledUnit, CudaError> {
    nvrtc_version()?;
    let failed = |log: String| CudaError::Compile { unit: unit.name, arch: arch.to_owned(), log };
    let text =
        CString::new(unit.source_text()).map_err(|_| failed("the text contains a zero byte".into()))?;
    let name = CString::new(format!("{}.cu", unit.name))
        .map_err(|_| failed("the name contains a zero byte".into()))?;
    let program =
        result::create_program(&text, Some(&name)).map_err(|error| failed(format!("{:?}", error.0)))?;
    let cubin = compile_program(program, arch).map_err(failed);
    #[allow(unsafe_code, reason = "the program was created above and is not used again")]
    // A failure here only leaks memory.
    let _ = unsafe { result::destroy_program(program) };
    cubin
}

/// Compiles a created program. The error is the compiler's log.
fn compile_program(program: sys::nvrtcProgram, arch: &str) -> Result<CompiledUnit, String> {
    if arch.contains('\0') {
        return Err("the architecture contains a zero byte".into());
    }
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
    #[allow(unsafe_code, reason = "the caller created the program and destroys it afterwards")]
    let compiled = unsafe { result::compile_program(program, &options) };
    #[allow(unsafe_code, reason = "the caller created the program and destroys it afterwards")]
    let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let log: Vec<u8> = log.into_iter().map(|c| c.to_ne_bytes()[0]).collect();
    let log = CStr::from_bytes_until_nul(&log).map_or_else(|_| String::new(), |l| l.to_string_lossy().into());
    compiled.map_err(|error| format!("{:?}\n{log}", error.0))?;
    let no_cubin = |error: result::NvrtcError| format!("it returned no cubin: {:?}", error.0);
    let mut size = 0usize;
    #[allow(unsafe_code, reason = "the program is compiled, and the pointer is to a live integer")]
    let status = unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) };
    status.result().map_err(no_cubin)?;
    let mut cubin = vec![0u8; size];
    #[allow(unsafe_code, reason = "the buffer has the size that NVRTC asked for")]
    let status = unsafe { sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()) };
    status.result().map_err(no_cubin)?;
    Ok(CompiledUnit { cubin, log })
}

/// Returns the folder of compiled kernels: `EVENKEEL_CACHE`, else `evenkeel` in `XDG_CACHE_HOME` or in
/// `~/.cache`. Returns `None` if none of them is set.
pub fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("EVENKEEL_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|base| base.join("evenkeel")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/evenkeel")))
}

/// Compiles as [`compile`] does, with a cache in `folder`. A cached cubin has the same text, architecture and
/// NVRTC. A broken file in the cache is replaced.
///
/// # Errors
/// Fails as [`compile`] does. Returns [`CudaError::Cache`] if the folder cannot be written.
pub fn compile_cached(unit: KernelUnit, arch: &str, folder: &Path) -> Result<Vec<u8>, CudaError> {
    let version = nvrtc_version()?;
    let key = Sha256::digest(format!("{arch} {version} {}", unit.source_text()));
    let key = key.iter().take(16).fold(String::new(), |key, byte| key + &format!("{byte:02x}"));
    let path = folder.join(format!("{}-{arch}-{key}.cubin", unit.name));
    if let Some(cubin) = std::fs::read(&path).ok().and_then(|sealed| unseal_cubin(&sealed)) {
        return Ok(cubin);
    }
    let cubin = compile(unit, arch)?;
    let failed = |source| CudaError::Cache { path: path.clone(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    // The file is written under another name and renamed, so that no reader sees half a file.
    let part = path.with_extension(format!("part{}", std::process::id()));
    let mut sealed = Sha256::digest(&cubin).to_vec();
    sealed.extend_from_slice(&cubin);
    std::fs::write(&part, sealed).map_err(failed)?;
    std::fs::rename(&part, &path).map_err(failed)?;
    Ok(cubin)
}

/// Returns the cubin of a cached file, which consists of its digest and the cubin. Returns `None` if they
/// differ.
fn unseal_cubin(sealed: &[u8]) -> Option<Vec<u8>> {
    let (digest, cubin) = sealed.split_at_checked(32)?;
    (Sha256::digest(cubin).as_slice() == digest).then(|| cubin.to_vec())
}
