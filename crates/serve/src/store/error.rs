//! Why the store cannot be used, and what to do about it.

use super::store::SCHEMA;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why the store cannot be used.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No room left, or over a quota.
    #[error("the disk with the store {0} is full: make room, or start with another --data folder")]
    Full(PathBuf),
    /// Another process has it.
    #[error(
        "the store {0} is in use: another evenkeel serves from it; stop that, or start with another --data folder"
    )]
    InUse(PathBuf),
    /// The bytes are not those of a store.
    #[error(
        "the store {path} is damaged ({reason}): move it away (mv {path} {path}.damaged) and start again; history begins anew, \
         plans are made again after the first steps"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// What was found.
        reason: String,
    },
    /// Written by another version.
    #[error(
        "the store {path} has layout {found} (written by evenkeel {by}), this evenkeel {ours} reads layout {SCHEMA}: {advice}",
        ours = env!("CARGO_PKG_VERSION")
    )]
    Schema {
        /// The file.
        path: String,
        /// Its layout.
        found: String,
        /// Who wrote it.
        by: String,
        /// What to do.
        advice: &'static str,
    },
    /// Something else went wrong.
    #[error("the store {path}: {reason}")]
    Io {
        /// The file.
        path: String,
        /// What went wrong.
        reason: String,
    },
}

/// The store's library answers most damage with errors, some of it with a panic: damage is what that is told as.
pub(super) fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(corrupt(path, said.unwrap_or("unreadable").lines().next().unwrap_or_default()))
    })
}

pub(super) fn corrupt(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Corrupt { path: path.display().to_string(), reason: reason.into() }
}

pub(super) fn of_io(path: &Path, error: &io::Error) -> StoreError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => StoreError::Full(path.to_owned()),
        Kind::InvalidData | Kind::UnexpectedEof => corrupt(path, error.to_string()),
        _ => StoreError::Io { path: path.display().to_string(), reason: error.to_string() },
    }
}

pub(super) fn of_redb(path: &Path, error: redb::Error) -> StoreError {
    match error {
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
        redb::Error::Corrupted(reason) => corrupt(path, reason),
        redb::Error::UpgradeRequired(version) => corrupt(path, format!("file format {version}")),
        redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_) => corrupt(path, error.to_string()),
        redb::Error::Io(error) => of_io(path, &error),
        error => StoreError::Io { path: path.display().to_string(), reason: error.to_string() },
    }
}
