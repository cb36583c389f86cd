//! What outlives the process: models, accepted steps, the state of every lane, decisions, plans.
//!
//! One file (redb: copy-on-write B-trees, two commit slots), written by one thread. It takes whatever is waiting as one
//! transaction, makes that durable, and only then answers: many posts share one flush, and what was answered is on disk. A
//! write that fails changes nothing; the file is opened again with the next.

use super::Phase;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use thiserror::Error;

/// The layout that this version reads and writes.
pub const SCHEMA: u64 = 1;

/// Model, phase.
pub(crate) type LaneKey = (u32, u8);
type Key = (u32, u8, u64);

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// Name -> number and shape.
const MODELS: TableDefinition<'_, &str, (u32, &str)> = TableDefinition::new("models");
/// Accepted -> step id and counts.
const STEPS: TableDefinition<'_, Key, (u64, &[u8])> = TableDefinition::new("steps");
/// Accepted -> step id and digest: remembered longer than the steps.
const IDS: TableDefinition<'_, Key, (u64, [u8; 16])> = TableDefinition::new("ids");
const STATES: TableDefinition<'_, LaneKey, &[u8]> = TableDefinition::new("states");
const DECISIONS: TableDefinition<'_, Key, &str> = TableDefinition::new("decisions");
const PLANS: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("plans");

/// Bytes that one transaction gathers before it is committed.
const MOST_BYTES: usize = 32 << 20;

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

/// A model as it was stored.
#[derive(Debug)]
pub(crate) struct StoredModel {
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) shape: String,
    pub(crate) lanes: Vec<StoredLane>,
}

/// A lane as it was stored.
#[derive(Debug)]
pub(crate) struct StoredLane {
    pub(crate) phase: Phase,
    pub(crate) state: Vec<u8>,
    pub(crate) ids: Vec<(u64, u64, [u8; 16])>,
    pub(crate) steps: Vec<(u64, u64, Vec<u8>)>,
    pub(crate) decisions: Vec<String>,
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

/// The store's library answers most damage with errors, some of it with a panic: damage is what that is told as.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(corrupt(path, said.unwrap_or("unreadable").lines().next().unwrap_or_default()))
    })
}

fn open(path: &Path) -> Result<Database, StoreError> {
    Database::create(path).map_err(|error| of_redb(path, error.into()))
}

fn read(path: &Path, db: &Database) -> Result<Vec<StoredModel>, StoreError> {
    let fail = |error: redb::Error| of_redb(path, error);
    check_schema(path, db)?;
    let tx = db.begin_read().map_err(|e| fail(e.into()))?;
    let mut models = Vec::new();
    let table = tx.open_table(MODELS).map_err(|e| fail(e.into()))?;
    for entry in table.iter().map_err(|e| fail(e.into()))? {
        let (name, value) = entry.map_err(|e| fail(e.into()))?;
        let (number, shape) = value.value();
        models.push(StoredModel { name: name.value().into(), number, shape: shape.into(), lanes: vec![] });
    }
    let states = tx.open_table(STATES).map_err(|e| fail(e.into()))?;
    let (ids, steps) =
        (tx.open_table(IDS).map_err(|e| fail(e.into()))?, tx.open_table(STEPS).map_err(|e| fail(e.into()))?);
    let decisions = tx.open_table(DECISIONS).map_err(|e| fail(e.into()))?;
    for model in &mut models {
        for phase in Phase::ALL {
            let lane = (model.number, phase.code());
            let Some(state) = states.get(lane).map_err(|e| fail(e.into()))? else { continue };
            let range = (lane.0, lane.1, 0)..=(lane.0, lane.1, u64::MAX);
            let mut stored = StoredLane {
                phase,
                state: state.value().to_vec(),
                ids: vec![],
                steps: vec![],
                decisions: vec![],
            };
            for entry in ids.range(range.clone()).map_err(|e| fail(e.into()))? {
                let (key, value) = entry.map_err(|e| fail(e.into()))?;
                let (id, digest) = value.value();
                stored.ids.push((key.value().2, id, digest));
            }
            for entry in steps.range(range.clone()).map_err(|e| fail(e.into()))? {
                let (key, value) = entry.map_err(|e| fail(e.into()))?;
                let (id, bytes) = value.value();
                stored.steps.push((key.value().2, id, bytes.to_vec()));
            }
            for entry in decisions.range(range).map_err(|e| fail(e.into()))? {
                stored.decisions.push(entry.map_err(|e| fail(e.into()))?.1.value().to_owned());
            }
            model.lanes.push(stored);
        }
    }
    Ok(models)
}

/// Makes the tables of a new store; refuses one with another layout.
fn check_schema(path: &Path, db: &Database) -> Result<(), StoreError> {
    let fail = |error: redb::Error| of_redb(path, error);
    let tx = db.begin_read().map_err(|e| fail(e.into()))?;
    match tx.open_table(META) {
        Ok(meta) => {
            let get = |key: &str| -> Result<String, StoreError> {
                let value = meta.get(key).map_err(|e| fail(e.into()))?;
                Ok(value.map(|value| value.value().to_owned()).unwrap_or_default())
            };
            let found = get("schema")?;
            if found == SCHEMA.to_string() {
                return Ok(());
            }
            let newer = found.parse::<u64>().is_ok_and(|found| found > SCHEMA);
            let advice = if newer {
                "use the evenkeel that wrote it or a newer one, or start with another --data folder"
            } else {
                "start with another --data folder; history begins anew"
            };
            Err(StoreError::Schema { path: path.display().to_string(), found, by: get("by")?, advice })
        }
        Err(TableError::TableDoesNotExist(_)) => {
            let tx = db.begin_write().map_err(|e| fail(e.into()))?;
            {
                let mut meta = tx.open_table(META).map_err(|e| fail(e.into()))?;
                let schema = SCHEMA.to_string();
                for (key, value) in [("schema", schema.as_str()), ("by", env!("CARGO_PKG_VERSION"))] {
                    meta.insert(key, value).map_err(|e| fail(e.into()))?;
                }
                tx.open_table(MODELS).map_err(|e| fail(e.into()))?;
                tx.open_table(STEPS).map_err(|e| fail(e.into()))?;
                tx.open_table(IDS).map_err(|e| fail(e.into()))?;
                tx.open_table(STATES).map_err(|e| fail(e.into()))?;
                tx.open_table(DECISIONS).map_err(|e| fail(e.into()))?;
                tx.open_table(PLANS).map_err(|e| fail(e.into()))?;
            }
            tx.commit().map_err(|e| fail(e.into()))
        }
        Err(error) => Err(fail(error.into())),
    }
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

fn corrupt(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Corrupt { path: path.display().to_string(), reason: reason.into() }
}

fn of_io(path: &Path, error: &io::Error) -> StoreError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => StoreError::Full(path.to_owned()),
        Kind::InvalidData | Kind::UnexpectedEof => corrupt(path, error.to_string()),
        _ => StoreError::Io { path: path.display().to_string(), reason: error.to_string() },
    }
}

fn of_redb(path: &Path, error: redb::Error) -> StoreError {
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
