//! Building blocks for readers of trace files.
//!
//! A reader pushes steps and rows into a [`Sink`]. [`TraceBuilder`] is the sink that holds a trace in memory.

pub use super::builder::TraceBuilder;
pub use super::error::{SinkError, invalid_content, io_error_at, quote_bytes};
pub use super::sink::{MAX_LABEL_BYTES, NO_EXPERT, Sink, StepLabel};
pub use super::whole_number::{float_to_integer, parse_integer};
