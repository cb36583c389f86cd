//! One running phase of one model: it receives steps and publishes plans.
//!
//! Posts are checked against the known steps and passed to the store. Durable steps wait in a queue. The
//! worker's own thread takes them one after the other, computes the imbalance of each, and re-plans when a
//! decision is due. Posts therefore never wait for planning, and decisions depend only on the order of steps.
//! After a restart of the service, the thread continues from the last saved state with the steps stored since
//! then.

use super::dry_run::DryRunSlot;
use super::mailbox::{AbortFlags, BusyError, DecisionResult, Mailbox, PendingCommand, WorkerJob};
use super::plan_text::PlanTexts;
use super::service::ServiceCounters;
use super::unix_seconds;
use crate::PlanPreview;
use crate::config::ServiceConfig;
use crate::controller::config::ControllerConfig;
use crate::controller::propose::PhaseCommand;
use crate::controller::snapshot::PhaseSnapshot;
use crate::controller::state::{AcceptedStep, PhaseState};
use crate::limits::HistoryLimits;
use crate::store::dedup::StepLog;
use crate::store::error::StateStoreError;
use crate::store::number_ranges::NumberRanges;
use crate::store::{EngineRun, PhaseKey, StateStore, StoreChange};
use crate::wire::decision::Decision;
use crate::wire::event::{ModelEvent, RunEvent};
use crate::wire::loads::Loads;
use crate::wire::receipt::{Receipt, Refusal};
use crate::{LogCallback, Phase};
use evenkeel::plan::Plan;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{Semaphore, broadcast, oneshot, watch};

/// The state that workers share with the service.
#[derive(Clone)]
pub(crate) struct ServiceContext {
    pub(crate) store: Arc<StateStore>,
    pub(crate) log: LogCallback,
    pub(crate) config: Arc<RwLock<Arc<ServiceConfig>>>,
    pub(crate) counters: Arc<ServiceCounters>,
    /// The permits for further dry runs, over all phases.
    pub(crate) dry_runs: Arc<Semaphore>,
}

impl std::fmt::Debug for ServiceContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceContext").field("store", &self.store).finish_non_exhaustive()
    }
}

impl ServiceContext {
    pub(crate) fn config(&self) -> Arc<ServiceConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn history_limits(&self) -> HistoryLimits {
        self.config().history.clone()
    }
}

/// The published plan.
#[derive(Debug)]
pub(crate) struct PublishedPlan {
    pub(crate) version: u64,
    pub(crate) step: Option<u64>,
    pub(crate) accepted: u64,
    /// The digest of the plan's text and its ranks.
    pub(crate) digest: String,
    pub(crate) plan: Plan,
    pub(crate) texts: PlanTexts,
    /// Real ranks, indexed by their numbers in the plan.
    pub(crate) ranks: Vec<u32>,
}

/// The run to which loads belong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LoadsOrigin<'a> {
    /// A post, with its run id if it has one.
    Post(Option<&'a str>),
    /// A source with its run id. Its numbers may be any distance apart.
    Source(&'a str),
}

/// One phase of one model.
#[derive(Debug)]
pub(crate) struct PhaseWorker {
    pub(crate) model: String,
    pub(crate) phase: Phase,
    pub(super) key: PhaseKey,
    pub(super) context: ServiceContext,
    pub(super) events: broadcast::Sender<Arc<ModelEvent>>,
    pub(crate) state: RwLock<PhaseState>,
    pub(super) step_log: Mutex<StepLog>,
    pub(super) mailbox: Mutex<Mailbox>,
    pub(super) wake: Condvar,
    /// The number of accepted steps. `processed` counts the processed ones.
    pub(super) accepted: AtomicU64,
    pub(super) processed: AtomicU64,
    /// The seconds since 1970 at which steps were last accepted; 0 means never.
    pub(super) last_step_unix_s: AtomicU64,
    /// The bytes of a step's counts.
    pub(super) width: u64,
    pub(super) interrupts: AbortFlags,
    pub(super) dry_run_slot: Arc<DryRunSlot>,
    pub(crate) planning: AtomicBool,
    pub(super) published: RwLock<Option<Arc<PublishedPlan>>>,
    pub(crate) version: watch::Sender<u64>,
    pub(crate) decisions: RwLock<VecDeque<Decision>>,
    /// Decisions that could not be stored. The next save writes them.
    pub(super) unsaved: Mutex<Vec<StoreChange>>,
    pub(super) thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// The state of a phase in the store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkerSnapshot {
    pub(crate) phase: PhaseSnapshot,
    /// The step numbers that are no longer remembered, by run.
    pub(crate) forgotten_numbers: Vec<(u32, NumberRanges)>,
}

impl WorkerSnapshot {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        zstd::bulk::compress(&json, 1).unwrap_or_default()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(&zstd::stream::decode_all(bytes).ok()?).ok()
    }
}

pub(super) fn lock_unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PhaseWorker {
    /// Starts a worker. `step_log` knows the stored steps; `waiting` holds the unprocessed ones.
    pub(crate) fn start(
        model: String,
        key: PhaseKey,
        context: ServiceContext,
        events: broadcast::Sender<Arc<ModelEvent>>,
        (state, step_log): (PhaseState, StepLog),
        (waiting, decisions): (Vec<AcceptedStep>, VecDeque<Decision>),
    ) -> std::io::Result<Arc<Self>> {
        let accepted = step_log.last_accepted();
        // The arrival time of stored but unprocessed steps is unknown, so the present stands in for it.
        let unknown = if accepted > 0 { unix_seconds() } else { 0 };
        let last_step_unix_s = state.latest_point().map_or(unknown, |point| point.timestamp_unix_s);
        let worker = Arc::new(Self {
            phase: state.phase(),
            width: 4 * (state.layers().len() * state.experts()) as u64,
            processed: AtomicU64::new(accepted - waiting.len() as u64),
            accepted: AtomicU64::new(accepted),
            last_step_unix_s: AtomicU64::new(last_step_unix_s),
            state: RwLock::new(state),
            step_log: Mutex::new(step_log),
            mailbox: Mutex::new(Mailbox::with_steps(waiting)),
            wake: Condvar::new(),
            interrupts: AbortFlags::default(),
            dry_run_slot: Arc::default(),
            planning: AtomicBool::new(false),
            published: RwLock::new(None),
            version: watch::Sender::new(0),
            decisions: RwLock::new(decisions),
            unsaved: Mutex::new(vec![]),
            thread: Mutex::new(None),
            model,
            key,
            context,
            events,
        });
        (worker.context.log)(&format!("{}/{}: {}", worker.model, worker.phase, worker.state().copy_status()));
        worker.publish_plan();
        let own = worker.clone();
        let name = format!("{}/{}", worker.model, worker.phase);
        let thread = std::thread::Builder::new().name(name).spawn(move || own.run())?;
        *lock_unpoisoned(&worker.thread) = Some(thread);
        Ok(worker)
    }

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, PhaseState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, PhaseState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the published plan.
    pub(crate) fn published_plan(&self) -> Option<Arc<PublishedPlan>> {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the lag: accepted steps that are not processed yet.
    pub(crate) fn lag(&self) -> u64 {
        self.accepted.load(Ordering::Acquire).saturating_sub(self.processed.load(Ordering::Acquire))
    }

    /// Returns the seconds since 1970 at which steps were last accepted.
    pub(crate) fn last_step_unix_s(&self) -> Option<u64> {
        Some(self.last_step_unix_s.load(Ordering::Acquire)).filter(|&at| at > 0)
    }

    /// Accepts posted loads. The answer follows once they are durable. `run` is the poster's run id.
    pub(crate) fn accept_loads(
        self: &Arc<Self>,
        loads: &Loads,
        run: LoadsOrigin<'_>,
        answer: oneshot::Sender<Result<Receipt, Refusal>>,
    ) {
        let limits = self.context.config().limits.clone();
        let lag = self.lag();
        if lag > limits.lag_steps || lag.saturating_mul(self.width) > limits.lag_mib << 20 {
            let _ = answer.send(Err(Refusal::TooFarBehind { steps: lag }));
            return;
        }
        let mut step_log = lock_unpoisoned(&self.step_log);
        let taken = match run {
            LoadsOrigin::Post(id) => step_log.admit_post(loads, id, false),
            LoadsOrigin::Source(id) => step_log.admit_post(loads, Some(id), true),
        };
        let taken = match taken {
            Ok(taken) => taken,
            Err(refusal) => {
                let _ = answer.send(Err(refusal));
                return;
            }
        };
        let mut receipt = taken.receipt;
        if taken.new.is_empty() {
            self.context.counters.repeated.fetch_add(receipt.repeated, Ordering::Relaxed);
            receipt.lag = lag;
            let _ = answer.send(Ok(receipt));
            return;
        }
        let ops =
            taken.parts.into_iter().map(|(run, rows)| StoreChange::Steps { phase: self.key, run, rows });
        let (worker, new, began) = (self.clone(), taken.new, taken.began);
        // The lock is still held, so that steps are written in the order of acceptance.
        self.context.store.queue_write(
            ops.collect(),
            Box::new(move |written| {
                let most = worker.context.history_limits().ids;
                let seen =
                    lock_unpoisoned(&worker.step_log).finish_write(new, written.as_ref().ok().copied(), most);
                let _ = match written {
                    Ok(first) => {
                        worker.announce_runs(&began, first);
                        worker.accepted.fetch_add(seen.len() as u64, Ordering::AcqRel);
                        worker.last_step_unix_s.store(unix_seconds(), Ordering::Release);
                        worker.context.counters.accepted.fetch_add(receipt.accepted, Ordering::Relaxed);
                        worker.context.counters.repeated.fetch_add(receipt.repeated, Ordering::Relaxed);
                        lock_unpoisoned(&worker.mailbox).push_steps(seen);
                        worker.wake.notify_all();
                        receipt.lag = worker.lag();
                        answer.send(Ok(receipt))
                    }
                    Err(error) => answer.send(Err(Refusal::Store(error))),
                };
            }),
        );
        drop(step_log);
    }

    /// Logs and publishes the beginning of runs, except for the first run of a phase.
    fn announce_runs(&self, began: &[(EngineRun, String)], accepted: u64) {
        for (run, reason) in began.iter().filter(|(run, _)| run.number > 1) {
            let id = run.id.as_deref().unwrap_or("none");
            (self.context.log)(&format!(
                "{}/{}: run {} (id {id}) begins at step {}: {reason}",
                self.model, self.phase, run.number, run.first
            ));
            let event = RunEvent {
                phase: self.phase,
                run: run.number,
                id: run.id.clone(),
                step: run.first,
                accepted,
                reason: reason.clone(),
            };
            // Sending fails if there is no listener.
            let _ = self.events.send(Arc::new(ModelEvent::Run(event)));
        }
    }

    /// Returns the current run of the posts, or `None` before the first step.
    pub(crate) fn current_run(&self) -> Option<EngineRun> {
        lock_unpoisoned(&self.step_log).current_run().cloned()
    }

    /// Refuses further loads, because the model is about to be deleted.
    pub(crate) fn close_intake(&self) {
        lock_unpoisoned(&self.step_log).closed = true;
    }

    /// Accepts loads again.
    pub(crate) fn reopen_intake(&self) {
        lock_unpoisoned(&self.step_log).closed = false;
    }

    /// Returns whether a step was accepted or is being stored.
    pub(crate) fn has_steps(&self) -> bool {
        lock_unpoisoned(&self.step_log).has_steps()
    }

    /// Requests a decision from the worker's thread. A change of ranks interrupts the current computation.
    pub(crate) fn request_decision(
        &self,
        command: PhaseCommand,
    ) -> Result<oneshot::Receiver<DecisionResult>, BusyError> {
        let (answer, receive) = oneshot::channel();
        if matches!(command, PhaseCommand::Down(_) | PhaseCommand::Up(_)) {
            self.dry_run_slot.abort_run();
        }
        lock_unpoisoned(&self.mailbox).push_request(PendingCommand { command, answer }, &self.interrupts)?;
        self.wake.notify_all();
        Ok(receive)
    }

    /// Shows the plan that a dry run considered, unless another plan was considered since then.
    pub(crate) fn show_preview(&self, next: PlanPreview) {
        lock_unpoisoned(&self.mailbox).push_preview(next);
        self.wake.notify_all();
    }

    /// Replaces the options from the next step on.
    pub(crate) fn set_options(&self, options: ControllerConfig) {
        lock_unpoisoned(&self.mailbox).set_options(options);
        self.wake.notify_all();
    }

    /// Stops the thread after it has saved the state. A computation under way is aborted and repeated after
    /// the next start.
    pub(crate) fn stop(&self) {
        {
            // The lock prevents a concurrent request from clearing the flags.
            let mut mailbox = lock_unpoisoned(&self.mailbox);
            mailbox.stop();
            self.interrupts.stop();
        }
        self.dry_run_slot.abort_run();
        self.wake.notify_all();
        let thread = lock_unpoisoned(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Waits for the next piece of work and returns it.
    pub(super) fn next_job(&self) -> WorkerJob {
        let mut mailbox = lock_unpoisoned(&self.mailbox);
        loop {
            if let Some(work) = mailbox.next_job(&self.interrupts) {
                return work;
            }
            mailbox = self.wake.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns the initial state of a phase, for the store.
    pub(crate) fn first_state(key: PhaseKey, state: &PhaseState) -> StoreChange {
        let saved = WorkerSnapshot { phase: state.to_snapshot(), forgotten_numbers: vec![] };
        StoreChange::State { phase: key, bytes: saved.to_bytes() }
    }
}

/// Returns the ETag of a plan in a format.
pub(crate) fn plan_etag(version: u64, format: &str, digest: &str) -> String {
    format!("\"{version}-{format}-{digest}\"")
}

impl From<StateStoreError> for Refusal {
    fn from(error: StateStoreError) -> Self {
        Refusal::Store(error)
    }
}
