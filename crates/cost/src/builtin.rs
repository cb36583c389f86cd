//! Databases that are part of the crate, one JSON file per GPU in `tables/`.

use crate::database::{CostDatabase, CostError};

/// Name and text of every table.
const TABLES: [(&str, &str); 8] = [
    ("a100", include_str!("../tables/a100.json")),
    ("h100", include_str!("../tables/h100.json")),
    ("h200", include_str!("../tables/h200.json")),
    ("b200", include_str!("../tables/b200.json")),
    ("b300", include_str!("../tables/b300.json")),
    ("gb200", include_str!("../tables/gb200.json")),
    ("gb300", include_str!("../tables/gb300.json")),
    ("l40s", include_str!("../tables/l40s.json")),
];

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
