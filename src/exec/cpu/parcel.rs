//! What one rank sends another: each token once, however many of its experts are there, and one result back.

use crate::exec::weights::{Dtype, Matrix};
use crate::place::Placement;

/// A token's visit to a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Visit {
    /// Row of the parcel.
    pub(super) row: u32,
    /// Slot on the destination, `0..S`.
    pub(super) slot: u32,
    /// What its result counts.
    pub(super) weight: f32,
}

/// Tokens from one source to one destination.
#[derive(Debug, Clone)]
pub(super) struct Parcel {
    /// `[row][H]`, as they travel.
    pub(super) rows: Matrix,
    pub(super) visits: Vec<Visit>,
}

/// Packs the tokens of one source, `rows` `[token][hidden]`, into a parcel per destination. `slots` are the global slots of
/// its choices, `[token][k]`, -1 for none. Also: which token each row of each parcel is.
pub(super) fn pack(
    rows: &[f32],
    hidden: usize,
    slots: &[i64],
    weights: &[f32],
    top_k: usize,
    placement: &Placement,
    dtype: Dtype,
) -> (Vec<Parcel>, Vec<Vec<u32>>) {
    let (ranks, per_rank) = (placement.ranks(), placement.slots_per_rank());
    let empty = Parcel { rows: Matrix::with_capacity(dtype, 0), visits: vec![] };
    let (mut parcels, mut sent) = (vec![empty; ranks], vec![Vec::<u32>::new(); ranks]);
    let choices = slots.chunks_exact(top_k.max(1)).zip(weights.chunks_exact(top_k.max(1)));
    for (token, (slots, weights)) in choices.enumerate() {
        for (&slot, &weight) in slots.iter().zip(weights) {
            let Ok(slot) = usize::try_from(slot) else { continue };
            let (parcel, sent) = (&mut parcels[slot / per_rank], &mut sent[slot / per_rank]);
            if sent.last() != Some(&(token as u32)) {
                sent.push(token as u32);
                parcel.rows.push(&rows[token * hidden..][..hidden]);
            }
            let visit = Visit { row: sent.len() as u32 - 1, slot: (slot % per_rank) as u32, weight };
            parcel.visits.push(visit);
        }
    }
    (parcels, sent)
}
