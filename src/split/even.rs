//! Even split, which EPLB plans for: every replica of an expert receives the same number of tokens.

use crate::place::Placement;

/// Gives `floor(N / c)` tokens to each of an expert's `c` replicas, and one more to the lowest slots.
pub(super) fn split(placement: &Placement, loads: &[u64], quotas: &mut [u64]) {
    for (expert, &load) in loads.iter().enumerate() {
        let copies = placement.replicas(expert);
        let (each, over) = (load / copies.len() as u64, load % copies.len() as u64);
        for (k, &slot) in copies.iter().enumerate() {
            quotas[slot as usize] = each + u64::from((k as u64) < over);
        }
    }
}
