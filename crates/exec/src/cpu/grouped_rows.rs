//! What came to a rank: rows sorted by slot, the experts run on them, and the answers to their sources.

use super::ffn::Ffn;
use super::parcel::{Chunks, Parcel, last_in};
use super::rank::Slots;
use crate::exec::numbers::vectorised;
use crate::exec::weights::{Dtype, Matrix};
use crate::model::Activation;

/// What a rank has to work on: the rows of all parcels, slot after slot.
#[derive(Debug)]
pub(super) struct Work {
    /// `[row][H]`
    x: Vec<f32>,
    /// What the experts make of them, `[row][H]`.
    results: Vec<f32>,
    /// Rows of slot `s` are `starts[s]..starts[s + 1]`.
    starts: Vec<usize>,
    /// Per parcel, per visit: its row in `x`.
    places: Vec<Vec<usize>>,
    chunks: Chunks,
    hidden: usize,
}

impl Work {
    /// Rows in all.
    pub(super) fn rows(&self) -> u64 {
        self.starts.last().map_or(0, |&rows| rows as u64)
    }

    /// Gives every visit of all sources its place by slot (a counting sort); the rows themselves are there later.
    pub(super) fn plan(parcels: &[Parcel], chunks: Chunks, hidden: usize) -> Self {
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

    /// Takes the rows that the slots of a chunk work on.
    pub(super) fn fill(&mut self, parcels: &[Parcel], chunk: usize) {
        let (hidden, chunk) = (self.hidden, chunk as u32);
        let mut row = vec![0f32; hidden];
        for (parcel, places) in parcels.iter().zip(&self.places) {
            let mut widened = None;
            for (visit, &place) in parcel.visits.iter().zip(places) {
                if self.chunks.of(visit.slot) != chunk {
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
    pub(super) fn run(&mut self, slots: &Slots, slot: usize, ffn: &mut Ffn, activation: Activation) {
        // Nothing comes to an empty slot.
        self.results.resize(self.x.len(), 0.0);
        let rows = self.starts[slot] * self.hidden..self.starts[slot + 1] * self.hidden;
        if let Some(expert) = &slots[slot] {
            ffn.run(expert, activation, &self.x[rows.clone()], self.hidden, &mut self.results[rows]);
        }
    }

    /// What goes back to each source with a chunk: the weighted results of its tokens here, one row per row that has all of its
    /// results now.
    pub(super) fn answers(&self, parcels: &[Parcel], chunk: usize, dtype: Dtype) -> Vec<Matrix> {
        let hidden = self.hidden;
        let answer = |(parcel, places): (&Parcel, &Vec<usize>)| {
            let mut at = vec![usize::MAX; parcel.spans.len()];
            let rows = last_in(&parcel.spans, chunk).enumerate().map(|(place, row)| at[row] = place).count();
            let mut sum = vec![0f32; rows * hidden];
            for (visit, &place) in parcel.visits.iter().zip(places) {
                let at = at[visit.row as usize];
                if at == usize::MAX {
                    continue;
                }
                let result = &self.results[place * hidden..][..hidden];
                let row = &mut sum[at * hidden..][..hidden];
                vectorised(|| row.iter_mut().zip(result).for_each(|(s, &y)| *s += visit.weight * y));
            }
            Matrix::new(dtype, sum)
        };
        parcels.iter().zip(&self.places).map(answer).collect()
    }
}
