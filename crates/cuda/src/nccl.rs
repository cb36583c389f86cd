//! The NCCL library, loaded on first use, with the functions that evenkeel calls.
//!
//! cudarc's loader does not try `libnccl.so.2`, the only name that NCCL packages install. Results are
//! numbers, because a newer library may return values that an older header does not know.

use crate::CudaError;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// `ncclComm_t`
pub type NcclComm = *mut c_void;

/// `ncclSuccess`
pub const SUCCESS: c_int = 0;
/// `ncclInProgress`
pub const IN_PROGRESS: c_int = 7;
/// `ncclUint8`
pub const UINT8: c_int = 1;

/// The first version with non-blocking calls.
const MIN_VERSION: c_int = 21_400;

/// `ncclUniqueId`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct NcclId(pub [u8; 128]);

/// `ncclConfig_t` as of version 2.17. Libraries accept configurations that are shorter than their own.
#[derive(Debug)]
#[repr(C)]
pub struct NcclConfig {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl NcclConfig {
    /// Returns the library's defaults, but with non-blocking calls.
    pub fn without_blocking() -> Self {
        const UNSET: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_700,
            blocking: 0,
            cga_cluster_size: UNSET,
            min_ctas: UNSET,
            max_ctas: UNSET,
            net_name: std::ptr::null(),
            split_share: UNSET,
        }
    }
}

type CommCall = unsafe extern "C" fn(NcclComm) -> c_int;
type PlainCall = unsafe extern "C" fn() -> c_int;
type NcclStream = *mut c_void;

/// The functions of the library, with the types of `nccl.h`.
#[derive(Debug)]
pub struct NcclLibrary {
    /// The version as `ncclGetVersion` returns it.
    pub version: c_int,
    /// `ncclGetUniqueId`
    pub unique_id: unsafe extern "C" fn(*mut NcclId) -> c_int,
    /// `ncclCommInitRankConfig`
    pub init: unsafe extern "C" fn(*mut NcclComm, c_int, NcclId, c_int, *mut NcclConfig) -> c_int,
    /// `ncclCommGetAsyncError`
    pub async_error: unsafe extern "C" fn(NcclComm, *mut c_int) -> c_int,
    /// `ncclCommAbort`
    pub abort: CommCall,
    /// `ncclCommFinalize`
    pub finalize: CommCall,
    /// `ncclCommDestroy`
    pub destroy: CommCall,
    /// `ncclGroupStart`
    pub group_start: PlainCall,
    /// `ncclGroupEnd`
    pub group_end: PlainCall,
    /// `ncclAllGather`
    pub all_gather:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, NcclComm, NcclStream) -> c_int,
    /// `ncclSend`
    pub send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, NcclComm, NcclStream) -> c_int,
    /// `ncclRecv`
    pub receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, NcclComm, NcclStream) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl NcclLibrary {
    /// Returns the library of this machine.
    ///
    /// # Errors
    /// Returns [`CudaError::Nccl`] if it is missing or too old.
    pub fn get() -> Result<&'static Self, CudaError> {
        static LIBRARY: OnceLock<Result<NcclLibrary, String>> = OnceLock::new();
        let failed = |why: &String| CudaError::Nccl { doing: "loading NCCL", code: why.clone() };
        LIBRARY.get_or_init(Self::load_library).as_ref().map_err(failed)
    }

    #[allow(unsafe_code, reason = "loads libnccl, whose initialisers are trusted; types are those of nccl.h")]
    fn load_library() -> Result<Self, String> {
        // SAFETY: this runs NCCL's own initialisers.
        let found =
            ["libnccl.so.2", "libnccl.so"].into_iter().find_map(|name| unsafe { Library::new(name) }.ok());
        let library = found.ok_or(
            "neither libnccl.so.2 nor libnccl.so is on the library path (pip install nvidia-nccl-cu13 installs it)",
        )?;
        macro_rules! call {
            ($name:literal) => {
                // SAFETY: the field has the function's type in nccl.h, and the library is never unloaded.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }
                    .map_err(|_| format!("the library has no {}: expected version 2.14 or later", $name))?
            };
        }
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = call!("ncclGetVersion");
        let mut version = 0;
        // SAFETY: the call writes one number.
        if unsafe { get_version(&raw mut version) } != SUCCESS || version < MIN_VERSION {
            return Err(format!("the library has version {version}: expected {MIN_VERSION} or later"));
        }
        let calls = Self {
            version,
            unique_id: call!("ncclGetUniqueId"),
            init: call!("ncclCommInitRankConfig"),
            async_error: call!("ncclCommGetAsyncError"),
            abort: call!("ncclCommAbort"),
            finalize: call!("ncclCommFinalize"),
            destroy: call!("ncclCommDestroy"),
            group_start: call!("ncclGroupStart"),
            group_end: call!("ncclGroupEnd"),
            all_gather: call!("ncclAllGather"),
            send: call!("ncclSend"),
            receive: call!("ncclRecv"),
            error_string: call!("ncclGetErrorString"),
        };
        std::mem::forget(library);
        Ok(calls)
    }

    /// Turns a result other than success into an error; `doing` is the call that failed.
    pub(crate) fn check_result(&self, doing: &'static str, result: c_int) -> Result<(), CudaError> {
        if result == SUCCESS {
            Ok(())
        } else {
            Err(CudaError::Nccl { doing, code: self.result_text(result) })
        }
    }

    /// Returns the library's text for a result.
    pub fn result_text(&self, result: c_int) -> String {
        #[allow(unsafe_code, reason = "NCCL returns a text of its own for every number")]
        // SAFETY: as the reason says.
        let text = unsafe {
            let text = (self.error_string)(result);
            if text.is_null() { c"unknown" } else { CStr::from_ptr(text) }
        };
        format!("{} ({result})", text.to_string_lossy())
    }
}
