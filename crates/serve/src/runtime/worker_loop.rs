//! The thread of a worker: processes steps one after the other, and makes, stores and publishes decisions.

use super::mailbox::{PendingCommand, WorkerJob};
use super::plan_text::PlanTexts;
use super::unix_seconds;
use super::worker::{PhaseWorker, PublishedPlan, WorkerSnapshot, lock_unpoisoned, plan_etag};
use crate::controller::propose::PhaseCommand;
use crate::controller::state::{AcceptedStep, PhaseError};
use crate::store::StoreChange;
use crate::wire::decision::{Decision, DecisionOutcome, Trigger};
use crate::wire::event::{LoadsEvent, ModelEvent, PlanEvent, PlanningEvent};
use sha2::{Digest as _, Sha256};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// The number of steps between two saved states while nothing is decided.
const SAVE_INTERVAL_STEPS: u64 = 256;
/// The time between two `loads` events while steps are waiting.
const LOADS_EVENT_INTERVAL: Duration = Duration::from_millis(100);

impl PhaseWorker {
    /// Runs the worker's thread until the worker stops.
    pub(super) fn run(&self) {
        let (mut since_saved, mut last_event) = (0, Instant::now());
        loop {
            // A decision that was due before a restart or an interruption is still due.
            if !lock_unpoisoned(&self.mailbox).is_stopped() {
                let due = self.state().pending_trigger();
                if let Some(trigger) = due
                    && self.run_due_decision(trigger)
                {
                    since_saved = 0;
                }
            }
            match self.next_job() {
                WorkerJob::Stop => break,
                WorkerJob::Config(options) => self.state_mut().set_options(options),
                WorkerJob::Preview(next) => self.state_mut().show_preview(next),
                WorkerJob::Command(request) => self.answer_request(request),
                WorkerJob::Step(seen) => {
                    let due = self.process_step(seen);
                    since_saved += 1;
                    if due.is_some_and(|trigger| self.run_due_decision(trigger)) {
                        since_saved = 0;
                    }
                    self.processed.fetch_add(1, Ordering::AcqRel);
                    self.send_loads_event(&mut last_event);
                    if since_saved >= SAVE_INTERVAL_STEPS {
                        self.save_state(vec![], false);
                        since_saved = 0;
                    }
                }
            }
        }
        self.save_state(vec![], true);
    }

    /// Decides on a request. An interrupted request returns to its queue.
    fn answer_request(&self, request: PendingCommand) {
        let decided =
            self.compute_decision(&request.command, self.interrupts.abort_flag(&request.command)).transpose();
        let mut mailbox = lock_unpoisoned(&self.mailbox);
        let answer = match decided {
            None if !mailbox.is_stopped() => return mailbox.requeue_request(request),
            None => Err(PhaseError::Invalid("the service is ending".into())),
            Some(decided) => decided,
        };
        mailbox.mark_answered(&request.command);
        drop(mailbox);
        let _ = request.answer.send(answer);
    }

    fn process_step(&self, seen: AcceptedStep) -> Option<Trigger> {
        let id = seen.step.id;
        let stepped = self.state_mut().apply_step(seen, unix_seconds());
        stepped.unwrap_or_else(|error| {
            (self.context.log)(&format!(
                "{}/{}: step {id}: {}",
                self.model,
                self.phase,
                evenkeel::error_chain(&error)
            ));
            None
        })
    }

    /// Sends a `loads` event, but not for every step while many are waiting.
    fn send_loads_event(&self, last_event: &mut Instant) {
        let lag = self.lag();
        if lag == 0 || last_event.elapsed() >= LOADS_EVENT_INTERVAL {
            *last_event = Instant::now();
            let point = self.state().latest_point().copied();
            if let Some(point) = point {
                self.send_event(ModelEvent::Loads(LoadsEvent { phase: self.phase, point, lag }));
            }
        }
    }

    pub(super) fn send_event(&self, event: ModelEvent) {
        // Sending fails if there is no listener.
        let _ = self.events.send(Arc::new(event));
    }

    /// Makes a due decision. Returns false if it was interrupted.
    fn run_due_decision(&self, trigger: Trigger) -> bool {
        let (max_lag, lag) = (self.state().options().max_lag, self.lag());
        if lag > max_lag {
            let reason = format!("{lag} steps behind, more than {max_lag}");
            self.record_noop(trigger, DecisionOutcome::Skipped, reason);
            return true;
        }
        match self.compute_decision(
            &PhaseCommand::Replan { trigger, dry_run: false },
            &self.interrupts.rank_changes,
        ) {
            Ok(decision) => decision.is_some(),
            Err(error) => {
                self.record_noop(trigger, DecisionOutcome::Failed, evenkeel::error_chain(&error));
                true
            }
        }
    }

    /// Computes a decision, stores it, and applies it.
    fn compute_decision(
        &self,
        command: &PhaseCommand,
        abort: &AtomicBool,
    ) -> Result<Option<Decision>, PhaseError> {
        if let PhaseCommand::Replan { trigger, .. } = command {
            self.send_event(ModelEvent::Planning(PlanningEvent { phase: self.phase, trigger: *trigger }));
        }
        self.planning.store(true, Ordering::Relaxed);
        let proposed = self.state().propose(command, abort);
        self.planning.store(false, Ordering::Relaxed);
        let Some(mut proposal) = proposed? else { return Ok(None) };
        proposal.decision.timestamp_unix_s = unix_seconds();
        self.state_mut().apply_proposal(&proposal)?;
        let decision = proposal.decision;
        if !proposal.preview {
            self.record_decision(&decision);
        }
        if proposal.changes_plan {
            self.publish_plan();
        }
        Ok(Some(decision))
    }

    /// Records a decision that changes nothing.
    fn record_noop(&self, trigger: Trigger, outcome: DecisionOutcome, reason: String) {
        let decision = self.state_mut().skip_decision(trigger, outcome, reason, unix_seconds());
        self.record_decision(&decision);
    }

    /// Logs, keeps, stores and publishes a decision.
    fn record_decision(&self, decision: &Decision) {
        (self.context.log)(&format!(
            "{}/{}: decision {} after step {}: {:?}, plan {}: {} ({:.0} ms)",
            self.model,
            self.phase,
            decision.number,
            decision.step.map_or("none".into(), |step| step.to_string()),
            decision.outcome,
            decision.plan,
            decision.reason,
            decision.duration_ms
        ));
        let limits = self.context.history_limits();
        {
            let mut decisions = self.decisions.write().unwrap_or_else(PoisonError::into_inner);
            decisions.push_back(decision.clone());
            let oldest = unix_seconds().saturating_sub(limits.days * 86_400);
            while decisions.len() > limits.decisions
                || decisions.front().is_some_and(|d| d.timestamp_unix_s < oldest)
            {
                decisions.pop_front();
            }
        }
        let json = serde_json::to_string(decision).unwrap_or_default();
        let mut ops = vec![StoreChange::Decision { phase: self.key, number: decision.number, json }];
        let plan =
            (decision.outcome == DecisionOutcome::Applied).then(|| self.state().current_plan()).flatten();
        if let Some(text) = plan.and_then(|plan| plan.to_json().ok()) {
            let bytes = zstd::bulk::compress(text.as_bytes(), 1).unwrap_or_default();
            ops.push(StoreChange::Plan { phase: self.key, version: decision.plan, bytes });
        }
        self.save_state(ops, true);
        self.send_event(ModelEvent::Decision(Box::new(decision.clone())));
    }

    /// Stores the state, and forgets everything older than it needs.
    ///
    /// The service continues if this fails. The steps are stored, and the same state follows from them again.
    fn save_state(&self, ops: Vec<StoreChange>, wait: bool) {
        let limits = self.context.history_limits();
        let (mut saved, steps, idle, decisions, plans) = {
            let mut state = self.state_mut();
            state.forget_points_before(unix_seconds().saturating_sub(limits.days * 86_400));
            let steps = state.oldest_step().unwrap_or(0);
            let decisions = (state.decision_count() + 1).saturating_sub(limits.decisions as u64);
            let plans = (state.plan_version() + 1).saturating_sub(limits.plans as u64);
            let saved = WorkerSnapshot { phase: state.to_snapshot(), forgotten_numbers: vec![] };
            (saved, steps, state.take_idle_steps(), decisions, plans)
        };
        let ids = {
            let step_log = lock_unpoisoned(&self.step_log);
            saved.forgotten_numbers = step_log.forgotten_numbers();
            step_log.oldest_accepted()
        };
        let mut all = std::mem::take(&mut *lock_unpoisoned(&self.unsaved));
        all.extend(ops);
        let (kept, idle_kept) = (all.clone(), idle.clone());
        all.push(StoreChange::State { phase: self.key, bytes: saved.to_bytes() });
        all.push(StoreChange::Forget { phase: self.key, steps, idle, ids, decisions, plans });
        if !wait {
            self.context.store.queue_write(all, Box::new(|_| ()));
            return;
        }
        if let Err(error) = self.context.store.write_durably(all) {
            (self.context.log)(&format!("{}/{}: not stored yet: {error}", self.model, self.phase));
            self.state_mut().return_idle_steps(idle_kept);
            let mut unsaved = lock_unpoisoned(&self.unsaved);
            *unsaved = kept;
            let over = unsaved.len().saturating_sub(limits.decisions);
            unsaved.drain(..over);
        }
    }

    /// Publishes the current plan.
    pub(super) fn publish_plan(&self) {
        let (plan, version, step, accepted, ranks) = {
            let state = self.state();
            let Some(plan) = state.current_plan() else { return };
            (plan, state.plan_version(), state.plan_step(), state.plan_accepted(), state.active_ranks())
        };
        let text = plan.to_json().unwrap_or_default();
        let hash = Sha256::digest(format!("{ranks:?}{text}"));
        let digest = hash.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let etag = plan_etag(version, "evenkeel", &digest);
        let texts = PlanTexts::new(text);
        let served = PublishedPlan { version, step, accepted, digest, plan, texts, ranks };
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(served));
        self.version.send_replace(version);
        self.send_event(ModelEvent::Plan(PlanEvent { phase: self.phase, version, step, etag }));
    }
}
