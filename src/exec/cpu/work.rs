//! What came to a rank: rows sorted by slot, the experts run on them, and the answers to their sources.

use super::ffn::Ffn;
use super::parcel::Parcel;
use super::rank::Slots;
use crate::exec::numbers::vectorised;
use crate::exec::weights::{Dtype, Matrix};
use crate::model::Activation;

/// What a rank has to work on: the rows of all parcels, slot after slot.
#[derive(Debug)]
pub(super) struct Work {
    /// `[row][H]`
    x: Vec<f32>,
    /// Rows of slot `s` are `starts[s]..starts[s + 1]`.
    starts: Vec<usize>,
    /// Per parcel, per visit: its row in `x`.
    places: Vec<Vec<usize>>,
}

impl Work {
    /// Rows in all.
    pub(super) fn rows(&self) -> u64 {
        self.starts.last().map_or(0, |&rows| rows as u64)
    }

    /// Sorts what came from all sources by slot (a counting sort).
    pub(super) fn unpack(parcels: &[Parcel], slots: usize, hidden: usize) -> Self {
        let mut starts = vec![0usize; slots + 1];
        let visits = || parcels.iter().flat_map(|parcel| &parcel.visits);
        visits().for_each(|visit| starts[visit.slot as usize + 1] += 1);
        (0..slots).for_each(|slot| starts[slot + 1] += starts[slot]);
        let mut next = starts.clone();
        let mut x = vec![0f32; starts[slots] * hidden];
        let mut row = vec![0f32; hidden];
        let mut places = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            let mut widened = None;
            let mut of_parcel = Vec::with_capacity(parcel.visits.len());
            for visit in &parcel.visits {
                if widened != Some(visit.row) {
                    parcel.rows.read(visit.row as usize * hidden, &mut row);
                    widened = Some(visit.row);
                }
                let place = next[visit.slot as usize];
                next[visit.slot as usize] += 1;
                x[place * hidden..][..hidden].copy_from_slice(&row);
                of_parcel.push(place);
            }
            places.push(of_parcel);
        }
        Self { x, starts, places }
    }

    /// Runs every slot's expert on its rows; `[row][H]`.
    pub(super) fn run(
        &self,
        slots: &Slots,
        ffn: &mut Ffn,
        activation: Activation,
        hidden: usize,
    ) -> Vec<f32> {
        // Nothing comes to an empty slot.
        let mut results = vec![0f32; self.x.len()];
        for (slot, rows) in slots.iter().zip(self.starts.windows(2)) {
            let of_slot = rows[0] * hidden..rows[1] * hidden;
            if let Some(expert) = slot {
                ffn.run(expert, activation, &self.x[of_slot.clone()], hidden, &mut results[of_slot]);
            }
        }
        results
    }

    /// What goes back to each source: the weighted results of its tokens here, one row per row that it sent.
    pub(super) fn answers(
        &self,
        parcels: &[Parcel],
        results: &[f32],
        hidden: usize,
        dtype: Dtype,
    ) -> Vec<Matrix> {
        let answer = |(parcel, places): (&Parcel, &Vec<usize>)| {
            let mut sum = vec![0f32; parcel.rows.len()];
            for (visit, &place) in parcel.visits.iter().zip(places) {
                let result = &results[place * hidden..][..hidden];
                let row = &mut sum[visit.row as usize * hidden..][..hidden];
                vectorised(|| row.iter_mut().zip(result).for_each(|(s, &y)| *s += visit.weight * y));
            }
            Matrix::new(dtype, sum)
        };
        parcels.iter().zip(&self.places).map(answer).collect()
    }
}
