//! The text of a plan in every format. Each text is written once and shared by all replies.

use bytes::Bytes;
use evenkeel::export::{self, Dialect};
use evenkeel::plan::Plan;
use std::sync::OnceLock;

/// The texts of one plan.
#[derive(Debug)]
pub(crate) struct PlanTexts {
    own: Bytes,
    dialects: [OnceLock<Result<Bytes, String>>; Dialect::ALL.len()],
}

impl PlanTexts {
    /// Returns the texts, with the one in evenkeel's own format at hand.
    pub(crate) fn new(own: String) -> Self {
        Self { own: own.into(), dialects: Default::default() }
    }

    /// Returns the text in a dialect, or in evenkeel's own format. The error states why the dialect cannot
    /// hold the plan.
    pub(crate) fn get(&self, plan: &Plan, dialect: Option<Dialect>) -> Result<Bytes, String> {
        let Some(dialect) = dialect else { return Ok(self.own.clone()) };
        let at = Dialect::ALL.iter().position(|&known| known == dialect).unwrap_or_default();
        let write = || export::write(plan, dialect).map(Bytes::from).map_err(|error| error.to_string());
        self.dialects[at].get_or_init(write).clone()
    }
}
