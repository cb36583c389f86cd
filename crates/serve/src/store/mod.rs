//! The durable state: models, accepted steps, the state of every phase, decisions, plans.
//!
//! The store is one file (redb: copy-on-write B-trees, two commit slots) that one thread writes. The thread
//! takes all waiting jobs as one transaction, makes it durable, and only then answers. Many posts thus share
//! one flush, and every acknowledged step is on disk. The same thread numbers accepted steps, so that a
//! failed write leaves no gap.
//!
//! The changes of a failed commit may be on disk all the same, for example if only the flush failed. The file
//! is therefore reopened before the next write, which first removes the changes of the failed transaction.
//! After a failed write the thread retries every [`RETRY_INTERVAL`], and [`StateStore::check_health`] reports
//! the failure.

pub(crate) mod dedup;
pub(crate) mod error;
pub(crate) mod number_ranges;
pub(crate) mod schema;
mod writer;

use crate::files::create_private;
use error::{StateStoreError, catch_panic, corrupt_error, io_error, redb_error};
use redb::Database;
use schema::{StoredModel, read_models};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use writer::StoreWriter;

/// The version of the layout that this program reads and writes.
pub const SCHEMA: u64 = 2;

/// The number of a model and the code of a phase.
pub(crate) type PhaseKey = (u32, u8);

/// Bytes of the page cache. It is small because written pages are rarely read again.
const CACHE_BYTES: usize = 16 << 20;
/// Bytes that one transaction gathers before it is committed.
const MAX_TRANSACTION_BYTES: usize = 32 << 20;
/// The time between two retries after a failed write.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// One accepted step. The store assigns its number.
#[derive(Debug, Clone)]
pub(crate) struct StoredStep {
    pub(crate) id: u64,
    pub(crate) digest: [u8; 16],
    /// The packed counts, or nothing for a step without tokens.
    pub(crate) bytes: Vec<u8>,
}

/// A sequence of step numbers of one phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EngineRun {
    /// The number of the run. Runs of a phase are numbered from 1.
    pub(crate) number: u32,
    /// The poster's id, or `None` if the posts had no id.
    pub(crate) id: Option<String>,
    /// The step number with which the run began.
    pub(crate) first: u64,
}

/// A change to the store.
#[derive(Debug, Clone)]
pub(crate) enum StoreChange {
    Model {
        name: String,
        number: u32,
        shape: String,
    },
    Steps {
        phase: PhaseKey,
        run: EngineRun,
        rows: Vec<StoredStep>,
    },
    State {
        phase: PhaseKey,
        bytes: Vec<u8>,
    },
    Decision {
        phase: PhaseKey,
        number: u64,
        json: String,
    },
    Plan {
        phase: PhaseKey,
        version: u64,
        bytes: Vec<u8>,
    },
    /// Forgets all entries below these numbers, and the processed steps without tokens.
    Forget {
        phase: PhaseKey,
        steps: u64,
        idle: Vec<u64>,
        ids: u64,
        decisions: u64,
        plans: u64,
    },
    /// Deletes a model and all its stored data.
    Delete {
        name: String,
        number: u32,
    },
}

impl StoreChange {
    fn size_bytes(&self) -> usize {
        match self {
            StoreChange::Steps { rows, .. } => rows.iter().map(|row| row.bytes.len() + 64).sum(),
            StoreChange::State { bytes, .. } | StoreChange::Plan { bytes, .. } => bytes.len(),
            StoreChange::Model { shape, .. } => shape.len(),
            StoreChange::Decision { json, .. } => json.len(),
            StoreChange::Forget { idle, .. } => 64 + 8 * idle.len(),
            StoreChange::Delete { .. } => 64,
        }
    }
}

/// The number of the first step that a job wrote, if it wrote any.
pub(crate) type WriteResult = Result<u64, StateStoreError>;

/// The callback of a job. The store's thread calls it in the order of writing.
pub(crate) type WriteCallback = Box<dyn FnOnce(WriteResult) + Send>;

pub(super) struct WriteJob {
    pub(super) ops: Vec<StoreChange>,
    done: WriteCallback,
}

/// The open store.
pub(crate) struct StateStore {
    jobs: mpsc::Sender<WriteJob>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    commits: Arc<AtomicU64>,
    /// The error of the last write, or `None` if it succeeded.
    failing: Arc<Mutex<Option<StateStoreError>>>,
    /// The file that was opened.
    file: FileId,
}

impl std::fmt::Debug for StateStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateStore").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The name of the thread that opens the store. redb panics on some corrupt files, and such panics become
/// errors. A program may keep its panic hook silent on this thread.
pub const OPENER_THREAD: &str = "open-store";

/// Opens the store and reads its content on a thread of its own.
fn open_on_thread(path: &Path) -> Result<(Vec<StoredModel>, Database), StateStoreError> {
    let open = || catch_panic(path, || open_verified(path).and_then(|db| Ok((read_models(path, &db)?, db))));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(OPENER_THREAD.into()).spawn_scoped(scope, open);
        let opened = thread.map_err(|error| io_error(path, &error))?.join();
        opened.unwrap_or_else(|_| Err(corrupt_error(path, "unreadable")))
    })
}

impl StateStore {
    /// Opens or creates the store of a data folder, checks it, and reads its content.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Vec<StoredModel>), StateStoreError> {
        let path = folder.join("evenkeel.redb");
        create_private(folder, &path).map_err(|error| io_error(&path, &error))?;
        let (models, db) = open_on_thread(&path)?;
        let file = FileId::from_path(&path).map_err(|error| io_error(&path, &error))?;
        let (jobs, queue) = mpsc::channel();
        let commits = Arc::new(AtomicU64::new(0));
        let failing = Arc::new(Mutex::new(None));
        let writer = StoreWriter::new(path.clone(), file, db, &models);
        let (counted, failed) = (commits.clone(), failing.clone());
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || run_writer(writer, &queue, &counted, &failed))
            .map_err(|error| io_error(&path, &error))?;
        Ok((Self { jobs, thread: Some(thread), path, commits, failing, file }, models))
    }

    /// Queues a write. The store calls `done` once the write is durable or has failed.
    pub(crate) fn queue_write(&self, ops: Vec<StoreChange>, done: WriteCallback) {
        if let Err(mpsc::SendError(job)) = self.jobs.send(WriteJob { ops, done }) {
            let path = self.path.display().to_string();
            // Answer from another thread, because the caller may hold a lock that `done` takes.
            let answer =
                move || (job.done)(Err(StateStoreError::Io { path, reason: "its thread has ended".into() }));
            drop(std::thread::spawn(answer));
        }
    }

    /// Writes and waits until the write is durable.
    pub(crate) fn write_durably(&self, ops: Vec<StoreChange>) -> Result<(), StateStoreError> {
        let (send, receive) = mpsc::sync_channel(1);
        self.queue_write(ops, Box::new(move |result| drop(send.send(result))));
        let path = self.path.display().to_string();
        let ended = Err(StateStoreError::Io { path, reason: "its thread has ended".into() });
        receive.recv().unwrap_or(ended).map(|_| ())
    }

    /// Returns the number of transactions so far.
    pub(crate) fn commit_count(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size of the file in bytes.
    pub(crate) fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    /// Returns the error that currently prevents writes.
    ///
    /// # Errors
    /// Fails if the last write failed, or if the file was removed or replaced.
    pub(crate) fn check_health(&self) -> Result<(), StateStoreError> {
        self.file.check_path(&self.path)?;
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

impl Drop for StateStore {
    fn drop(&mut self) {
        // Closing the channel ends the thread after the waiting jobs.
        let (closed, _) = mpsc::channel();
        drop(std::mem::replace(&mut self.jobs, closed));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The identity of the file to which a path led when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn from_path(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = std::fs::metadata(path)?;
        Ok(Self { device: meta.dev(), inode: meta.ino() })
    }

    /// Checks that a path still leads to this file. Data written into a removed file would be lost.
    pub(super) fn check_path(&self, path: &Path) -> Result<(), StateStoreError> {
        match Self::from_path(path) {
            Ok(found) if found == *self => Ok(()),
            Ok(_) => Err(StateStoreError::Gone(path.to_owned(), "replaced by another file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(StateStoreError::Gone(path.to_owned(), "removed"))
            }
            Err(error) => Err(io_error(path, &error)),
        }
    }
}

/// Opens the file. The library repairs a file that was not closed properly.
pub(super) fn open_database(path: &Path) -> Result<Database, StateStoreError> {
    let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
    opened.map_err(|error| redb_error(path, error.into()))
}

/// Opens the file and verifies the checksums of all its pages.
fn open_verified(path: &Path) -> Result<Database, StateStoreError> {
    let mut db = open_database(path)?;
    match db.check_integrity() {
        Ok(true) => Ok(db),
        Ok(false) => Err(error::corrupt_error(path, "its checksums do not match")),
        Err(error) => Err(redb_error(path, error.into())),
    }
}

/// Gathers jobs, writes them, and answers them. This is the main function of the store's thread.
fn run_writer(
    mut writer: StoreWriter,
    queue: &mpsc::Receiver<WriteJob>,
    commits: &AtomicU64,
    failing: &Mutex<Option<StateStoreError>>,
) {
    let is_failing = || failing.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    loop {
        let received = if is_failing() {
            queue.recv_timeout(RETRY_INTERVAL)
        } else {
            queue.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        };
        let mut jobs: Vec<WriteJob> = match received {
            Ok(first) => vec![first],
            Err(mpsc::RecvTimeoutError::Timeout) => vec![],
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        let mut bytes: usize = jobs.iter().flat_map(|job| &job.ops).map(StoreChange::size_bytes).sum();
        while bytes < MAX_TRANSACTION_BYTES && !jobs.is_empty() {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.ops.iter().map(StoreChange::size_bytes).sum::<usize>();
            jobs.push(next);
        }
        let result = writer.write_jobs(&jobs);
        commits.fetch_add(1, Ordering::Relaxed);
        *failing.lock().unwrap_or_else(PoisonError::into_inner) = result.as_ref().err().cloned();
        match result {
            Ok(firsts) => jobs.into_iter().zip(firsts).for_each(|(job, first)| (job.done)(Ok(first))),
            Err(error) => jobs.into_iter().for_each(|job| (job.done)(Err(error.clone()))),
        }
    }
}
