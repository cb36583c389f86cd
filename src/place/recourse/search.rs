//! The search: simulated annealing on lower bounds, verified by exact splits.
//!
//! In: scenarios, an initial placement, a number of iterations. Out: the best placement found and its exact
//! score.
//!
//! The current cuts price a step with a lower bound. The bound must not exceed the present score plus a
//! threshold. The threshold is drawn for each step and falls with the iterations (Metropolis, in integers).
//! If the bound passes, the step is taken for a trial. Its scenarios are split exactly, one after the other,
//! until the score is certain, or certainly beyond the threshold. In the latter case the step is undone.
//! Certificates that the cuts had missed become cuts. So the score of the present placement is always exact.
//!
//! If peaks under a fixed rule count ([`SearchAim`]), they are priced first, exactly. Their part of the score
//! then acts like a price of the step: a gain under the rule allows a loss under the exact split.
//!
//! An iteration is one priced step or one split scenario.

use super::copy_search::search_for_copies;
use super::cuts::CutPool;
use super::incumbent::SearchPlacement;
use super::neighbourhood::StepProposals;
use super::rule_loads::RuleLoads;
use super::scenarios::{IMBALANCE_UNIT, ScenarioSet};
use super::score::ScenarioObjective;
use super::search_aim::SearchAim;
use crate::cluster::Cluster;
use crate::rng::SeededRng;
use evenkeel_solver::{IncrementalSplits, SlotChange, SolverError};

/// Initial threshold of a search that may leave its start far behind: a thousandth of a mean imbalance of 1.
/// It falls to zero.
pub(crate) const INITIAL_THRESHOLD: u64 = IMBALANCE_UNIT / 1000;

/// Limits of a search.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SearchLimits<'a> {
    /// Number of priced steps and split scenarios together.
    pub(crate) iterations: u64,
    /// Limits of the moves. `None` if there is no current placement.
    pub(crate) moves: Option<MoveLimits<'a>>,
    /// Threshold per scenario at the beginning. With 0, no step is taken that is worse.
    pub(crate) initial_threshold: u64,
}

/// Number and price of the experts that are new to a rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MoveLimits<'a> {
    /// Current placement.
    pub(crate) from: &'a SearchPlacement,
    /// Highest number of moves.
    pub(crate) most: usize,
    /// Gain in score that each move has to reach.
    pub(crate) price: u64,
}

impl MoveLimits<'_> {
    /// Returns the cost of `moves` moves.
    pub(crate) fn move_cost(&self, moves: usize) -> u64 {
        self.price.saturating_mul(moves as u64)
    }
}

/// Best placement of a search.
#[derive(Debug, Clone)]
pub(crate) struct SearchResult {
    /// Placement found.
    pub(crate) seating: SearchPlacement,
    /// Exact score, plus the price of the moves.
    pub(crate) score: u64,
}

struct AnnealingSearch<'a> {
    scenarios: &'a ScenarioSet,
    objective: ScenarioObjective,
    seating: SearchPlacement,
    cuts: CutPool<'a>,
    /// Exact part of the score, or 0 if only the rule counts.
    score: u64,
    best: SearchResult,
    /// Exact splits of all scenarios, if they count.
    splits: Option<IncrementalSplits>,
    spent: u64,
    /// Scenario to split first: the last one that refuted a step.
    next: usize,
}

/// Searches from a placement that holds every expert, and none twice on a rank.
///
/// # Errors
/// Fails if the start leaves an expert without a rank.
pub(crate) fn search(
    scenarios: &ScenarioSet,
    (objective, aim, cluster): (ScenarioObjective, SearchAim, &Cluster),
    start: SearchPlacement,
    limits: SearchLimits<'_>,
    mut dice: SeededRng,
) -> Result<SearchResult, SolverError> {
    if let SearchAim::Copies(dynamic) = aim {
        return search_for_copies(scenarios, (objective, dynamic), start, limits, dice);
    }
    let mut search = AnnealingSearch {
        cuts: CutPool::new(scenarios, &start),
        best: SearchResult { seating: start.clone(), score: 0 },
        seating: start,
        score: 0,
        scenarios,
        objective,
        splits: None,
        spent: 0,
        next: 0,
    };
    let mut rule = aim.share_rule(cluster).map(|rule| RuleLoads::new(scenarios, rule, &search.seating));
    let weighed = |peaks: &[f32]| aim.weighted_rule_score(objective.score(scenarios, peaks));
    let mut under_rule = rule.as_ref().map_or(0, |rule| weighed(rule.peaks()));
    if aim.counts_exact() {
        search.spent = scenarios.len() as u64;
        search.splits = Some(search.seating.incremental_splits(scenarios)?);
        search.score = objective.score(scenarios, search.cuts.peaks());
        search.split_until_refuted(u64::MAX);
    }
    let mut moved = limits.moves.map_or(0, |moves| moves_between(moves.from, &search.seating).cast_signed());
    let toll = |moved: isize| limits.moves.map_or(0, |moves| moves.move_cost(moved.unsigned_abs()));
    search.best.score = search.score.saturating_add(under_rule).saturating_add(toll(moved));
    let floor = objective.score(scenarios, scenarios.peak_floors());
    let floor = aim.total_score(floor, floor);
    let mut peaks = vec![0.0; scenarios.padded_len()];
    // Exact peaks of the present placement. Its cuts may have been dropped since.
    let mut known = peaks.clone();
    let mut proposals = StepProposals::new(&search.seating);
    let total = limits.iterations.max(1);
    let scale = limits.initial_threshold * objective.counted_scenarios(scenarios) as u64;
    while search.spent < total && search.best.score > floor {
        search.spent += 1;
        let cuts = aim.counts_exact().then_some(&mut search.cuts);
        let Some(step) = proposals.propose_step(&search.seating, (cuts, rule.as_ref()), scenarios, &mut dice)
        else {
            continue;
        };
        let changes = search.seating.step_changes(step);
        let mut after = moved;
        if let Some(MoveLimits { from, most, .. }) = limits.moves {
            after = changes.iter().fold(moved, |sum, change| sum + move_delta(from, change));
            if after > most.cast_signed() && after > moved {
                continue;
            }
        }
        let left = total - search.spent;
        let heat = (u128::from(scale) * u128::from(left) * u128::from(left)
            / (u128::from(total) * u128::from(total))) as u64;
        let threshold = search.score.saturating_add(heat.saturating_mul(dice.draw_exponential()) >> 16);
        let rule_after = rule.as_mut().map_or(0, |rule| weighed(rule.price(&search.seating, changes)));
        let now = toll(moved).saturating_add(under_rule);
        let then = toll(after).saturating_add(rule_after);
        let Some(threshold) = threshold.saturating_add(now).checked_sub(then) else {
            continue;
        };
        if aim.counts_exact() {
            let effect = search.cuts.step_effect(&search.seating, changes);
            let allowance = threshold.saturating_sub(search.score);
            let early = objective == ScenarioObjective::Mean;
            let go_on = |from: usize, upto: usize, peaks: &[f32]| {
                !early || !search.exceeds_allowance(from..upto, peaks, allowance)
            };
            if !search.cuts.price(&effect, &mut peaks, go_on) {
                continue;
            }
            let price = objective.score(scenarios, &peaks);
            if price > threshold {
                continue;
            }
            known.copy_from_slice(search.cuts.peaks());
            let score = search.score;
            if let Some(splits) = &mut search.splits {
                splits.change(step)?;
            }
            let undo = search.take_step(step, &effect, &peaks, price);
            if search.split_until_refuted(threshold) {
                let changes = search.seating.step_changes(undo);
                let effect = search.cuts.step_effect(&search.seating, changes);
                search.take_step(undo, &effect, &known, score);
                continue;
            }
        } else {
            search.seating.apply(step);
        }
        if let Some(rule) = &mut rule {
            rule.apply();
        }
        (moved, under_rule) = (after, rule_after);
        let score = search.score.saturating_add(under_rule).saturating_add(toll(moved));
        if score < search.best.score {
            search.best.seating.copy_from(&search.seating);
            search.best.score = score;
        }
    }
    Ok(search.best)
}

impl AnnealingSearch<'_> {
    /// Returns true if a step is so bad on one block of scenarios that the others need no evaluation. The
    /// losses must exceed four times the gains plus twice the allowance.
    fn exceeds_allowance(&self, block: std::ops::Range<usize>, peaks: &[f32], allowance: u64) -> bool {
        let both = peaks[block.clone()].iter().zip(&self.cuts.peaks()[block.clone()]);
        let (mut worse, mut better) = (0.0, 0.0);
        for ((now, before), factor) in both.zip(&self.scenarios.float_weights()[block]) {
            let change = f64::from(now - before) * factor;
            worse += change.max(0.0);
            better += (-change).max(0.0);
        }
        worse > 4.0 * better + 2.0 * allowance as f64
    }

    /// Takes a step whose price is known, in total and for each peak.
    fn take_step(
        &mut self,
        step: SlotChange,
        effect: &super::cuts::StepEffect,
        peaks: &[f32],
        price: u64,
    ) -> SlotChange {
        self.cuts.apply(effect, peaks);
        self.score = price;
        self.seating.apply(step)
    }

    /// Splits the scenarios exactly, one after the other, until the score is known or above the threshold.
    /// The last scenario that refuted a placement comes first. Returns true if the placement is refuted. The
    /// splits then take their change back, and keep it otherwise.
    fn split_until_refuted(&mut self, threshold: u64) -> bool {
        let Some(splits) = &mut self.splits else { return false };
        for _ in 0..self.scenarios.len() {
            let scenario = self.next;
            self.spent += 1;
            let bound = self.cuts.peaks()[scenario];
            let peak = splits.peak(scenario, bound as u32);
            if peak.load as f32 > bound {
                // The cuts missed the peak, so its certificate becomes a cut.
                self.cuts.add_cut(&self.seating, peak.certificate);
                self.score = self.objective.score(self.scenarios, self.cuts.peaks());
            }
            if self.score > threshold {
                splits.take_back();
                return true;
            }
            self.next = (scenario + 1) % self.scenarios.len();
        }
        splits.keep();
        false
    }
}

/// Returns the number of experts on ranks that did not hold them.
pub(crate) fn moves_between(from: &SearchPlacement, to: &SearchPlacement) -> usize {
    let new = |expert: u32| to.hosts(expert).iter().filter(|&&rank| !from.holds(rank, expert)).count();
    (0..to.experts() as u32).map(new).sum()
}

/// Returns the difference that a change makes to the number of moves.
pub(crate) fn move_delta(from: &SearchPlacement, change: &super::incumbent::HostChange) -> isize {
    if change.expert as usize == from.experts() {
        return 0;
    }
    let new = |rank: Option<super::incumbent::RankIndex>| {
        isize::from(rank.is_some_and(|rank| !from.holds(rank, change.expert)))
    };
    new(change.to) - new(change.from)
}
