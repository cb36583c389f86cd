//! The decision over all layers, and its reason.
//!
//! Input is the result for each layer ([`LayerCandidate`]). Output is a [`Proposal`]. A layer moves if its
//! gain exceeds the cost of its moves. [`select_moves`] selects among these layers within the budgets of
//! moves and of time. Nothing moves unless the mean imbalance falls by `min_gain`.

use super::calibration::TrialCandidate;
use super::candidate::LayerCandidate;
use super::propose::{LayerEstimate, Proposal, SelectionBasis};
use super::state::PhaseState;
use crate::wire::decision::{
    Decision, DecisionOutcome, GainEstimate, Imbalances, MoveRecord, Trigger, format_percent,
};
use crate::wire::status::{LayerPreview, PlanPreview};
use evenkeel::cluster::Cluster;
use evenkeel::economics::{MoveBudget, MoveOption, busiest_receiver, select_moves};
use evenkeel::place::ExpertMove;
use std::collections::BTreeSet;

impl PhaseState {
    /// Returns the decision over the candidates of all layers.
    pub(super) fn select_moves(
        &self,
        basis: SelectionBasis,
        candidates: Vec<Option<LayerCandidate>>,
    ) -> Proposal {
        let SelectionBasis { trigger, dry_run, cluster, down, mut gains, calibration, horizon, since_break } =
            basis;
        let mut candidates = candidates;
        let (selected, waiting) = self.select_layers(&mut candidates, since_break);
        let mut imbalance = mean_imbalances(&candidates, &selected);
        let sums = SelectionTotals { waiting, ..SelectionTotals::from_candidates(&candidates, &selected) };
        let (acts, why) = self.judge_selection((trigger, cluster.ranks()), imbalance, &sums, &calibration);
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
        let first = self.core.version == 0 && matches!(trigger, Trigger::RankDown | Trigger::RankUp);
        let version = self.core.version + u64::from(publishes && !first);
        let counted =
            if publishes || outcome == DecisionOutcome::DryRun { (sums.moves, sums.layers) } else { (0, 0) };
        let expert_bytes = self.shape.parsed_model().ok().flatten().map(|model| model.expert_bytes());
        let busiest =
            if counted.0 > 0 { busiest_receiver(selected_moves(&candidates, &selected)) } else { 0 };
        let reason = self.trigger_reason(trigger) + &why;
        let decision = Decision {
            plan: version,
            judged_steps: self.window.len().min(self.options.judged),
            imbalance,
            moves: counted.0,
            layers: counted.1,
            rejected_moves: sums.proposed - counted.0,
            bytes: expert_bytes.map(|bytes| bytes.saturating_mul(counted.0 as u64)),
            busiest_bytes: expert_bytes.filter(|_| counted.0 > 0).map(|bytes| bytes.saturating_mul(busiest)),
            gain_ms: picos_to_ms(sums.gain_ps),
            calibration,
            cost_ms: picos_to_ms(sums.cost_ps),
            copy_ms: self.copy_budget.transfer_ms(busiest),
            ..self.next_decision(trigger, outcome, reason)
        };
        if matches!(trigger, Trigger::RankDown | Trigger::RankUp) {
            gains.drop_trials();
        } else {
            let tried = self.trial_candidates(&candidates, calibration.ratio);
            gains.evidence_mut(trigger == Trigger::Drift).begin_trial(self.core.accepted, horizon, &tried);
        }
        let mut proposal = Proposal {
            gains,
            changes_plan: publishes,
            preview: false,
            cluster,
            down,
            placements: self.placements.clone(),
            planned: self.core.planned.clone(),
            estimates: self.core.estimates.clone(),
            expected: if publishes { mean_expected(&candidates, &selected) } else { imbalance.before },
            busiest_transfers: busiest,
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
                proposal.placements[layer] = candidate.replanned.placement;
            }
        }
        proposal
    }

    /// Returns whether to act, and the reason.
    fn judge_selection(
        &self,
        (trigger, ranks): (Trigger, usize),
        imbalance: Imbalances,
        sums: &SelectionTotals,
        calibration: &GainEstimate,
    ) -> (bool, String) {
        let (SelectionTotals { moves, layers, proposed, waiting, forced, .. }, horizon) =
            (sums, self.expected_horizon());
        let corrected = match calibration.trials {
            0 => String::new(),
            _ => format!(" ({:.2} of the expected time, as earlier gains)", calibration.ratio),
        };
        let considered = format!(
            "{moves} moves in {layers} layers lower the imbalance of the latest steps from {:.3} to {:.3} (bound {:.3}): they save \
             {:.1} ms over {horizon} steps{corrected}, for {:.1} ms of transfers",
            imbalance.before,
            imbalance.after,
            imbalance.bound,
            picos_to_ms(sums.gain_ps),
            picos_to_ms(sums.cost_ps)
        );
        match trigger {
            Trigger::RankDown | Trigger::RankUp => (true, format!("{ranks} ranks are left: {moves} moves")),
            _ if self.core.version == 0 => (true, format!("the first plan, after {} steps", self.core.live)),
            _ if *forced => (true, considered),
            _ if *proposed == 0 => (false, "the policy finds no move whose gain exceeds the noise".into()),
            _ if *moves == 0 && *waiting > 0 => (false, self.waiting_reason(*waiting)),
            _ if *moves == 0 => (false, format!("none of {proposed} moves would pay within {horizon} steps")),
            _ if (imbalance.before - imbalance.after) * calibration.ratio < self.options.min_gain => (
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
        let copies = self.copy_status();
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
                format!(
                    "the imbalance rose to {:.3} from {:.3}; ",
                    self.recent_imbalance(),
                    self.core.expected
                )
            }
            Trigger::Interval => format!("{} steps since the last decision; ", self.steps_since_decision()),
            Trigger::Manual => "requested by a client; ".into(),
            Trigger::First | Trigger::RankDown | Trigger::RankUp => String::new(),
        }
    }

    /// Returns whether each layer moves, and the number of accepted moves that exceed a budget.
    fn select_layers(
        &self,
        candidates: &mut [Option<LayerCandidate>],
        since_break: Option<u64>,
    ) -> (Vec<bool>, usize) {
        let options: Vec<Vec<MoveOption<'_>>> =
            candidates.iter().map(|candidate| move_options(candidate.as_ref())).collect();
        let budget = MoveBudget {
            per_receiver: self.affordable_transfers(since_break),
            moves: (self.options.move_budget > 0).then_some(self.options.move_budget),
        };
        let chosen = select_moves(&options, &budget);
        let unselected = |(options, &chosen): (&Vec<MoveOption<'_>>, &usize)| {
            options.last().map_or(0, |option| option.moves.len()) - options[chosen].moves.len()
        };
        let waiting = options.iter().zip(&chosen).map(unselected).sum();
        let selected = candidates.iter_mut().zip(chosen).map(|(candidate, chosen)| {
            let Some(candidate) = candidate else { return false };
            candidate.take_option(chosen);
            candidate.forced || chosen > 0
        });
        (selected.collect(), waiting)
    }

    /// Returns the candidates whose uncalibrated gains exceed the cost of their moves.
    fn trial_candidates<'a>(
        &'a self,
        candidates: &'a [Option<LayerCandidate>],
        ratio: f64,
    ) -> Vec<TrialCandidate<'a>> {
        let pays = |candidate: &LayerCandidate| {
            !candidate.forced
                && !candidate.replanned.moves.is_empty()
                && candidate.verdict.gain_ps as f64 > candidate.verdict.cost_ps as f64 * ratio
        };
        let all = self.placements.iter().zip(candidates).enumerate();
        all.filter_map(|(layer, (before, candidate))| {
            let candidate = candidate.as_ref().filter(|candidate| pays(candidate))?;
            let after = &candidate.replanned.placement;
            Some(TrialCandidate { layer, before, after, verdict: candidate.verdict })
        })
        .collect()
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
        let moves = each().filter(|(_, _, selected)| *selected).flat_map(|(layer, candidate, _)| {
            candidate.replanned.moves.iter().map(move |m| (self.core.layers[layer], *m))
        });
        PlanPreview {
            decision: self.core.decisions + 1,
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
                    layer: self.core.layers[layer],
                    before: candidate.estimate.before,
                    after: if selected { candidate.estimate.after } else { candidate.estimate.before },
                    bound: candidate.estimate.bound,
                    moves: if selected { candidate.replanned.moves.len() } else { 0 },
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
    gain_ps: i64,
    cost_ps: u64,
    forced: bool,
}

impl SelectionTotals {
    fn from_candidates(candidates: &[Option<LayerCandidate>], selected: &[bool]) -> Self {
        let mut sums = Self::default();
        for (candidate, &selected) in candidates.iter().zip(selected) {
            let Some(candidate) = candidate else { continue };
            let moves = candidate.replanned.moves.len();
            sums.proposed += moves;
            sums.forced |= candidate.forced;
            if selected {
                sums.moves += moves;
                sums.layers += usize::from(moves > 0);
                sums.gain_ps = sums.gain_ps.saturating_add(candidate.verdict.gain_ps);
                sums.cost_ps = sums.cost_ps.saturating_add(candidate.verdict.cost_ps);
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

/// Returns the imbalance to expect after the chosen changes: the mean over all batches of all layers.
fn mean_expected(candidates: &[Option<LayerCandidate>], selected: &[bool]) -> f64 {
    let (mut sum, mut batches) = (0.0, 0.0);
    for (candidate, &selected) in candidates.iter().zip(selected) {
        let Some(candidate) = candidate else { continue };
        let weight = candidate.estimate.batches as f64;
        sum += weight * if selected { candidate.expected } else { candidate.estimate.before };
        batches += weight;
    }
    sum / f64::max(batches, 1.0)
}

/// Returns the options of a layer: to stay, and to make the moves of one of its accepted candidates.
///
/// A layer that has to change has no choice.
fn move_options<'a>(candidate: Option<&'a LayerCandidate>) -> Vec<MoveOption<'a>> {
    let stays = MoveOption { moves: &[], time: 0 };
    match candidate {
        Some(candidate) if candidate.forced => {
            vec![MoveOption { moves: &candidate.replanned.moves, time: 0 }]
        }
        Some(candidate) => {
            let accepted: Vec<&LayerCandidate> = candidate.accepted_options().collect();
            let most = accepted.iter().map(|one| one.verdict.gain_ps).max().unwrap_or(0);
            let time = |gain_ps: i64| u64::try_from(most.saturating_sub(gain_ps)).unwrap_or(0);
            let option = |one: &&'a LayerCandidate| MoveOption {
                moves: &one.replanned.moves,
                time: time(one.verdict.gain_ps),
            };
            let stays = MoveOption { time: time(0), ..stays };
            std::iter::once(stays).chain(accepted.iter().map(option)).collect()
        }
        None => vec![stays],
    }
}

/// Returns the moves of the selected layers.
fn selected_moves<'a>(
    candidates: &'a [Option<LayerCandidate>],
    selected: &'a [bool],
) -> impl Iterator<Item = &'a ExpertMove> {
    let chosen = candidates.iter().zip(selected).filter(|&(_, &selected)| selected);
    chosen.flat_map(|(candidate, _)| candidate.iter().flat_map(|candidate| &candidate.replanned.moves))
}

fn picos_to_ms<T: TryInto<i64>>(ps: T) -> f64 {
    ps.try_into().unwrap_or(i64::MAX) as f64 / 1e9
}
