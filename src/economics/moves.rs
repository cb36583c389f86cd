//! Verdict on the moves of one layer.
//!
//! In: a placement with the fewest necessary moves, a way to plan others, and the batches that represent the
//! coming ones. Out: a [`PricedPlacement`] with its [`MoveVerdict`].
//!
//! A policy that supports prices ([`PlaceRequest::move_price`]) chooses the moves itself. The other policies
//! plan with the highest number of moves, half of it, and so on. Of all these placements, the one with the
//! highest gain after its cost is chosen.

use crate::cluster::Cluster;
use crate::gpu::GpuSpec;
use crate::model::MoeModel;
use crate::place::{ExpertMove, PlaceError, PlaceRequest, Placement, Policy, ReplannedPlacement};
use crate::split::{
    CostModel, LinkedCost, Split, SplitError, SplitMethod, SplitObjective, Splitter, expert_roofline,
    step_time, transfer_ps,
};
use std::sync::Arc;

/// Highest price of a move, in mean imbalance. No move can gain as much.
const MAX_MOVE_PRICE: f64 = 1e6;

/// Horizon of a plan, time of a transfer, and time of the batches.
#[derive(Debug, Clone)]
pub struct MoveEconomics {
    /// Steps until the next plan.
    pub steps: u64,
    /// Picoseconds in which a rank receives one expert.
    pub transfer_ps: u64,
    /// Time model of a batch.
    pub time: Arc<dyn CostModel>,
}

/// Decision on a layer's moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MoveVerdict {
    /// Picoseconds saved over the horizon. Negative if time is lost.
    pub gain_ps: i64,
    /// Picoseconds in which the busiest rank receives its experts, beyond those of necessary moves.
    pub cost_ps: u64,
    /// Number of moves considered, beyond the necessary ones.
    pub considered: usize,
    /// True if the moves are executed.
    pub accepted: bool,
}

impl MoveVerdict {
    /// Returns the picoseconds gained minus the cost.
    pub fn net_ps(&self) -> i64 {
        self.gain_ps.saturating_sub(i64::try_from(self.cost_ps).unwrap_or(i64::MAX))
    }
}

impl MoveEconomics {
    /// Returns the economics of `steps` steps for a model on a GPU, by its data sheet, if every rank receives
    /// `gbps` gigabits per second. `None` if the link has no speed.
    pub fn on_link(steps: u64, gbps: u64, model: &MoeModel, gpu: &GpuSpec) -> Option<Self> {
        Self::with_expert_times(steps, gbps, model, Arc::new(expert_roofline(model, gpu)))
    }

    /// Returns the economics of `steps` steps for a model whose experts take these times, if every rank
    /// receives `gbps` gigabits per second. `None` if the link has no speed.
    pub fn with_expert_times(
        steps: u64,
        gbps: u64,
        model: &MoeModel,
        experts: Arc<dyn CostModel>,
    ) -> Option<Self> {
        let transfer_ps = transfer_ps(model.expert_bytes(), gbps)?;
        Some(Self { steps, transfer_ps, time: Arc::new(LinkedCost::new(experts, model, gbps)?) })
    }

    /// Returns the picoseconds in which the busiest receiver of the moves gets its experts.
    pub fn transfers_ps<'a>(&self, moves: impl IntoIterator<Item = &'a ExpertMove>) -> u64 {
        busiest_receiver(moves).saturating_mul(self.transfer_ps)
    }
}

/// Returns the highest number of experts that one rank receives.
pub fn busiest_receiver<'a>(moves: impl IntoIterator<Item = &'a ExpertMove>) -> u64 {
    let mut received: Vec<u64> = vec![];
    for m in moves {
        let to = m.to as usize;
        if received.len() <= to {
            received.resize(to + 1, 0);
        }
        received[to] += 1;
    }
    received.into_iter().max().unwrap_or(0)
}

/// Figures of a placement on batches with exact splits.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct PlacementFigures {
    /// Batches with tokens.
    pub batches: usize,
    /// Sum of the picoseconds of all batches, each as long as its slowest rank.
    pub time_ps: u128,
    /// Picoseconds of each batch.
    pub batch_ps: Vec<u64>,
    /// Mean of peak over mean, per unit of speed.
    pub imbalance: f64,
    /// Mean of the lowest possible imbalance in whole tokens.
    pub bound: f64,
    /// Mean of each rank's tokens over the mean rank's, `[R]`.
    pub rank_loads: Vec<f64>,
}

/// Placement of a layer with its moves, their verdict, and its figures.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PricedPlacement {
    /// Placement and moves.
    pub replanned: ReplannedPlacement,
    /// Verdict on the moves.
    pub verdict: MoveVerdict,
    /// Figures of the placement with the necessary moves alone.
    pub before: PlacementFigures,
    /// Figures of the placement.
    pub after: PlacementFigures,
}

impl PricedPlacement {
    /// Returns the placement if its moves pay, and `previous` otherwise.
    pub fn accepted_or(self, previous: &Placement) -> Placement {
        if self.verdict.accepted { self.replanned.placement } else { previous.clone() }
    }
}

/// Judge of the moves of one layer.
#[derive(Debug)]
pub struct MoveJudge<'a> {
    economics: &'a MoveEconomics,
    cluster: &'a Cluster,
    /// Batches that represent the coming ones, each `[E]`, also those without tokens.
    batches: Vec<&'a [u64]>,
    speeds: &'a [u32],
}

impl<'a> MoveJudge<'a> {
    /// Creates a judge on batches of `[E]` tokens per expert. `speeds` holds the speed of each rank, `[R]`,
    /// or nothing for equal ranks. A rank of speed 1 takes the time of the cost model.
    pub fn new(
        economics: &'a MoveEconomics,
        cluster: &'a Cluster,
        batches: impl IntoIterator<Item = &'a [u64]>,
        speeds: &'a [u32],
    ) -> Self {
        Self { economics, cluster, batches: batches.into_iter().collect(), speeds }
    }

    /// Returns the time by which an average batch grows if its imbalance grows by 1, in picoseconds.
    ///
    /// It is the time that a rank needs for as many tokens again as the mean rank has, spread over its slots.
    fn imbalance_ps(&self) -> f64 {
        let (ranks, slots) = (self.cluster.ranks() as u64, self.cluster.slots_per_rank());
        let tokens = |batch: &&[u64]| batch.iter().map(|&load| u128::from(load)).sum::<u128>();
        let total: u128 = self.batches.iter().map(tokens).sum();
        let per_rank = total / (self.batches.len().max(1) as u128 * u128::from(ranks.max(1)));
        let per_rank = u64::try_from(per_rank).unwrap_or(u64::MAX).max(1);
        let rank_ps = |tokens: u64| {
            let (share, rest) = (tokens / slots as u64, tokens % slots as u64);
            let of_slot = |slot: usize| share + u64::from((slot as u64) < rest);
            self.economics.time.rank_ps(&(0..slots).map(of_slot).collect::<Vec<u64>>(), 1)
        };
        rank_ps(per_rank.saturating_mul(2)).saturating_sub(rank_ps(per_rank)) as f64
    }

    /// Returns the fall of the mean imbalance that one transfer has to reach to pay.
    pub fn move_price(&self) -> f64 {
        let gain = self.imbalance_ps() * self.economics.steps as f64;
        if gain > 0.0 {
            (self.economics.transfer_ps as f64 / gain).min(MAX_MOVE_PRICE)
        } else {
            MAX_MOVE_PRICE
        }
    }

    /// Returns the figures of a placement on the batches.
    ///
    /// # Errors
    /// Fails if a batch cannot be split.
    pub fn figures(&self, placement: &Placement) -> Result<PlacementFigures, SplitError> {
        let builder = Splitter::builder(placement.clone()).method(SplitMethod::Exact);
        let mut splitter = if self.speeds.is_empty() {
            builder.build()?
        } else {
            let objective = SplitObjective { speeds: self.speeds.to_vec(), ..SplitObjective::default() };
            builder.objective(objective).build()?
        };
        let ranks = placement.ranks();
        let speed = |rank: usize| self.speeds.get(rank).map_or(1.0, |&speed| f64::from(speed));
        let all_speeds: f64 = (0..ranks).map(speed).sum();
        let mut sum = PlacementFigures { rank_loads: vec![0.0; ranks], ..PlacementFigures::default() };
        let mut split = Split::default();
        for batch in self.batches.iter().filter(|batch| batch.iter().any(|&load| load > 0)) {
            splitter.split(batch, &mut split)?;
            let slots = placement.slots_per_rank();
            let time = step_time(self.economics.time.as_ref(), &split.quotas, slots, self.speeds);
            sum.time_ps += u128::from(time);
            sum.batch_ps.push(time);
            let total: u64 = split.rank_loads.iter().fold(0, |sum, &load| sum.saturating_add(load));
            let mean = total as f64 / ranks as f64;
            let loads = split.rank_loads.iter().enumerate();
            let peak = loads.map(|(rank, &load)| load as f64 / speed(rank)).fold(0.0, f64::max);
            sum.imbalance += peak * all_speeds / total as f64;
            sum.bound += total.div_ceil(ranks as u64) as f64 / mean;
            for (sum, &load) in sum.rank_loads.iter_mut().zip(&split.rank_loads) {
                *sum += load as f64 / mean;
            }
            sum.batches += 1;
        }
        let batches = sum.batches.max(1) as f64;
        sum.imbalance /= batches;
        sum.bound /= batches;
        sum.rank_loads.iter_mut().for_each(|load| *load /= batches);
        Ok(sum)
    }

    /// Judges a placement against `least`, the placement with the necessary moves alone.
    ///
    /// The batches are those on which the placement was planned, so its fall of the imbalance on them is too
    /// favourable. A policy that expects another fall corrects it.
    ///
    /// # Errors
    /// Fails if a batch cannot be split.
    pub fn compare(
        &self,
        least: &ReplannedPlacement,
        replanned: ReplannedPlacement,
    ) -> Result<PricedPlacement, SplitError> {
        self.compare_with_figures(least, self.figures(&least.placement)?, replanned)
    }

    /// Judges as [`MoveJudge::compare`] does. `before` holds the figures of `least`.
    fn compare_with_figures(
        &self,
        least: &ReplannedPlacement,
        before: PlacementFigures,
        replanned: ReplannedPlacement,
    ) -> Result<PricedPlacement, SplitError> {
        let after = if replanned.placement == least.placement {
            before.clone()
        } else {
            self.figures(&replanned.placement)?
        };
        let verdict = self.verdict((&before, &least.moves), (&after, &replanned));
        Ok(PricedPlacement { replanned, verdict, before, after })
    }

    fn verdict(
        &self,
        (least, least_moves): (&PlacementFigures, &[ExpertMove]),
        (after, replanned): (&PlacementFigures, &ReplannedPlacement),
    ) -> MoveVerdict {
        let economics = self.economics;
        let saved = i128::try_from(least.time_ps).unwrap_or(i128::MAX)
            - i128::try_from(after.time_ps).unwrap_or(i128::MAX);
        let mut gain = saved.saturating_mul(i128::from(economics.steps)) / self.batches.len().max(1) as i128;
        if let Some(expected) = replanned.expected_gain {
            let favour = (least.imbalance - after.imbalance) - expected;
            gain -= (favour * self.imbalance_ps() * economics.steps as f64) as i128;
        }
        let gain_ps = gain.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        let cost_ps =
            economics.transfers_ps(&replanned.moves).saturating_sub(economics.transfers_ps(least_moves));
        let considered = replanned.moves.len().saturating_sub(least_moves.len());
        let accepted = i128::from(gain_ps) > i128::from(cost_ps) || considered == 0;
        MoveVerdict { gain_ps, cost_ps, considered, accepted }
    }

    /// Plans a layer again by a policy, from `previous` on the same ranks. The request states the loads, the
    /// cluster and the highest number of moves.
    ///
    /// # Errors
    /// Fails as the policy does, and if a batch cannot be split.
    pub fn replan(
        &self,
        policy: &dyn Policy,
        request: &PlaceRequest<'_>,
        previous: &Placement,
    ) -> Result<PricedPlacement, PlaceError> {
        let request = request.previous(previous);
        let least = ReplannedPlacement::without_moves(previous.clone());
        self.choose(&least, request.max_moves, |limit, price| {
            let response = policy.place(&request.max_moves(limit).move_price(price))?;
            Ok(ReplannedPlacement::from_response(previous, response))
        })
    }

    /// Returns the candidate with the highest gain after its cost. `least` is the placement with the
    /// necessary moves alone. `place` plans a candidate with a limit on moves and at a price of each move.
    ///
    /// The caller keeps `least` if the verdict does not accept the moves.
    ///
    /// # Errors
    /// Fails as `place` does, unless it lacks moves, and if a batch cannot be split.
    pub fn choose(
        &self,
        least: &ReplannedPlacement,
        max_moves: Option<usize>,
        mut place: impl FnMut(Option<usize>, f64) -> Result<ReplannedPlacement, PlaceError>,
    ) -> Result<PricedPlacement, PlaceError> {
        let base = self.figures(&least.placement)?;
        let price = self.move_price();
        // Transfers to several ranks take the time of one.
        let receivers = max_moves.unwrap_or(usize::MAX).min(self.cluster.ranks()).max(1);
        let (mut limit, mut asked) = (max_moves, price / receivers as f64);
        let mut judged = self.compare_with_figures(least, base.clone(), place(limit, asked)?)?;
        let mut best = judged.clone();
        loop {
            if judged.replanned.expected_gain.is_some() {
                if judged.verdict.accepted || asked >= price {
                    return Ok(best);
                }
                asked = price;
            } else {
                // A limit above these moves would give the same answer.
                let moves = judged.replanned.moves.len();
                let next = moves.min(limit.unwrap_or(moves)) / 2;
                if next <= least.moves.len() {
                    return Ok(best);
                }
                limit = Some(next);
            }
            judged = match place(limit, asked) {
                Err(PlaceError::TooFewMoves { .. }) => return Ok(best),
                replanned => self.compare_with_figures(least, base.clone(), replanned?)?,
            };
            if judged.verdict.net_ps() > best.verdict.net_ps() {
                best = judged.clone();
            }
        }
    }
}
