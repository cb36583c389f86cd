//! Which steps are tried: half of them guided by a certificate, half of them anywhere.
//!
//! Guided: take a scenario above its floor and the cut that proves its peak; an expert confined there needs a host outside,
//! or a place outside for one that weighs less. Under a fixed rule the busiest rank stands in the place of the cut.

use super::cuts::Cuts;
use super::rule_loads::RuleLoads;
use super::scenarios::Scenarios;
use super::seating::{Seating, Step};
use crate::trace::dice::Dice;

/// How often a guided step looks for a heavier expert inside.
const LOOKS: usize = 3;

/// Draws steps.
#[derive(Debug)]
pub(crate) struct Proposals {
    inside: Vec<bool>,
}

impl Proposals {
    pub(crate) fn new(seating: &Seating) -> Proposals {
        Proposals { inside: vec![false; seating.ranks()] }
    }

    /// A step that leads to a placement; `None` where none was found this time. Cuts guide where exact splits count, a rule's
    /// loads where the rule counts, each half of the time where both do.
    pub(crate) fn next(
        &mut self,
        seating: &Seating,
        (cuts, rule): (Option<&mut Cuts<'_>>, Option<&RuleLoads<'_>>),
        scenarios: &Scenarios,
        dice: &mut Dice,
    ) -> Option<Step> {
        let step = if dice.below(2) == 0 {
            match (cuts, rule) {
                (Some(_), Some(rule)) if dice.below(2) == 0 => under_rule(seating, rule, scenarios, dice),
                (Some(cuts), _) => self.guided(seating, cuts, scenarios, dice),
                (None, Some(rule)) => under_rule(seating, rule, scenarios, dice),
                (None, None) => None,
            }
        } else {
            anywhere(seating, dice)
        }?;
        seating.allows(step).then_some(step)
    }

    fn guided(
        &mut self,
        seating: &Seating,
        cuts: &mut Cuts<'_>,
        scenarios: &Scenarios,
        dice: &mut Dice,
    ) -> Option<Step> {
        // The further above its floor of two, in units of the score.
        let above = |b: usize| (cuts.peaks()[b] - scenarios.floors()[b]) as u64 * scenarios.weights()[b];
        let (a, b) = (pick(scenarios.len(), dice), pick(scenarios.len(), dice));
        let scenario = if above(a) >= above(b) { a } else { b };
        let (ranks, confined) = cuts.tight(scenario)?;
        for &rank in ranks {
            self.inside[rank as usize] = true;
        }
        let mut slot = None;
        let load = |slot: usize| scenarios.row(seating.held(slot) as usize)[scenario];
        for _ in 0..LOOKS {
            let slots = seating.slots_of(ranks[pick(ranks.len(), dice)]);
            let at = slots.start + pick(slots.len(), dice);
            if at < slots.end
                && confined(seating.held(at))
                && slot.is_none_or(|before| load(at) > load(before))
            {
                slot = Some(at);
            }
        }
        let outside = (0..8)
            .map(|_| pick(seating.slots(), dice))
            .find(|&slot| !self.inside[seating.rank(slot) as usize]);
        for &rank in ranks {
            self.inside[rank as usize] = false;
        }
        let (slot, outside) = (slot?, outside?);
        if seating.redundant(outside) && dice.below(4) != 0 {
            return Some(Step::Retarget(outside, seating.held(slot)));
        }
        Some(Step::Swap(slot, outside))
    }
}

/// A replica leaves the busiest rank of a bad scenario, or another rank takes part of an expert's tokens.
fn under_rule(
    seating: &Seating,
    rule: &RuleLoads<'_>,
    scenarios: &Scenarios,
    dice: &mut Dice,
) -> Option<Step> {
    let above = |b: usize| (rule.peaks()[b] - scenarios.floors()[b]) as u64 * scenarios.weights()[b];
    let (a, b) = (pick(scenarios.len(), dice), pick(scenarios.len(), dice));
    let scenario = if above(a) >= above(b) { a } else { b };
    let busiest = rule.busiest(scenario);
    let load = |slot: usize| {
        let expert = seating.held(slot);
        scenarios.row(expert as usize)[scenario] / seating.hosts(expert).len().max(1) as f32
    };
    let slots = seating.slots_of(busiest);
    let mut slot = None;
    for _ in 0..LOOKS {
        let at = slots.start + pick(slots.len(), dice);
        if at < slots.end && slot.is_none_or(|before| load(at) > load(before)) {
            slot = Some(at);
        }
    }
    let outside = (0..8).map(|_| pick(seating.slots(), dice)).find(|slot| !slots.contains(slot));
    let (slot, outside) = (slot?, outside?);
    if seating.redundant(outside) && dice.below(2) == 0 {
        return Some(Step::Retarget(outside, seating.held(slot)));
    }
    Some(Step::Swap(slot, outside))
}

fn anywhere(seating: &Seating, dice: &mut Dice) -> Option<Step> {
    if dice.below(2) == 0 {
        return Some(Step::Swap(pick(seating.slots(), dice), pick(seating.slots(), dice)));
    }
    let slot = (0..8).map(|_| pick(seating.slots(), dice)).find(|&slot| seating.redundant(slot))?;
    Some(Step::Retarget(slot, pick(seating.experts(), dice) as u32))
}

fn pick(n: usize, dice: &mut Dice) -> usize {
    dice.below(n as u64) as usize
}
