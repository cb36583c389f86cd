//! Routing statistics: how many tokens each expert of each layer drew, step by step.
//!
//! In: files of any format in [`Format`], or a recipe for synthetic ones ([`synth`]). Out:
//! one [`Trace`], a dense array `[step][layer][expert]` of token counts with the layers'
//! real ids, the steps' labels and whatever had to be said about the file
//! ([`Trace::notices`]).
//!
//! Every reader pours rows into one kind of sink, so reading into memory and converting to
//! another file share all of them. Nothing here executes what a file contains, and nothing
//! panics on it: malformed input is a [`TraceError`] that says where and what was expected.

mod batches;
mod blend;
mod builder;
pub(crate) mod dice;
mod error;
mod input;
mod json;
mod long_csv;
mod npy;
mod open;
mod options;
#[cfg(feature = "parquet")]
mod parquet;
mod pickle;
mod plan;
mod recognise;
mod requests;
mod sglang;
mod sglang_csv;
mod sink;
mod skew;
mod step_index;
pub mod synth;
mod table;
mod tokens;
mod torch;
mod trtllm;
mod vllm;
mod write;

pub use error::{Place, TraceError};
pub use open::{read, read_bytes};
pub use options::{Batching, Format, LayerSet, Order, Progress, ReadOptions};
pub use skew::Skew;
pub use tokens::{TokenTrace, read_tokens};
pub use write::{Written, convert, write};

use std::path::PathBuf;

/// Most experts of a layer.
pub const MAX_EXPERTS: usize = 65_536;
/// Most layers, and one more than the highest layer id.
pub const MAX_LAYERS: usize = 4_096;
/// Most distinct steps of a trace.
pub const MAX_STEPS: u64 = 1 << 26;

/// Token counts of a recorded or synthetic run.
///
/// One *step* is one batch of the model: every layer routes the same tokens.
///
/// ```
/// use evenkeel::trace::Trace;
///
/// // One step, layers 3 and 4, two experts each.
/// let trace = Trace::from_loads(2, vec![3, 4], vec!["0".into()], vec![5, 1, 0, 0])?;
/// assert_eq!(trace.loads(0, 0), [5, 1]);
/// assert_eq!(trace.idle_layers(), [1]);
/// # Ok::<(), evenkeel::trace::TraceError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Trace {
    experts: usize,
    layers: Vec<u32>,
    steps: Vec<String>,
    /// Per step `[layer][expert]`.
    loads: Vec<Vec<u64>>,
    /// `[layer][expert]`, over every row read, kept steps or not.
    totals: Vec<u64>,
    notices: Vec<String>,
    files: Vec<SourceFile>,
    /// Distinct, in order of appearance.
    formats: Vec<Format>,
    resampling: Option<synth::Resampling>,
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
    /// A trace from counts `[step][layer][expert]` in memory; layer ids ascending.
    ///
    /// # Errors
    /// When lengths, limits or the order of layers do not hold, or all tokens together
    /// exceed 64 bits.
    pub fn from_loads(
        experts: usize,
        layers: Vec<u32>,
        steps: Vec<String>,
        loads: Vec<u64>,
    ) -> Result<Self, TraceError> {
        let wrong = |what: String| Err(TraceError::Options(what));
        if !(1..=MAX_EXPERTS).contains(&experts) {
            return wrong(format!("{experts} experts, expected 1 to {MAX_EXPERTS}"));
        }
        if layers.is_empty() || layers.len() > MAX_LAYERS || !layers.is_sorted_by(|a, b| a < b) {
            return wrong(format!("{} layers, expected 1 to {MAX_LAYERS} ascending ids", layers.len()));
        }
        if steps.len() as u64 > MAX_STEPS {
            return wrong(format!("{} steps, expected at most {MAX_STEPS}", steps.len()));
        }
        let width = experts * layers.len();
        if steps.len().checked_mul(width) != Some(loads.len()) {
            return wrong(format!(
                "{} counts for {} steps x {} layers x {experts} experts",
                loads.len(),
                steps.len(),
                layers.len()
            ));
        }
        if loads.iter().try_fold(0u64, |sum, &tokens| sum.checked_add(tokens)).is_none() {
            return wrong("more than 2^64 tokens in all".into());
        }
        let mut totals = vec![0; width];
        let mut rest = loads.into_iter();
        let loads: Vec<Vec<u64>> = steps.iter().map(|_| rest.by_ref().take(width).collect()).collect();
        for step in &loads {
            for (total, tokens) in totals.iter_mut().zip(step) {
                *total += tokens;
            }
        }
        Ok(Self {
            experts,
            layers,
            steps,
            loads,
            totals,
            notices: vec![],
            files: vec![],
            formats: vec![],
            resampling: None,
        })
    }

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
        &self.loads[step][layer * self.experts..(layer + 1) * self.experts]
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

    /// The format read; [`Format::Csv`], this project's own, for a trace made in memory.
    pub fn format(&self) -> Format {
        self.formats.first().copied().unwrap_or(Format::Csv)
    }

    /// All formats read, in order of appearance.
    pub fn formats(&self) -> &[Format] {
        if self.formats.is_empty() { &[Format::Csv] } else { &self.formats }
    }

    /// How the steps were drawn, where they were not recorded; of a blend, those of its first trace.
    pub fn resampling(&self) -> Option<&synth::Resampling> {
        self.resampling.as_ref()
    }

    /// Whether the trace is a single step of counts: totals over batches that nobody recorded.
    ///
    /// A single batch that was cut from a per-token array is none, and neither is what is left of a trace that did not
    /// fit into memory.
    pub fn holds_totals(&self) -> bool {
        self.resampling.is_none()
            && self.formats().iter().all(|format| !format.holds_tokens())
            && matches!(self.loads.as_slice(), [only] if *only == self.totals)
    }

    /// Adds a notice.
    pub fn note(&mut self, notice: String) {
        self.notices.push(notice);
    }

    /// Are there no tokens at all?
    pub fn is_empty(&self) -> bool {
        self.totals.iter().all(|&tokens| tokens == 0)
    }

    /// Indices of layers that drew no tokens: dense layers, or unused ones.
    pub fn idle_layers(&self) -> Vec<usize> {
        (0..self.layers.len()).filter(|&layer| self.totals(layer).iter().all(|&tokens| tokens == 0)).collect()
    }

    /// Puts idle layers into the notices.
    fn note_idle(&mut self) {
        let idle = self.idle_layers();
        if idle.len() == self.layers.len() {
            self.notices.push("the trace holds no tokens at all: every count is zero".into());
        } else if !idle.is_empty() {
            let ids: Vec<u32> = idle.iter().map(|&layer| self.layers[layer]).collect();
            self.notices.push(format!("no tokens in layers {}: dense or unused", id_list(&ids)));
        }
    }
}

/// Ascending ids as `0-2,7`.
fn id_list(ids: &[u32]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut at = 0;
    while at < ids.len() {
        let first = ids[at];
        while at + 1 < ids.len() && ids[at + 1] == ids[at] + 1 {
            at += 1;
        }
        parts.push(if ids[at] == first { first.to_string() } else { format!("{first}-{}", ids[at]) });
        at += 1;
    }
    parts.join(",")
}
