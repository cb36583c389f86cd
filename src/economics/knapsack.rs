//! Allocation of redundant slots to layers under one budget.
//!
//! In: for every layer, the sum of peaks at several numbers of redundant slots. Out: the number of slots of
//! each layer. The peaks of a layer fall with its slots, fast at first, then slowly. Only the lower convex
//! envelope of that curve matters, because a point above it is worse than a mixture of its neighbours. Along
//! envelopes the greedy choice takes the step that saves the most tokens per slot. It is optimal for every
//! budget that it spends to the full (Fox, Operations Research 14, 1966).

/// Option of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerOption {
    /// Cost of the option: redundant slots of the layer, or moves.
    pub cost: usize,
    /// Time of the layer's batches, or the sum of their exact peaks. Any unit serves, if it is the same for
    /// all layers.
    pub time: u64,
}

/// Chooses a level for each layer, by index, so that all redundant slots together are at most `budget`.
///
/// Levels of a layer are in ascending order of slots. The first one is the least that the layer can have.
/// Returns `None` if even the first levels exceed the budget.
pub fn allocate_slots(layers: &[Vec<LayerOption>], budget: usize) -> Option<Vec<usize>> {
    let least: usize = layers.iter().map(|levels| levels.first().map_or(0, |level| level.cost)).sum();
    let mut left = budget.checked_sub(least)?;
    let envelopes: Vec<Vec<usize>> = layers.iter().map(|levels| convex_envelope(levels)).collect();
    // Position of each layer on its envelope.
    let mut at = vec![0usize; layers.len()];
    loop {
        let mut best: Option<(u64, u64, usize)> = None;
        for (layer, envelope) in envelopes.iter().enumerate() {
            let Some(&next) = envelope.get(at[layer] + 1) else { continue };
            let (from, to) = (layers[layer][envelope[at[layer]]], layers[layer][next]);
            let (slots, saved) = ((to.cost - from.cost) as u64, from.time - to.time);
            // More tokens saved per slot win, and the lowest layer wins ties.
            let better = |&(most, per, _): &(u64, u64, usize)| {
                u128::from(saved) * u128::from(per) > u128::from(most) * u128::from(slots)
            };
            if slots as usize <= left && best.as_ref().is_none_or(better) {
                best = Some((saved, slots, layer));
            }
        }
        let Some((_, slots, layer)) = best else { break };
        left -= slots as usize;
        at[layer] += 1;
    }
    Some(at.iter().zip(&envelopes).map(|(&at, envelope)| envelope[at]).collect())
}

/// Returns the indices of the levels on the lower convex envelope that each save something. The first level
/// always belongs to it.
pub(super) fn convex_envelope(levels: &[LayerOption]) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for (index, level) in levels.iter().enumerate() {
        if kept.last().is_some_and(|&last| levels[last].time <= level.time) {
            continue;
        }
        while let [.., a, b] = kept[..] {
            let (a, b) = (levels[a], levels[b]);
            let slope =
                |x: LayerOption, y: LayerOption| (u128::from(x.time - y.time), (y.cost - x.cost) as u128);
            let ((saved, slots), (saved_next, slots_next)) = (slope(a, b), slope(b, *level));
            if saved * slots_next >= saved_next * slots {
                break;
            }
            kept.pop();
        }
        kept.push(index);
    }
    if kept.is_empty() { vec![0] } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn levels(points: &[(usize, u64)]) -> Vec<LayerOption> {
        points.iter().map(|&(cost, time)| LayerOption { cost, time }).collect()
    }

    #[test]
    fn slots_go_where_they_help_most() {
        let flat = levels(&[(0, 100), (4, 99), (8, 98)]);
        let steep = levels(&[(0, 200), (4, 150), (8, 110)]);
        assert_eq!(allocate_slots(&[flat.clone(), steep.clone()], 8), Some(vec![0, 2]));
        assert_eq!(allocate_slots(&[flat.clone(), steep.clone()], 12), Some(vec![1, 2]));
        assert_eq!(allocate_slots(&[flat, steep], 0), Some(vec![0, 0]));
        assert_eq!(allocate_slots(&[levels(&[(4, 9)])], 3), None);
        // The choice skips a level above the envelope: 8 slots save 60, 4 slots save only 1.
        assert_eq!(allocate_slots(&[levels(&[(0, 100), (4, 99), (8, 40)])], 8), Some(vec![2]));
    }

    proptest! {
        #[test]
        fn no_other_choice_of_convex_layers_saves_more_with_as_many_slots(
            drops in prop::collection::vec(prop::collection::vec(0u64..30, 3), 3), budget in 0usize..10
        ) {
            // With equal steps and falling savings the greedy choice is optimal for every budget.
            let layers: Vec<Vec<LayerOption>> = drops.iter().map(|drops| {
                let mut drops = drops.clone();
                drops.sort_unstable_by(|a, b| b.cmp(a));
                let mut peaks = 200;
                let rest = drops.iter().enumerate().map(|(k, drop)| { peaks -= drop; (k + 1, peaks) });
                levels(&[vec![(0, 200)], rest.collect()].concat())
            }).collect();
            let chosen = allocate_slots(&layers, budget).unwrap();
            let cost = |at: &[usize]| at.iter().zip(&layers).map(|(&k, l)| l[k].cost).sum::<usize>();
            let peaks = |at: &[usize]| at.iter().zip(&layers).map(|(&k, l)| l[k].time).sum::<u64>();
            prop_assert!(cost(&chosen) <= budget);
            for a in 0..4 { for b in 0..4 { for c in 0..4 {
                if cost(&[a, b, c]) <= budget {
                    prop_assert!(peaks(&chosen) <= peaks(&[a, b, c]));
                }
            }}}
        }
    }
}
