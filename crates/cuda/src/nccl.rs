//! libnccl, looked for when it is first asked for: the calls that we make, and no others.
//!
//! Not by cudarc's loader, which does not try `libnccl.so.2`, the one name that packages of NCCL bring; and results are numbers
//! here, since a newer library may return some that an older header does not know.

use crate::cuda::CudaError;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// `ncclComm_t`
pub(super) type Handle = *mut c_void;

pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
/// `ncclUint8`
pub(super) const BYTES: c_int = 1;

/// The first that does not have to block.
const OLDEST: c_int = 21_400;

/// `ncclUniqueId`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Id(pub(super) [u8; 128]);

/// `ncclConfig_t` as of 2.17: libraries take shorter ones than their own.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Config {
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

impl Config {
    /// All as the library would have it, but that no call waits for other ranks.
    pub(super) fn without_blocking() -> Self {
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

type OfHandle = unsafe extern "C" fn(Handle) -> c_int;
type Plain = unsafe extern "C" fn() -> c_int;
type Stream = *mut c_void;

/// The calls.
#[derive(Debug)]
pub(super) struct Nccl {
    pub(super) version: c_int,
    pub(super) unique_id: unsafe extern "C" fn(*mut Id) -> c_int,
    pub(super) init: unsafe extern "C" fn(*mut Handle, c_int, Id, c_int, *mut Config) -> c_int,
    pub(super) async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    pub(super) abort: OfHandle,
    pub(super) finalize: OfHandle,
    pub(super) destroy: OfHandle,
    pub(super) group_start: Plain,
    pub(super) group_end: Plain,
    pub(super) all_gather:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, Stream) -> c_int,
    pub(super) send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
    pub(super) receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Nccl {
    /// The library of this machine.
    pub(super) fn get() -> Result<&'static Self, CudaError> {
        static LIBRARY: OnceLock<Result<Nccl, String>> = OnceLock::new();
        let failed = |why: &String| CudaError::Nccl { doing: "loading NCCL", code: why.clone() };
        LIBRARY.get_or_init(Self::load).as_ref().map_err(failed)
    }

    #[allow(unsafe_code, reason = "loads libnccl, whose initialisers are trusted; types are those of nccl.h")]
    fn load() -> Result<Self, String> {
        // SAFETY: NCCL's own initialisers.
        let found =
            ["libnccl.so.2", "libnccl.so"].into_iter().find_map(|name| unsafe { Library::new(name) }.ok());
        let library = found.ok_or(
            "neither libnccl.so.2 nor libnccl.so is on the library path (pip install nvidia-nccl-cu13 brings one)",
        )?;
        macro_rules! call {
            ($name:literal) => {
                // SAFETY: the field's type is the function's in nccl.h, and the library is never let go.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }
                    .map_err(|_| format!("it has no {}: 2.14 or later is wanted", $name))?
            };
        }
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = call!("ncclGetVersion");
        let mut version = 0;
        // SAFETY: it writes one number.
        if unsafe { get_version(&raw mut version) } != SUCCESS || version < OLDEST {
            return Err(format!("it is version {version}: {OLDEST} or later is wanted"));
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

    /// What it says to a result.
    pub(super) fn words(&self, result: c_int) -> String {
        #[allow(unsafe_code, reason = "NCCL returns a text of its own for every number")]
        // SAFETY: as the reason says.
        let text = unsafe {
            let text = (self.error_string)(result);
            if text.is_null() { c"unknown" } else { CStr::from_ptr(text) }
        };
        format!("{} ({result})", text.to_string_lossy())
    }
}
