//! The layout of a placement for the kernels `share` and `map`.

use evenkeel::place::Placement;

/// The pair of a replica that serves nothing, because it is a second one on the same rank.
pub const NO_PAIR: u32 = u32::MAX;

/// Returns the replicas of every expert: bounds `[E + 1]`, then three values per replica, in ascending slots.
/// These are its slot, its rank, and its (expert, rank) pair in the numbering of [`Placement::hosts`], or
/// [`NO_PAIR`].
///
/// # Errors
/// Never fails for a valid placement, but the solver checks it again.
pub fn replica_layout(placement: &Placement) -> Result<Vec<u32>, evenkeel_solver::SolverError> {
    let hosts = placement.hosts()?;
    let mut bounds = vec![0u32];
    let (mut slots, mut ranks, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    for expert in 0..placement.experts() {
        let mut pair = hosts.offset(expert) as u32;
        let mut last = None;
        for &slot in placement.replicas(expert) {
            let rank = placement.rank_of(slot) as u32;
            let first = last != Some(rank);
            slots.push(slot);
            ranks.push(rank);
            pairs.push(if first { pair } else { NO_PAIR });
            pair += u32::from(first);
            last = Some(rank);
        }
        bounds.push(slots.len() as u32);
    }
    Ok([bounds, slots, ranks, pairs].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_copy_on_one_rank_has_no_pair() {
        let placement = Placement::new(2, 2, vec![Some(0), Some(0), Some(1), Some(0)]).unwrap();
        let expected = [[0, 3, 4].as_slice(), &[0, 1, 3, 2], &[0, 0, 1, 1], &[0, NO_PAIR, 1, 2]].concat();
        assert_eq!(replica_layout(&placement).unwrap(), expected);
    }
}
