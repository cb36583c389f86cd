//! What the GPU kernels need to know, worked out once on the host; no GPU and no CUDA is needed here.
//!
//! In: a problem or a placement. Out: arrays of 32-bit words that the kernels in `kernels/` read. [`Program`] is the
//! exact split's set-up: the solver's index lists, and its sweeps cut into waves of operations that touch no rank in
//! common ([`Waves`]), so that lanes may do a wave at once and the result is that of the sequential sweep, bit for
//! bit. [`copy_layout`] is the placement as `share` and `map` read it. [`source`] is the kernels' text.
//!
//! How the kernels work, and how that is proved: docs/kernels.md.

mod layout;
mod program;
pub mod source;
mod waves;

pub use layout::{NO_PAIR, copy_layout};
pub use program::{Program, ProgramError};
pub use waves::Waves;

/// Ids per chunk of `count` and `map`: chunks are numbered together, ids within a chunk one by one.
pub const CHUNK: usize = 256;
