//! The re-planning of one layer, compared with its current placement.
//!
//! Input is a [`PhaseState`], a request, and a layer. Output is [`LayerCandidate`]: another placement, its
//! moves, their gain and their cost. Gain and cost are in perfectly balanced batches of that layer, by exact
//! splits of the latest batches.

use super::propose::{LayerEstimate, PhaseCommand};
use super::state::PhaseState;
use evenkeel::cluster::Cluster;
use evenkeel::forecast::{History, HistoryWindow};
use evenkeel::place::{
    Constrained, Contiguous, ExpertMove, PlaceError, PlaceRequest, Placement, Policy, rank_origins,
};
use evenkeel::split::{Split, SplitError, SplitMethod, Splitter};
use evenkeel::trace::Trace;

/// One layer, re-planned and compared.
pub(super) struct LayerCandidate {
    pub(super) placement: Placement,
    pub(super) moves: Vec<ExpertMove>,
    pub(super) estimate: LayerEstimate,
    pub(super) ranks_before: Vec<f32>,
    pub(super) ranks_after: Vec<f32>,
    /// The gain of the moves in perfectly balanced batches of this layer. `cost` has the same unit.
    pub(super) gain: f64,
    pub(super) cost: f64,
    /// Flag that is set if the layer has to change, whatever it gains.
    pub(super) forced: bool,
}

impl PhaseState {
    /// Plans one layer and compares the result. Returns `None` if the layer needs no planning.
    pub(super) fn plan_layer(
        &self,
        command: &PhaseCommand,
        trace: &Trace,
        layer: usize,
        cluster: &Cluster,
        policy: &dyn Policy,
    ) -> Result<Option<LayerCandidate>, PlaceError> {
        let before = &self.placements[layer];
        let steps = trace.steps().len();
        let history =
            HistoryWindow::Auto { ahead: self.options.forecast_steps() }.history(trace, layer, steps);
        let idle = history.totals().iter().all(|&tokens| tokens == 0);
        let forced = !matches!(command, PhaseCommand::Replan { .. });
        let (from, placement) = match command {
            _ if !self.planned[layer] && (self.version == 0 || !idle) => {
                if idle || (forced && self.version == 0) {
                    // No loads are known yet, so place the experts in order on the available ranks.
                    let placement = Contiguous::placement(self.experts, cluster)?;
                    (placement.clone(), placement)
                } else {
                    (before.clone(), policy.place(&PlaceRequest::new(&history, cluster))?.placement)
                }
            }
            PhaseCommand::Replan { .. } if idle => return Ok(None),
            PhaseCommand::Replan { .. } => {
                return self.best_candidate(trace, layer, &history, cluster, policy).map(Some);
            }
            PhaseCommand::Down(rank) => {
                let at = self.active_ranks().iter().position(|&r| r as usize == *rank).unwrap_or(0);
                let origins = rank_origins(before.ranks(), &[at], cluster.ranks());
                let request = PlaceRequest::new(&history, cluster).previous(before);
                let found = Constrained::new(policy).place_on_changed_ranks(&origins, &request)?;
                let candidate = self.compare_placements(
                    trace,
                    layer,
                    &history,
                    before,
                    found.placement,
                    found.moves,
                    true,
                )?;
                return Ok(Some(candidate));
            }
            PhaseCommand::Up(rank) => {
                let from = self.with_returned_rank(before, *rank, cluster)?;
                let room = Some(from.slots_per_rank());
                let request = PlaceRequest::new(&history, cluster).previous(&from).max_moves(room);
                let after = if idle { from.clone() } else { policy.place(&request)?.placement };
                (from, after)
            }
        };
        let moves = if self.planned[layer] { placement.moves(&from) } else { vec![] };
        let forced = forced || !self.planned[layer];
        Ok(Some(self.compare_placements(trace, layer, &history, &from, placement, moves, forced)?))
    }

    /// Returns the placement with the highest net gain. A policy that knows prices finds it itself. For other
    /// policies, tries limits from many to few moves.
    fn best_candidate(
        &self,
        trace: &Trace,
        layer: usize,
        history: &History<'_>,
        cluster: &Cluster,
        policy: &dyn Policy,
    ) -> Result<LayerCandidate, PlaceError> {
        let before = &self.placements[layer];
        let latest = self.comparison_batches(trace, layer, history);
        let price = self.move_price(&latest) / self.options.horizon as f64;
        let most = Some(self.options.max_moves);
        let request = PlaceRequest::new(history, cluster).previous(before);
        let found = policy.place(&request.max_moves(most).move_price(price))?;
        if let Some(gain) = found.expected_gain {
            let moves = found.placement.moves(before);
            let candidate =
                self.compare_placements(trace, layer, history, before, found.placement, moves, false)?;
            return Ok(LayerCandidate { gain: gain * self.options.horizon as f64, ..candidate });
        }
        let mut best: Option<LayerCandidate> = None;
        for limit in move_limits(self.options.max_moves) {
            let after = policy.place(&request.max_moves(limit))?.placement;
            let moves = after.moves(before);
            let few = moves.len() <= limit / 2;
            let candidate = self.compare_placements(trace, layer, history, before, after, moves, false)?;
            let net = |candidate: &LayerCandidate| candidate.gain - candidate.cost;
            if best.as_ref().is_none_or(|best| net(&candidate) > net(best)) {
                best = Some(candidate);
            }
            // The policy wants no more moves than the next limit allows.
            if few {
                break;
            }
        }
        best.map_or_else(
            || self.compare_placements(trace, layer, history, before, before.clone(), vec![], false),
            Ok,
        )
    }

    /// Returns the current placement on a cluster to which `rank` has returned, without experts.
    fn with_returned_rank(
        &self,
        before: &Placement,
        rank: usize,
        cluster: &Cluster,
    ) -> Result<Placement, PlaceError> {
        let (old, width) = (before.slots_per_rank(), cluster.slots_per_rank());
        let at = self.active_ranks().iter().filter(|&&left| (left as usize) < rank).count();
        let mut rows: Vec<Vec<Option<u32>>> = before.slots().chunks(old).map(<[_]>::to_vec).collect();
        rows.insert(at, vec![]);
        let slots = rows.into_iter().flat_map(|mut row| {
            row.resize(width, None);
            row
        });
        Ok(Placement::new(self.experts, cluster.ranks(), slots.collect())?)
    }

    /// Computes the figures of both placements by splits of the latest batches of a layer.
    #[expect(
        clippy::too_many_arguments,
        reason = "two placements, what lies between them, and what they are judged on"
    )]
    fn compare_placements(
        &self,
        trace: &Trace,
        layer: usize,
        history: &History<'_>,
        before: &Placement,
        placement: Placement,
        moves: Vec<ExpertMove>,
        forced: bool,
    ) -> Result<LayerCandidate, PlaceError> {
        let batches = self.comparison_batches(trace, layer, history);
        let old = mean_loads(before, &batches)?;
        let new = if moves.is_empty() && placement == *before {
            old.clone()
        } else {
            mean_loads(&placement, &batches)?
        };
        let figures = LayerEstimate {
            before: old.imbalance,
            after: new.imbalance,
            bound: new.bound,
            batches: batches.len(),
        };
        let gain = (figures.before - figures.after) * self.options.horizon as f64;
        let cost = moves.len() as f64 * self.move_price(&batches);
        Ok(LayerCandidate {
            placement,
            moves,
            estimate: figures,
            ranks_before: old.ranks,
            ranks_after: new.ranks,
            gain,
            cost,
            forced,
        })
    }

    /// Returns the batches on which both placements are compared: the latest ones, within the history that is
    /// planned on.
    fn comparison_batches<'a>(
        &self,
        trace: &'a Trace,
        layer: usize,
        history: &History<'_>,
    ) -> Vec<&'a [u64]> {
        let steps = trace.steps().len();
        let judged = self.options.judged.min(history.steps().len());
        let batches = (steps.saturating_sub(judged)..steps).map(|step| trace.loads(step, layer));
        batches.filter(|batch| batch.iter().any(|&load| load > 0)).collect()
    }

    /// Returns the cost of one move, in perfectly balanced batches of one layer.
    fn move_price(&self, latest: &[&[u64]]) -> f64 {
        if let Some(cost) = self.options.move_cost {
            return cost;
        }
        let tokens: u64 = latest.iter().flat_map(|batch| batch.iter()).sum();
        let per_rank = tokens as f64 / (latest.len().max(1) * self.cluster.ranks()) as f64;
        self.copies.price.in_batches(per_rank, self.cluster.slots_per_rank())
    }
}

/// Returns the limits on moves to try: the most, half of it, and so on.
fn move_limits(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors((most > 0).then_some(most), |&limit| (limit > 1).then_some(limit / 2))
}

/// The mean figures of a placement over batches.
#[derive(Debug, Clone)]
struct MeanLoads {
    imbalance: f64,
    bound: f64,
    /// The load over the mean, `[R]`.
    ranks: Vec<f32>,
}

fn mean_loads(placement: &Placement, batches: &[&[u64]]) -> Result<MeanLoads, SplitError> {
    let mut splitter = Splitter::new(placement.clone(), SplitMethod::Exact)?;
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
    Ok(MeanLoads { imbalance: imbalance / n, bound: bound / n, ranks })
}
