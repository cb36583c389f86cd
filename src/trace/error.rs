//! Errors of traces, with their place.
//!
//! In: nothing. Out: [`TraceError`], the error of every reader and writer, and [`Location`], the spot inside
//! a file. A sink reports a small [`SinkError`]. The reader adds file and place to it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Reasons for which a trace cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file system reported an error, or the compressed stream is broken.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error that the system reported.
        source: io::Error,
    },
    /// The content fits none of the formats.
    #[error(
        "{}: cannot tell the format: {found}; expected a CSV header with layer, expert and tokens (or count), \
         or the first bytes of a Parquet, .pt, .npy, .npz or JSON file; --format states it",
        path.display()
    )]
    UnknownFormat {
        /// Path of the file or folder.
        path: PathBuf,
        /// Content found instead.
        found: String,
    },
    /// A part of the file violates its format.
    #[error("{}{place}: found {found}, expected {expected}", path.display())]
    Invalid {
        /// Path of the file or folder.
        path: PathBuf,
        /// Line, column, key or byte.
        place: Location,
        /// Content found.
        found: String,
        /// Content expected.
        expected: String,
    },
    /// A pickle needs code or an operation that dumps of counts do not need.
    #[error(
        "{}: refused to run pickle {what} at byte {offset}; expected a dictionary of numbers, strings and tensors",
        path.display()
    )]
    Refused {
        /// Path of the file.
        path: PathBuf,
        /// Name of the opcode or global.
        what: String,
        /// Position inside the pickle.
        offset: u64,
    },
    /// The file exceeds a limit of this program.
    #[error("{}{place}: {what}", path.display())]
    Limit {
        /// Path of the file or folder.
        path: PathBuf,
        /// Line, column, key or byte.
        place: Location,
        /// Limit that is exceeded, and advice.
        what: String,
    },
    /// A folder with one dump per rank lacks a rank.
    #[error("{}: no dump of rank {rank}, expected one for each of ranks 0 to {last}", path.display())]
    MissingRank {
        /// Path of the folder.
        path: PathBuf,
        /// Lowest rank without a file.
        rank: usize,
        /// Highest rank with a file.
        last: usize,
    },
    /// The options contradict each other or the trace.
    #[error("{0}")]
    Options(String),
}

/// Spot inside a file to which an error refers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// The file as a whole.
    File,
    /// A line, counted from 1.
    Line(u64),
    /// One cell of a table.
    Cell {
        /// Line, counted from 1. In Parquet files it is the row.
        line: u64,
        /// Column name.
        column: String,
    },
    /// A position in bytes.
    Byte(u64),
    /// A key, array, tensor or layer, by name.
    Key(String),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Line(line) => write!(f, ", line {line}"),
            Self::Cell { line, column } => write!(f, ", line {line}, column {column}"),
            Self::Byte(offset) => write!(f, ", byte {offset}"),
            Self::Key(key) => write!(f, ", {key}"),
        }
    }
}

/// Fault that a sink finds, without the file and line, which only the reader knows.
#[derive(Debug)]
pub enum SinkError {
    /// Expert id at or above the stated number of experts.
    ExpertRange {
        /// Expert id found.
        expert: u64,
        /// Stated number of experts.
        experts: usize,
    },
    /// Expert id above the hard limit.
    ExpertLimit(u64),
    /// Layer id above the hard limit.
    LayerLimit(u64),
    /// Two files, or file and options, disagree on the number of experts.
    ExpertsDiffer {
        /// Number of experts in this file.
        found: usize,
        /// Number of experts stated or read before.
        before: usize,
    },
    /// The sum of all tokens does not fit 64 bits.
    Overflow,
    /// The trace has more steps than the limit.
    StepLimit,
    /// One step alone needs more than the allowed memory.
    StepTooLarge {
        /// Layers of the step.
        layers: usize,
        /// Experts of a layer.
        experts: usize,
        /// Allowed bytes.
        memory: u64,
    },
    /// Expert ids of single tokens exceed the memory or change their shape.
    TokenIds {
        /// Allowed bytes.
        memory: u64,
    },
    /// The output of a conversion could not be written.
    Write(Box<TraceError>),
}

impl SinkError {
    /// Adds the file and the place of the fault.
    pub fn into_trace_error(self, path: &Path, place: Location) -> TraceError {
        let path = path.to_path_buf();
        let invalid = |path, found: String, expected: String| TraceError::Invalid {
            path,
            place: place.clone(),
            found,
            expected,
        };
        match self {
            Self::ExpertRange { expert, experts } => invalid(
                path,
                format!("expert {expert}"),
                format!("an expert id below {experts}, the number of experts"),
            ),
            Self::ExpertLimit(expert) => invalid(
                path,
                format!("expert {expert}"),
                format!("an expert id below {}", super::MAX_EXPERTS),
            ),
            Self::LayerLimit(layer) => {
                invalid(path, format!("layer {layer}"), format!("a layer id below {}", super::MAX_LAYERS))
            }
            Self::ExpertsDiffer { found, before } => invalid(
                path,
                format!("{found} experts"),
                format!("{before} experts, as stated or read before"),
            ),
            Self::Overflow => {
                invalid(path, "more than 2^64 tokens in all".into(), "counts whose sum fits 64 bits".into())
            }
            Self::StepLimit => {
                TraceError::Limit { path, place, what: format!("more than {} steps", super::MAX_STEPS) }
            }
            Self::StepTooLarge { layers, experts, memory } => TraceError::Limit {
                path,
                place,
                what: format!(
                    "one step of {layers} layers x {experts} experts needs {} MiB, more than the {} MiB allowed; \
                     raise --memory",
                    (layers * experts * 8) >> 20,
                    memory >> 20
                ),
            },
            Self::TokenIds { memory } => TraceError::Limit {
                path,
                place,
                what: format!(
                    "the ids of all tokens up to here have another shape or need more than the {} MiB allowed; raise \
                     --memory, or read one array at a time",
                    memory >> 20
                ),
            },
            Self::Write(error) => *error,
        }
    }
}

/// Creates [`TraceError::Invalid`].
pub fn invalid_content(
    path: &Path,
    place: Location,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> TraceError {
    TraceError::Invalid { path: path.to_path_buf(), place, found: found.into(), expected: expected.into() }
}

/// Returns a function that adds the path to an I/O error.
pub fn io_error_at(path: &Path) -> impl FnOnce(io::Error) -> TraceError + '_ {
    move |source| TraceError::Io { path: path.to_path_buf(), source }
}

/// Limit on the quoted characters of foreign text, so that messages stay readable.
const MAX_QUOTED_CHARS: usize = 400;

/// Quotes foreign text for a message, without control characters and with at most 400 characters.
pub fn quote_bytes(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_QUOTED_CHARS)]);
    let mut out: String =
        text.chars().take(MAX_QUOTED_CHARS).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().count() > MAX_QUOTED_CHARS || bytes.len() > 4 * MAX_QUOTED_CHARS {
        out.push_str("...");
    }
    format!("\"{out}\"")
}
