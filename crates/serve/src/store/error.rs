//! Errors of the store, with advice for the operator.

use super::SCHEMA;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Error of a store that cannot be used.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum StateStoreError {
    /// The disk is full, or a disk quota is exceeded.
    #[error("the disk with the store {0} is full: make room, or start with another --data folder")]
    Full(PathBuf),
    /// Another process uses the store.
    #[error(
        "the store {0} is in use: another evenkeel serves from it; stop that, or start with another --data folder"
    )]
    InUse(PathBuf),
    /// The file is no intact store.
    #[error(
        "the store {path} is damaged ({reason}): move it away (mv {path} {path}.damaged) and start again; history starts over, \
         and new plans follow after the first steps"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// The damage.
        reason: String,
    },
    /// The file was removed or replaced after it was opened.
    #[error(
        "the store {0} was {1} while it was in use: nothing more is stored; stop the service, bring the file back, and \
         start again"
    )]
    Gone(PathBuf, &'static str),
    /// Another version wrote the file.
    #[error(
        "the store {path} has layout {found} (written by evenkeel {by}), this evenkeel {ours} reads layout {SCHEMA}: {advice}",
        ours = env!("CARGO_PKG_VERSION")
    )]
    Schema {
        /// The file.
        path: String,
        /// The layout of the file.
        found: String,
        /// The version of evenkeel that wrote it.
        by: String,
        /// The advice for the operator.
        advice: &'static str,
    },
    /// Another error occurred.
    #[error("the store {path}: {reason}")]
    Io {
        /// The file.
        path: String,
        /// The error.
        reason: String,
    },
}

/// Turns a panic of the store's library into an error. The library reports most damage as errors, but panics
/// on some.
pub(super) fn catch_panic<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, StateStoreError>,
) -> Result<T, StateStoreError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(corrupt_error(path, message.unwrap_or("unreadable").lines().next().unwrap_or_default()))
    })
}

pub(super) fn corrupt_error(path: &Path, reason: impl Into<String>) -> StateStoreError {
    StateStoreError::Corrupt { path: path.display().to_string(), reason: reason.into() }
}

pub(super) fn io_error(path: &Path, error: &io::Error) -> StateStoreError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => {
            StateStoreError::Full(path.to_owned())
        }
        Kind::InvalidData | Kind::UnexpectedEof => corrupt_error(path, error.to_string()),
        _ => StateStoreError::Io { path: path.display().to_string(), reason: error.to_string() },
    }
}

pub(super) fn redb_error(path: &Path, error: redb::Error) -> StateStoreError {
    match error {
        redb::Error::DatabaseAlreadyOpen => StateStoreError::InUse(path.to_owned()),
        redb::Error::Corrupted(reason) => corrupt_error(path, reason),
        redb::Error::UpgradeRequired(version) => corrupt_error(path, format!("file format {version}")),
        redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_) => corrupt_error(path, error.to_string()),
        redb::Error::Io(error) => io_error(path, &error),
        error => StateStoreError::Io { path: path.display().to_string(), reason: error.to_string() },
    }
}
