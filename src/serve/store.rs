//! What outlives the process: models, accepted steps, the state of every lane, decisions, plans.
//!
//! One file (redb: copy-on-write B-trees, two commit slots), written by one thread. It takes whatever is waiting as one
//! transaction, makes that durable, and only then answers: many posts share one flush, and what was answered is on disk. A
//! write that fails changes nothing; the file is opened again with the next.

use super::store_error::{StoreError, guarded, of_io, of_redb};
use super::stored::{DECISIONS, IDS, MODELS, PLANS, STATES, STEPS, StoredModel, read};
use redb::Database;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// The layout that this version reads and writes.
pub const SCHEMA: u64 = 1;

/// Model, phase.
pub(crate) type LaneKey = (u32, u8);

/// Memory for pages of the file: what is written is rarely read again.
const CACHE_BYTES: usize = 16 << 20;
/// Bytes that one transaction gathers before it is committed.
const MOST_BYTES: usize = 32 << 20;

/// One accepted step.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) accepted: u64,
    pub(crate) id: u64,
    pub(crate) digest: [u8; 16],
    /// Packed counts.
    pub(crate) bytes: Vec<u8>,
}

/// A change to the store.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Model {
        name: String,
        number: u32,
        shape: String,
    },
    Steps {
        lane: LaneKey,
        rows: Vec<Row>,
    },
    State {
        lane: LaneKey,
        bytes: Vec<u8>,
    },
    Decision {
        lane: LaneKey,
        number: u64,
        json: String,
    },
    Plan {
        lane: LaneKey,
        version: u64,
        bytes: Vec<u8>,
    },
    /// Forgets everything below these numbers.
    Forget {
        lane: LaneKey,
        steps: u64,
        ids: u64,
        decisions: u64,
        plans: u64,
    },
}

impl Op {
    fn bytes(&self) -> usize {
        match self {
            Op::Steps { rows, .. } => rows.iter().map(|row| row.bytes.len() + 64).sum(),
            Op::State { bytes, .. } | Op::Plan { bytes, .. } => bytes.len(),
            Op::Model { shape, .. } => shape.len(),
            Op::Decision { json, .. } => json.len(),
            Op::Forget { .. } => 64,
        }
    }
}

/// Called by the store's thread, in the order of writing.
pub(crate) type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

struct Job {
    ops: Vec<Op>,
    done: Done,
}

/// The open store.
pub(crate) struct Store {
    jobs: mpsc::Sender<Job>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    commits: Arc<AtomicU64>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or makes the store of a data folder, and reads what it holds.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Vec<StoredModel>), StoreError> {
        let path = folder.join("evenkeel.redb");
        std::fs::create_dir_all(folder).map_err(|error| of_io(&path, &error))?;
        // Nothing else runs yet: what a panic would print is told as an error instead.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let opened = guarded(&path, || open(&path).and_then(|db| Ok((read(&path, &db)?, db))));
        std::panic::set_hook(hook);
        let (models, db) = opened?;
        let (jobs, inbox) = mpsc::channel();
        let commits = Arc::new(AtomicU64::new(0));
        let counted = commits.clone();
        let file = path.clone();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || write_all(&file, db, &inbox, &counted))
            .map_err(|error| of_io(&path, &error))?;
        Ok((Self { jobs, thread: Some(thread), path, commits }, models))
    }

    /// Writes as soon as it can; `done` is called when it is durable, or cannot be.
    pub(crate) fn write(&self, ops: Vec<Op>, done: Done) {
        if let Err(mpsc::SendError(job)) = self.jobs.send(Job { ops, done }) {
            let path = self.path.display().to_string();
            // Not from here: the caller may hold what `done` wants.
            let answer =
                move || (job.done)(Err(StoreError::Io { path, reason: "its thread has ended".into() }));
            drop(std::thread::spawn(answer));
        }
    }

    /// Writes and waits.
    pub(crate) fn write_now(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        let (send, receive) = mpsc::sync_channel(1);
        self.write(ops, Box::new(move |result| drop(send.send(result))));
        let path = self.path.display().to_string();
        receive.recv().unwrap_or(Err(StoreError::Io { path, reason: "its thread has ended".into() }))
    }

    /// Transactions so far.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Size of the file.
    pub(crate) fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Closing the channel ends the thread after what is waiting.
        let (closed, _) = mpsc::channel();
        drop(std::mem::replace(&mut self.jobs, closed));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
    opened.map_err(|error| of_redb(path, error.into()))
}

/// The store's thread: gathers, writes, answers.
fn write_all(path: &Path, db: Database, inbox: &mpsc::Receiver<Job>, commits: &AtomicU64) {
    let mut db = Some(db);
    while let Ok(first) = inbox.recv() {
        let mut bytes: usize = first.ops.iter().map(Op::bytes).sum();
        let mut jobs = vec![first];
        while bytes < MOST_BYTES {
            let Ok(next) = inbox.try_recv() else { break };
            bytes += next.ops.iter().map(Op::bytes).sum::<usize>();
            jobs.push(next);
        }
        // After a failure the file is opened again: the library takes no more writes before that.
        let mut kept = db.take();
        let result = guarded(path, || {
            let open = kept.take().map_or_else(|| open(path), Ok)?;
            commit(path, &open, &jobs)?;
            Ok(open)
        });
        let result = result.map(|open| db = Some(open));
        commits.fetch_add(1, Ordering::Relaxed);
        for job in jobs {
            (job.done)(result.clone());
        }
    }
}

fn commit(path: &Path, db: &Database, jobs: &[Job]) -> Result<(), StoreError> {
    let written = || -> Result<(), redb::Error> {
        let tx = db.begin_write()?;
        {
            let (mut steps, mut ids) = (tx.open_table(STEPS)?, tx.open_table(IDS)?);
            let (mut decisions, mut plans) = (tx.open_table(DECISIONS)?, tx.open_table(PLANS)?);
            for op in jobs.iter().flat_map(|job| &job.ops) {
                match op {
                    Op::Model { name, number, shape } => {
                        tx.open_table(MODELS)?.insert(name.as_str(), (*number, shape.as_str()))?;
                    }
                    Op::Steps { lane, rows } => {
                        for row in rows {
                            let key = (lane.0, lane.1, row.accepted);
                            steps.insert(key, (row.id, row.bytes.as_slice()))?;
                            ids.insert(key, (row.id, row.digest))?;
                        }
                    }
                    Op::State { lane, bytes } => {
                        tx.open_table(STATES)?.insert(*lane, bytes.as_slice())?;
                    }
                    Op::Decision { lane, number, json } => {
                        decisions.insert((lane.0, lane.1, *number), json.as_str())?;
                    }
                    Op::Plan { lane, version, bytes } => {
                        plans.insert((lane.0, lane.1, *version), bytes.as_slice())?;
                    }
                    Op::Forget { lane, steps: before, ids: ids_before, decisions: d, plans: p } => {
                        let below = |number: u64| (lane.0, lane.1, 0)..(lane.0, lane.1, number);
                        steps.retain_in(below(*before), |_, _| false)?;
                        ids.retain_in(below(*ids_before), |_, _| false)?;
                        decisions.retain_in(below(*d), |_, _| false)?;
                        plans.retain_in(below(*p), |_, _| false)?;
                    }
                }
            }
        }
        tx.commit()?;
        Ok(())
    };
    written().map_err(|error| of_redb(path, error))
}
