//! From layers that were tried to a decision, with its reason.
//!
//! In: what each layer could do ([`Tried`]). Out: a [`Proposal`]. A layer moves if its gain exceeds the price of its moves, those
//! that gain most per move first, up to the budget; all of it only if the mean imbalance falls by enough.

use super::decide::{Figures, Next, NextLayer, Proposal};
use super::lane::Lane;
use super::record::{Decision, Imbalances, MoveRecord, Outcome, Trigger, percent};
use super::tried::Tried;
use crate::cluster::Cluster;
use std::collections::BTreeSet;

impl Lane {
    /// From the layers that were tried to a decision.
    pub(super) fn weigh(
        &self,
        trigger: Trigger,
        dry_run: bool,
        (cluster, down): (Cluster, BTreeSet<usize>),
        tried: Vec<Option<Tried>>,
    ) -> Proposal {
        let pays = |t: &Tried| t.forced || (!t.moves.is_empty() && t.gain > t.cost);
        let mut made: Vec<bool> = tried.iter().map(|t| t.as_ref().is_some_and(pays)).collect();
        let waiting = self.keep_to_the_budget(&tried, &mut made);
        let mut imbalance = imbalances(&tried, &made);
        let sums = Sums { waiting, ..Sums::of(&tried, &made) };
        let (acts, why) = self.verdict(trigger, cluster.ranks(), imbalance, &sums);
        let outcome = match (acts, dry_run) {
            (true, false) => Outcome::Acted,
            (true, true) => Outcome::DryRun,
            (false, _) => Outcome::Kept,
        };
        let next = Some(self.next_of((outcome, imbalance), &tried, &made, &cluster, &down));
        if outcome == Outcome::Kept {
            imbalance.after = imbalance.before;
        }
        let publishes = outcome == Outcome::Acted;
        let first = self.version == 0 && matches!(trigger, Trigger::RankDown | Trigger::RankUp);
        let version = self.version + u64::from(publishes && !first);
        let counted =
            if publishes || outcome == Outcome::DryRun { (sums.moves, sums.layers) } else { (0, 0) };
        let expert_bytes = self.shape.parsed_model().ok().flatten().map(|model| model.expert_bytes());
        let busiest = busiest(&tried, &made, cluster.ranks());
        let decision = Decision {
            number: self.decisions + 1,
            phase: self.phase,
            step: self.last_step,
            accepted: self.accepted,
            trigger,
            outcome,
            reason: self.why_now(trigger) + &why,
            plan: version,
            judged_steps: self.window.len().min(self.options.judged),
            imbalance,
            moves: counted.0,
            layers: counted.1,
            moves_left_out: sums.proposed - counted.0,
            bytes: expert_bytes.map(|bytes| bytes.saturating_mul(counted.0 as u64)),
            busiest_bytes: expert_bytes.filter(|_| counted.0 > 0).map(|bytes| bytes.saturating_mul(busiest)),
            gain: sums.gain,
            cost: sums.cost,
            copy_ms: self.copies.time_ms(counted.0),
            took_ms: 0.0,
            at: 0,
        };
        let mut proposal = Proposal {
            acts: publishes,
            asked_only: false,
            cluster,
            down,
            placements: self.placements.clone(),
            planned: self.planned.clone(),
            figures: self.figures.clone(),
            expected: if publishes { imbalance.after } else { imbalance.before },
            next,
            decision,
        };
        for (layer, (t, made)) in tried.into_iter().zip(made).enumerate() {
            let Some(t) = t else { continue };
            let after = if made { t.figures.after } else { t.figures.before };
            proposal.figures[layer] = Figures { after, ..t.figures };
            if publishes && made {
                proposal.planned[layer] = proposal.planned[layer] || (t.figures.batches > 0 && !first);
                proposal.placements[layer] = t.placement;
            }
        }
        proposal
    }

    /// Whether to act, and the reason.
    fn verdict(&self, trigger: Trigger, ranks: usize, imbalance: Imbalances, sums: &Sums) -> (bool, String) {
        let (Sums { moves, layers, proposed, waiting, gain, cost, forced }, horizon) =
            (sums, self.options.horizon);
        let considered = format!(
            "{moves} moves in {layers} layers lower the imbalance of the latest steps from {:.3} to {:.3} (bound {:.3}): {gain:.1} batches gained \
             over {horizon} steps for {cost:.1} of copies",
            imbalance.before, imbalance.after, imbalance.bound
        );
        match trigger {
            Trigger::RankDown | Trigger::RankUp => (true, format!("{ranks} ranks are left: {moves} moves")),
            _ if self.version == 0 => (true, format!("the first plan, after {} steps", self.accepted)),
            _ if *forced => (true, considered),
            _ if *proposed == 0 => {
                (false, "the policy finds nothing to move that noise does not explain".into())
            }
            _ if *moves == 0 && *waiting > 0 => (false, self.why_wait(*waiting)),
            _ if *moves == 0 => (false, format!("none of {proposed} moves would pay within {horizon} steps")),
            _ if imbalance.before - imbalance.after < self.options.min_gain => {
                (false, format!("too little to gain: {considered}, less than {}", self.options.min_gain))
            }
            _ => (true, considered),
        }
    }

    /// Why moves that would pay are not made yet.
    fn why_wait(&self, waiting: usize) -> String {
        let copies = self.copies.status();
        let Some((share, available)) = copies.copy_share.zip(copies.available_ms) else {
            return format!(
                "{waiting} moves that would pay exceed move_budget = {}",
                self.options.move_budget
            );
        };
        format!(
            "{waiting} moves that would pay wait: copies may take {} of the time, which leaves {available:.1} ms, and a copy \
             takes {:.1}",
            percent(share),
            copies.expert_ms
        )
    }

    /// Why a decision is made now.
    fn why_now(&self, trigger: Trigger) -> String {
        match trigger {
            Trigger::Drift => {
                format!("the imbalance rose to {:.3} from {:.3}; ", self.drifted(), self.expected)
            }
            Trigger::Interval => format!("{} steps since the last decision; ", self.accepted - self.decided),
            Trigger::Asked => "asked for; ".into(),
            Trigger::First | Trigger::RankDown | Trigger::RankUp => String::new(),
        }
    }

    /// Takes back the moves that gain least for what they cost until all together are within the budgets of moves and of time.
    /// Returns how many are taken back.
    fn keep_to_the_budget(&self, tried: &[Option<Tried>], made: &mut [bool]) -> usize {
        let most = (self.options.move_budget > 0).then_some(self.options.move_budget);
        let Some(mut left) = most.into_iter().chain(self.copies.affordable()).min() else { return 0 };
        let mut order: Vec<(usize, f64, usize)> = (tried.iter().enumerate())
            .filter_map(|(layer, t)| t.as_ref().filter(|t| made[layer] && !t.forced).map(|t| (layer, t)))
            .map(|(layer, t)| (layer, t.gain / t.moves.len().max(1) as f64, t.moves.len()))
            .collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut waiting = 0;
        for (layer, _, moves) in order {
            if let Some(rest) = left.checked_sub(moves) {
                left = rest;
            } else {
                made[layer] = false;
                waiting += moves;
            }
        }
        waiting
    }

    /// What was considered, move by move.
    fn next_of(
        &self,
        (outcome, imbalance): (Outcome, Imbalances),
        tried: &[Option<Tried>],
        made: &[bool],
        cluster: &Cluster,
        down: &BTreeSet<usize>,
    ) -> Next {
        let ranks: Vec<u32> =
            (0..self.base.ranks()).filter(|rank| !down.contains(rank)).map(|rank| rank as u32).collect();
        let name = |rank: u32| ranks.get(rank as usize).copied().unwrap_or(rank);
        let each = || {
            tried
                .iter()
                .zip(made)
                .enumerate()
                .filter_map(|(layer, (t, &made))| Some((layer, t.as_ref()?, made)))
        };
        let moves = each()
            .filter(|(_, _, made)| *made)
            .flat_map(|(layer, t, _)| t.moves.iter().map(move |m| (self.layers[layer], *m)));
        Next {
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
                .filter(|(_, t, _)| t.figures.batches > 0 && t.ranks_after.len() == cluster.ranks())
                .map(|(layer, t, made)| NextLayer {
                    layer: self.layers[layer],
                    before: t.figures.before,
                    after: if made { t.figures.after } else { t.figures.before },
                    bound: t.figures.bound,
                    moves: if made { t.moves.len() } else { 0 },
                    ranks_before: t.ranks_before.clone(),
                    ranks_after: if made { t.ranks_after.clone() } else { t.ranks_before.clone() },
                })
                .collect(),
        }
    }
}

/// What the layers in which something is done come to.
#[derive(Debug, Default)]
struct Sums {
    moves: usize,
    layers: usize,
    /// Moves of all layers that were tried.
    proposed: usize,
    /// Moves that would pay, and exceed a budget.
    waiting: usize,
    gain: f64,
    cost: f64,
    forced: bool,
}

impl Sums {
    fn of(tried: &[Option<Tried>], made: &[bool]) -> Self {
        let mut sums = Self::default();
        for (t, &made) in tried.iter().zip(made) {
            let Some(t) = t else { continue };
            sums.proposed += t.moves.len();
            sums.forced |= t.forced;
            if made {
                sums.moves += t.moves.len();
                sums.layers += usize::from(!t.moves.is_empty());
                sums.gain += t.gain;
                sums.cost += t.cost;
            }
        }
        sums
    }
}

/// The mean over all batches of all layers: with everything as it is, and with what is made.
fn imbalances(tried: &[Option<Tried>], made: &[bool]) -> Imbalances {
    let (mut all, mut batches) = (Imbalances::default(), 0usize);
    for (t, &made) in tried.iter().zip(made) {
        let Some(t) = t else { continue };
        let weight = t.figures.batches as f64;
        all.before += t.figures.before * weight;
        all.after += if made { t.figures.after } else { t.figures.before } * weight;
        all.bound += t.figures.bound * weight;
        batches += t.figures.batches;
    }
    let weight = batches.max(1) as f64;
    Imbalances { before: all.before / weight, after: all.after / weight, bound: all.bound / weight }
}

/// Experts that the busiest receiver gets.
fn busiest(tried: &[Option<Tried>], made: &[bool], ranks: usize) -> u64 {
    let mut received = vec![0u64; ranks];
    for (t, _) in tried.iter().zip(made).filter(|&(_, &made)| made) {
        for m in t.iter().flat_map(|t| &t.moves) {
            if let Some(received) = received.get_mut(m.to as usize) {
                *received += 1;
            }
        }
    }
    received.into_iter().max().unwrap_or(0)
}
