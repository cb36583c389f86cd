//! The C interface: opaque handles, status codes and messages. No panic unwinds across it.
//!
//! Every function documents its pointers. A null pointer is an error, not a crash, if the function needs a
//! value.

#![allow(unsafe_code, reason = "a C interface dereferences the caller's pointers")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the header and each function state the requirements on pointers"
)]
#![allow(unreachable_pub, reason = "only C calls these functions")]
#![allow(non_camel_case_types, reason = "names follow the conventions of C")]

mod device;
mod plan;
mod planner;
mod status;
