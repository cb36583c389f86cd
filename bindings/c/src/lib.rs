//! The C interface: opaque handles, status codes, messages; nothing unwinds across it.
//!
//! Every function says what its pointers are; a null pointer where one is needed is an error, not a crash.

#![allow(unsafe_code, reason = "a C interface is made of the caller's pointers")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the header's first lines and each function say what pointers must be"
)]
#![allow(unreachable_pub, reason = "reached by C, not by Rust")]
#![allow(non_camel_case_types, reason = "names as C has them")]

mod device;
mod plan;
mod planner;
mod status;
