//! What can be wrong with a trace, and where.
//!
//! In: nothing. Out: [`TraceError`], the error of every reader and writer here, and
//! [`Place`], the spot inside a file that it points at. Readers learn of a fault from
//! their sink as a small [`Fault`] and add file and place to it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a trace could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file system said no, or the compressed stream is broken.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// The content fits none of the formats.
    #[error(
        "{}: cannot tell the format: {found}; expected a CSV header with layer, expert and tokens, or the \
         first bytes of a Parquet, .pt, .npy, .npz or JSON file; --format states it",
        path.display()
    )]
    UnknownFormat {
        /// The file or folder.
        path: PathBuf,
        /// What was seen instead.
        found: String,
    },
    /// Something in the file is not what its format asks for.
    #[error("{}{place}: found {found}, expected {expected}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// Line, column, key or byte.
        place: Place,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A pickle asks for code or an operation that count dumps do not need.
    #[error(
        "{}: refused to run pickle {what} at byte {offset}; expected a dictionary of numbers, strings and tensors",
        path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// The opcode or global, by name.
        what: String,
        /// Position inside the pickle.
        offset: u64,
    },
    /// The file is larger, in some respect, than this program takes.
    #[error("{}{place}: {what}", path.display())]
    Limit {
        /// The file or folder.
        path: PathBuf,
        /// Line, column, key or byte.
        place: Place,
        /// Which limit, and what to do about it.
        what: String,
    },
    /// A folder holds one dump per rank, with a hole.
    #[error("{}: no dump of rank {rank}, expected one for each of ranks 0 to {last}", path.display())]
    MissingRank {
        /// The folder.
        path: PathBuf,
        /// The lowest rank without a file.
        rank: usize,
        /// The highest rank with one.
        last: usize,
    },
    /// The options do not go together, or not with this trace.
    #[error("{0}")]
    Options(String),
}

/// The spot inside a file that an error points at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The file as a whole.
    File,
    /// A line, counted from 1.
    Line(u64),
    /// One cell of a table.
    Cell {
        /// Line, counted from 1; for Parquet the row.
        line: u64,
        /// Column name.
        column: String,
    },
    /// A position in bytes.
    Byte(u64),
    /// A key, array, tensor or layer, by name.
    Key(String),
}

impl fmt::Display for Place {
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

/// What a sink cannot take, before anybody knows from which file and line it came.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Expert id at or above the stated number of experts.
    ExpertRange { expert: u64, experts: usize },
    /// Expert id above the hard limit.
    ExpertLimit(u64),
    /// Layer id above the hard limit.
    LayerLimit(u64),
    /// Two files, or file and options, disagree on the number of experts.
    ExpertsDiffer { found: usize, before: usize },
    /// The sum of all tokens no longer fits 64 bits.
    Overflow,
    /// More steps than can be told apart.
    StepLimit,
    /// One step alone needs more than the memory allowed.
    StepTooLarge { layers: usize, experts: usize, memory: u64 },
    /// Ids of single tokens that cannot be held, or that change their shape.
    TokenIds { memory: u64 },
    /// The output of a conversion could not be written.
    Write(Box<TraceError>),
}

impl Fault {
    /// Adds where it happened.
    pub(crate) fn at(self, path: &Path, place: Place) -> TraceError {
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

/// Shorthand for the commonest error.
pub(crate) fn invalid(
    path: &Path,
    place: Place,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> TraceError {
    TraceError::Invalid { path: path.to_path_buf(), place, found: found.into(), expected: expected.into() }
}

/// Wraps an I/O error with its file.
pub(crate) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> TraceError + '_ {
    move |source| TraceError::Io { path: path.to_path_buf(), source }
}

/// Quotes foreign text for a message: at most 40 characters, no control characters.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(160)]);
    let mut out: String = text.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().count() > 40 || bytes.len() > 160 {
        out.push_str("...");
    }
    format!("\"{out}\"")
}
