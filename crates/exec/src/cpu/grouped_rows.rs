//! Received rows sorted by slot, the experts that run on them, and the answers to their sources.

use super::ffn::Ffn;
use super::rank::SlotWeights;
use super::send_buffer::{SendBuffer, SlotChunks, rows_answered_in};
use crate::simd::run_vectorised;
use crate::weights::{Dtype, Matrix};
use evenkeel::model::Activation;

/// The rows of all send buffers, slot by slot.
#[derive(Debug)]
pub(super) struct GroupedRows {
    /// Input of the experts, `[row][H]`.
    x: Vec<f32>,
    /// Results of the experts, `[row][H]`.
    results: Vec<f32>,
    /// Rows of slot `s` are `starts[s]..starts[s + 1]`.
    starts: Vec<usize>,
    /// Row in `x` of every assignment of every send buffer.
    places: Vec<Vec<usize>>,
    chunks: SlotChunks,
    hidden: usize,
}

impl GroupedRows {
    /// Returns the total number of rows.
    pub(super) fn row_count(&self) -> u64 {
        self.starts.last().map_or(0, |&rows| rows as u64)
    }

    /// Assigns every assignment of all sources its row by slot (a counting sort). The rows themselves may
    /// arrive later.
    pub(super) fn assign_rows(parcels: &[SendBuffer], chunks: SlotChunks, hidden: usize) -> Self {
        let slots = chunks.slots();
        let mut starts = vec![0usize; slots + 1];
        let visits = || parcels.iter().flat_map(|parcel| &parcel.visits);
        visits().for_each(|visit| starts[visit.slot as usize + 1] += 1);
        (0..slots).for_each(|slot| starts[slot + 1] += starts[slot]);
        let mut next = starts.clone();
        let mut place = |slot: u32| {
            let next = &mut next[slot as usize];
            *next += 1;
            *next - 1
        };
        let places =
            parcels.iter().map(|parcel| parcel.visits.iter().map(|v| place(v.slot)).collect()).collect();
        let x = vec![0f32; starts[slots] * hidden];
        Self { x, results: Vec::new(), starts, places, chunks, hidden }
    }

    /// Copies the rows of the slots of a chunk.
    pub(super) fn copy_chunk(&mut self, parcels: &[SendBuffer], chunk: usize) {
        let (hidden, chunk) = (self.hidden, chunk as u32);
        let mut row = vec![0f32; hidden];
        for (parcel, places) in parcels.iter().zip(&self.places) {
            let mut widened = None;
            for (visit, &place) in parcel.visits.iter().zip(places) {
                if self.chunks.chunk_of(visit.slot) != chunk {
                    continue;
                }
                if widened != Some(visit.row) {
                    parcel.rows.read(visit.row as usize * hidden, &mut row);
                    widened = Some(visit.row);
                }
                self.x[place * hidden..][..hidden].copy_from_slice(&row);
            }
        }
    }

    /// Runs one slot's expert on its rows.
    pub(super) fn run_slot(
        &mut self,
        slots: &SlotWeights,
        slot: usize,
        ffn: &mut Ffn,
        activation: Activation,
    ) {
        // An empty slot has no rows.
        self.results.resize(self.x.len(), 0.0);
        let rows = self.starts[slot] * self.hidden..self.starts[slot + 1] * self.hidden;
        if let Some(expert) = &slots[slot] {
            ffn.run(expert, activation, &self.x[rows.clone()], self.hidden, &mut self.results[rows]);
        }
    }

    /// Computes the answers that return to each source with a chunk, the weighted results of its tokens.
    /// There is one row per row whose results are now complete.
    pub(super) fn weighted_answers(&self, parcels: &[SendBuffer], chunk: usize, dtype: Dtype) -> Vec<Matrix> {
        let hidden = self.hidden;
        let answer = |(parcel, places): (&SendBuffer, &Vec<usize>)| {
            let mut at = vec![usize::MAX; parcel.spans.len()];
            let rows = rows_answered_in(&parcel.spans, chunk)
                .enumerate()
                .map(|(place, row)| at[row] = place)
                .count();
            let mut sum = vec![0f32; rows * hidden];
            for (visit, &place) in parcel.visits.iter().zip(places) {
                let at = at[visit.row as usize];
                if at == usize::MAX {
                    continue;
                }
                let result = &self.results[place * hidden..][..hidden];
                let row = &mut sum[at * hidden..][..hidden];
                run_vectorised(|| row.iter_mut().zip(result).for_each(|(s, &y)| *s += visit.weight * y));
            }
            Matrix::new(dtype, sum)
        };
        parcels.iter().zip(&self.places).map(answer).collect()
    }
}
