//! Planning again from what is in force: as few moves as do it.
//!
//! In: a layer, the previous placement, perhaps a limit on moves. Out: a placement within the limit in which everything that
//! stays keeps its slot. The search starts from the previous placement with room for one move, goes on with room for two,
//! four, .., and where there is no limit also begins anew, under the names of ranks that move least. All are compared on
//! scenarios that no search has seen: the one with the fewest moves whose score is within a standard error of the best is
//! taken, so that noise moves nothing.

use super::choose::{self, Trust};
use super::exact::Exact;
use super::scenarios::Scenarios;
use super::score::{Objective, each};
use super::search::{Limits, moves_between, search};
use super::seating::Seating;
use super::{Layer, REFEREE, STREAM};
use crate::cluster::Cluster;
use crate::place::{PlaceError, Placement, relabel};
use crate::trace::dice::Dice;
use evenkeel_solver::Error;

/// A placement that was considered.
struct Tried {
    seating: Seating,
    moves: usize,
}

/// Plans again, coming from `previous`.
pub(super) fn replan(
    layer: &Layer<'_>,
    cluster: &Cluster,
    previous: &Placement,
    max_moves: Option<usize>,
) -> Result<Placement, PlaceError> {
    let from = running(layer, cluster, previous)?;
    let failed = |error: Error| layer.policy.failed(error.to_string());
    let mut dice = Dice::new(layer.policy.seed, STREAM);
    let trust = layer.trust(&mut dice).map_err(failed)?;
    let spread = match &trust {
        Trust::Search(spread) => spread.clone(),
        Trust::Graph(_) => choose::strongest(),
    };
    let referee = layer.draw(&spread, REFEREE * layer.policy.scenarios, &mut dice);
    let seen = layer.draw(&spread, layer.policy.scenarios, &mut dice);
    let rungs = rungs(max_moves, from.slots());
    let iterations = layer.policy.iterations(&layer.slots) / rungs.len().max(1) as u64;
    let mut tried = vec![Tried { seating: from.clone(), moves: 0 }];
    for (number, &most) in rungs.iter().enumerate() {
        let limits = Limits { iterations, moves: Some((&from, most)) };
        let start = tried[tried.len() - 1].seating.clone();
        let dice = Dice::new(layer.policy.seed, STREAM + 1 + number as u64);
        let seating = search(&seen, layer.policy.objective, start, limits, dice).map_err(failed)?.seating;
        let moves = moves_between(&from, &seating);
        tried.push(Tried { seating, moves });
    }
    if max_moves.is_none() {
        let scratch = layer.scratch(&trust, &mut dice).map_err(failed)?.placement()?;
        let seating = Seating::of(&relabel(previous, &scratch, cluster)?, &layer.slots);
        tried.push(Tried { moves: moves_between(&from, &seating), seating });
    }
    tried.sort_by_key(|tried| tried.moves);
    let best = fewest_of_the_best(&tried, &referee, layer.policy.objective).map_err(failed)?;
    tried[best].seating.kept_in(previous)
}

/// The previous placement as the search takes it, without second copies on a rank.
fn running(layer: &Layer<'_>, cluster: &Cluster, previous: &Placement) -> Result<Seating, PlaceError> {
    let (ranks, per_rank) = (previous.ranks(), previous.slots_per_rank());
    let expected = (layer.experts, cluster.ranks(), cluster.slots_per_rank());
    if (previous.experts(), ranks, per_rank) != expected {
        return Err(layer.policy.failed(format!(
            "the previous placement has {} experts on {ranks} ranks x {per_rank} slots: expected {} on {} x {}",
            previous.experts(),
            expected.0,
            expected.1,
            expected.2
        )));
    }
    let from = Seating::of(previous, &layer.slots);
    match (0..layer.experts as u32).find(|&expert| from.hosts(expert).is_empty()) {
        Some(expert) => Err(layer.policy.failed(format!(
            "the previous placement holds expert {expert} only in a slot that this cluster does not use"
        ))),
        None => Ok(from),
    }
}

/// Limits to search with, one after the other: powers of two up to a quarter of the slots, or up to the limit.
fn rungs(max_moves: Option<usize>, slots: usize) -> Vec<usize> {
    let last = max_moves.unwrap_or(slots / 4).min(slots);
    let mut rungs: Vec<usize> =
        std::iter::successors(Some(1), |most| Some(2 * most)).take_while(|&most| most < last).collect();
    rungs.extend((last > 0).then_some(last));
    rungs
}

/// The first, in ascending order of moves, that is as good as the best.
fn fewest_of_the_best(tried: &[Tried], referee: &Scenarios, objective: Objective) -> Result<usize, Error> {
    let mut exact = Exact::default();
    let mut rows = vec![];
    for one in tried {
        rows.push(each(referee, &exact.peaks(&one.seating, referee)?).collect());
    }
    Ok(objective.as_good(&rows).iter().position(|&good| good).unwrap_or(0))
}
