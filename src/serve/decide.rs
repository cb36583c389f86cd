//! Whether to plan again, and what it would gain.
//!
//! In: a [`Lane`] and why a decision is due. Out: a [`Proposal`], which says what it would change, what that would gain and
//! why it should or should not be done. The policy plans every busy layer again from what is in force, on as many of the
//! past steps as would have foreseen the latest best, with room for few moves and for many; what it proposes is compared with
//! what is in force by exact splits of the latest of those steps. A layer moves if its expected gain over the horizon exceeds the price of its moves; all layers together
//! if the mean imbalance falls by `min_gain` at least.

use super::lane::{Lane, LaneError};
use super::record::{Decision, Imbalances, MoveRecord, Outcome, Trigger};
use crate::cluster::Cluster;
use crate::forecast::{History, Window};
use crate::place::{Contiguous, Move, PlaceError, Placement, Policy, Recourse, recover, without_ranks};
use crate::split::{Method, Split, SplitError, Splitter, roofline};
use crate::trace::Trace;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use utoipa::ToSchema;

/// What to expect of a layer, from the latest steps; means over its batches.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Peak over mean with what is in force.
    pub(super) before: f64,
    /// Peak over mean with what is proposed.
    pub(super) after: f64,
    /// Least possible.
    pub(super) bound: f64,
    /// Batches behind them.
    pub(super) batches: usize,
}

/// A plan that was considered, next to what is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Next {
    /// The decision that considered it.
    pub decision: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// Mean peak over mean of all layers.
    pub imbalance: Imbalances,
    /// The moves it takes.
    pub moves: Vec<MoveRecord>,
    /// Layer by layer.
    pub layers: Vec<NextLayer>,
}

/// One layer of a plan that was considered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NextLayer {
    /// Real layer id.
    pub layer: u32,
    /// Peak over mean of the latest steps with what was in force.
    pub before: f64,
    /// With what was considered.
    pub after: f64,
    /// Least possible.
    pub bound: f64,
    /// Moves in this layer.
    pub moves: usize,
    /// Load of each rank over the mean, before, mean of the latest steps, `[R]`.
    pub ranks_before: Vec<f32>,
    /// After, `[R]`.
    pub ranks_after: Vec<f32>,
}

/// What to do, ready to be applied.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// The record of it.
    pub decision: Decision,
    /// Does it change the plan?
    pub acts: bool,
    /// Was it only asked for, so that it leaves no trace?
    pub asked_only: bool,
    pub(super) cluster: Cluster,
    pub(super) down: BTreeSet<usize>,
    pub(super) placements: Vec<Placement>,
    pub(super) planned: Vec<bool>,
    pub(super) figures: Vec<Figures>,
    pub(super) expected: f64,
    pub(super) next: Option<Next>,
}

/// What is asked of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A decision is due, or somebody wants one.
    Replan {
        /// Why.
        trigger: Trigger,
        /// Only show what it would gain.
        dry_run: bool,
    },
    /// A rank is gone.
    Down(usize),
    /// A rank is back.
    Up(usize),
}

/// One layer, planned and compared.
struct Tried {
    placement: Placement,
    moves: Vec<Move>,
    figures: Figures,
    ranks_before: Vec<f32>,
    ranks_after: Vec<f32>,
    /// Perfectly balanced batches of this layer that the moves gain, and that they cost.
    gain: f64,
    cost: f64,
    /// It has to change whatever it gains.
    forced: bool,
}

impl Lane {
    /// Works out what follows from a request, without changing anything. `None` where `abort` was raised meanwhile.
    ///
    /// # Errors
    /// When the policy fails, a rank is unknown, or too few ranks are left.
    pub fn propose(&self, ask: &Ask, abort: &AtomicBool) -> Result<Option<Proposal>, LaneError> {
        let begun = Instant::now();
        let (trigger, dry_run) = match ask {
            Ask::Replan { trigger, dry_run } => (*trigger, *dry_run || self.options.dry_run),
            Ask::Down(_) => (Trigger::RankDown, false),
            Ask::Up(_) => (Trigger::RankUp, false),
        };
        let (cluster, down) = self.target(ask)?;
        let trace = self.trace()?;
        let policy: Box<dyn Policy> = match self.options.policy(self.shape.groups, &cluster) {
            // Going on without a rank asks no policy, and must not fail for a topology that does not fit what is left.
            Err(_) if matches!(ask, Ask::Down(_)) => Box::new(Recourse::default()),
            policy => policy?,
        };
        let tried: Vec<Option<Tried>> = (0..self.layers.len())
            .into_par_iter()
            .map(|layer| {
                if abort.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let failed = |source| LaneError::Place { layer: self.layers[layer], source };
                self.try_layer(ask, &trace, layer, &cluster, policy.as_ref()).map_err(failed)
            })
            .collect::<Result<_, LaneError>>()?;
        if abort.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut proposal = self.weigh(trigger, dry_run, cluster, down, tried);
        proposal.asked_only = matches!(ask, Ask::Replan { trigger: Trigger::Asked, dry_run: true });
        proposal.decision.took_ms = begun.elapsed().as_secs_f64() * 1e3;
        Ok(Some(proposal))
    }

    /// The group that is planned for.
    fn target(&self, ask: &Ask) -> Result<(Cluster, BTreeSet<usize>), LaneError> {
        let mut down = self.down.clone();
        let (rank, known) = match ask {
            Ask::Replan { .. } => return Ok((self.cluster, down)),
            Ask::Down(rank) => (*rank, down.insert(*rank)),
            Ask::Up(rank) => (*rank, down.remove(rank)),
        };
        if rank >= self.base.ranks() {
            let last = self.base.ranks() - 1;
            return Err(LaneError::Asked(format!("rank {rank}: expected 0 to {last}")));
        }
        if !known {
            let is = if matches!(ask, Ask::Down(_)) { "down" } else { "up" };
            return Err(LaneError::Asked(format!("rank {rank} is {is} already")));
        }
        let lost: Vec<usize> = down.iter().copied().collect();
        let cluster =
            if lost.is_empty() { self.base } else { without_ranks(&self.base, self.experts, &lost)? };
        Ok((cluster, down))
    }

    /// The window as a trace.
    fn trace(&self) -> Result<Trace, LaneError> {
        let labels = self.window.iter().map(|seen| seen.id.to_string()).collect();
        let loads = self.window.iter().flat_map(|seen| seen.counts.iter().map(|&count| u64::from(count)));
        Ok(Trace::from_loads(self.experts, self.layers.clone(), labels, loads.collect())?)
    }

    /// Plans one layer and compares; nothing where it need not be planned.
    fn try_layer(
        &self,
        ask: &Ask,
        trace: &Trace,
        layer: usize,
        cluster: &Cluster,
        policy: &dyn Policy,
    ) -> Result<Option<Tried>, PlaceError> {
        let before = &self.placements[layer];
        let steps = trace.steps().len();
        let history = Window::Auto { ahead: usize::try_from(self.options.every).unwrap_or(1).min(64) }
            .history(trace, layer, steps);
        let idle = history.totals().iter().all(|&tokens| tokens == 0);
        let forced = !matches!(ask, Ask::Replan { .. });
        let (from, placement) = match ask {
            _ if !self.planned[layer] && (self.version == 0 || !idle) => {
                if idle || (forced && self.version == 0) {
                    // Nothing is known: experts in order on what there is.
                    let placement = Contiguous::placement(self.experts, cluster)?;
                    (placement.clone(), placement)
                } else {
                    (before.clone(), policy.place(&history, cluster)?)
                }
            }
            Ask::Replan { .. } if idle => return Ok(None),
            Ask::Replan { .. } => return self.best_of(trace, layer, &history, cluster, policy).map(Some),
            Ask::Down(rank) => {
                let at = self.ranks().iter().position(|&r| r as usize == *rank).unwrap_or(0);
                let found = recover(before, &[at], &history, cluster, None)?;
                let tried =
                    self.compare(trace, layer, &history, before, found.placement, found.moves, true)?;
                return Ok(Some(tried));
            }
            Ask::Up(rank) => {
                let from = self.embedded(before, *rank, cluster)?;
                let room = Some(from.slots_per_rank());
                let after =
                    if idle { from.clone() } else { policy.replan(&history, cluster, &from, room)? };
                (from, after)
            }
        };
        let moves = if self.planned[layer] { placement.moves(&from) } else { vec![] };
        let forced = forced || !self.planned[layer];
        Ok(Some(self.compare(trace, layer, &history, &from, placement, moves, forced)?))
    }

    /// Of what the policy makes of few and of many moves, what gains most after its moves are paid.
    fn best_of(
        &self,
        trace: &Trace,
        layer: usize,
        history: &History<'_>,
        cluster: &Cluster,
        policy: &dyn Policy,
    ) -> Result<Tried, PlaceError> {
        let before = &self.placements[layer];
        let mut best: Option<Tried> = None;
        for limit in limits(self.options.max_moves) {
            let after = policy.replan(history, cluster, before, Some(limit))?;
            let moves = after.moves(before);
            let few = moves.len() <= limit / 4;
            let tried = self.compare(trace, layer, history, before, after, moves, false)?;
            let net = |tried: &Tried| tried.gain - tried.cost;
            if best.as_ref().is_none_or(|best| net(&tried) > net(best)) {
                best = Some(tried);
            }
            // The policy wants no more moves than the next limit allows.
            if few {
                break;
            }
        }
        best.map_or_else(|| self.compare(trace, layer, history, before, before.clone(), vec![], false), Ok)
    }

    /// A placement on the ranks that are left, where one more is back and still empty.
    fn embedded(&self, before: &Placement, rank: usize, cluster: &Cluster) -> Result<Placement, PlaceError> {
        let (old, width) = (before.slots_per_rank(), cluster.slots_per_rank());
        let at = self.ranks().iter().filter(|&&left| (left as usize) < rank).count();
        let mut rows: Vec<Vec<Option<u32>>> = before.slots().chunks(old).map(<[_]>::to_vec).collect();
        rows.insert(at, vec![]);
        let slots = rows.into_iter().flat_map(|mut row| {
            row.resize(width, None);
            row
        });
        Ok(Placement::new(self.experts, cluster.ranks(), slots.collect())?)
    }

    /// Splits the latest batches of a layer on both placements.
    #[expect(
        clippy::too_many_arguments,
        reason = "two placements, what lies between them, and what they are judged on"
    )]
    fn compare(
        &self,
        trace: &Trace,
        layer: usize,
        history: &History<'_>,
        before: &Placement,
        placement: Placement,
        moves: Vec<Move>,
        forced: bool,
    ) -> Result<Tried, PlaceError> {
        let steps = trace.steps().len();
        // Not on steps that are too far back to plan on.
        let judged = self.options.judged.min(history.steps().len());
        let judged = steps.saturating_sub(judged)..steps;
        let batches: Vec<&[u64]> =
            judged.map(|step| trace.loads(step, layer)).filter(|b| b.iter().any(|&load| load > 0)).collect();
        let old = mean_of(before, &batches)?;
        let new = if moves.is_empty() && placement == *before {
            old.clone()
        } else {
            mean_of(&placement, &batches)?
        };
        let figures =
            Figures { before: old.imbalance, after: new.imbalance, bound: new.bound, batches: batches.len() };
        let gain = (figures.before - figures.after) * self.options.horizon as f64;
        let tokens: u64 = batches.iter().flat_map(|batch| batch.iter()).sum();
        let cost = moves.len() as f64 * self.price(tokens, batches.len());
        Ok(Tried {
            placement,
            moves,
            figures,
            ranks_before: old.ranks,
            ranks_after: new.ranks,
            gain,
            cost,
            forced,
        })
    }

    /// What one move costs, in perfectly balanced batches of one layer.
    fn price(&self, tokens: u64, batches: usize) -> f64 {
        // Both were checked when the shape was.
        let (Ok(Some(model)), Ok(Some(gpu)), Some(gbps)) =
            (self.shape.parsed_model(), self.shape.parsed_gpu(), self.shape.link_gbps)
        else {
            return self.options.move_cost;
        };
        let copy_ps = model.expert_bytes() as f64 * 8_000.0 / gbps as f64;
        let time = roofline(&model, &gpu);
        let per_rank = tokens as f64 / (batches.max(1) * self.cluster.ranks()) as f64;
        let reading = time.read as f64 * self.cluster.slots_per_rank() as f64;
        copy_ps / (per_rank * time.token as f64).max(reading).max(1.0)
    }

    /// From the layers that were tried to a decision.
    fn weigh(
        &self,
        trigger: Trigger,
        dry_run: bool,
        cluster: Cluster,
        down: BTreeSet<usize>,
        tried: Vec<Option<Tried>>,
    ) -> Proposal {
        let pays = |t: &Tried| t.forced || (!t.moves.is_empty() && t.gain > t.cost);
        let mut made: Vec<bool> = tried.iter().map(|t| t.as_ref().is_some_and(pays)).collect();
        self.keep_to_the_budget(&tried, &mut made);
        // The mean over all batches of all layers: with everything as it is, and with what is made.
        let (mut all, mut batches) = (Imbalances::default(), 0usize);
        for (t, &made) in tried.iter().zip(&made) {
            let Some(t) = t else { continue };
            let weight = t.figures.batches as f64;
            all.before += t.figures.before * weight;
            all.after += if made { t.figures.after } else { t.figures.before } * weight;
            all.bound += t.figures.bound * weight;
            batches += t.figures.batches;
        }
        let weight = batches.max(1) as f64;
        let mut imbalance =
            Imbalances { before: all.before / weight, after: all.after / weight, bound: all.bound / weight };
        let forced = tried.iter().flatten().any(|t| t.forced) || down != self.down;
        let chosen = |made: &[bool]| -> (usize, usize, f64, f64) {
            let these = tried.iter().zip(made).filter_map(|(t, &made)| t.as_ref().filter(|_| made));
            these.fold((0, 0, 0.0, 0.0), |(moves, layers, gain, cost), t| {
                (
                    moves + t.moves.len(),
                    layers + usize::from(!t.moves.is_empty()),
                    gain + t.gain,
                    cost + t.cost,
                )
            })
        };
        let (moves, layers, gain, cost) = chosen(&made);
        let proposed: usize = tried.iter().flatten().map(|t| t.moves.len()).sum();
        let considered = format!(
            "{moves} moves in {layers} layers lower the imbalance from {:.3} to {:.3} (bound {:.3}): {gain:.1} batches gained \
             over {} steps for {cost:.1} of copies",
            imbalance.before, imbalance.after, imbalance.bound, self.options.horizon
        );
        let (acts, why) = match trigger {
            Trigger::RankDown | Trigger::RankUp => {
                (true, format!("{} ranks are left: {moves} moves", cluster.ranks()))
            }
            _ if self.version == 0 => (true, format!("the first plan, after {} steps", self.accepted)),
            _ if forced => (true, considered),
            _ if proposed == 0 => {
                (false, "the policy finds nothing to move that noise does not explain".into())
            }
            _ if moves == 0 => {
                (false, format!("none of {proposed} moves would pay within {} steps", self.options.horizon))
            }
            _ if imbalance.before - imbalance.after < self.options.min_gain => {
                (false, format!("too little to gain: {considered}, less than {}", self.options.min_gain))
            }
            _ => (true, considered),
        };
        let why_now = match trigger {
            Trigger::Drift => {
                format!("the imbalance rose to {:.3} from {:.3}; ", self.drifted(), self.expected)
            }
            Trigger::Interval => format!("{} steps since the last decision; ", self.accepted - self.decided),
            Trigger::Asked => "asked for; ".into(),
            Trigger::First | Trigger::RankDown | Trigger::RankUp => String::new(),
        };
        let outcome = match (acts, dry_run) {
            (true, false) => Outcome::Acted,
            (true, true) => Outcome::DryRun,
            (false, _) => Outcome::Kept,
        };
        let next = self.next_of(outcome, imbalance, &tried, &made, &cluster, &down);
        if outcome == Outcome::Kept {
            imbalance.after = imbalance.before;
        }
        // What is not planned yet, and nobody asked for, stays unplanned.
        let publishes = outcome == Outcome::Acted;
        let first = self.version == 0 && matches!(trigger, Trigger::RankDown | Trigger::RankUp);
        let version = self.version + u64::from(publishes && !first);
        let counted = if publishes || outcome == Outcome::DryRun { (moves, layers) } else { (0, 0) };
        let expert_bytes = self.shape.parsed_model().ok().flatten().map(|model| model.expert_bytes());
        let busiest = busiest(&tried, &made, cluster.ranks());
        let decision = Decision {
            number: self.decisions + 1,
            phase: self.phase,
            step: self.last_step,
            accepted: self.accepted,
            trigger,
            outcome,
            reason: format!("{why_now}{why}"),
            plan: version,
            judged_steps: self.window.len().min(self.options.judged),
            imbalance,
            moves: counted.0,
            layers: counted.1,
            moves_left_out: proposed - counted.0,
            bytes: expert_bytes.map(|bytes| bytes.saturating_mul(counted.0 as u64)),
            busiest_bytes: expert_bytes.filter(|_| counted.0 > 0).map(|bytes| bytes.saturating_mul(busiest)),
            gain,
            cost,
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

    /// Takes back the moves that gain least for what they cost until all together are within the budget.
    fn keep_to_the_budget(&self, tried: &[Option<Tried>], made: &mut [bool]) {
        if self.options.move_budget == 0 {
            return;
        }
        let mut order: Vec<(usize, f64, usize)> = (tried.iter().enumerate())
            .filter_map(|(layer, t)| t.as_ref().filter(|t| made[layer] && !t.forced).map(|t| (layer, t)))
            .map(|(layer, t)| (layer, t.gain / t.moves.len().max(1) as f64, t.moves.len()))
            .collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut left = self.options.move_budget;
        for (layer, _, moves) in order {
            match left.checked_sub(moves) {
                Some(rest) => left = rest,
                None => made[layer] = false,
            }
        }
    }

    fn next_of(
        &self,
        outcome: Outcome,
        imbalance: Imbalances,
        tried: &[Option<Tried>],
        made: &[bool],
        cluster: &Cluster,
        down: &BTreeSet<usize>,
    ) -> Option<Next> {
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
        Some(Next {
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
        })
    }
}

/// Limits on moves that are tried: the most, a quarter of it, and so on.
fn limits(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors((most > 0).then_some(most), |&limit| (limit >= 4).then_some(limit / 4))
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

/// How a placement serves batches, on average.
#[derive(Debug, Clone)]
struct Mean {
    imbalance: f64,
    bound: f64,
    /// Load over mean, `[R]`.
    ranks: Vec<f32>,
}

fn mean_of(placement: &Placement, batches: &[&[u64]]) -> Result<Mean, SplitError> {
    let mut splitter = Splitter::new(placement.clone(), Method::Exact)?;
    let (mut split, ranks) = (Split::default(), placement.ranks());
    let (mut imbalance, mut bound, mut loads) = (0.0, 0.0, vec![0.0f64; ranks]);
    for batch in batches {
        splitter.split(batch, &mut split)?;
        let total: u64 = split.rank_loads.iter().sum();
        let mean = total as f64 / ranks as f64;
        imbalance += split.peak() as f64 / mean;
        bound += total.div_ceil(ranks as u64) as f64 / mean;
        loads.iter_mut().zip(&split.rank_loads).for_each(|(sum, &load)| *sum += load as f64 / mean);
    }
    let n = batches.len().max(1) as f64;
    let ranks = loads.into_iter().map(|load| (load / n) as f32).collect();
    Ok(Mean { imbalance: imbalance / n, bound: bound / n, ranks })
}
