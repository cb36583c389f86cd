//! Batches token by token, from per-token arrays, for figures that counts alone cannot give.
//!
//! Input is the same files and options as for [`read`](fn@super::read). Output is a [`TokenTrace`] with the
//! expert ids of every token of every batch. Its batches are those of the trace of counts, step by step.

use super::read::read_into;
use super::{TokenTrace, TraceError};
use crate::{ReadOptions, ReadProgress};
use evenkeel::trace::build::SinkError;
use evenkeel::trace::build::TraceBuilder;
use evenkeel::trace::build::{Sink, StepLabel};
use std::path::PathBuf;

/// Reads per-token arrays. The ids of all batches are held, two bytes each, within the memory of the options.
///
/// # Errors
/// The errors are those of [`read`](fn@super::read). It also fails if the files hold only counts, or if the
/// ids do not fit.
pub fn read_tokens(
    paths: &[PathBuf],
    options: &ReadOptions,
    progress: &dyn ReadProgress,
) -> Result<TokenTrace, TraceError> {
    let mut collector = TokenCollector {
        builder: TraceBuilder::new(options)?,
        batches: Vec::new(),
        shape: None,
        held_bytes: 0,
        memory: options.memory,
    };
    let (formats, files) = read_into(paths, options, progress, &mut collector)?;
    let TokenCollector { builder, batches, shape, .. } = collector;
    let trace = builder.finish(formats, files)?;
    let Some((width, top_k)) = shape.filter(|_| batches.len() == trace.steps().len()) else {
        return Err(TraceError::Options(
            "no ids of single tokens: expected a per-token array (.npy, .npz), and memory for all its steps"
                .into(),
        ));
    };
    let places = trace.layers().iter().map(|&layer| layer as usize).collect();
    Ok(TokenTrace::from_batches(trace, top_k, width, places, batches))
}

/// A sink that builds the trace and keeps the ids.
struct TokenCollector {
    builder: TraceBuilder,
    batches: Vec<Vec<u16>>,
    /// The layers and the top-k of the arrays.
    shape: Option<(usize, usize)>,
    held_bytes: u64,
    memory: u64,
}

impl Sink for TokenCollector {
    fn announce_sources(&mut self) {
        self.builder.announce_sources();
    }

    fn begin_source(&mut self) {
        self.builder.begin_source();
    }

    fn select_step(&mut self, label: StepLabel<'_>) -> Result<(), SinkError> {
        self.builder.select_step(label)
    }

    fn add_row(&mut self, layer: u32, expert: u32, tokens: u64, source: &[u8]) -> Result<(), SinkError> {
        self.builder.add_row(layer, expert, tokens, source)
    }

    fn add_counts(&mut self, layer: u32, counts: &[u64]) -> Result<(), SinkError> {
        self.builder.add_counts(layer, counts)
    }

    fn declare_experts(&mut self, experts: usize) -> Result<(), SinkError> {
        self.builder.declare_experts(experts)
    }

    fn wants_token_ids(&self) -> bool {
        true
    }

    fn add_token_ids(&mut self, layers: usize, top_k: usize, ids: Vec<u16>) -> Result<(), SinkError> {
        self.held_bytes += 2 * ids.len() as u64;
        if self.held_bytes > self.memory || *self.shape.get_or_insert((layers, top_k)) != (layers, top_k) {
            return Err(SinkError::TokenIds { memory: self.memory });
        }
        self.batches.push(ids);
        Ok(())
    }

    fn add_notice(&mut self, text: String) {
        self.builder.add_notice(text);
    }
}
