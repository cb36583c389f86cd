//! Batches token by token, from per-token arrays: for whatever counts cannot tell.
//!
//! In: the same files and options as [`read`](super::read). Out: a [`TokenTrace`], the expert ids of every token of every
//! batch; the batches are those of the trace of counts, step by step.

use super::builder::Builder;
use super::error::Fault;
use super::npy::PADDING;
use super::open::pour;
use super::options::{Progress, ReadOptions};
use super::sink::{Label, Sink};
use super::{Trace, TraceError};
use std::path::PathBuf;

/// A [`Trace`] with the expert ids behind its counts.
#[derive(Debug, Clone)]
pub struct TokenTrace {
    trace: Trace,
    top_k: usize,
    /// Layers of the arrays, by which `batches` is laid out.
    width: usize,
    /// The real id of each layer of the trace: its place in the arrays.
    places: Vec<usize>,
    /// Per step `[token][array layer][top_k]`.
    batches: Vec<Vec<u16>>,
}

impl TokenTrace {
    /// The counts.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Experts that each token draws in each layer.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// The experts of every token of one batch of one layer (both by index), `[token][top_k]`; -1 for none.
    pub fn ids(&self, step: usize, layer: usize) -> Vec<i32> {
        let place = self.places[layer] * self.top_k;
        let token = self.width * self.top_k;
        self.batches[step]
            .chunks_exact(token.max(1))
            .flat_map(|ids| &ids[place..place + self.top_k])
            .map(|&id| if id == PADDING { -1 } else { i32::from(id) })
            .collect()
    }
}

/// Reads per-token arrays; the ids of all batches are held, two bytes each, within the memory of the options.
///
/// # Errors
/// As [`read`](super::read); also when the files hold counts alone, or the ids do not fit.
pub fn read_tokens(
    paths: &[PathBuf],
    options: &ReadOptions,
    progress: &dyn Progress,
) -> Result<TokenTrace, TraceError> {
    let mut collector = Collector {
        builder: Builder::new(options)?,
        batches: Vec::new(),
        shape: None,
        held: 0,
        memory: options.memory,
    };
    let (formats, files) = pour(paths, options, progress, &mut collector)?;
    let Collector { builder, batches, shape, .. } = collector;
    let trace = builder.finish(formats, files)?;
    let Some((width, top_k)) = shape.filter(|_| batches.len() == trace.steps().len()) else {
        return Err(TraceError::Options(
            "no ids of single tokens: expected a per-token array (.npy, .npz), and memory for all its steps"
                .into(),
        ));
    };
    let places = trace.layers().iter().map(|&layer| layer as usize).collect();
    Ok(TokenTrace { trace, top_k, width, places, batches })
}

/// Builds the trace and keeps the ids.
struct Collector {
    builder: Builder,
    batches: Vec<Vec<u16>>,
    /// Layers and top-k of the arrays.
    shape: Option<(usize, usize)>,
    held: u64,
    memory: u64,
}

impl Sink for Collector {
    fn begin(&mut self) {
        self.builder.begin();
    }

    fn step(&mut self, label: Label<'_>) -> Result<(), Fault> {
        self.builder.step(label)
    }

    fn row(&mut self, layer: u32, expert: u32, tokens: u64, source: &[u8]) -> Result<(), Fault> {
        self.builder.row(layer, expert, tokens, source)
    }

    fn counts(&mut self, layer: u32, counts: &[u64]) -> Result<(), Fault> {
        self.builder.counts(layer, counts)
    }

    fn experts(&mut self, experts: usize) -> Result<(), Fault> {
        self.builder.experts(experts)
    }

    fn wants_token_ids(&self) -> bool {
        true
    }

    fn token_ids(&mut self, layers: usize, top_k: usize, ids: Vec<u16>) -> Result<(), Fault> {
        self.held += 2 * ids.len() as u64;
        if self.held > self.memory || *self.shape.get_or_insert((layers, top_k)) != (layers, top_k) {
            return Err(Fault::TokenIds { memory: self.memory });
        }
        self.batches.push(ids);
        Ok(())
    }

    fn notice(&mut self, text: String) {
        self.builder.notice(text);
    }
}
