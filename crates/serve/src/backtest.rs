//! A replay of a whole trace through the decisions of the service, without a server.
//!
//! Input is a trace, a shape and options. Output is the imbalance of each step and the decisions. They equal
//! those of a service that receives the same steps. [`replan_every_batch`] computes the reference that
//! re-plans before every batch.

use crate::Phase;
use crate::controller::config::{ControllerConfig, ModelSpec};
use crate::controller::propose::PhaseCommand;
use crate::controller::state::{AcceptedStep, PhaseError, PhaseState};
use crate::wire::decision::{CopyStatus, Decision, DecisionOutcome, GainStatus};
use crate::wire::loads::StepLoads;
use evenkeel::evaluate::evaluate_layer;
use evenkeel::forecast::HistoryWindow;
use evenkeel::place::PlaceRequest;
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use rayon::prelude::*;
use std::sync::atomic::AtomicBool;

/// The result of a replay.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Backtest {
    /// The mean imbalance over the judged steps and their busy layers.
    pub imbalance: f64,
    /// The mean bound over the same batches.
    pub bound: f64,
    /// The number of judged steps: those after the first plan.
    pub steps: usize,
    /// The mean imbalance over the busy layers of each judged step.
    pub series: Vec<f64>,
    /// The number of moves after the first plan.
    pub moves: usize,
    /// The number of times that a plan became the current one, including the first.
    pub plans: usize,
    /// The milliseconds that the plans after the first were expected to save over the horizon.
    pub foreseen_ms: f64,
    /// The milliseconds that these plans saved against the placements before them, by the same cost model. It
    /// is measured on the steps within the horizon. If the trace ends earlier, the mean of the remaining
    /// steps is extrapolated to the horizon.
    pub gained_ms: f64,
    /// The cost of transfers, and the time that they took.
    pub copies: CopyStatus,
    /// The corrections of expected gains by the gains of earlier decisions, at the end.
    pub gains: GainStatus,
    /// All decisions, in order.
    pub decisions: Vec<Decision>,
}

impl Backtest {
    /// Returns the excess: the imbalance above the bound.
    pub fn excess(&self) -> f64 {
        self.imbalance - self.bound
    }
}

/// Applies the steps of a trace to a phase in order, and makes every decision when it is due.
///
/// # Errors
/// Fails if the trace does not fit the shape, or if the policy fails.
pub fn backtest(
    trace: &Trace,
    shape: &ModelSpec,
    options: &ControllerConfig,
) -> Result<Backtest, PhaseError> {
    let layers = trace.layers().to_vec();
    let mut state = PhaseState::new(shape.clone(), options.clone(), Phase::All, layers, trace.experts())?;
    let (mut result, never) = (Backtest::default(), AtomicBool::new(false));
    for at in 0..trace.steps().len() {
        let counts = (0..trace.layers().len()).flat_map(|layer| trace.loads(at, layer));
        let counts = counts.map(|&load| u32::try_from(load).unwrap_or(u32::MAX)).collect();
        let seen = AcceptedStep { accepted: at as u64 + 1, step: StepLoads { id: at as u64, counts } };
        let live = !seen.step.is_idle();
        let due = state.apply_step(seen, 0)?;
        if live
            && state.plan_version() > 0
            && let Some(point) = state.last_imbalance()
        {
            result.imbalance += point.0;
            result.series.push(point.0);
            result.bound += point.2;
            result.steps += 1;
        }
        let Some(trigger) = due else { continue };
        let Some(proposal) = state.propose(&PhaseCommand::Replan { trigger, dry_run: false }, &never)? else {
            continue;
        };
        if proposal.decision.outcome == DecisionOutcome::Applied {
            result.plans += 1;
            if state.plan_version() > 0 {
                result.moves += proposal.decision.moves;
                let ahead = usize::try_from(state.expected_horizon()).unwrap_or(usize::MAX);
                let within = at + 1..trace.steps().len().min((at + 1).saturating_add(ahead));
                if !within.is_empty() {
                    result.foreseen_ms += proposal.decision.gain_ms;
                    result.gained_ms += state.saved_ps(trace, within, &proposal.placements)? as f64 / 1e9;
                }
            }
        }
        state.apply_proposal(&proposal)?;
        result.decisions.push(proposal.decision);
    }
    result.copies = state.copy_status();
    result.gains = state.gain_status();
    let steps = result.steps.max(1) as f64;
    result.imbalance /= steps;
    result.bound /= steps;
    Ok(result)
}

/// Re-plans every layer before every step that [`backtest()`] judges, without a limit on moves.
///
/// # Errors
/// The errors are those of [`backtest()`].
pub fn replan_every_batch(
    trace: &Trace,
    shape: &ModelSpec,
    options: &ControllerConfig,
) -> Result<Backtest, PhaseError> {
    let cluster = shape.cluster(trace.experts())?;
    let policy = options.build_policy(shape.groups, &cluster)?;
    let (first, steps) = (usize::try_from(options.first_after).unwrap_or(usize::MAX), trace.steps().len());
    let busy: Vec<usize> = (0..trace.layers().len())
        .filter(|&layer| trace.totals(layer).iter().any(|&tokens| tokens > 0))
        .collect();
    let layers: Vec<(Vec<f64>, f64, usize, usize)> = busy
        .into_par_iter()
        .map(|layer| {
            let failed = |source| PhaseError::Place { layer: trace.layers()[layer], source };
            let window = HistoryWindow::Auto { ahead: 1 };
            let mut placement = None;
            let (mut imbalances, mut bound, mut batches, mut moves) = (vec![], 0.0, 0, 0);
            for step in first..steps {
                let history = window.history(trace, layer, step);
                let request = PlaceRequest::new(&history, &cluster).previous(placement.as_ref());
                let next = policy.place(&request).map_err(failed)?.placement;
                moves += placement.as_ref().map_or(0, |before| next.moves_from(before));
                let judged = evaluate_layer(trace, layer, step..step + 1, &next, SplitMethod::Exact)
                    .map_err(|error| PhaseError::Invalid(evenkeel::error_chain(&error)))?;
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
        .collect::<Result<_, PhaseError>>()?;
    let batches = layers.iter().map(|layer| layer.2).sum::<usize>().max(1) as f64;
    Ok(Backtest {
        imbalance: layers.iter().flat_map(|layer| &layer.0).sum::<f64>() / batches,
        series: (0..steps.saturating_sub(first))
            .map(|step| layers.iter().map(|layer| layer.0[step]).sum::<f64>() / layers.len().max(1) as f64)
            .collect(),
        bound: layers.iter().map(|layer| layer.1).sum::<f64>() / batches,
        steps: steps.saturating_sub(first),
        moves: layers.iter().map(|layer| layer.3).sum(),
        plans: steps.saturating_sub(first),
        foreseen_ms: 0.0,
        gained_ms: 0.0,
        copies: CopyStatus::default(),
        gains: GainStatus::default(),
        decisions: vec![],
    })
}
