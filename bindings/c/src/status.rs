//! How calls end.

use std::any::Any;
use std::cell::RefCell;
use std::error::Error as StdError;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a call ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ek_status {
    /// Done.
    EK_OK = 0,
    /// An argument or a file is not what was expected.
    EK_INVALID = 1,
    /// This machine lacks what was asked for, a GPU for example.
    EK_UNAVAILABLE = 2,
    /// A defect of the library.
    EK_INTERNAL = 3,
}

/// Why a call failed.
pub(crate) struct Failure {
    pub(crate) status: ek_status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Failure { status: ek_status::EK_INVALID, message: message.into() }
    }

    /// An error of the library, with all its causes.
    pub(crate) fn of(err: impl StdError + 'static) -> Self {
        Failure::invalid(evenkeel::in_words(&err))
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// What went wrong in this thread's last call that failed, in words; empty before any. Valid until the thread's next call.
#[unsafe(no_mangle)]
pub extern "C" fn ek_last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

/// The library's version, as "1.2.3".
#[unsafe(no_mangle)]
pub extern "C" fn ek_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Runs a call's body; what it returns or how it panics becomes the status.
pub(crate) fn guarded(body: impl FnOnce() -> Result<(), Failure>) -> ek_status {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return ek_status::EK_OK,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure { status: ek_status::EK_INTERNAL, message: words(panic.as_ref()) },
    };
    let message = CString::new(failure.message.replace('\0', " ")).unwrap_or_default();
    LAST.with(|last| *last.borrow_mut() = message);
    failure.status
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a defect of evenkeel: {}", text.unwrap_or_else(|| "panic".into()))
}

/// A caller's array; null is an empty one only where `len` is 0.
pub(crate) unsafe fn array<'a, T>(start: *const T, len: usize, what: &str) -> Result<&'a [T], Failure> {
    match (start.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::invalid(format!("{what}: null, expected {len} values"))),
        // SAFETY: the caller says that `len` values are there.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(start, len) }),
    }
}

/// A caller's array to be written.
pub(crate) unsafe fn array_mut<'a, T>(start: *mut T, len: usize, what: &str) -> Result<&'a mut [T], Failure> {
    match (start.is_null(), len) {
        (_, 0) => Ok(&mut []),
        (true, _) => Err(Failure::invalid(format!("{what}: null, expected room for {len} values"))),
        // SAFETY: the caller says that there is room for `len` values, which nobody else uses meanwhile.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts_mut(start, len) }),
    }
}

/// A caller's text.
pub(crate) unsafe fn text<'a>(start: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if start.is_null() {
        return Err(Failure::invalid(format!("{what}: null, expected text")));
    }
    // SAFETY: the caller says that it ends in a zero.
    let text = unsafe { CStr::from_ptr(start) };
    text.to_str().map_err(|_| Failure::invalid(format!("{what}: not UTF-8")))
}

/// A caller's handle.
pub(crate) unsafe fn handle<'a, T>(start: *const T, what: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller says that it is null or came from this library and was not freed.
    unsafe { start.as_ref() }.ok_or_else(|| Failure::invalid(format!("{what}: null")))
}

/// A caller's handle to be changed.
pub(crate) unsafe fn handle_mut<'a, T>(start: *mut T, what: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: as `handle`, and no other thread uses it.
    unsafe { start.as_mut() }.ok_or_else(|| Failure::invalid(format!("{what}: null")))
}

/// Gives a value to the caller behind a pointer.
pub(crate) unsafe fn give<T>(out: *mut *mut T, value: T) -> Result<(), Failure> {
    // SAFETY: the caller says that it is null or has room for a pointer.
    let out = unsafe { out.as_mut() }.ok_or_else(|| Failure::invalid("out: null"))?;
    *out = Box::into_raw(Box::new(value));
    Ok(())
}

/// Takes a value back and drops it.
pub(crate) unsafe fn take<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the caller says that `give` gave it and that it was not freed.
        drop(unsafe { Box::from_raw(handle) });
    }
}
