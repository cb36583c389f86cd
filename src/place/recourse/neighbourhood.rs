//! Proposals of steps: half of them guided by a certificate, half of them random.
//!
//! A guided step takes a scenario above its floor and the cut that proves its peak. An expert confined there
//! needs a host outside, or has to change places with a lighter one outside. Under a fixed rule the busiest
//! rank replaces the cut.

use super::cuts::CutPool;
use super::incumbent::SearchPlacement;
use super::rule_loads::RuleLoads;
use super::scenarios::ScenarioSet;
use crate::rng::SeededRng;
use evenkeel_solver::SlotChange;

/// Number of random slots that a guided step examines for a heavy expert inside.
const SLOTS_EXAMINED: usize = 3;

/// Generator of steps.
#[derive(Debug)]
pub(crate) struct StepProposals {
    inside: Vec<bool>,
}

impl StepProposals {
    pub(crate) fn new(seating: &SearchPlacement) -> StepProposals {
        StepProposals { inside: vec![false; seating.ranks()] }
    }

    /// Draws a step that leads to a placement. Returns `None` if the draw failed. Cuts guide if exact splits
    /// count, and a rule's loads guide if the rule counts. If both count, each guides half of the time.
    pub(crate) fn propose_step(
        &mut self,
        seating: &SearchPlacement,
        (cuts, rule): (Option<&mut CutPool<'_>>, Option<&RuleLoads<'_>>),
        scenarios: &ScenarioSet,
        dice: &mut SeededRng,
    ) -> Option<SlotChange> {
        let step = if dice.draw_below(2) == 0 {
            match (cuts, rule) {
                (Some(_), Some(rule)) if dice.draw_below(2) == 0 => {
                    propose_under_rule(seating, rule, scenarios, dice)
                }
                (Some(cuts), _) => self.propose_guided(seating, cuts, scenarios, dice),
                (None, Some(rule)) => propose_under_rule(seating, rule, scenarios, dice),
                (None, None) => None,
            }
        } else {
            propose_random(seating, dice)
        }?;
        seating.allows_step(step).then_some(step)
    }

    fn propose_guided(
        &mut self,
        seating: &SearchPlacement,
        cuts: &mut CutPool<'_>,
        scenarios: &ScenarioSet,
        dice: &mut SeededRng,
    ) -> Option<SlotChange> {
        // Of two scenarios, the one further above its floor is taken, in units of the score.
        let above = |b: usize| (cuts.peaks()[b] - scenarios.peak_floors()[b]) as u64 * scenarios.weights()[b];
        let (a, b) = (pick_index(scenarios.len(), dice), pick_index(scenarios.len(), dice));
        let scenario = if above(a) >= above(b) { a } else { b };
        let (ranks, confined) = cuts.tightest_cut(scenario)?;
        for &rank in ranks {
            self.inside[rank as usize] = true;
        }
        let mut slot = None;
        let load = |slot: usize| scenarios.expert_loads(seating.expert_in_slot(slot) as usize)[scenario];
        for _ in 0..SLOTS_EXAMINED {
            let slots = seating.slots_of(ranks[pick_index(ranks.len(), dice)]);
            let at = slots.start + pick_index(slots.len(), dice);
            if at < slots.end
                && confined(seating.expert_in_slot(at))
                && slot.is_none_or(|before| load(at) > load(before))
            {
                slot = Some(at);
            }
        }
        let outside = (0..8)
            .map(|_| pick_index(seating.slots(), dice))
            .find(|&slot| !self.inside[seating.rank_of(slot) as usize]);
        for &rank in ranks {
            self.inside[rank as usize] = false;
        }
        let (slot, outside) = (slot?, outside?);
        if seating.is_redundant(outside) && dice.draw_below(4) != 0 {
            return Some(SlotChange::Replace(outside, seating.expert_in_slot(slot)));
        }
        Some(SlotChange::Swap(slot, outside))
    }
}

/// Proposes that a replica leaves the busiest rank of a bad scenario, or that another rank takes part of an
/// expert's tokens.
fn propose_under_rule(
    seating: &SearchPlacement,
    rule: &RuleLoads<'_>,
    scenarios: &ScenarioSet,
    dice: &mut SeededRng,
) -> Option<SlotChange> {
    let above = |b: usize| (rule.peaks()[b] - scenarios.peak_floors()[b]) as u64 * scenarios.weights()[b];
    let (a, b) = (pick_index(scenarios.len(), dice), pick_index(scenarios.len(), dice));
    let scenario = if above(a) >= above(b) { a } else { b };
    let busiest = rule.busiest_rank(scenario);
    let load = |slot: usize| {
        let expert = seating.expert_in_slot(slot);
        scenarios.expert_loads(expert as usize)[scenario] / seating.hosts(expert).len().max(1) as f32
    };
    let slots = seating.slots_of(busiest);
    let mut slot = None;
    for _ in 0..SLOTS_EXAMINED {
        let at = slots.start + pick_index(slots.len(), dice);
        if at < slots.end && slot.is_none_or(|before| load(at) > load(before)) {
            slot = Some(at);
        }
    }
    let outside = (0..8).map(|_| pick_index(seating.slots(), dice)).find(|slot| !slots.contains(slot));
    let (slot, outside) = (slot?, outside?);
    if seating.is_redundant(outside) && dice.draw_below(2) == 0 {
        return Some(SlotChange::Replace(outside, seating.expert_in_slot(slot)));
    }
    Some(SlotChange::Swap(slot, outside))
}

/// Proposes that two experts change places, or that a replica replaces a redundant one.
pub(crate) fn propose_random(seating: &SearchPlacement, dice: &mut SeededRng) -> Option<SlotChange> {
    if dice.draw_below(2) == 0 {
        return Some(SlotChange::Swap(pick_index(seating.slots(), dice), pick_index(seating.slots(), dice)));
    }
    let slot = (0..8).map(|_| pick_index(seating.slots(), dice)).find(|&slot| seating.is_redundant(slot))?;
    Some(SlotChange::Replace(slot, pick_index(seating.experts(), dice) as u32))
}

fn pick_index(n: usize, dice: &mut SeededRng) -> usize {
    dice.draw_below(n as u64) as usize
}
