//! Reads, writes and synthesises traces of routing statistics.
//!
//! Input is files of any format in [`TraceFormat`], or the parameters of a synthetic trace ([`synth`]).
//! Output is one [`Trace`].
//!
//! All readers push rows into the same kind of sink ([`evenkeel::trace::build`]). Reading into memory and
//! converting to another file therefore share all readers. A reader never executes the content of a file and
//! never panics on it. Malformed input is a [`TraceError`] that names the place and the expected content.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::exit))]

mod arrays;
mod batches;
mod csv_reader;
mod detect;
mod discover;
mod folders;
mod header;
mod input;
mod json;
mod long_csv;
#[cfg(feature = "parquet")]
mod parquet;
mod partition;
mod pickle;
mod pipe;
mod read;
mod requests;
mod sglang;
mod sglang_csv;
pub mod synth;
mod tokens;
mod torch;
mod trtllm;
mod variance;
mod vllm;
mod write;

pub use evenkeel::trace::{
    Batching, LayerSet, LoadSkew, Location, MAX_EXPERTS, MAX_LAYERS, MAX_STEPS, ReadOptions, ReadProgress,
    RequestOrder, Resampling, SourceFile, TokenTrace, Trace, TraceError, TraceFormat,
};
pub use read::{read, read_bytes};
pub use tokens::read_tokens;
pub use variance::variance_ratio;
pub use write::{ConversionReport, convert, write};
