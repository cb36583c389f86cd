//! The decision over all layers, and its reason.
//!
//! Input is the result for each layer ([`LayerCandidate`]). Output is a [`Proposal`]. A layer moves if its
//! gain exceeds the cost of its moves. Layers with the highest gain per move come first, up to the budget.
//! Nothing moves unless the mean imbalance falls by `min_gain`.

use super::candidate::LayerCandidate;
use super::propose::{LayerEstimate, LayerPreview, PlanPreview, Proposal};
use super::state::PhaseState;
use crate::wire::decision::{Decision, DecisionOutcome, Imbalances, MoveRecord, Trigger, format_percent};
use evenkeel::cluster::Cluster;
use std::collections::BTreeSet;

impl PhaseState {
    /// Returns the decision over the candidates of all layers.
    pub(super) fn select_moves(
        &self,
        trigger: Trigger,
        dry_run: bool,
        (cluster, down): (Cluster, BTreeSet<usize>),
        candidates: Vec<Option<LayerCandidate>>,
    ) -> Proposal {
        let pays = |candidate: &LayerCandidate| {
            candidate.forced || (!candidate.moves.is_empty() && candidate.gain > candidate.cost)
        };
        let mut selected: Vec<bool> =
            candidates.iter().map(|candidate| candidate.as_ref().is_some_and(pays)).collect();
        let waiting = self.drop_over_budget(&candidates, &mut selected);
        let mut imbalance = mean_imbalances(&candidates, &selected);
        let sums = SelectionTotals { waiting, ..SelectionTotals::from_candidates(&candidates, &selected) };
        let (acts, why) = self.judge_selection(trigger, cluster.ranks(), imbalance, &sums);
        let outcome = match (acts, dry_run) {
            (true, false) => DecisionOutcome::Applied,
            (true, true) => DecisionOutcome::DryRun,
            (false, _) => DecisionOutcome::Kept,
        };
        let plan_preview =
            Some(self.build_preview((outcome, imbalance), &candidates, &selected, &cluster, &down));
        if outcome == DecisionOutcome::Kept {
            imbalance.after = imbalance.before;
        }
        let publishes = outcome == DecisionOutcome::Applied;
        let first = self.version == 0 && matches!(trigger, Trigger::RankDown | Trigger::RankUp);
        let version = self.version + u64::from(publishes && !first);
        let counted =
            if publishes || outcome == DecisionOutcome::DryRun { (sums.moves, sums.layers) } else { (0, 0) };
        let expert_bytes = self.shape.parsed_model().ok().flatten().map(|model| model.expert_bytes());
        let busiest = max_received_experts(&candidates, &selected, cluster.ranks());
        let decision = Decision {
            number: self.decisions + 1,
            phase: self.phase,
            step: self.last_step,
            accepted: self.accepted,
            trigger,
            outcome,
            reason: self.trigger_reason(trigger) + &why,
            plan: version,
            judged_steps: self.window.len().min(self.options.judged),
            imbalance,
            moves: counted.0,
            layers: counted.1,
            rejected_moves: sums.proposed - counted.0,
            bytes: expert_bytes.map(|bytes| bytes.saturating_mul(counted.0 as u64)),
            busiest_bytes: expert_bytes.filter(|_| counted.0 > 0).map(|bytes| bytes.saturating_mul(busiest)),
            gain: sums.gain,
            cost: sums.cost,
            copy_ms: self.copies.transfer_ms(counted.0),
            duration_ms: 0.0,
            timestamp_unix_s: 0,
        };
        let mut proposal = Proposal {
            changes_plan: publishes,
            preview: false,
            cluster,
            down,
            placements: self.placements.clone(),
            planned: self.planned.clone(),
            estimates: self.estimates.clone(),
            expected: if publishes { imbalance.after } else { imbalance.before },
            plan_preview,
            decision,
        };
        for (layer, (candidate, selected)) in candidates.into_iter().zip(selected).enumerate() {
            let Some(candidate) = candidate else { continue };
            let after = if selected { candidate.estimate.after } else { candidate.estimate.before };
            proposal.estimates[layer] = LayerEstimate { after, ..candidate.estimate };
            if publishes && selected {
                proposal.planned[layer] =
                    proposal.planned[layer] || (candidate.estimate.batches > 0 && !first);
                proposal.placements[layer] = candidate.placement;
            }
        }
        proposal
    }

    /// Returns whether to act, and the reason.
    fn judge_selection(
        &self,
        trigger: Trigger,
        ranks: usize,
        imbalance: Imbalances,
        sums: &SelectionTotals,
    ) -> (bool, String) {
        let (SelectionTotals { moves, layers, proposed, waiting, gain, cost, forced }, horizon) =
            (sums, self.options.horizon);
        let considered = format!(
            "{moves} moves in {layers} layers lower the imbalance of the latest steps from {:.3} to {:.3} (bound {:.3}): gain {gain:.1} batches \
             over {horizon} steps, transfer cost {cost:.1} batches",
            imbalance.before, imbalance.after, imbalance.bound
        );
        match trigger {
            Trigger::RankDown | Trigger::RankUp => (true, format!("{ranks} ranks are left: {moves} moves")),
            _ if self.version == 0 => (true, format!("the first plan, after {} steps", self.live)),
            _ if *forced => (true, considered),
            _ if *proposed == 0 => (false, "the policy finds no move whose gain exceeds the noise".into()),
            _ if *moves == 0 && *waiting > 0 => (false, self.waiting_reason(*waiting)),
            _ if *moves == 0 => (false, format!("none of {proposed} moves would pay within {horizon} steps")),
            _ if imbalance.before - imbalance.after < self.options.min_gain => (
                false,
                format!(
                    "the gain is too small: {considered}, expected a fall of at least {}",
                    self.options.min_gain
                ),
            ),
            _ => (true, considered),
        }
    }

    /// Returns the reason why profitable moves wait.
    fn waiting_reason(&self, waiting: usize) -> String {
        let copies = self.copies.status();
        let Some((share, available)) = copies.copy_share.zip(copies.available_ms) else {
            return format!("{waiting} profitable moves exceed move_budget = {}", self.options.move_budget);
        };
        format!(
            "{waiting} profitable moves wait: copies may take {} of the time, {available:.1} ms are left, and a copy takes \
             {:.1} ms",
            format_percent(share),
            copies.expert_ms
        )
    }

    /// Returns the reason why a decision is due now.
    fn trigger_reason(&self, trigger: Trigger) -> String {
        match trigger {
            Trigger::Drift => {
                format!("the imbalance rose to {:.3} from {:.3}; ", self.recent_imbalance(), self.expected)
            }
            Trigger::Interval => format!("{} steps since the last decision; ", self.steps_since_decision()),
            Trigger::Manual => "requested by a client; ".into(),
            Trigger::First | Trigger::RankDown | Trigger::RankUp => String::new(),
        }
    }

    /// Drops the moves with the least gain per move until the rest fits the budgets of moves and of time.
    /// Returns the number of dropped moves.
    fn drop_over_budget(&self, candidates: &[Option<LayerCandidate>], selected: &mut [bool]) -> usize {
        let most = (self.options.move_budget > 0).then_some(self.options.move_budget);
        let Some(mut left) = most.into_iter().chain(self.copies.affordable_moves()).min() else { return 0 };
        let mut order: Vec<(usize, f64, usize)> = (candidates.iter().enumerate())
            .filter_map(|(layer, candidate)| {
                candidate
                    .as_ref()
                    .filter(|candidate| selected[layer] && !candidate.forced)
                    .map(|candidate| (layer, candidate))
            })
            .map(|(layer, candidate)| {
                (layer, candidate.gain / candidate.moves.len().max(1) as f64, candidate.moves.len())
            })
            .collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut waiting = 0;
        for (layer, _, moves) in order {
            if let Some(rest) = left.checked_sub(moves) {
                left = rest;
            } else {
                selected[layer] = false;
                waiting += moves;
            }
        }
        waiting
    }

    /// Returns the plan that was considered, move by move.
    fn build_preview(
        &self,
        (outcome, imbalance): (DecisionOutcome, Imbalances),
        candidates: &[Option<LayerCandidate>],
        selected: &[bool],
        cluster: &Cluster,
        down: &BTreeSet<usize>,
    ) -> PlanPreview {
        let ranks: Vec<u32> =
            (0..self.base.ranks()).filter(|rank| !down.contains(rank)).map(|rank| rank as u32).collect();
        let name = |rank: u32| ranks.get(rank as usize).copied().unwrap_or(rank);
        let each =
            || {
                candidates.iter().zip(selected).enumerate().filter_map(|(layer, (candidate, &selected))| {
                    Some((layer, candidate.as_ref()?, selected))
                })
            };
        let moves = each()
            .filter(|(_, _, selected)| *selected)
            .flat_map(|(layer, candidate, _)| candidate.moves.iter().map(move |m| (self.layers[layer], *m)));
        PlanPreview {
            decision: self.decisions + 1,
            outcome,
            imbalance,
            moves: moves
                .map(|(layer, m)| MoveRecord {
                    layer,
                    expert: m.expert,
                    from: m.from.map(name),
                    to: name(m.to),
                    slot: m.slot,
                })
                .collect(),
            layers: each()
                .filter(|(_, candidate, _)| {
                    candidate.estimate.batches > 0 && candidate.ranks_after.len() == cluster.ranks()
                })
                .map(|(layer, candidate, selected)| LayerPreview {
                    layer: self.layers[layer],
                    before: candidate.estimate.before,
                    after: if selected { candidate.estimate.after } else { candidate.estimate.before },
                    bound: candidate.estimate.bound,
                    moves: if selected { candidate.moves.len() } else { 0 },
                    ranks_before: candidate.ranks_before.clone(),
                    ranks_after: if selected {
                        candidate.ranks_after.clone()
                    } else {
                        candidate.ranks_before.clone()
                    },
                })
                .collect(),
        }
    }
}

/// The sums over the layers that change.
#[derive(Debug, Default)]
struct SelectionTotals {
    moves: usize,
    layers: usize,
    /// The moves of all candidates.
    proposed: usize,
    /// The profitable moves that exceed a budget.
    waiting: usize,
    gain: f64,
    cost: f64,
    forced: bool,
}

impl SelectionTotals {
    fn from_candidates(candidates: &[Option<LayerCandidate>], selected: &[bool]) -> Self {
        let mut sums = Self::default();
        for (candidate, &selected) in candidates.iter().zip(selected) {
            let Some(candidate) = candidate else { continue };
            sums.proposed += candidate.moves.len();
            sums.forced |= candidate.forced;
            if selected {
                sums.moves += candidate.moves.len();
                sums.layers += usize::from(!candidate.moves.is_empty());
                sums.gain += candidate.gain;
                sums.cost += candidate.cost;
            }
        }
        sums
    }
}

/// Returns the means over all batches of all layers: on the current placements, and with the chosen changes.
fn mean_imbalances(candidates: &[Option<LayerCandidate>], selected: &[bool]) -> Imbalances {
    let (mut all, mut batches) = (Imbalances::default(), 0usize);
    for (candidate, &selected) in candidates.iter().zip(selected) {
        let Some(candidate) = candidate else { continue };
        let weight = candidate.estimate.batches as f64;
        all.before += candidate.estimate.before * weight;
        all.after += if selected { candidate.estimate.after } else { candidate.estimate.before } * weight;
        all.bound += candidate.estimate.bound * weight;
        batches += candidate.estimate.batches;
    }
    let weight = batches.max(1) as f64;
    Imbalances { before: all.before / weight, after: all.after / weight, bound: all.bound / weight }
}

/// Returns the number of experts that the busiest receiver gets.
fn max_received_experts(candidates: &[Option<LayerCandidate>], selected: &[bool], ranks: usize) -> u64 {
    let mut received = vec![0u64; ranks];
    for (candidate, _) in candidates.iter().zip(selected).filter(|&(_, &selected)| selected) {
        for m in candidate.iter().flat_map(|candidate| &candidate.moves) {
            if let Some(received) = received.get_mut(m.to as usize) {
                *received += 1;
            }
        }
    }
    received.into_iter().max().unwrap_or(0)
}
