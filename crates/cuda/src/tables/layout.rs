//! A placement as `share` and `map` read it.

use crate::place::Placement;

/// The pair of a copy that serves nothing: a second copy on one rank.
pub const NO_PAIR: u32 = u32::MAX;

/// The copies of every expert: bounds `[E + 1]`, then per copy, ascending slots: its slot, its rank, and its (expert,
/// rank) pair in the numbering of [`Placement::hosts`], or [`NO_PAIR`].
///
/// # Errors
/// None for a placement that was checked; the solver checks again.
pub fn copy_layout(placement: &Placement) -> Result<Vec<u32>, evenkeel_solver::Error> {
    let hosts = placement.hosts()?;
    let mut bounds = vec![0u32];
    let (mut slots, mut ranks, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    for expert in 0..placement.experts() {
        let mut pair = hosts.offset(expert) as u32;
        let mut last = None;
        for &slot in placement.copies(expert) {
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
        assert_eq!(copy_layout(&placement).unwrap(), expected);
    }
}
