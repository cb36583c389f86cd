//! Choice among the candidates of all layers within a budget of moves.
//!
//! In: for every layer, options by ascending moves, each with the time of the coming batches. Out: one option
//! per layer. The choice is a knapsack of as many dimensions as there are ranks, so it is greedy: options on
//! the lower convex envelope of a layer come first, by the time saved per move (Fox, Operations Research 14,
//! 1966). Then all others follow, as long as they fit.

use super::knapsack::{LayerOption, convex_envelope};
use super::moves::busiest_receiver;
use crate::place::ExpertMove;
use std::cmp::Reverse;

/// Option of one layer.
#[derive(Debug, Clone, Copy)]
pub struct MoveOption<'a> {
    /// Moves to execute.
    pub moves: &'a [ExpertMove],
    /// Time of the coming batches. Any unit serves, if it is the same for all layers.
    pub time: u64,
}

/// Budget of the moves of all layers together. The default has no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MoveBudget {
    /// Highest number of experts that any one rank receives.
    pub per_receiver: Option<u64>,
    /// Highest number of moves beyond the necessary ones.
    pub moves: Option<usize>,
}

/// Chooses an option for each layer, by index. The first option of a layer is the one with the necessary
/// moves, which may exceed the budget. An option is chosen only if it takes less time than the one before it.
///
/// The choice is made for every smaller number of experts per receiver too, and the best is taken. A larger
/// budget is therefore never worse, although greedy choices alone may be.
pub fn select_moves(layers: &[Vec<MoveOption<'_>>], budget: &MoveBudget) -> Vec<usize> {
    let order = option_order(layers);
    let moves = layers.iter().flatten().flat_map(|option| option.moves);
    let mut necessary = vec![0u64; moves.map(|m| m.to as usize + 1).max().unwrap_or(0)];
    layers.iter().filter_map(|options| options.first()).for_each(|option| receive(&mut necessary, option));
    let Some(most) = budget.per_receiver else {
        return fill_budget(layers, &order, &necessary, (u64::MAX, budget.moves));
    };
    // Upper limit of what a rank receives, reached if every layer takes the option that gives it most.
    let room: u64 = layers
        .iter()
        .map(|options| options.iter().map(|option| busiest_receiver(option.moves)).max().unwrap_or(0))
        .sum();
    let time = |at: &[usize]| -> u128 { at.iter().zip(layers).map(|(&k, o)| u128::from(o[k].time)).sum() };
    let moves = |at: &[usize]| -> usize { at.iter().zip(layers).map(|(&k, o)| o[k].moves.len()).sum() };
    let mut best = vec![0; layers.len()];
    let least = necessary.iter().copied().max().unwrap_or(0).max(1);
    for per_receiver in least..=most.min(room) {
        let next = fill_budget(layers, &order, &necessary, (per_receiver, budget.moves));
        if (time(&next), moves(&next)) < (time(&best), moves(&best)) {
            best = next;
        }
    }
    best
}

fn receive(received: &mut [u64], option: &MoveOption<'_>) {
    option.moves.iter().for_each(|m| received[m.to as usize] += 1);
}

/// Takes the options in the given order and skips those that do not fit.
fn fill_budget(
    layers: &[Vec<MoveOption<'_>>],
    order: &[(usize, usize)],
    necessary: &[u64],
    (per_receiver, moves): (u64, Option<usize>),
) -> Vec<usize> {
    let mut at = vec![0usize; layers.len()];
    let mut received = necessary.to_vec();
    let mut left = moves.unwrap_or(usize::MAX);
    for &(layer, to) in order {
        let (old, new) = (&layers[layer][at[layer]], &layers[layer][to]);
        let Some(rest) = left.saturating_add(old.moves.len()).checked_sub(new.moves.len()) else { continue };
        if new.time >= old.time {
            continue;
        }
        let mut next = received.clone();
        old.moves.iter().for_each(|m| next[m.to as usize] -= 1);
        receive(&mut next, new);
        if next.iter().all(|&received| received <= per_receiver) {
            (received, at[layer], left) = (next, to, rest);
        }
    }
    at
}

/// Returns the options, as (layer, index), by time saved per move. Those on each layer's lower convex
/// envelope come first, by their savings against the previous one. Then come all, by their savings against no
/// move, to fill the rest of the budget.
fn option_order(layers: &[Vec<MoveOption<'_>>]) -> Vec<(usize, usize)> {
    let mut steps = Vec::new();
    for (layer, options) in layers.iter().enumerate() {
        let levels: Vec<LayerOption> =
            options.iter().map(|o| LayerOption { cost: o.moves.len(), time: o.time }).collect();
        let envelope = convex_envelope(&levels);
        let pairs = envelope.windows(2).map(|pair| (0, pair[0], pair[1]));
        for (later, from, to) in pairs.chain((1..levels.len()).map(|to| (1, 0, to))) {
            let saved = u128::from(levels[from].time.saturating_sub(levels[to].time));
            // The unit is 2⁻³² of the unit of time per move.
            let per_move = (saved << 32) / (levels[to].cost - levels[from].cost).max(1) as u128;
            steps.push((later, Reverse(per_move), layer, to));
        }
    }
    steps.sort_unstable();
    steps.into_iter().map(|(_, _, layer, to)| (layer, to)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moves(to: &[u32]) -> Vec<ExpertMove> {
        to.iter().map(|&to| ExpertMove { expert: 0, from: None, to, slot: 0 }).collect()
    }

    #[test]
    fn the_largest_saving_per_move_comes_first_and_receivers_have_room() {
        let (none, one, two) = (moves(&[]), moves(&[0]), moves(&[0, 1]));
        let option = |moves, time| MoveOption { moves, time };
        let layers = [
            vec![option(&none, 100), option(&one, 90), option(&two, 70)],
            vec![option(&none, 100), option(&one, 60)],
        ];
        let choose = |per_receiver, moves| select_moves(&layers, &MoveBudget { per_receiver, moves });
        assert_eq!(choose(None, None), [2, 1]);
        assert_eq!(choose(Some(1), None), [0, 1], "rank 0 has room for one expert");
        assert_eq!(choose(Some(2), None), [2, 1]);
        assert_eq!(choose(None, Some(1)), [0, 1]);
        assert_eq!(choose(None, Some(2)), [1, 1]);
        assert_eq!(choose(Some(0), None), [0, 0]);
    }

    #[test]
    fn an_option_that_saves_nothing_is_not_chosen() {
        let (none, one) = (moves(&[]), moves(&[0]));
        let layers = [vec![MoveOption { moves: &none, time: 5 }, MoveOption { moves: &one, time: 5 }]];
        assert_eq!(select_moves(&layers, &MoveBudget::default()), [0]);
    }
}
