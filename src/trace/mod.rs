//! Routing statistics: tokens per step, layer and expert.
//!
//! In: counts in memory ([`Trace::from_loads`]), or rows of a reader ([`build`]). Out: one [`Trace`], a dense
//! array `[step][layer][expert]` of token counts. It also holds the layers' real ids, the steps' labels and
//! notices about the source ([`Trace::notices`]).
//!
//! The crate `evenkeel-trace` reads files, with one reader per [`TraceFormat`]. Every reader pushes rows into
//! a
//! [`build::Sink`].

mod audit;
mod blend;
pub mod build;
mod builder;
mod error;
mod join;
mod load_skew;
mod options;
mod resampling;
mod sink;
mod step_index;
mod tokens;
mod whole_number;

pub use blend::WeightedTrace;
pub use error::{Location, TraceError};
pub use load_skew::LoadSkew;
pub use options::{Batching, LayerSet, ReadOptions, ReadProgress, RequestOrder, TraceFormat};
pub use resampling::Resampling;
pub use tokens::TokenTrace;

use std::path::PathBuf;

/// Highest number of experts of a layer.
pub use crate::cluster::MAX_EXPERTS;
/// Highest number of layers. Layer ids are below it.
pub const MAX_LAYERS: usize = 4_096;
/// Highest number of distinct steps of a trace.
pub const MAX_STEPS: u64 = 1 << 26;

/// Token counts of a recorded or synthetic run.
///
/// One *step* is one batch of the model. Every layer routes the same tokens.
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
    /// Counts per step, `[layer][expert]`.
    loads: Vec<Vec<u64>>,
    /// `[layer][expert]` over every row, including steps that are no longer held.
    totals: Vec<u64>,
    notices: Vec<String>,
    files: Vec<SourceFile>,
    /// Distinct formats in order of appearance.
    formats: Vec<TraceFormat>,
    resampling: Option<Resampling>,
}

/// File from which a [`Trace`] was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Path from the command line, or of a file in a folder from there.
    pub path: PathBuf,
    /// Lower-case hex SHA-256 of the bytes.
    pub sha256: String,
}

impl Trace {
    /// Creates a trace from counts `[step][layer][expert]` in memory. Layer ids ascend.
    ///
    /// # Errors
    /// Fails if lengths, limits or the order of layers are violated, or if the sum of all tokens exceeds 64
    /// bits.
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

    /// Returns the number of logical experts per layer, `E`.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Returns the real layer ids, ascending. An index into this list is the layer index elsewhere.
    pub fn layers(&self) -> &[u32] {
        &self.layers
    }

    /// Returns the labels of the held steps, in order.
    pub fn steps(&self) -> &[String] {
        &self.steps
    }

    /// Returns the tokens per expert, `[E]`, of one batch of one layer (both by index).
    pub fn loads(&self, step: usize, layer: usize) -> &[u64] {
        &self.loads[step][layer * self.experts..(layer + 1) * self.experts]
    }

    /// Returns the tokens per expert, `[E]`, of one layer over everything that was read.
    pub fn totals(&self, layer: usize) -> &[u64] {
        &self.totals[layer * self.experts..(layer + 1) * self.experts]
    }

    /// Returns notices for the user about the interpretation of the files, one sentence each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Returns the source files, in order.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// Returns the format of the source. A trace created in memory has [`TraceFormat::Csv`], the project's
    /// own format.
    pub fn format(&self) -> TraceFormat {
        self.formats.first().copied().unwrap_or(TraceFormat::Csv)
    }

    /// Returns the formats of all source files, in order of appearance.
    pub fn formats(&self) -> &[TraceFormat] {
        if self.formats.is_empty() { &[TraceFormat::Csv] } else { &self.formats }
    }

    /// Returns the method by which unrecorded steps were drawn. A blend has that of its first trace.
    pub fn resampling(&self) -> Option<&Resampling> {
        self.resampling.as_ref()
    }

    /// Returns true if the trace is a single step of counts, which are totals over unrecorded batches.
    ///
    /// A single batch that was cut from a per-token array does not count as totals. Neither does the rest of
    /// a trace that exceeded the memory.
    pub fn holds_totals(&self) -> bool {
        self.resampling.is_none()
            && self.formats().iter().all(|format| !format.holds_tokens())
            && matches!(self.loads.as_slice(), [only] if *only == self.totals)
    }

    /// Adds a notice.
    pub fn add_notice(&mut self, notice: String) {
        self.notices.push(notice);
    }

    /// Returns true if the trace holds no tokens at all.
    pub fn is_empty(&self) -> bool {
        self.totals.iter().all(|&tokens| tokens == 0)
    }

    /// Returns the indices of layers without tokens: dense layers, or unused ones.
    pub fn idle_layers(&self) -> Vec<usize> {
        (0..self.layers.len()).filter(|&layer| self.totals(layer).iter().all(|&tokens| tokens == 0)).collect()
    }

    /// Returns the trace with the method by which its steps were drawn.
    #[must_use]
    pub fn with_resampling(mut self, resampling: Resampling) -> Self {
        self.resampling = Some(resampling);
        self
    }

    /// Returns the trace with the totals, files, formats and notices of another trace of the same shape.
    #[must_use]
    pub fn with_origin_of(mut self, other: &Trace) -> Self {
        self.totals.clone_from(&other.totals);
        self.formats.clone_from(&other.formats);
        self.files.clone_from(&other.files);
        self.notices.clone_from(&other.notices);
        self
    }

    /// Adds a notice that names the idle layers.
    fn note_idle_layers(&mut self) {
        let idle = self.idle_layers();
        if idle.len() == self.layers.len() {
            self.notices.push("the trace holds no tokens at all: every count is zero".into());
        } else if !idle.is_empty() {
            let ids: Vec<u32> = idle.iter().map(|&layer| self.layers[layer]).collect();
            self.notices.push(format!("no tokens in layers {}: dense or unused", id_list(&ids)));
        }
    }
}

/// Formats ascending ids as `0-2,7`.
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
