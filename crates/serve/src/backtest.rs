//! A whole trace through the decisions of the service, without a server.
//!
//! In: a trace, a shape, options. Out: how each step was served, and what was decided: the same as the service would have
//! decided, had it been fed these steps. Beside it, what planning again before every batch would do ([`every_batch`]).

use super::Phase;
use super::decide::Ask;
use super::lane::{Lane, LaneError, Seen};
use super::options::{DecideOptions, Shape};
use super::record::{CopyStatus, Decision, Outcome};
use crate::forecast::Window;
use crate::place::Placement;
use crate::simulate::{SimulateError, judge};
use crate::split::Method;
use crate::trace::Trace;
use rayon::prelude::*;
use std::sync::atomic::AtomicBool;

/// How a trace was served.
#[derive(Debug, Clone, Default)]
pub struct Online {
    /// Mean over the judged steps and their busy layers of peak over mean.
    pub imbalance: f64,
    /// The least that any placement could have had.
    pub bound: f64,
    /// Judged steps: those after the first plan.
    pub steps: usize,
    /// Mean over the busy layers of peak over mean, of each of them.
    pub series: Vec<f64>,
    /// Moves after the first plan.
    pub moves: usize,
    /// Times that a plan came in force, the first included.
    pub plans: usize,
    /// What those after the first were to gain over the horizon, in perfectly balanced batches of one layer.
    pub foreseen: f64,
    /// What they gained next to what was in force before them: the batches of the next steps, as many as the horizon has or, where
    /// the trace ends, as if those went on.
    pub gained: f64,
    /// The price of copies, and the time that they took.
    pub copies: CopyStatus,
    /// Every decision, in order.
    pub decisions: Vec<Decision>,
}

impl Online {
    /// What is above the least possible.
    pub fn excess(&self) -> f64 {
        self.imbalance - self.bound
    }
}

/// Feeds a trace to a lane, step by step, each decision taken when it is due.
///
/// # Errors
/// When the trace does not fit the shape, or the policy fails.
pub fn online(trace: &Trace, shape: &Shape, options: &DecideOptions) -> Result<Online, LaneError> {
    let layers = trace.layers().to_vec();
    let mut lane = Lane::new(shape.clone(), options.clone(), Phase::All, layers, trace.experts())?;
    let (mut online, never) = (Online::default(), AtomicBool::new(false));
    for at in 0..trace.steps().len() {
        let counts = (0..trace.layers().len()).flat_map(|layer| trace.loads(at, layer));
        let counts = counts.map(|&load| u32::try_from(load).unwrap_or(u32::MAX)).collect();
        let due = lane.step(Seen { accepted: at as u64 + 1, id: at as u64, counts }, 0)?;
        if lane.version() > 0
            && let Some(point) = lane.last_served()
        {
            online.imbalance += point.0;
            online.series.push(point.0);
            online.bound += point.2;
            online.steps += 1;
        }
        let Some(trigger) = due else { continue };
        let Some(proposal) = lane.propose(&Ask::Replan { trigger, dry_run: false }, &never)? else {
            continue;
        };
        if proposal.decision.outcome == Outcome::Acted {
            online.plans += 1;
            if lane.version() > 0 {
                online.moves += proposal.decision.moves;
                if let Some(gained) =
                    gained(trace, at, options.horizon, [&lane.placements, &proposal.placements])?
                {
                    online.foreseen += proposal.decision.gain;
                    online.gained += gained;
                }
            }
        }
        lane.apply(&proposal)?;
        online.decisions.push(proposal.decision);
    }
    online.copies = lane.copies();
    let steps = online.steps.max(1) as f64;
    online.imbalance /= steps;
    online.bound /= steps;
    Ok(online)
}

/// What placements gain over others after a step, in perfectly balanced batches over the horizon; none after the last step.
fn gained(
    trace: &Trace,
    step: usize,
    horizon: u64,
    [before, after]: [&[Placement]; 2],
) -> Result<Option<f64>, LaneError> {
    let ahead = usize::try_from(horizon).unwrap_or(usize::MAX);
    let steps = step + 1..trace.steps().len().min((step + 1).saturating_add(ahead));
    let mut gained = 0.0;
    for (layer, (before, after)) in before.iter().zip(after).enumerate() {
        if before == after || steps.is_empty() {
            continue;
        }
        let mean = |placement| {
            let judged = judge(trace, layer, steps.clone(), placement, Method::Exact)?;
            let batches = judged.peaks.len();
            Ok((0..batches).map(|at| judged.imbalance(at)).sum::<f64>() / batches.max(1) as f64)
        };
        let both = mean(before).and_then(|before| Ok(before - mean(after)?));
        gained +=
            both.map_err(|error: SimulateError| LaneError::Asked(crate::in_words(&error)))? * horizon as f64;
    }
    Ok((!steps.is_empty()).then_some(gained))
}

/// Plans every layer again before every step that [`online()`] judges, without a limit on moves.
///
/// # Errors
/// As [`online()`].
pub fn every_batch(trace: &Trace, shape: &Shape, options: &DecideOptions) -> Result<Online, LaneError> {
    let cluster = shape.cluster(trace.experts())?;
    let policy = options.policy(shape.groups, &cluster)?;
    let (first, steps) = (usize::try_from(options.first_after).unwrap_or(usize::MAX), trace.steps().len());
    let busy: Vec<usize> = (0..trace.layers().len())
        .filter(|&layer| trace.totals(layer).iter().any(|&tokens| tokens > 0))
        .collect();
    let layers: Vec<(Vec<f64>, f64, usize, usize)> = busy
        .into_par_iter()
        .map(|layer| {
            let failed = |source| LaneError::Place { layer: trace.layers()[layer], source };
            let window = Window::Auto { ahead: 1 };
            let mut placement = None;
            let (mut imbalances, mut bound, mut batches, mut moves) = (vec![], 0.0, 0, 0);
            for step in first..steps {
                let history = window.history(trace, layer, step);
                let next = match &placement {
                    None => policy.place(&history, &cluster),
                    Some(before) => policy.replan(&history, &cluster, before, None),
                }
                .map_err(failed)?;
                moves += placement.as_ref().map_or(0, |before| next.moves_from(before));
                let judged = judge(trace, layer, step..step + 1, &next, Method::Exact)
                    .map_err(|error| LaneError::Asked(crate::in_words(&error)))?;
                imbalances.push(0.0);
                for at in 0..judged.peaks.len() {
                    imbalances[step - first] += judged.imbalance(at);
                    bound += judged.lower_bound(at);
                    batches += 1;
                }
                placement = Some(next);
            }
            Ok((imbalances, bound, batches, moves))
        })
        .collect::<Result<_, LaneError>>()?;
    let batches = layers.iter().map(|layer| layer.2).sum::<usize>().max(1) as f64;
    Ok(Online {
        imbalance: layers.iter().flat_map(|layer| &layer.0).sum::<f64>() / batches,
        series: (0..steps.saturating_sub(first))
            .map(|step| layers.iter().map(|layer| layer.0[step]).sum::<f64>() / layers.len().max(1) as f64)
            .collect(),
        bound: layers.iter().map(|layer| layer.1).sum::<f64>() / batches,
        steps: steps.saturating_sub(first),
        moves: layers.iter().map(|layer| layer.3).sum(),
        plans: steps.saturating_sub(first),
        foreseen: 0.0,
        gained: 0.0,
        copies: CopyStatus::default(),
        decisions: vec![],
    })
}
