//! Cells of the table of deployments, for text and HTML.

use crate::search::Deployment;

/// Names of the columns of [`Deployment::cells`].
pub const DEPLOYMENT_COLUMNS: [&str; 13] = [
    "policy",
    "split",
    "GPUs",
    "experts by",
    "attention tp",
    "pp",
    "redundant",
    "batch",
    "tokens/s/GPU",
    "TPOT ms",
    "TTFT ms",
    "GB",
    "imbalance",
];

impl Deployment {
    /// Returns the cells of a row, one per name of [`DEPLOYMENT_COLUMNS`].
    pub fn cells(&self) -> [String; 13] {
        [
            self.choice.policy.name().to_owned(),
            self.choice.split().to_string(),
            self.parallel.gpus().to_string(),
            self.parallel.experts_by(),
            self.parallel.attention_tp.to_string(),
            self.parallel.pp.to_string(),
            self.choice.redundant.to_string(),
            self.batch.to_string(),
            format!("{:.0}", self.tokens_per_s_per_gpu),
            format!("{:.1}", self.tpot_ms),
            format!("{:.0}", self.prefill.ttft_ms),
            format!("{:.0}", self.memory.total() / 1e9),
            format!("{:.2}", self.imbalance),
        ]
    }
}
