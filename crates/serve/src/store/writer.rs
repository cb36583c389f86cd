//! Transactions, one after the other: numbers steps, writes, and removes the changes of a failed commit.
//!
//! Input is the jobs of a transaction. Output is the number of the first step of each job, once all are
//! durable. The numbers of a phase have no gaps, because a failed transaction returns its numbers.

use super::error::{StateStoreError, catch_panic, redb_error};
use super::schema::{DECISIONS, IDS, MODELS, PLANS, RUNS, RowKey, STATES, STEPS, StoredModel};
use super::{FileId, PhaseKey, StoreChange, WriteJob, open_database};
use redb::{Database, ReadableTable as _, WriteTransaction};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The last numbers of a phase.
#[derive(Debug, Clone, Copy, Default)]
struct LastNumbers {
    /// The number of the last step.
    last: u64,
    /// The number of the last stored run.
    run: u32,
}

/// The writing end of the store.
pub(super) struct StoreWriter {
    path: PathBuf,
    file: FileId,
    /// The database, or `None` after a failure. The file is then reopened before the next write.
    db: Option<Database>,
    numbers: BTreeMap<PhaseKey, LastNumbers>,
    /// The stored models and their numbers.
    models: BTreeMap<String, u32>,
    /// Flag that is set if a failed transaction may have left changes on disk.
    needs_cleanup: bool,
    /// Deletions that failed. They may be half done, so they are repeated.
    failed_deletions: Vec<StoreChange>,
}

impl StoreWriter {
    pub(super) fn new(path: PathBuf, file: FileId, db: Database, models: &[StoredModel]) -> Self {
        let phases =
            models.iter().flat_map(|model| model.phases.iter().map(move |phase| (model.number, phase)));
        let numbers = phases.map(|(number, phase)| {
            let last = phase.ids.last().map_or(0, |id| id.0);
            let run = phase.runs.last().map_or(0, |(_, run)| run.number);
            ((number, phase.phase.code()), LastNumbers { last, run })
        });
        Self {
            numbers: numbers.collect(),
            models: models.iter().map(|model| (model.name.clone(), model.number)).collect(),
            path,
            file,
            db: Some(db),
            needs_cleanup: false,
            failed_deletions: vec![],
        }
    }

    /// Writes jobs as one transaction. Returns the number of the first step of each.
    pub(super) fn write_jobs(&mut self, jobs: &[WriteJob]) -> Result<Vec<u64>, StateStoreError> {
        let (mut numbers, mut models) = (self.numbers.clone(), self.models.clone());
        // After a failure the library accepts no more writes until the file is reopened.
        let mut kept = self.db.take();
        let this = &*self;
        let result = catch_panic(&this.path, || {
            this.file.check_path(&this.path)?;
            let open = kept.take().map_or_else(|| open_database(&this.path), Ok)?;
            let firsts = this.commit_jobs(&open, jobs, &mut numbers, &mut models)?;
            // Data written into a removed or replaced file is not stored.
            this.file.check_path(&this.path)?;
            Ok((open, firsts))
        });
        match result {
            Ok((open, firsts)) => {
                (self.db, self.numbers, self.models) = (Some(open), numbers, models);
                self.needs_cleanup = false;
                self.failed_deletions.clear();
                Ok(firsts)
            }
            Err(error) => {
                self.needs_cleanup = true;
                let ops = jobs.iter().flat_map(|job| &job.ops);
                self.failed_deletions
                    .extend(ops.filter(|op| matches!(op, StoreChange::Delete { .. })).cloned());
                Err(error)
            }
        }
    }

    fn commit_jobs(
        &self,
        db: &Database,
        jobs: &[WriteJob],
        numbers: &mut BTreeMap<PhaseKey, LastNumbers>,
        models: &mut BTreeMap<String, u32>,
    ) -> Result<Vec<u64>, StateStoreError> {
        let mut written = || -> Result<Vec<u64>, redb::Error> {
            let tx = db.begin_write()?;
            if self.needs_cleanup {
                remove_uncommitted(&tx, numbers, models)?;
            }
            for op in &self.failed_deletions {
                apply_change(&tx, op, numbers, models)?;
            }
            let mut firsts = Vec::with_capacity(jobs.len());
            for job in jobs {
                let mut first = 0;
                for op in &job.ops {
                    first = apply_change(&tx, op, numbers, models)?.unwrap_or(first);
                }
                firsts.push(first);
            }
            tx.commit()?;
            Ok(firsts)
        };
        written().map_err(|error| redb_error(&self.path, error))
    }
}

/// Removes the changes that a failed transaction left on disk.
fn remove_uncommitted(
    tx: &WriteTransaction,
    numbers: &BTreeMap<PhaseKey, LastNumbers>,
    models: &BTreeMap<String, u32>,
) -> Result<(), redb::Error> {
    let last = |key: &RowKey| numbers.get(&(key.0, key.1)).map_or(0, |numbers| numbers.last);
    tx.open_table(STEPS)?.retain(|key, _| key.2 <= last(&key))?;
    tx.open_table(IDS)?.retain(|key, _| key.2 <= last(&key))?;
    tx.open_table(RUNS)?.retain(|key, _| key.2 <= last(&key))?;
    let known: BTreeSet<u32> = models.values().copied().collect();
    tx.open_table(STATES)?.retain(|key, _| known.contains(&key.0))?;
    tx.open_table(MODELS)?.retain(|name, _| models.contains_key(name))?;
    Ok(())
}

/// Applies one change. Returns the number of the first step that it wrote.
fn apply_change(
    tx: &WriteTransaction,
    op: &StoreChange,
    numbers: &mut BTreeMap<PhaseKey, LastNumbers>,
    models: &mut BTreeMap<String, u32>,
) -> Result<Option<u64>, redb::Error> {
    match op {
        StoreChange::Model { name, number, shape } => {
            models.insert(name.clone(), *number);
            tx.open_table(MODELS)?.insert(name.as_str(), (*number, shape.as_str()))?;
        }
        StoreChange::Steps { phase, run, rows } => {
            let of = numbers.entry(*phase).or_default();
            let first = of.last + 1;
            if of.run != run.number {
                let value = (run.number, run.id.as_deref().unwrap_or_default(), run.first);
                tx.open_table(RUNS)?.insert((phase.0, phase.1, first), value)?;
                of.run = run.number;
            }
            let (mut steps, mut ids) = (tx.open_table(STEPS)?, tx.open_table(IDS)?);
            for row in rows {
                of.last += 1;
                let key = (phase.0, phase.1, of.last);
                steps.insert(key, (row.id, row.bytes.as_slice()))?;
                ids.insert(key, (row.id, row.digest))?;
            }
            return Ok(Some(first));
        }
        StoreChange::State { phase, bytes } => {
            tx.open_table(STATES)?.insert(*phase, bytes.as_slice())?;
        }
        StoreChange::Decision { phase, number, json } => {
            tx.open_table(DECISIONS)?.insert((phase.0, phase.1, *number), json.as_str())?;
        }
        StoreChange::Plan { phase, version, bytes } => {
            tx.open_table(PLANS)?.insert((phase.0, phase.1, *version), bytes.as_slice())?;
        }
        StoreChange::Forget { phase, steps, idle, ids, decisions, plans } => {
            let below = |number: u64| (phase.0, phase.1, 0)..(phase.0, phase.1, number);
            let mut table = tx.open_table(STEPS)?;
            table.retain_in(below(*steps), |_, _| false)?;
            for number in idle {
                table.remove((phase.0, phase.1, *number))?;
            }
            // The digest of a step verifies its counts, so it stays as long as they do.
            tx.open_table(IDS)?.retain_in(below(*ids.min(steps)), |_, _| false)?;
            let mut runs = tx.open_table(RUNS)?;
            let current = runs.range(below(*ids.min(steps) + 1))?.next_back().transpose()?;
            let current = current.map_or(0, |(key, _)| key.value().2);
            runs.retain_in(below(current), |_, _| false)?;
            tx.open_table(DECISIONS)?.retain_in(below(*decisions), |_, _| false)?;
            tx.open_table(PLANS)?.retain_in(below(*plans), |_, _| false)?;
        }
        StoreChange::Delete { name, number } => {
            models.remove(name);
            tx.open_table(MODELS)?.remove(name.as_str())?;
            let all = (*number, 0, 0)..=(*number, u8::MAX, u64::MAX);
            tx.open_table(STEPS)?.retain_in(all.clone(), |_, _| false)?;
            tx.open_table(IDS)?.retain_in(all.clone(), |_, _| false)?;
            tx.open_table(RUNS)?.retain_in(all.clone(), |_, _| false)?;
            tx.open_table(DECISIONS)?.retain_in(all.clone(), |_, _| false)?;
            tx.open_table(PLANS)?.retain_in(all, |_, _| false)?;
            tx.open_table(STATES)?.retain_in((*number, 0)..=(*number, u8::MAX), |_, _| false)?;
            numbers.retain(|phase, _| phase.0 != *number);
        }
    }
    Ok(None)
}
