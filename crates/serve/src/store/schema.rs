//! What a store holds: its tables, and all of it read at the start.

use super::Phase;
use super::store::{LaneKey, SCHEMA};
use super::store_error::{StoreError, of_redb};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::path::Path;

/// Model, phase, number.
type Key = (u32, u8, u64);

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// Name -> number and shape.
pub(super) const MODELS: TableDefinition<'_, &str, (u32, &str)> = TableDefinition::new("models");
/// Accepted -> step id and counts.
pub(super) const STEPS: TableDefinition<'_, Key, (u64, &[u8])> = TableDefinition::new("steps");
/// Accepted -> step id and digest: remembered longer than the steps.
pub(super) const IDS: TableDefinition<'_, Key, (u64, [u8; 16])> = TableDefinition::new("ids");
pub(super) const STATES: TableDefinition<'_, LaneKey, &[u8]> = TableDefinition::new("states");
pub(super) const DECISIONS: TableDefinition<'_, Key, &str> = TableDefinition::new("decisions");
pub(super) const PLANS: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("plans");

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

/// Everything that is stored.
pub(super) fn read(path: &Path, db: &Database) -> Result<Vec<StoredModel>, StoreError> {
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
