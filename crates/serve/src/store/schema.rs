//! The tables of the store, and the reader of its content at the start.

use super::error::{StateStoreError, redb_error};
use super::{EngineRun, PhaseKey, SCHEMA};
use crate::Phase;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::path::Path;

/// Model, phase, number.
pub(super) type RowKey = (u32, u8, u64);

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// Name -> number and shape.
pub(super) const MODELS: TableDefinition<'_, &str, (u32, &str)> = TableDefinition::new("models");
/// Accepted -> step id and counts.
pub(super) const STEPS: TableDefinition<'_, RowKey, (u64, &[u8])> = TableDefinition::new("steps");
/// Accepted -> step id and digest. Digests are kept longer than steps.
pub(super) const IDS: TableDefinition<'_, RowKey, (u64, [u8; 16])> = TableDefinition::new("ids");
/// First accepted step of a run -> its number, the poster's id (empty: none), its first step number.
pub(super) const RUNS: TableDefinition<'_, RowKey, (u32, &str, u64)> = TableDefinition::new("runs");
pub(super) const STATES: TableDefinition<'_, PhaseKey, &[u8]> = TableDefinition::new("states");
pub(super) const DECISIONS: TableDefinition<'_, RowKey, &str> = TableDefinition::new("decisions");
pub(super) const PLANS: TableDefinition<'_, RowKey, &[u8]> = TableDefinition::new("plans");

/// A stored model.
#[derive(Debug)]
pub(crate) struct StoredModel {
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) shape: String,
    pub(crate) phases: Vec<StoredPhase>,
}

/// A stored phase.
#[derive(Debug)]
pub(crate) struct StoredPhase {
    pub(crate) phase: Phase,
    pub(crate) state: Vec<u8>,
    /// (accepted, step number, digest), oldest first.
    pub(crate) ids: Vec<(u64, u64, [u8; 16])>,
    /// (accepted, step number, packed counts), oldest first.
    pub(crate) steps: Vec<(u64, u64, Vec<u8>)>,
    /// The first accepted step of each run, oldest first.
    pub(crate) runs: Vec<(u64, EngineRun)>,
    pub(crate) decisions: Vec<String>,
}

/// Reads the whole content of the store.
pub(super) fn read_models(path: &Path, db: &Database) -> Result<Vec<StoredModel>, StateStoreError> {
    let fail = |error: redb::Error| redb_error(path, error);
    check_schema(path, db)?;
    let tx = db.begin_read().map_err(|e| fail(e.into()))?;
    let mut models = Vec::new();
    let table = tx.open_table(MODELS).map_err(|e| fail(e.into()))?;
    for entry in table.iter().map_err(|e| fail(e.into()))? {
        let (name, value) = entry.map_err(|e| fail(e.into()))?;
        let (number, shape) = value.value();
        models.push(StoredModel { name: name.value().into(), number, shape: shape.into(), phases: vec![] });
    }
    let states = tx.open_table(STATES).map_err(|e| fail(e.into()))?;
    let (ids, steps) =
        (tx.open_table(IDS).map_err(|e| fail(e.into()))?, tx.open_table(STEPS).map_err(|e| fail(e.into()))?);
    let decisions = tx.open_table(DECISIONS).map_err(|e| fail(e.into()))?;
    let runs = tx.open_table(RUNS).map_err(|e| fail(e.into()))?;
    for model in &mut models {
        for phase in Phase::ALL {
            let phase_key = (model.number, phase.code());
            let Some(state) = states.get(phase_key).map_err(|e| fail(e.into()))? else { continue };
            let range = (phase_key.0, phase_key.1, 0)..=(phase_key.0, phase_key.1, u64::MAX);
            let mut stored = StoredPhase {
                phase,
                state: state.value().to_vec(),
                ids: vec![],
                steps: vec![],
                runs: vec![],
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
            for entry in runs.range(range.clone()).map_err(|e| fail(e.into()))? {
                let (key, value) = entry.map_err(|e| fail(e.into()))?;
                let (number, id, first) = value.value();
                let id = Some(id.to_owned()).filter(|id| !id.is_empty());
                stored.runs.push((key.value().2, EngineRun { number, id, first }));
            }
            for entry in decisions.range(range).map_err(|e| fail(e.into()))? {
                stored.decisions.push(entry.map_err(|e| fail(e.into()))?.1.value().to_owned());
            }
            model.phases.push(stored);
        }
    }
    Ok(models)
}

/// Creates the tables of a new store. Refuses a store with another layout.
fn check_schema(path: &Path, db: &Database) -> Result<(), StateStoreError> {
    let fail = |error: redb::Error| redb_error(path, error);
    let tx = db.begin_read().map_err(|e| fail(e.into()))?;
    match tx.open_table(META) {
        Ok(meta) => {
            let get = |key: &str| -> Result<String, StateStoreError> {
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
                "start with another --data folder; history starts over"
            };
            Err(StateStoreError::Schema { path: path.display().to_string(), found, by: get("by")?, advice })
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
                tx.open_table(RUNS).map_err(|e| fail(e.into()))?;
                tx.open_table(STATES).map_err(|e| fail(e.into()))?;
                tx.open_table(DECISIONS).map_err(|e| fail(e.into()))?;
                tx.open_table(PLANS).map_err(|e| fail(e.into()))?;
            }
            tx.commit().map_err(|e| fail(e.into()))
        }
        Err(error) => Err(fail(error.into())),
    }
}
