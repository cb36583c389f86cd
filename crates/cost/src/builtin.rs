//! Databases that are part of the crate, one JSON file per GPU in `tables/`.

use crate::database::{CostDatabase, CostError};

/// Name and text of every table.
const TABLES: &[(&str, &str)] = &[];

/// Returns the names of the GPUs with a table in the crate.
pub fn builtin_gpus() -> Vec<&'static str> {
    TABLES.iter().map(|(gpu, _)| *gpu).collect()
}

impl CostDatabase {
    /// Returns the table of a GPU that is part of the crate.
    ///
    /// # Errors
    /// Fails if there is none, and lists the ones that there are.
    pub fn builtin(gpu: &str) -> Result<Self, CostError> {
        let Some((_, text)) = TABLES.iter().find(|(name, _)| *name == gpu) else {
            return Err(CostError::UnknownGpu { gpu: gpu.to_owned(), known: builtin_gpus().join(", ") });
        };
        Self::from_json(text)
    }
}
