//! Status codes, error messages and checks of the caller's pointers.

use std::any::Any;
use std::cell::RefCell;
use std::error::Error as StdError;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Result of a call.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ek_status {
    /// Success.
    EK_OK = 0,
    /// An argument or a file differs from the expected form.
    EK_INVALID = 1,
    /// This machine lacks a required device, for example a GPU.
    EK_UNAVAILABLE = 2,
    /// A defect of the library.
    EK_INTERNAL = 3,
}

/// Status and message of a failed call.
pub(crate) struct CallFailure {
    pub(crate) status: ek_status,
    pub(crate) message: String,
}

impl CallFailure {
    pub(crate) fn invalid_argument(message: impl Into<String>) -> Self {
        CallFailure { status: ek_status::EK_INVALID, message: message.into() }
    }

    /// Returns the failure for an error of the library, with all its causes.
    pub(crate) fn from_error(err: impl StdError + 'static) -> Self {
        CallFailure::invalid_argument(evenkeel::error_chain(&err))
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// Returns the message of this thread's last failed call, or an empty text before any failure. The pointer is
/// valid until the thread's next call.
#[unsafe(no_mangle)]
pub extern "C" fn ek_last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

/// Returns the library's version, for example "1.2.3".
#[unsafe(no_mangle)]
pub extern "C" fn ek_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Runs the body of a call. Its result or its panic becomes the status.
pub(crate) fn run_guarded(body: impl FnOnce() -> Result<(), CallFailure>) -> ek_status {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return ek_status::EK_OK,
        Ok(Err(failure)) => failure,
        Err(panic) => CallFailure { status: ek_status::EK_INTERNAL, message: panic_message(panic.as_ref()) },
    };
    let message = CString::new(failure.message.replace('\0', " ")).unwrap_or_default();
    LAST.with(|last| *last.borrow_mut() = message);
    failure.status
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a defect of evenkeel: {}", text.unwrap_or_else(|| "panic".into()))
}

/// Refuses more values than an address space holds.
fn check_length<T>(len: usize, what: &str) -> Result<(), CallFailure> {
    let most = isize::MAX as usize / size_of::<T>().max(1);
    if len > most {
        return Err(CallFailure::invalid_argument(format!("{what}: {len} values, expected {most} at most")));
    }
    Ok(())
}

/// Returns the caller's array. A null pointer is an empty array only if `len` is 0.
pub(crate) unsafe fn array_from_raw<'a, T>(
    start: *const T,
    len: usize,
    what: &str,
) -> Result<&'a [T], CallFailure> {
    check_length::<T>(len, what)?;
    match (start.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(CallFailure::invalid_argument(format!("{what}: null, expected {len} values"))),
        // SAFETY: the caller guarantees `len` values.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(start, len) }),
    }
}

/// Returns the caller's array for writing.
pub(crate) unsafe fn array_from_raw_mut<'a, T>(
    start: *mut T,
    len: usize,
    what: &str,
) -> Result<&'a mut [T], CallFailure> {
    check_length::<T>(len, what)?;
    match (start.is_null(), len) {
        (_, 0) => Ok(&mut []),
        (true, _) => {
            Err(CallFailure::invalid_argument(format!("{what}: null, expected room for {len} values")))
        }
        // SAFETY: the caller guarantees room for `len` values and exclusive access during the call.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts_mut(start, len) }),
    }
}

/// Returns the caller's text.
pub(crate) unsafe fn text_from_raw<'a>(start: *const c_char, what: &str) -> Result<&'a str, CallFailure> {
    if start.is_null() {
        return Err(CallFailure::invalid_argument(format!("{what}: null, expected text")));
    }
    // SAFETY: the caller guarantees a terminating zero.
    let text = unsafe { CStr::from_ptr(start) };
    text.to_str().map_err(|_| CallFailure::invalid_argument(format!("{what}: not UTF-8")))
}

/// Returns the caller's handle.
pub(crate) unsafe fn handle_from_raw<'a, T>(start: *const T, what: &str) -> Result<&'a T, CallFailure> {
    // SAFETY: the caller guarantees that the handle is null, or came from this library and was not freed.
    unsafe { start.as_ref() }.ok_or_else(|| CallFailure::invalid_argument(format!("{what}: null")))
}

/// Returns the caller's handle for modification.
pub(crate) unsafe fn handle_from_raw_mut<'a, T>(start: *mut T, what: &str) -> Result<&'a mut T, CallFailure> {
    // SAFETY: as `handle`. No other thread uses the handle.
    unsafe { start.as_mut() }.ok_or_else(|| CallFailure::invalid_argument(format!("{what}: null")))
}

/// Moves a value to the heap and stores its address in the caller's `out`.
pub(crate) unsafe fn store_handle<T>(out: *mut *mut T, value: T) -> Result<(), CallFailure> {
    // SAFETY: the caller guarantees that `out` is null or has room for a pointer.
    let out = unsafe { out.as_mut() }.ok_or_else(|| CallFailure::invalid_argument("out: null"))?;
    *out = Box::into_raw(Box::new(value));
    Ok(())
}

/// Drops a value that `give` handed out.
pub(crate) unsafe fn free_handle<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the caller guarantees that the handle came from `give` and was not freed.
        drop(unsafe { Box::from_raw(handle) });
    }
}
