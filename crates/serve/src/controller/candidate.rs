//! One layer planned again, next to what is in force.
//!
//! In: a [`Lane`], what is asked of it, a layer. Out: [`Tried`]: another placement, its moves, and what they gain and cost in
//! perfectly balanced batches of that layer, by exact splits of the latest batches.

use super::decide::{Ask, Figures};
use super::lane::Lane;
use crate::cluster::Cluster;
use crate::forecast::{History, Window};
use crate::place::{Contiguous, Move, PlaceError, Placement, Policy, recover};
use crate::split::{Method, Split, SplitError, Splitter};
use crate::trace::Trace;

/// One layer, planned and compared.
pub(super) struct Tried {
    pub(super) placement: Placement,
    pub(super) moves: Vec<Move>,
    pub(super) figures: Figures,
    pub(super) ranks_before: Vec<f32>,
    pub(super) ranks_after: Vec<f32>,
    /// Perfectly balanced batches of this layer that the moves gain, and that they cost.
    pub(super) gain: f64,
    pub(super) cost: f64,
    /// It has to change whatever it gains.
    pub(super) forced: bool,
}

impl Lane {
    /// Plans one layer and compares; nothing where it need not be planned.
    pub(super) fn try_layer(
        &self,
        ask: &Ask,
        trace: &Trace,
        layer: usize,
        cluster: &Cluster,
        policy: &dyn Policy,
    ) -> Result<Option<Tried>, PlaceError> {
        let before = &self.placements[layer];
        let steps = trace.steps().len();
        let history = Window::Auto { ahead: self.options.ahead() }.history(trace, layer, steps);
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

    /// What gains most after its moves are paid: as the policy finds it where it knows prices, else of what it makes of few and of
    /// many moves.
    fn best_of(
        &self,
        trace: &Trace,
        layer: usize,
        history: &History<'_>,
        cluster: &Cluster,
        policy: &dyn Policy,
    ) -> Result<Tried, PlaceError> {
        let before = &self.placements[layer];
        let latest = self.judged(trace, layer, history);
        let price = self.price(&latest) / self.options.horizon as f64;
        let most = Some(self.options.max_moves);
        if let Some(found) = policy.replan_priced(history, cluster, before, most, price)? {
            let moves = found.placement.moves(before);
            let tried = self.compare(trace, layer, history, before, found.placement, moves, false)?;
            return Ok(Tried { gain: found.gain * self.options.horizon as f64, ..tried });
        }
        let mut best: Option<Tried> = None;
        for limit in limits(self.options.max_moves) {
            let after = policy.replan(history, cluster, before, Some(limit))?;
            let moves = after.moves(before);
            let few = moves.len() <= limit / 2;
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
        let batches = self.judged(trace, layer, history);
        let old = mean_of(before, &batches)?;
        let new = if moves.is_empty() && placement == *before {
            old.clone()
        } else {
            mean_of(&placement, &batches)?
        };
        let figures =
            Figures { before: old.imbalance, after: new.imbalance, bound: new.bound, batches: batches.len() };
        let gain = (figures.before - figures.after) * self.options.horizon as f64;
        let cost = moves.len() as f64 * self.price(&batches);
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

    /// The batches that before and after are compared on: the latest, but none that is too far back to plan on.
    fn judged<'a>(&self, trace: &'a Trace, layer: usize, history: &History<'_>) -> Vec<&'a [u64]> {
        let steps = trace.steps().len();
        let judged = self.options.judged.min(history.steps().len());
        let batches = (steps.saturating_sub(judged)..steps).map(|step| trace.loads(step, layer));
        batches.filter(|batch| batch.iter().any(|&load| load > 0)).collect()
    }

    /// What one move costs, in perfectly balanced batches of one layer.
    fn price(&self, latest: &[&[u64]]) -> f64 {
        if let Some(cost) = self.options.move_cost {
            return cost;
        }
        let tokens: u64 = latest.iter().flat_map(|batch| batch.iter()).sum();
        let per_rank = tokens as f64 / (latest.len().max(1) * self.cluster.ranks()) as f64;
        self.copies.price.in_batches(per_rank, self.cluster.slots_per_rank())
    }
}

/// Limits on moves that are tried: the most, half of it, and so on.
fn limits(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors((most > 0).then_some(most), |&limit| (limit > 1).then_some(limit / 2))
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
