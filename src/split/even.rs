//! Every copy gets the same number of tokens; what EPLB plans for.

use crate::place::Placement;

/// `floor(N / c)` tokens for each of an expert's `c` copies, one more for the lowest slots.
pub(super) fn split(placement: &Placement, loads: &[u64], quotas: &mut [u64]) {
    for (expert, &load) in loads.iter().enumerate() {
        let copies = placement.copies(expert);
        let (each, over) = (load / copies.len() as u64, load % copies.len() as u64);
        for (k, &slot) in copies.iter().enumerate() {
            quotas[slot as usize] = each + u64::from((k as u64) < over);
        }
    }
}
