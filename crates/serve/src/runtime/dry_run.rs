//! Dry runs: they compute the plan of an immediate decision outside the worker's thread.
//!
//! A dry run works on a snapshot of the state, in a small thread pool of its own. Steps and rank changes
//! therefore never wait for it. One dry run per phase and two in the whole service run at a time. A dry run
//! ends early if the client disconnects, a rank changes, or the service stops.

use super::mailbox::BusyError;
use super::unix_seconds;
use super::worker::{PhaseWorker, lock_unpoisoned};
use crate::controller::propose::{PhaseCommand, Proposal};
use crate::controller::state::{PhaseError, PhaseState};
use crate::wire::decision::Trigger;
use crate::wire::event::{ModelEvent, PlanningEvent};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

/// The most dry runs of all phases at a time.
pub(crate) const MAX_DRY_RUNS: usize = 2;

/// The flag that aborts the dry run of a phase, or `None` if there is no dry run.
#[derive(Debug, Default)]
pub(super) struct DryRunSlot(Mutex<Option<Arc<AtomicBool>>>);

impl DryRunSlot {
    /// Aborts the dry run under way.
    pub(super) fn abort_run(&self) {
        if let Some(abort) = lock_unpoisoned(&self.0).as_ref() {
            abort.store(true, Ordering::Relaxed);
        }
    }

    fn acquire_slot(self: &Arc<Self>) -> Result<DryRunGuard, BusyError> {
        let mut slot = lock_unpoisoned(&self.0);
        if slot.is_some() {
            return Err(BusyError::DryRun);
        }
        let abort = Arc::new(AtomicBool::new(false));
        *slot = Some(abort.clone());
        Ok(DryRunGuard { slot: self.clone(), abort })
    }
}

/// A taken slot, which is free again after the drop.
struct DryRunGuard {
    slot: Arc<DryRunSlot>,
    abort: Arc<AtomicBool>,
}

impl Drop for DryRunGuard {
    fn drop(&mut self) {
        *lock_unpoisoned(&self.slot.0) = None;
    }
}

/// A dry run under way. Dropping it aborts the computation.
#[derive(Debug)]
pub(crate) struct DryRun {
    abort: Arc<AtomicBool>,
    answer: oneshot::Receiver<Result<Option<Proposal>, PhaseError>>,
}

impl DryRun {
    /// Waits for the proposal. Returns `None` if the dry run was interrupted.
    pub(crate) async fn wait_for_proposal(&mut self) -> Result<Option<Proposal>, PhaseError> {
        (&mut self.answer).await.unwrap_or(Ok(None))
    }
}

impl Drop for DryRun {
    fn drop(&mut self) {
        self.abort.store(true, Ordering::Relaxed);
    }
}

impl PhaseWorker {
    /// Starts a dry run.
    pub(crate) fn dry_run(&self) -> Result<DryRun, BusyError> {
        let taken = self.dry_run_slot.acquire_slot()?;
        let permit =
            self.context.dry_runs.clone().try_acquire_owned().map_err(|_| BusyError::TooManyDryRuns)?;
        let state = self.state().clone_for_planning().map_err(|_| BusyError::TooManyDryRuns)?;
        let (send, answer) = oneshot::channel();
        let abort = taken.abort.clone();
        let name = format!("{}/{} dry run", self.model, self.phase);
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            let answer = compute_proposal(&state, &taken.abort);
            // The slot must be free before the client gets the answer, because the client may ask again at
            // once.
            drop((taken, permit));
            let _ = send.send(answer);
        });
        spawned.map_err(|_| BusyError::TooManyDryRuns)?;
        self.send_event(ModelEvent::Planning(PlanningEvent { phase: self.phase, trigger: Trigger::Manual }));
        Ok(DryRun { abort, answer })
    }
}

/// Computes the proposal in a thread pool with half of the cores. The other half stays free for steps.
fn compute_proposal(state: &PhaseState, abort: &AtomicBool) -> Result<Option<Proposal>, PhaseError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let pool = rayon::ThreadPoolBuilder::new().num_threads((cores / 2).max(1)).build();
    let command = PhaseCommand::Replan { trigger: Trigger::Manual, dry_run: true };
    let propose = || state.propose(&command, abort);
    let proposed = match pool {
        Ok(pool) => pool.install(propose),
        Err(_) => propose(),
    };
    proposed.map(|proposal| {
        proposal.map(|mut proposal| {
            proposal.decision.timestamp_unix_s = unix_seconds();
            proposal
        })
    })
}
