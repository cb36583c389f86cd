//! Planning again from what is in force: as few moves as do it.
//!
//! In: a layer, the previous placement, perhaps a limit on moves or their price. Out: a placement within the limit in which
//! everything that stays keeps its slot. The search starts from the previous placement with room for few moves and goes on
//! with room for more; all placements are compared on scenarios that no search has seen.
//!
//! Where no search holds against EPLB under the split that runs, and moves have no limit, EPLB's placement is taken under the names
//! that move least, unless what is running is as good.
//!
//! Without a price ([`replan`]), there is room for one move, two, four, .., and where there is no limit the search also
//! begins anew, under the names of ranks that move least: the placement with the fewest moves whose score is within a standard
//! error of the best is taken, so that noise moves nothing. With a price ([`priced`]), it is part of what is minimised, so that no
//! step is taken that gains less than its moves cost, and one that gains nothing is taken back. What moves gain has to be known
//! without bias then: scenarios are more, and drawn by residuals of the whole known past ([`residuals`]) where there is one.

use super::aim::Aim;
use super::choose::{self, Trust};
use super::residuals;
use super::rule_loads::placement_peaks;
use super::scenarios::{Scenarios, UNIT};
use super::score::Objective;
use super::search::{Limits, Moves, moves_between, search};
use super::seating::Seating;
use super::{Layer, REFEREE, Recourse, STREAM, against_eplb, starts};
use crate::cluster::Cluster;
use crate::place::{PlaceError, Placement, Priced, relabel};
use crate::trace::dice::Dice;
use evenkeel_solver::Error;

/// Searches where moves have a price.
const PRICED_RUNGS: usize = 2;

/// So many times more scenarios and iterations where moves have a price: of a thousand steps that gain nothing, on few scenarios
/// some seem to.
const CAREFUL: usize = 2;

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
    let failed = |error: Error| layer.policy.failed(error.to_string());
    let from = running(layer, cluster, previous)?;
    let mut dice = Dice::new(layer.policy.seed, STREAM);
    let trust = layer.trust(&mut dice).map_err(failed)?;
    let again = Again::trusting(layer, from, &trust, 1, &mut dice);
    if let (Trust::Eplb, None) = (&trust, max_moves) {
        return eplb_or_running(&again, previous, &mut dice);
    }
    let mut tried = again.climb(&rungs(max_moves, again.from.slots()), None).map_err(failed)?;
    if max_moves.is_none() {
        let scratch = layer.scratch(&trust, &mut dice)?;
        let mut seating = Seating::of(&relabel(previous, &scratch, cluster)?, &layer.slots);
        // EPLB's placement may hold an expert twice on a rank; the second slot is free for another.
        starts::fill(&mut seating, layer.totals);
        tried.push(Tried { moves: moves_between(&again.from, &seating), seating });
    }
    tried.sort_by_key(|tried| tried.moves);
    let best = fewest_of_the_best(&tried, &again).map_err(failed)?;
    tried[best].seating.kept_in(previous)
}

/// Plans again, coming from `previous`, where a move has to lower the mean imbalance by `price`.
pub(super) fn priced(
    layer: &Layer<'_>,
    cluster: &Cluster,
    previous: &Placement,
    max_moves: Option<usize>,
    price: f64,
) -> Result<Priced, PlaceError> {
    let failed = |error: Error| layer.policy.failed(error.to_string());
    let from = running(layer, cluster, previous)?;
    let mut dice = Dice::new(layer.policy.seed, STREAM);
    let again = if layer.known.len() < choose::FEWEST || layer.policy.spread.is_some() {
        let trust = layer.trust(&mut dice).map_err(failed)?;
        Again::trusting(layer, from, &trust, CAREFUL, &mut dice)
    } else {
        let shape = (layer.experts, layer.slots.len());
        let mut draw =
            |count| residuals::scenarios(shape, &layer.known, layer.batches.len(), count, &mut dice);
        Again::on(layer, (from, layer.aim()), CAREFUL, &mut draw)
    };
    let rungs = rungs(max_moves, again.from.slots());
    // Few moves are found among many where each has to pay.
    let last = &rungs[rungs.len().saturating_sub(PRICED_RUNGS)..];
    let mut tried = again.climb(last, Some(price)).map_err(failed)?;
    tried.sort_by_key(|tried| tried.moves);
    let (referee, objective) = (&again.referee, layer.policy.objective);
    let mut scores = vec![];
    for one in &tried {
        scores.push(layer.score(&one.seating, referee, again.aim).map_err(failed)?);
    }
    let unit = unit(referee, objective, again.aim);
    let toll = toll(price, unit);
    let cost = |&at: &usize| scores[at].saturating_add(toll.saturating_mul(tried[at].moves as u64));
    let best = (0..tried.len()).min_by_key(cost).unwrap_or(0);
    // The first is what is running.
    let gain = (scores[0] as f64 - scores[best] as f64) / unit;
    Ok(Priced { placement: tried[best].seating.kept_in(previous)?, gain })
}

/// A layer that is planned again.
struct Again<'a> {
    layer: &'a Layer<'a>,
    /// What is running.
    from: Seating,
    /// What the searches minimise.
    aim: Aim,
    /// What to search on.
    seen: Scenarios,
    /// What to compare on.
    referee: Scenarios,
    /// So many times more scenarios and iterations than the policy says.
    care: usize,
}

impl<'a> Again<'a> {
    /// On scenarios as they are trusted.
    fn trusting(layer: &'a Layer<'_>, from: Seating, trust: &Trust, care: usize, dice: &mut Dice) -> Self {
        let (spread, aim) = match trust {
            Trust::Search(spread, aim) => (spread.clone(), *aim),
            Trust::Graph(_) => (choose::strongest(), layer.aim()),
            Trust::Eplb => (choose::narrowest(), against_eplb::rule_aim(layer)),
        };
        Self::on(layer, (from, aim), care, &mut |count| layer.draw(&spread, count, dice))
    }

    fn on(
        layer: &'a Layer<'_>,
        (from, aim): (Seating, Aim),
        care: usize,
        draw: &mut dyn FnMut(usize) -> Scenarios,
    ) -> Self {
        let count = layer.policy.scenarios.saturating_mul(care);
        let referee = draw(count.saturating_mul(REFEREE));
        Again { layer, from, aim, seen: draw(count), referee, care }
    }

    /// What is running, and what is found with room for so many moves, for so many more, and so on.
    fn climb(&self, rungs: &[usize], price: Option<f64>) -> Result<Vec<Tried>, Error> {
        let Recourse { objective, seed, .. } = *self.layer.policy;
        let iterations = self.layer.policy.iterations(&self.layer.slots).saturating_mul(self.care as u64);
        let iterations = iterations / rungs.len().max(1) as u64;
        let price = price.map_or(0, |price| toll(price, unit(&self.seen, objective, self.aim)));
        let mut tried = vec![Tried { seating: self.from.clone(), moves: 0 }];
        for (number, &most) in rungs.iter().enumerate() {
            let limits = Limits { iterations, moves: Some(Moves { from: &self.from, most, price }) };
            let start = tried[tried.len() - 1].seating.clone();
            let dice = Dice::new(seed, STREAM + 1 + number as u64);
            let seating =
                search(&self.seen, (objective, self.aim, self.layer.cluster), start, limits, dice)?.seating;
            let moves = moves_between(&self.from, &seating);
            tried.push(Tried { seating, moves });
        }
        Ok(tried)
    }
}

/// A mean imbalance of 1 as a score on these scenarios.
fn unit(scenarios: &Scenarios, objective: Objective, aim: Aim) -> f64 {
    let one = UNIT * objective.counted(scenarios) as u64;
    aim.total(one, one) as f64
}

/// A price in mean imbalance as a score, where an imbalance of 1 scores `unit`.
fn toll(price: f64, unit: f64) -> u64 {
    (price.max(0.0) * unit) as u64
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

/// EPLB's placement, where no search holds against it; what is running, where that is as good within a thousandth.
fn eplb_or_running(
    again: &Again<'_>,
    previous: &Placement,
    dice: &mut Dice,
) -> Result<Placement, PlaceError> {
    let layer = again.layer;
    let eplb = relabel(previous, &layer.scratch(&Trust::Eplb, dice)?, layer.cluster)?;
    let Some(mut rule) = again.aim.rule(layer.cluster) else { return Ok(eplb) };
    let mut score = |placement: &Placement| {
        let peaks = placement_peaks(&again.referee, &mut rule, placement);
        layer.policy.objective.score(&again.referee, &peaks)
    };
    let (new, old) = (score(&eplb), score(previous));
    Ok(if old <= new.saturating_add(new / 1000) { previous.clone() } else { eplb })
}

/// The first, in ascending order of moves, that is as good as the best: within noise where every batch is split exactly, else
/// within a thousandth, as EPLB planned from scratch is what the result is compared with.
fn fewest_of_the_best(tried: &[Tried], again: &Again<'_>) -> Result<usize, Error> {
    let objective = again.layer.policy.objective;
    let mut rows = vec![];
    for one in tried {
        rows.push(again.layer.rows(&one.seating, &again.referee, again.aim)?);
    }
    if again.aim == Aim::Exact {
        return Ok(objective.as_good(&rows).iter().position(|&good| good).unwrap_or(0));
    }
    let scores: Vec<u64> = rows.iter().map(|row| objective.tail_sum(row)).collect();
    let least = scores.iter().copied().min().unwrap_or(0);
    Ok(scores.iter().position(|&score| score <= least.saturating_add(least / 1000)).unwrap_or(0))
}
