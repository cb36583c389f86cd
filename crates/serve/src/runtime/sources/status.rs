//! The state of a source, for the page and for metrics: what fails, since when, and how often something failed.

use super::super::Phase;
use super::super::config::Source;
use super::super::record::now;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use utoipa::ToSchema;

/// A part of a source that can fail for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The path is not there, or cannot be listed.
    Path,
    /// Its content cannot be read or taken.
    Content,
    /// The server does not start its recorder, or dumps nothing.
    Recorder,
}

const PARTS: usize = 3;

#[derive(Debug, Clone)]
struct Failure {
    error: String,
    since: u64,
}

/// The state of one source while its thread runs.
#[derive(Debug)]
pub(crate) struct SourceStatus {
    pub(crate) model: String,
    pub(crate) phase: Phase,
    pub(crate) path: String,
    pub(crate) dump_seconds: Option<u64>,
    sglang: Option<String>,
    errors: AtomicU64,
    failures: Mutex<[Option<Failure>; PARTS]>,
}

/// How a source stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct SourceState {
    /// The phase that it feeds.
    pub(crate) phase: Phase,
    /// The file or folder that is read.
    pub(crate) path: String,
    /// The SGLang server that is asked for dumps.
    pub(crate) sglang: Option<String>,
    /// Is all well with it?
    pub(crate) up: bool,
    /// The error; null while all is well.
    pub(crate) error: Option<String>,
    /// Seconds since 1970 at which that began.
    pub(crate) since: Option<u64>,
    /// Looks and requests that failed so far.
    pub(crate) errors: u64,
}

impl SourceStatus {
    pub(super) fn of(source: &Source) -> Self {
        Self {
            model: source.model.clone(),
            phase: source.phase,
            path: source.path.display().to_string(),
            dump_seconds: source.sglang.as_ref().map(|_| source.dump_seconds),
            sglang: source.sglang.clone(),
            errors: AtomicU64::new(0),
            failures: Mutex::default(),
        }
    }

    fn failures(&self) -> MutexGuard<'_, [Option<Failure>; PARTS]> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an error; returns whether it differs from the last one of this part.
    pub(super) fn failed(&self, part: Part, error: &str) -> bool {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let failure = &mut self.failures()[part as usize];
        let new = failure.as_ref().is_none_or(|failure| failure.error != error);
        if new {
            let since = failure.as_ref().map_or_else(now, |failure| failure.since);
            *failure = Some(Failure { error: error.to_owned(), since });
        }
        new
    }

    /// Notes that a part works.
    pub(super) fn works(&self, part: Part) {
        self.failures()[part as usize] = None;
    }

    pub(crate) fn state(&self) -> SourceState {
        let failing: Vec<Failure> = self.failures().iter().flatten().cloned().collect();
        let words: Vec<&str> = failing.iter().map(|failure| failure.error.as_str()).collect();
        SourceState {
            phase: self.phase,
            path: self.path.clone(),
            sglang: self.sglang.clone(),
            up: failing.is_empty(),
            error: (!failing.is_empty()).then(|| words.join("; ")),
            since: failing.iter().map(|failure| failure.since).min(),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}
