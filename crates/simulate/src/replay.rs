//! Planning again and again while a trace goes by.
//!
//! In: a trace, policies, how often to re-plan, on which window of the past, with how many moves. Out: one [`Replayed`] per
//! policy, [`Pace`] and split method. The judged steps are walked in stretches; before each stretch a placement is planned
//! on what has been seen by then, and the moves to it are counted. Two bounds stand beside: planned once and never again,
//! and planned on the very batches that it then serves.

use super::{Config, Judged, Progress, SimulateError, Summary, busy_layers, judge_on_nodes};
use crate::cluster::Cluster;
use crate::forecast::{History, Window};
use crate::place::{PlaceError, Placement, Policy};
use crate::split::{Horizon, Method};
use crate::trace::Trace;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// When and on what to plan again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Judged steps between two plans; at least 1.
    pub every: usize,
    /// Which past steps are planned on.
    pub window: Window,
    /// Limits on the moves of one layer in one re-planning; each is replayed for itself, besides no limit.
    pub max_moves: Vec<usize>,
    /// Where moves have to pay: another replay ([`Pace::IfItPays`]). Its steps are those to the next plan.
    pub pays: Option<Horizon>,
}

/// How a placement follows the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Planned once, on all steps before the judged ones.
    Never,
    /// Planned again before every stretch, on the window of the past.
    Again {
        /// Most moves of one layer in one re-planning.
        max_moves: Option<usize>,
    },
    /// Planned again with each of the limits and with none; of these, that is taken whose gain, on the window of the past, most
    /// exceeds the cost of its copies, if any does.
    IfItPays,
    /// Planned before every stretch on that stretch: nobody can know it, so it bounds what better forecasts can bring.
    Oracle,
}

/// What one policy did at one pace with one split method.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// The policy's name.
    pub policy: String,
    /// How it followed the trace.
    pub pace: Pace,
    /// The split method.
    pub method: Method,
    /// Peak over mean, of all judged batches.
    pub imbalance: Summary,
    /// (Peak - ceil(total / ranks)) over mean.
    pub excess: Summary,
    /// Experts that ranks had to receive, over all layers and re-plannings; the first plan is not counted.
    pub moves: usize,
    /// Times that all layers were planned again.
    pub replans: usize,
    /// Planning time of all layers and times, the first plan included.
    pub plan_time: Duration,
}

/// Is the row on the Pareto front of those with its split method: has none a lower mean imbalance with as few moves, or as
/// low a one with fewer? Oracles are not on it and do not count.
pub fn on_front(row: &Replayed, all: &[Replayed]) -> bool {
    let better = |other: &Replayed| {
        other.method == row.method
            && other.pace != Pace::Oracle
            && other.moves <= row.moves
            && other.imbalance.mean <= row.imbalance.mean
            && (other.moves < row.moves || other.imbalance.mean < row.imbalance.mean)
    };
    row.pace != Pace::Oracle && !all.iter().any(better)
}

/// One layer at one pace.
#[derive(Debug, Default)]
struct Walk {
    /// One per method.
    judged: Vec<Judged>,
    moves: usize,
    plan_time: Duration,
}

impl Replay {
    fn paces(&self) -> Vec<Pace> {
        let mut paces = vec![Pace::Never, Pace::Again { max_moves: None }];
        paces.extend(self.max_moves.iter().map(|&moves| Pace::Again { max_moves: Some(moves) }));
        paces.extend(self.pays.map(|_| Pace::IfItPays));
        paces.push(Pace::Oracle);
        paces
    }

    fn stretches(&self, judged: &Range<usize>) -> Vec<Range<usize>> {
        let every = self.every.max(1);
        judged.clone().step_by(every).map(|start| start..judged.end.min(start + every)).collect()
    }
}

/// Replays the judged steps of all busy layers with every policy, pace and method.
///
/// # Errors
/// When no layer holds a token, a policy cannot serve the shape, or a split fails.
pub fn replay(
    trace: &Trace,
    config: &Config,
    replay: &Replay,
    policies: &[Box<dyn Policy>],
    progress: &dyn Progress,
) -> Result<Vec<Replayed>, SimulateError> {
    let layers = busy_layers(trace)?;
    let paces = replay.paces();
    let done = AtomicUsize::new(0);
    let walked: Vec<Vec<Walk>> = layers
        .par_iter()
        .map(|&layer| {
            let mut walks = Vec::with_capacity(policies.len() * paces.len());
            for policy in policies {
                for &pace in &paces {
                    walks.push(walk(trace, config, replay, policy.as_ref(), layer, pace)?);
                }
            }
            progress.layers(done.fetch_add(1, Ordering::Relaxed) + 1, layers.len());
            Ok(walks)
        })
        .collect::<Result<_, SimulateError>>()?;

    let replans = replay.stretches(&config.judge_on).len() - 1;
    let mut rows = Vec::new();
    for (p, policy) in policies.iter().enumerate() {
        for (m, &method) in config.methods.iter().enumerate() {
            for (at, &pace) in paces.iter().enumerate() {
                let all = || walked.iter().map(|layer| &layer[p * paces.len() + at]);
                let summary = |value: fn(&Judged, usize) -> f64| {
                    let values = all().flat_map(|walk| {
                        let judged = &walk.judged[m];
                        (0..judged.peaks.len()).map(move |b| value(judged, b))
                    });
                    Summary::of(values.collect())
                };
                rows.push(Replayed {
                    policy: policy.name(),
                    pace,
                    method,
                    imbalance: summary(Judged::imbalance),
                    excess: summary(Judged::excess),
                    moves: all().map(|walk| walk.moves).sum(),
                    replans: if pace == Pace::Never { 0 } else { replans },
                    plan_time: all().map(|walk| walk.plan_time).sum(),
                });
            }
        }
    }
    Ok(rows)
}

fn walk(
    trace: &Trace,
    config: &Config,
    replay: &Replay,
    policy: &dyn Policy,
    layer: usize,
    pace: Pace,
) -> Result<Walk, SimulateError> {
    let cluster = &config.cluster;
    let failed = |source| SimulateError::Place { layer: trace.layers()[layer], source };
    let mut walk = Walk::default();
    let mut placement: Option<Placement> = None;
    for stretch in replay.stretches(&config.judge_on) {
        let begun = Instant::now();
        let next = match (&placement, pace) {
            (Some(placement), Pace::Never) => placement.clone(),
            (None, Pace::Never) => {
                let history = History::window(trace, layer, config.plan_on.clone());
                policy.place(&history, cluster).map_err(failed)?
            }
            (before, Pace::Again { max_moves }) => {
                let history = replay.window.history(trace, layer, stretch.start);
                match before {
                    None => policy.place(&history, cluster),
                    Some(before) => policy.replan(&history, cluster, before, max_moves),
                }
                .map_err(failed)?
            }
            (before, Pace::IfItPays) => {
                let history = replay.window.history(trace, layer, stretch.start);
                match (before, replay.pays) {
                    (Some(before), Some(horizon)) => {
                        let limits = replay.max_moves.iter().copied().map(Some).chain([None]);
                        best_that_pays(policy, &history, cluster, before, limits, &horizon)
                    }
                    _ => policy.place(&history, cluster),
                }
                .map_err(failed)?
            }
            (before, Pace::Oracle) => {
                let history = History::window(trace, layer, stretch.clone());
                match before {
                    None => policy.place(&history, cluster),
                    Some(before) => policy.replan(&history, cluster, before, None),
                }
                .map_err(failed)?
            }
        };
        walk.plan_time += begun.elapsed();
        walk.moves += placement.as_ref().map_or(0, |before| next.moves_from(before));
        for (m, &method) in config.methods.iter().enumerate() {
            let judged = judge_on_nodes(trace, layer, stretch.clone(), &next, method, cluster.nodes())?;
            match walk.judged.get_mut(m) {
                Some(all) => all.append(judged),
                None => walk.judged.push(judged),
            }
        }
        placement = Some(next);
    }
    Ok(walk)
}

/// Of the plans with each limit, the one that gains most after its copies are paid; what is in force if none gains.
fn best_that_pays(
    policy: &dyn Policy,
    history: &History<'_>,
    cluster: &Cluster,
    before: &Placement,
    limits: impl Iterator<Item = Option<usize>>,
    horizon: &Horizon,
) -> Result<Placement, PlaceError> {
    let mut best: Option<(i64, Placement)> = None;
    for limit in limits {
        let after = policy.replan(history, cluster, before, limit)?;
        let verdict = horizon.judge(before, &after, history)?;
        if verdict.made && best.as_ref().is_none_or(|(net, _)| verdict.net_ps() > *net) {
            best = Some((verdict.net_ps(), after));
        }
    }
    Ok(best.map_or_else(|| before.clone(), |(_, after)| after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place;
    use crate::split::Roofline;

    /// 8 experts on 4 ranks; the heavy expert changes every 10 steps.
    fn shifting() -> Trace {
        let loads = (0..60u64)
            .flat_map(|step| {
                (0..8u64).map(move |e| 20 + (step * 7 + e * 5) % 9 + 80 * u64::from(step / 10 == e))
            })
            .collect();
        Trace::from_loads(8, vec![0], (0..60).map(|s| s.to_string()).collect(), loads).unwrap()
    }

    fn rows(every: usize, max_moves: Vec<usize>) -> Vec<Replayed> {
        let trace = shifting();
        let cluster = Cluster::new(4, 1, 8, 4).unwrap();
        let config = Config::first_part(&trace, cluster, vec![Method::Exact], 0.4).unwrap();
        let policies = ["contiguous", "eplb"].map(|name| place::policy(name, 1, &cluster).unwrap());
        let how = Replay { every, window: Window::Last(5), max_moves, pays: None };
        replay(&trace, &config, &how, &policies, &()).unwrap()
    }

    #[test]
    fn knowing_the_future_is_best_and_never_moving_moves_nothing() {
        let rows = rows(5, vec![1]);
        assert_eq!(rows.len(), 2 * 4);
        for row in &rows[..4] {
            assert_eq!(row.moves, 0, "contiguous is always the same: {row:?}");
        }
        let [never, again, one, oracle] = &rows[4..] else { panic!() };
        assert_eq!((never.moves, never.replans, again.replans), (0, 0, 7));
        assert!(oracle.imbalance.mean < again.imbalance.mean && again.imbalance.mean < never.imbalance.mean);
        assert!(one.moves <= one.replans && one.moves < again.moves);
        assert!(one.imbalance.mean < never.imbalance.mean);
        // Contiguous never moves, and neither do plans that are made once; the front goes on from the better of them.
        let front: Vec<bool> = rows.iter().map(|row| on_front(row, &rows)).collect();
        assert!(front[5] && !front[7] && !front[0], "{front:?}");
    }

    #[test]
    fn one_stretch_is_the_plain_simulation() {
        let rows = rows(1000, vec![0]);
        for policy in rows.chunks(4) {
            assert!(policy.iter().all(|row| row.moves == 0 && row.replans == 0));
        }
        let no_moves = &rows[6];
        assert_eq!(no_moves.pace, Pace::Again { max_moves: Some(0) });
    }

    #[test]
    fn moves_that_cost_more_than_they_gain_are_not_made() {
        let trace = shifting();
        let cluster = Cluster::new(4, 1, 8, 4).unwrap();
        let config = Config::first_part(&trace, cluster, vec![Method::Exact], 0.4).unwrap();
        let policies = ["eplb"].map(|name| place::policy(name, 1, &cluster).unwrap());
        let moves = |copy_ps: u64| {
            let time = Roofline { read: 1, token: 1000, tile: 1 };
            let pays = Some(Horizon { steps: 5, copy_ps, time });
            let how = Replay { every: 5, window: Window::Last(5), max_moves: vec![1], pays };
            let rows = replay(&trace, &config, &how, &policies, &()).unwrap();
            let row = rows.iter().find(|row| row.pace == Pace::IfItPays).unwrap();
            (row.moves, row.imbalance.mean)
        };
        let (free, dear, out_of_reach) = (moves(0), moves(20_000), moves(u64::MAX / 1000));
        assert_eq!(out_of_reach.0, 0);
        assert!(free.0 >= dear.0 && dear.0 > 0, "{free:?} {dear:?}");
        assert!(free.1 <= out_of_reach.1);
    }
}
