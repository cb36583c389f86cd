//! Tables for the GPU kernels, computed once on the host without a GPU or CUDA.
//!
//! Input: a problem or a placement. Output: arrays of 32-bit words that the kernels in `kernels/` read.
//! [`SolveProgram`] is the set-up of the exact split: the solver's index lists, and its sweeps divided into
//! waves ([`WaveCounts`]). Operations of one wave touch no rank in common. So lanes may execute a wave in
//! parallel, and the result equals that of the sequential sweep bit for bit. [`replica_layout`] is the layout
//! of a placement for `share` and `map`. [`source`] is the text of the kernels.
//!
//! docs/kernels.md describes the kernels and their proofs.

mod layout;
mod program;
pub mod source;
mod wavefront;

pub use layout::{NO_PAIR, replica_layout};
pub use program::{ProgramError, SolveProgram};
pub use wavefront::{ForestWaves, WaveCounts};

/// Ids per chunk of `count` and `map`. Chunks are numbered in parallel, ids within a chunk one by one.
pub const CHUNK_IDS: usize = 256;
