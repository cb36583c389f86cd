//! Periodic re-planning along a trace.
//!
//! Input is a trace, policies, the interval of re-planning, the window of the past and the limits on moves.
//! Output is one [`ReplayRow`] per policy, [`ReplanSchedule`] and split method. The judged steps are divided
//! into intervals. Before each interval a placement is planned on the steps before it, and the moves to it
//! are counted. Two references bound the result: a single plan that never changes, and plans on the very
//! batches that they serve.

use super::SimulationConfig;
use evenkeel::economics::{MoveEconomics, MoveJudge};
use evenkeel::evaluate::{
    EvaluateError, LayerEvaluation, Progress, SummaryStats, busy_layers, evaluate_on_nodes, require_tokens,
};
use evenkeel::forecast::{History, HistoryWindow};
use evenkeel::place::{PlaceRequest, Placement, Policy};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The times and the data of re-planning.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// The number of judged steps between two plans; at least 1.
    pub every: usize,
    /// The past steps that a plan uses.
    pub window: HistoryWindow,
    /// Limits on the moves of one layer in one re-planning. Each is replayed separately, in addition to no
    /// limit.
    pub max_moves: Vec<usize>,
    /// Adds a replay in which moves must pay for themselves ([`ReplanSchedule::IfItPays`]). The steps of the
    /// economics are those to the next plan.
    pub economics: Option<MoveEconomics>,
}

/// The way in which a placement follows the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplanSchedule {
    /// One plan on all steps before the judged ones.
    Never,
    /// A new plan before every interval, on the window of the past.
    Periodic {
        /// The most moves of one layer in one re-planning.
        max_moves: Option<usize>,
    },
    /// A new plan if its gain on the window of the past exceeds the cost of its moves
    /// ([`MoveJudge::replan`]).
    IfItPays,
    /// A plan before every interval on that same interval. Its batches are unknown in practice, so it bounds
    /// the gain from better forecasts.
    Oracle,
}

/// The figures of one policy at one pace with one split method.
#[derive(Debug, Clone)]
pub struct ReplayRow {
    /// The policy's name.
    pub policy: String,
    /// The pace.
    pub schedule: ReplanSchedule,
    /// The split method.
    pub method: SplitMethod,
    /// The imbalance (peak over mean) of all judged batches.
    pub imbalance: SummaryStats,
    /// The excess, (peak - ceil(total / ranks)) over mean.
    pub excess: SummaryStats,
    /// The number of experts that ranks had to receive, over all layers and re-plannings. The first plan does
    /// not count.
    pub moves: usize,
    /// The number of re-plannings of all layers.
    pub replans: usize,
    /// The planning time of all layers and re-plannings, including the first plan.
    pub plan_time: Duration,
}

/// Returns whether the row is on the Pareto front of its split method. Then no row has a lower mean imbalance
/// with as few moves, or one as low with fewer moves. Oracles are excluded.
pub fn is_pareto_optimal(row: &ReplayRow, all: &[ReplayRow]) -> bool {
    let better = |other: &ReplayRow| {
        other.method == row.method
            && other.schedule != ReplanSchedule::Oracle
            && other.moves <= row.moves
            && other.imbalance.mean <= row.imbalance.mean
            && (other.moves < row.moves || other.imbalance.mean < row.imbalance.mean)
    };
    row.schedule != ReplanSchedule::Oracle && !all.iter().any(better)
}

/// One layer at one pace.
#[derive(Debug, Default)]
struct LayerReplay {
    /// One entry per method.
    judged: Vec<LayerEvaluation>,
    moves: usize,
    plan_time: Duration,
}

impl ReplayOptions {
    fn replay_schedules(&self) -> Vec<ReplanSchedule> {
        let mut paces = vec![ReplanSchedule::Never, ReplanSchedule::Periodic { max_moves: None }];
        paces.extend(self.max_moves.iter().map(|&moves| ReplanSchedule::Periodic { max_moves: Some(moves) }));
        paces.extend(self.economics.as_ref().map(|_| ReplanSchedule::IfItPays));
        paces.push(ReplanSchedule::Oracle);
        paces
    }

    fn judged_intervals(&self, judged: &Range<usize>) -> Vec<Range<usize>> {
        let every = self.every.max(1);
        judged.clone().step_by(every).map(|start| start..judged.end.min(start + every)).collect()
    }
}

/// Replays the judged steps of all busy layers with every policy, pace and method.
///
/// # Errors
/// Fails if no layer holds a token, if a policy cannot serve the shape, or if a split fails.
pub fn replay_trace(
    trace: &Trace,
    config: &SimulationConfig,
    replay: &ReplayOptions,
    policies: &[Box<dyn Policy>],
    progress: &dyn Progress,
) -> Result<Vec<ReplayRow>, EvaluateError> {
    let layers = busy_layers(trace)?;
    require_tokens(trace, &layers, &config.judge_on, "judge")?;
    let paces = replay.replay_schedules();
    let done = AtomicUsize::new(0);
    let walked: Vec<Vec<LayerReplay>> = layers
        .par_iter()
        .map(|&layer| {
            let mut walks = Vec::with_capacity(policies.len() * paces.len());
            for policy in policies {
                for &pace in &paces {
                    walks.push(replay_layer(trace, config, replay, policy.as_ref(), layer, pace)?);
                }
            }
            progress.report_layers(done.fetch_add(1, Ordering::Relaxed) + 1, layers.len());
            Ok(walks)
        })
        .collect::<Result<_, EvaluateError>>()?;

    let replans = replay.judged_intervals(&config.judge_on).len() - 1;
    let mut rows = Vec::new();
    for (p, policy) in policies.iter().enumerate() {
        for (m, &method) in config.methods.iter().enumerate() {
            for (at, &pace) in paces.iter().enumerate() {
                let all = || walked.iter().map(|layer| &layer[p * paces.len() + at]);
                let summary = |value: fn(&LayerEvaluation, usize) -> f64| {
                    let values = all().flat_map(|walk| {
                        let judged = &walk.judged[m];
                        (0..judged.peaks.len()).map(move |b| value(judged, b))
                    });
                    SummaryStats::from_values(values.collect())
                };
                rows.push(ReplayRow {
                    policy: policy.name(),
                    schedule: pace,
                    method,
                    imbalance: summary(LayerEvaluation::imbalance),
                    excess: summary(LayerEvaluation::excess),
                    moves: all().map(|walk| walk.moves).sum(),
                    replans: if pace == ReplanSchedule::Never { 0 } else { replans },
                    plan_time: all().map(|walk| walk.plan_time).sum(),
                });
            }
        }
    }
    Ok(rows)
}

fn replay_layer(
    trace: &Trace,
    config: &SimulationConfig,
    replay: &ReplayOptions,
    policy: &dyn Policy,
    layer: usize,
    pace: ReplanSchedule,
) -> Result<LayerReplay, EvaluateError> {
    let cluster = &config.cluster;
    let failed = |source| EvaluateError::Place { layer: trace.layers()[layer], source };
    let mut walk = LayerReplay::default();
    let mut placement: Option<Placement> = None;
    for stretch in replay.judged_intervals(&config.judge_on) {
        let begun = Instant::now();
        let next = match (placement.as_ref(), pace) {
            (Some(placement), ReplanSchedule::Never) => placement.clone(),
            (None, ReplanSchedule::Never) => {
                let history = History::from_steps(trace, layer, config.plan_on.clone());
                policy.place(&PlaceRequest::new(&history, cluster)).map_err(failed)?.placement
            }
            (before, ReplanSchedule::Periodic { max_moves }) => {
                let history = replay.window.history(trace, layer, stretch.start);
                let request = PlaceRequest::new(&history, cluster).previous(before).max_moves(max_moves);
                policy.place(&request).map_err(failed)?.placement
            }
            (before, ReplanSchedule::IfItPays) => {
                let history = replay.window.history(trace, layer, stretch.start);
                let request = PlaceRequest::new(&history, cluster).previous(before);
                match (before, &replay.economics) {
                    (Some(before), Some(economics)) => {
                        let judge = MoveJudge::new(economics, cluster, history.batches(), &[]);
                        judge.replan(policy, &request, before).map(|priced| priced.accepted_or(before))
                    }
                    _ => policy.place(&request).map(|placed| placed.placement),
                }
                .map_err(failed)?
            }
            (before, ReplanSchedule::Oracle) => {
                let history = History::from_steps(trace, layer, stretch.clone());
                let request = PlaceRequest::new(&history, cluster).previous(before);
                policy.place(&request).map_err(failed)?.placement
            }
        };
        walk.plan_time += begun.elapsed();
        walk.moves += placement.as_ref().map_or(0, |before| next.moves_from(before));
        for (m, &method) in config.methods.iter().enumerate() {
            let judged = evaluate_on_nodes(trace, layer, stretch.clone(), &next, method, cluster.nodes())?;
            match walk.judged.get_mut(m) {
                Some(all) => all.append(judged),
                None => walk.judged.push(judged),
            }
        }
        placement = Some(next);
    }
    Ok(walk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel::cluster::Cluster;
    use evenkeel::economics::TransferCharge;
    use evenkeel::place;
    use evenkeel::split::Roofline;
    use std::sync::Arc;

    /// Returns a trace of 8 experts for 4 ranks, in which the heavy expert changes every 10 steps.
    fn shifting() -> Trace {
        let loads = (0..60u64)
            .flat_map(|step| {
                (0..8u64).map(move |e| 20 + (step * 7 + e * 5) % 9 + 80 * u64::from(step / 10 == e))
            })
            .collect();
        Trace::from_loads(8, vec![0], (0..60).map(|s| s.to_string()).collect(), loads).unwrap()
    }

    fn rows(every: usize, max_moves: Vec<usize>) -> Vec<ReplayRow> {
        let trace = shifting();
        let cluster = Cluster::new(4, 1, 8, 4).unwrap();
        let config = SimulationConfig::first_part(&trace, cluster, vec![SplitMethod::Exact], 0.4).unwrap();
        let policies = ["contiguous", "eplb"].map(|name| place::policy(name, 1, &cluster).unwrap());
        let how = ReplayOptions { every, window: HistoryWindow::Last(5), max_moves, economics: None };
        replay_trace(&trace, &config, &how, &policies, &()).unwrap()
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
        // Neither contiguous placements nor single plans move. The front starts from the better of them.
        let front: Vec<bool> = rows.iter().map(|row| is_pareto_optimal(row, &rows)).collect();
        assert!(front[5] && !front[7] && !front[0], "{front:?}");
    }

    #[test]
    fn one_stretch_is_the_plain_simulation() {
        let rows = rows(1000, vec![0]);
        for policy in rows.chunks(4) {
            assert!(policy.iter().all(|row| row.moves == 0 && row.replans == 0));
        }
        let no_moves = &rows[6];
        assert_eq!(no_moves.schedule, ReplanSchedule::Periodic { max_moves: Some(0) });
    }

    #[test]
    fn moves_that_cost_more_than_they_gain_are_not_made() {
        let trace = shifting();
        let cluster = Cluster::new(4, 1, 8, 4).unwrap();
        let config = SimulationConfig::first_part(&trace, cluster, vec![SplitMethod::Exact], 0.4).unwrap();
        let policies = ["eplb"].map(|name| place::policy(name, 1, &cluster).unwrap());
        let moves = |transfer_ps: u64| {
            let time = Arc::new(Roofline { read: 1, token: 1000, tile: 1 });
            let economics =
                Some(MoveEconomics { steps: 5, transfer_ps, time, charge: TransferCharge::default() });
            let how =
                ReplayOptions { every: 5, window: HistoryWindow::Last(5), max_moves: vec![1], economics };
            let rows = replay_trace(&trace, &config, &how, &policies, &()).unwrap();
            let row = rows.iter().find(|row| row.schedule == ReplanSchedule::IfItPays).unwrap();
            (row.moves, row.imbalance.mean)
        };
        let (free, dear, out_of_reach) = (moves(0), moves(20_000), moves(u64::MAX / 1000));
        assert_eq!(out_of_reach.0, 0);
        assert!(free.0 >= dear.0 && dear.0 > 0, "{free:?} {dear:?}");
        assert!(free.1 <= out_of_reach.1);
    }
}
