//! Routing statistics: how many tokens each expert of each layer drew, step by step.
//!
//! In: files of any format in [`Format`]. Out: one [`Trace`], a dense array
//! `[step][layer][expert]` of token counts with the layers' real ids, the steps' labels
//! and whatever had to be said about the file ([`Trace::notices`]).

use std::path::PathBuf;

/// Token counts of a recorded or synthetic run.
///
/// One *step* is one batch of the model: every layer routes the same tokens.
#[derive(Debug, Clone)]
pub struct Trace {
    experts: usize,
    layers: Vec<u32>,
    steps: Vec<String>,
    /// `[step][layer][expert]`
    loads: Vec<u64>,
    /// `[layer][expert]`, over every row read, kept steps or not.
    totals: Vec<u64>,
    notices: Vec<String>,
    files: Vec<SourceFile>,
}

/// A file that a [`Trace`] was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// As given on the command line, or found in a folder that was.
    pub path: PathBuf,
    /// Lower-case hex SHA-256 of the bytes.
    pub sha256: String,
}

impl Trace {
    /// Logical experts per layer, `E`.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Real layer ids, ascending. Index into this list = layer index elsewhere.
    pub fn layers(&self) -> &[u32] {
        &self.layers
    }

    /// Labels of the steps held, in order.
    pub fn steps(&self) -> &[String] {
        &self.steps
    }

    /// Tokens per expert, `[E]`, of one batch of one layer (both by index).
    pub fn loads(&self, step: usize, layer: usize) -> &[u64] {
        let at = (step * self.layers.len() + layer) * self.experts;
        &self.loads[at..at + self.experts]
    }

    /// Tokens per expert, `[E]`, of one layer over everything that was read.
    pub fn totals(&self, layer: usize) -> &[u64] {
        &self.totals[layer * self.experts..(layer + 1) * self.experts]
    }

    /// What a user should know about how the files were understood, one sentence each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The files read, in order.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }
}
