//! The state of a source, for the page and the metrics: its current failures, their begin, and the number of
//! errors.

use crate::Phase;
use crate::config::SourceConfig;
use crate::runtime::unix_seconds;
use crate::wire::status::SourceStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A part of a source that can fail separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourcePart {
    /// The path: it does not exist, or cannot be listed.
    Path,
    /// The content: it cannot be read or accepted.
    Content,
    /// The recorder: the server does not start it, or dumps nothing.
    Recorder,
}

const PART_COUNT: usize = 3;

#[derive(Debug, Clone)]
struct SourceFailure {
    error: String,
    since: u64,
}

/// The state of one source while its thread runs.
#[derive(Debug)]
pub(crate) struct SourceMonitor {
    pub(crate) model: String,
    pub(crate) phase: Phase,
    pub(crate) path: String,
    pub(crate) dump_seconds: Option<u64>,
    sglang: Option<String>,
    errors: AtomicU64,
    skipped_lines: AtomicU64,
    last_skipped: Mutex<Option<String>>,
    failures: Mutex<[Option<SourceFailure>; PART_COUNT]>,
}

impl SourceMonitor {
    pub(super) fn new(source: &SourceConfig) -> Self {
        Self {
            model: source.model.clone(),
            phase: source.phase,
            path: source.path.display().to_string(),
            dump_seconds: source.sglang.as_ref().map(|_| source.dump_seconds),
            sglang: source.sglang.clone(),
            errors: AtomicU64::new(0),
            skipped_lines: AtomicU64::new(0),
            last_skipped: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    fn lock_failures(&self) -> MutexGuard<'_, [Option<SourceFailure>; PART_COUNT]> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an error. Returns whether it differs from the last one of this part.
    pub(super) fn record_failure(&self, part: SourcePart, error: &str) -> bool {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let failure = &mut self.lock_failures()[part as usize];
        let new = failure.as_ref().is_none_or(|failure| failure.error != error);
        if new {
            let since = failure.as_ref().map_or_else(unix_seconds, |failure| failure.since);
            *failure = Some(SourceFailure { error: error.to_owned(), since });
        }
        new
    }

    /// Counts skipped lines.
    pub(super) fn record_skipped(&self, lines: &[(u64, String)]) {
        let Some((line, what)) = lines.last() else { return };
        self.skipped_lines.fetch_add(lines.len() as u64, Ordering::Relaxed);
        let last = Some(format!("line {line}: {what}"));
        *self.last_skipped.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// Notes that a part works again.
    pub(super) fn clear_failure(&self, part: SourcePart) {
        self.lock_failures()[part as usize] = None;
    }

    pub(crate) fn state(&self) -> SourceStatus {
        let failing: Vec<SourceFailure> = self.lock_failures().iter().flatten().cloned().collect();
        let words: Vec<&str> = failing.iter().map(|failure| failure.error.as_str()).collect();
        SourceStatus {
            phase: self.phase,
            path: self.path.clone(),
            sglang: self.sglang.clone(),
            up: failing.is_empty(),
            error: (!failing.is_empty()).then(|| words.join("; ")),
            since_unix_s: failing.iter().map(|failure| failure.since).min(),
            errors: self.errors.load(Ordering::Relaxed),
            skipped_lines: self.skipped_lines.load(Ordering::Relaxed),
            last_skipped: self.last_skipped.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
