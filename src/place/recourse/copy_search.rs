//! Search for dynamic slots: simulated annealing on the copies that batches need.
//!
//! In: scenarios, an initial placement, a number of iterations. Out: the best placement found and its score
//! ([`CopyScorer`]).
//!
//! A step is scored scenario by scenario. The scenario that refuted the last step comes first. A step is
//! refuted if its score is above the threshold, or if the first scenarios lose far more than they gain. Half
//! of the steps are guided: an expert that a batch copies to a rank gets a static replica there, or moves
//! there. An iteration is one priced step of the search for exact splits, which takes a part of the time of
//! one scored scenario ([`ITERATIONS_PER_SCORE`]).

use super::copy_score::CopyScorer;
use super::incumbent::SearchPlacement;
use super::neighbourhood::propose_random;
use super::scenarios::ScenarioSet;
use super::score::ScenarioObjective;
use super::search::{MoveLimits, SearchLimits, SearchResult, move_delta, moves_between};
use crate::rng::SeededRng;
use evenkeel_solver::{SlotChange, SolverError};

/// Iterations that one scored scenario counts.
const ITERATIONS_PER_SCORE: u64 = 4;

/// Number of scenarios of a step after which losses are compared with gains.
const MIN_SCORED_SCENARIOS: usize = 6;

/// Copy of an expert in a scenario, from a rank to another.
#[derive(Debug, Clone, Copy)]
struct CopiedExpert {
    expert: u32,
    from: u16,
    to: u16,
}

struct CopySearch<'a> {
    scenarios: &'a ScenarioSet,
    objective: ScenarioObjective,
    dynamic: u32,
    seating: SearchPlacement,
    /// Score of every scenario, and of a step.
    rows: Vec<u64>,
    trial_rows: Vec<u64>,
    /// Copies of every scenario, and of a step.
    copies: Vec<Vec<CopiedExpert>>,
    trial_copies: Vec<Vec<CopiedExpert>>,
    score: u64,
    spent: u64,
    /// Scenario to score first.
    next: usize,
}

/// Searches from a placement that holds every expert, and none twice on a rank.
///
/// # Errors
/// Fails if the start leaves an expert without a rank.
pub(crate) fn search_for_copies(
    scenarios: &ScenarioSet,
    (objective, dynamic): (ScenarioObjective, u32),
    start: SearchPlacement,
    limits: SearchLimits<'_>,
    mut dice: SeededRng,
) -> Result<SearchResult, SolverError> {
    let mut search = CopySearch {
        scenarios,
        objective,
        dynamic,
        seating: start.clone(),
        rows: vec![0; scenarios.len()],
        trial_rows: vec![0; scenarios.len()],
        copies: vec![vec![]; scenarios.len()],
        trial_copies: vec![vec![]; scenarios.len()],
        score: 0,
        spent: 0,
        next: 0,
    };
    search.score_step(None)?;
    search.keep_step();
    let mut moved = limits.moves.map_or(0, |moves| moves_between(moves.from, &search.seating).cast_signed());
    let toll = |moved: isize| limits.moves.map_or(0, |moves| moves.move_cost(moved.unsigned_abs()));
    let mut best = SearchResult { seating: start, score: search.score.saturating_add(toll(moved)) };
    let total = limits.iterations.max(1);
    let scale = limits.initial_threshold * objective.counted_scenarios(scenarios) as u64;
    while search.spent < total && best.score > 0 {
        search.spent += 1;
        let Some(step) = search.propose_step(&mut dice) else { continue };
        let mut after = moved;
        if let Some(MoveLimits { from, most, .. }) = limits.moves {
            let changes = search.seating.step_changes(step);
            after = changes.iter().fold(moved, |sum, change| sum + move_delta(from, change));
            if after > most.cast_signed() && after > moved {
                continue;
            }
        }
        let left = total.saturating_sub(search.spent);
        let heat = (u128::from(scale) * u128::from(left) * u128::from(left)
            / (u128::from(total) * u128::from(total))) as u64;
        let threshold = search.score.saturating_add(heat.saturating_mul(dice.draw_exponential()) >> 16);
        let Some(threshold) = threshold.saturating_add(toll(moved)).checked_sub(toll(after)) else {
            continue;
        };
        let undo = search.seating.apply(step);
        if search.score_step(Some(threshold))? {
            search.keep_step();
            moved = after;
            let score = search.score.saturating_add(toll(moved));
            if score < best.score {
                best.seating.copy_from(&search.seating);
                best.score = score;
            }
        } else {
            search.seating.apply(undo);
        }
    }
    Ok(best)
}

impl CopySearch<'_> {
    /// Scores the placement in all scenarios. Returns false if it is refuted: above the threshold.
    fn score_step(&mut self, threshold: Option<u64>) -> Result<bool, SolverError> {
        let mut scorer = CopyScorer::new(&self.seating, self.dynamic)?;
        let is_mean = self.objective == ScenarioObjective::Mean;
        let (mut worse, mut better) = (0u64, 0u64);
        for number in 0..self.scenarios.len() {
            let scenario = self.next;
            self.spent += ITERATIONS_PER_SCORE;
            let score = scorer.score(self.scenarios, scenario)?;
            self.trial_rows[scenario] = score;
            let copies = &mut self.trial_copies[scenario];
            copies.clear();
            copies.extend(scorer.copies().iter().map(|copy| CopiedExpert {
                expert: copy.item,
                from: copy.from as u16,
                to: copy.to as u16,
            }));
            let before = self.rows[scenario];
            worse += score.saturating_sub(before);
            better += before.saturating_sub(score);
            if let (Some(threshold), true) = (threshold, is_mean) {
                let allowance = threshold.saturating_sub(self.score);
                let shown = number + 1 >= MIN_SCORED_SCENARIOS;
                if shown && worse > 2 * better + 2 * allowance || worse > self.score + allowance {
                    return Ok(false);
                }
            }
            self.next = (scenario + 1) % self.scenarios.len();
        }
        let score = self.objective.tail_sum(&self.trial_rows);
        if threshold.is_some_and(|threshold| score > threshold) {
            return Ok(false);
        }
        self.score = score;
        Ok(true)
    }

    fn keep_step(&mut self) {
        std::mem::swap(&mut self.rows, &mut self.trial_rows);
        std::mem::swap(&mut self.copies, &mut self.trial_copies);
    }

    /// Draws a step that leads to a placement. Returns `None` if the draw failed.
    fn propose_step(&self, dice: &mut SeededRng) -> Option<SlotChange> {
        let step = if dice.draw_below(2) == 0 {
            self.propose_guided(dice)
        } else {
            propose_random(&self.seating, dice)
        }?;
        self.seating.allows_step(step).then_some(step)
    }

    /// Proposes that an expert that a batch copies to a rank lives there. Of two scenarios, the one with the
    /// higher score is taken.
    fn propose_guided(&self, dice: &mut SeededRng) -> Option<SlotChange> {
        let mut pick = |n: usize| dice.draw_below(n.max(1) as u64) as usize;
        let (a, b) = (pick(self.rows.len()), pick(self.rows.len()));
        let scenario = if self.rows.get(a)? >= self.rows.get(b)? { a } else { b };
        let copies = &self.copies[scenario];
        let copy = *copies.get(pick(copies.len()))?;
        let slots = self.seating.slots_of(copy.to);
        let slot = slots.start + pick(slots.len());
        if slot >= slots.end {
            return None;
        }
        if self.seating.is_redundant(slot) && pick(4) != 0 {
            return Some(SlotChange::Replace(slot, copy.expert));
        }
        let mut own = self.seating.slots_of(copy.from);
        let home = own.find(|&slot| self.seating.expert_in_slot(slot) == copy.expert)?;
        Some(SlotChange::Swap(home, slot))
    }
}
