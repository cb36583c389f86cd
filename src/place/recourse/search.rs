//! The search: simulated annealing on lower bounds, kept honest by exact splits.
//!
//! In: scenarios, a placement to start from, a number of iterations. Out: the best placement seen and its exact score.
//!
//! A step is priced by the cuts at hand, a lower bound. Where that is no worse than the present score plus a threshold, drawn
//! anew each time and falling with the iterations (Metropolis, in integers), the step is taken for a trial: its scenarios are
//! split exactly, one after the other, until the score is certain, or certain to be beyond the threshold; then the step is
//! undone. Certificates of what the cuts had missed become cuts. So the score of the placement in hand is always exact.
//!
//! Where peaks under a fixed rule count ([`Aim`]), they are priced first, exactly. Their part of the score then stands like a
//! move's price: what a step gains under the rule, it may lose under the exact split.
//!
//! An iteration is one step priced or one scenario split.

use super::aim::Aim;
use super::cuts::Cuts;
use super::exact::Exact;
use super::rule_loads::RuleLoads;
use super::scenarios::{Scenarios, UNIT};
use super::score::Objective;
use super::seating::{Seating, Step};
use super::steps::Proposals;
use crate::cluster::Cluster;
use crate::trace::dice::Dice;
use evenkeel_solver::{Error, Problem};

/// The first threshold: a thousandth of a mean imbalance of 1. It falls to nothing.
const HEAT: u64 = UNIT / 1000;

/// What a search may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<'a> {
    /// Steps priced and scenarios split, together.
    pub(crate) iterations: u64,
    /// What it may move; nothing is running where it is `None`.
    pub(crate) moves: Option<Moves<'a>>,
}

/// What experts that are new to a rank may and must do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moves<'a> {
    /// The placement that is running.
    pub(crate) from: &'a Seating,
    /// How many there may be.
    pub(crate) most: usize,
    /// What each has to lower the score by.
    pub(crate) price: u64,
}

impl Moves<'_> {
    /// What so many moves cost.
    pub(crate) fn toll(&self, moves: usize) -> u64 {
        self.price.saturating_mul(moves as u64)
    }
}

/// The best placement of a search.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// The placement.
    pub(crate) seating: Seating,
    /// Its exact score, and the price of its moves.
    pub(crate) score: u64,
}

struct Search<'a> {
    scenarios: &'a Scenarios,
    objective: Objective,
    seating: Seating,
    cuts: Cuts<'a>,
    /// The exact part of the score; 0 where only the rule counts.
    score: u64,
    best: Found,
    exact: Exact,
    spent: u64,
    /// The scenario to be split first: the last one that told a step off.
    next: usize,
}

/// Searches from a placement that holds every expert and none twice on a rank.
///
/// # Errors
/// Where the start leaves an expert without a rank.
pub(crate) fn search(
    scenarios: &Scenarios,
    (objective, aim, cluster): (Objective, Aim, &Cluster),
    start: Seating,
    limits: Limits<'_>,
    mut dice: Dice,
) -> Result<Found, Error> {
    let mut search = Search {
        cuts: Cuts::new(scenarios, &start),
        best: Found { seating: start.clone(), score: 0 },
        seating: start,
        score: 0,
        scenarios,
        objective,
        exact: Exact::default(),
        spent: 0,
        next: 0,
    };
    let mut rule = aim.rule(cluster).map(|rule| RuleLoads::new(scenarios, rule, &search.seating));
    let weighed = |peaks: &[f32]| aim.weighed(objective.score(scenarios, peaks));
    let mut under_rule = rule.as_ref().map_or(0, |rule| weighed(rule.peaks()));
    if aim.exact() {
        search.spent = scenarios.len() as u64;
        search.score = objective.score(scenarios, search.cuts.peaks());
        search.refuted(u64::MAX)?;
    }
    let mut moved = limits.moves.map_or(0, |moves| moves_between(moves.from, &search.seating).cast_signed());
    let toll = |moved: isize| limits.moves.map_or(0, |moves| moves.toll(moved.unsigned_abs()));
    search.best.score = search.score.saturating_add(under_rule).saturating_add(toll(moved));
    let floor = objective.score(scenarios, scenarios.floors());
    let floor = aim.total(floor, floor);
    let mut peaks = vec![0.0; scenarios.padded()];
    // The exact peaks of the placement in hand; its cuts may have been dropped since.
    let mut known = peaks.clone();
    let mut proposals = Proposals::new(&search.seating);
    let total = limits.iterations.max(1);
    let scale = HEAT * objective.counted(scenarios) as u64;
    while search.spent < total && search.best.score > floor {
        search.spent += 1;
        let cuts = aim.exact().then_some(&mut search.cuts);
        let Some(step) = proposals.next(&search.seating, (cuts, rule.as_ref()), scenarios, &mut dice) else {
            continue;
        };
        let changes = search.seating.changes(step);
        let mut after = moved;
        if let Some(Moves { from, most, .. }) = limits.moves {
            after = changes.iter().fold(moved, |sum, change| sum + new_moves(from, change));
            if after > most.cast_signed() && after > moved {
                continue;
            }
        }
        let left = total - search.spent;
        let heat = (u128::from(scale) * u128::from(left) * u128::from(left)
            / (u128::from(total) * u128::from(total))) as u64;
        let threshold = search.score.saturating_add(heat.saturating_mul(dice.exponential()) >> 16);
        let rule_after = rule.as_mut().map_or(0, |rule| weighed(rule.price(&search.seating, changes)));
        let now = toll(moved).saturating_add(under_rule);
        let then = toll(after).saturating_add(rule_after);
        let Some(threshold) = threshold.saturating_add(now).checked_sub(then) else {
            continue;
        };
        if aim.exact() {
            let effect = search.cuts.effect(&search.seating, changes);
            let allowance = threshold.saturating_sub(search.score);
            let early = objective == Objective::Mean;
            let go_on = |from: usize, upto: usize, peaks: &[f32]| {
                !early || !search.hopeless(from..upto, peaks, allowance)
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
            let undo = search.take(step, &effect, &peaks, price);
            if search.refuted(threshold)? {
                let changes = search.seating.changes(undo);
                let effect = search.cuts.effect(&search.seating, changes);
                search.take(undo, &effect, &known, score);
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
            search.best = Found { seating: search.seating.clone(), score };
        }
    }
    Ok(search.best)
}

impl Search<'_> {
    /// Whether a step that is this bad on one block of scenarios is not worth looking at on the others: what is worse outweighs
    /// what is better four times and is beyond the threshold twice.
    fn hopeless(&self, block: std::ops::Range<usize>, peaks: &[f32], allowance: u64) -> bool {
        let both = peaks[block.clone()].iter().zip(&self.cuts.peaks()[block.clone()]);
        let (mut worse, mut better) = (0.0, 0.0);
        for ((now, before), factor) in both.zip(&self.scenarios.factors()[block]) {
            let change = f64::from(now - before) * factor;
            worse += change.max(0.0);
            better += (-change).max(0.0);
        }
        worse > 4.0 * better + 2.0 * allowance as f64
    }

    /// Takes a step whose price, peak by peak and in all, is known.
    fn take(&mut self, step: Step, effect: &super::cuts::Effect, peaks: &[f32], price: u64) -> Step {
        self.cuts.apply(effect, peaks);
        self.score = price;
        self.seating.apply(step)
    }

    /// Splits the scenarios exactly, one after the other, until the score is known or above the threshold. The one that was
    /// the last to refute a placement comes first.
    fn refuted(&mut self, threshold: u64) -> Result<bool, Error> {
        let problem = Exact::problem(&self.seating)?;
        for _ in 0..self.scenarios.len() {
            let scenario = self.next;
            self.split(&problem, scenario)?;
            if self.score > threshold {
                return Ok(true);
            }
            self.next = (scenario + 1) % self.scenarios.len();
        }
        Ok(false)
    }

    /// Splits one scenario exactly; where the cuts missed something, its certificate becomes one.
    fn split(&mut self, problem: &Problem, scenario: usize) -> Result<(), Error> {
        self.spent += 1;
        let (peak, certificate) = self.exact.peak(problem, self.scenarios, scenario)?;
        if peak > self.cuts.peaks()[scenario] {
            self.cuts.add(&self.seating, certificate);
            self.score = self.objective.score(self.scenarios, self.cuts.peaks());
        }
        Ok(())
    }
}

/// Experts that are on a rank where they were not.
pub(crate) fn moves_between(from: &Seating, to: &Seating) -> usize {
    let new = |expert: u32| to.hosts(expert).iter().filter(|&&rank| !from.holds(rank, expert)).count();
    (0..to.experts() as u32).map(new).sum()
}

/// By how much a change alters the number of moves.
fn new_moves(from: &Seating, change: &super::seating::Change) -> isize {
    if change.expert as usize == from.experts() {
        return 0;
    }
    let new = |rank: Option<super::seating::Rank>| {
        isize::from(rank.is_some_and(|rank| !from.holds(rank, change.expert)))
    };
    new(change.to) - new(change.from)
}
