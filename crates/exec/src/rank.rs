//! One layer on the ranks of this process: the phases of a rank, and the loop over them.
//!
//! Every phase runs on all ranks of this process before the next begins. Ranks of both backends are one
//! implementation of [`Rank`] each, and a recorded CUDA graph contains the same loop.

use crate::error::ExecError;
use std::time::{Duration, Instant};

/// The data that ranks exchange between two phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// Tokens per expert of every source.
    Counts,
    /// Rows per slot of every source.
    Rows,
    /// The tokens whose experts are in a chunk of slots.
    Tokens(usize),
    /// The answers to all tokens.
    Answers,
}

/// One rank in one layer. `L` contains the data that the ranks of this process share in the layer. The
/// methods are the phases, in their order.
pub(crate) trait Rank<L>: Sized {
    /// Norms and routes the tokens.
    fn route(&mut self, layer: &mut L) -> Result<(), ExecError>;

    /// Counts the tokens per expert.
    fn count(&mut self, layer: &mut L) -> Result<(), ExecError>;

    /// Splits the counts of all sources, and selects the slots that serve the tokens.
    fn split(&mut self, layer: &mut L) -> Result<(), ExecError>;

    /// Counts the rows per slot, unless they are announced together with the tokens.
    fn count_rows(&mut self, _layer: &mut L) -> Result<(), ExecError> {
        Ok(())
    }

    /// Packs the tokens and begins to send them.
    fn send_tokens(&mut self, layer: &mut L) -> Result<(), ExecError>;

    /// Begins to copy experts into dynamic slots, while tokens travel.
    fn send_copies(&mut self, _layer: &mut L) -> Result<(), ExecError> {
        Ok(())
    }

    /// Receives the tokens of a chunk, unless its experts do.
    fn receive_tokens(&mut self, _layer: &mut L, _chunk: usize) -> Result<(), ExecError> {
        Ok(())
    }

    /// Runs the experts of a chunk, and sends their answers.
    fn run_experts(&mut self, layer: &mut L, chunk: usize) -> Result<(), ExecError>;

    /// Receives the answers to the tokens.
    fn receive_answers(&mut self, layer: &mut L) -> Result<(), ExecError>;

    /// Exchanges data between the ranks of this process and with other processes. A rank may still wait for
    /// the data in its next phase.
    fn exchange(ranks: &mut [Self], layer: &mut L, data: Exchange) -> Result<(), ExecError>;
}

/// Runs one layer on the ranks of this process, in `chunks` chunks of slots. Returns the time from the
/// beginning of the dispatch to the arrival of all answers, or the time of enqueueing both.
pub(crate) fn run_layer<L, R: Rank<L>>(
    ranks: &mut [R],
    layer: &mut L,
    chunks: usize,
) -> Result<Duration, ExecError> {
    ranks.iter_mut().try_for_each(|rank| rank.route(layer))?;
    ranks.iter_mut().try_for_each(|rank| rank.count(layer))?;
    R::exchange(ranks, layer, Exchange::Counts)?;
    ranks.iter_mut().try_for_each(|rank| rank.split(layer))?;
    let begun = Instant::now();
    ranks.iter_mut().try_for_each(|rank| rank.count_rows(layer))?;
    R::exchange(ranks, layer, Exchange::Rows)?;
    ranks.iter_mut().try_for_each(|rank| rank.send_tokens(layer))?;
    ranks.iter_mut().try_for_each(|rank| rank.send_copies(layer))?;
    for chunk in 0..chunks {
        R::exchange(ranks, layer, Exchange::Tokens(chunk))?;
        ranks.iter_mut().try_for_each(|rank| rank.receive_tokens(layer, chunk))?;
        ranks.iter_mut().try_for_each(|rank| rank.run_experts(layer, chunk))?;
    }
    R::exchange(ranks, layer, Exchange::Answers)?;
    ranks.iter_mut().try_for_each(|rank| rank.receive_answers(layer))?;
    Ok(begun.elapsed())
}
