//! The queues of work for a worker's thread, and their order.
//!
//! Rank losses come first and returning ranks second. Accepted steps and re-plannings follow in the order of
//! arrival. Every queue is bounded: one request per rank, one re-planning per phase, and
//! `limits.lag_steps` steps.

use crate::PlanPreview;
use crate::controller::config::ControllerConfig;
use crate::controller::propose::PhaseCommand;
use crate::controller::state::{AcceptedStep, PhaseError};
use crate::wire::decision::{Decision, Trigger};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;
use tokio::sync::oneshot;

/// The result of a request to the worker's thread.
pub(crate) type DecisionResult = Result<Decision, PhaseError>;

/// Refusal of a request because an equal one is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum BusyError {
    /// A dry run of this phase is under way.
    #[error("a dry run of this phase is under way")]
    DryRun,
    /// Too many dry runs of other phases are under way.
    #[error("too many dry runs are under way")]
    TooManyDryRuns,
    /// A re-planning of this phase is under way.
    #[error("a requested re-planning of this phase is already under way")]
    Replan,
    /// A change of the same rank is waiting.
    #[error("a change of rank {0} is already waiting")]
    Rank(usize),
}

/// A request and the channel for its answer.
#[derive(Debug)]
pub(super) struct PendingCommand {
    pub(super) command: PhaseCommand,
    pub(super) answer: oneshot::Sender<DecisionResult>,
}

/// The next piece of work of a worker's thread.
#[derive(Debug)]
pub(super) enum WorkerJob {
    Command(PendingCommand),
    Step(AcceptedStep),
    Config(ControllerConfig),
    Preview(PlanPreview),
    Stop,
}

/// Flags that abort a computation.
#[derive(Debug, Default)]
pub(super) struct AbortFlags {
    /// Flag that is set if a rank changes or the worker stops. It aborts due decisions and re-plannings.
    pub(super) rank_changes: AtomicBool,
    /// Flag that is set if a rank is lost or the worker stops. It also aborts the return of another rank.
    pub(super) rank_lost: AtomicBool,
    /// Flag that is set if the worker stops. It aborts everything.
    pub(super) stopping: AtomicBool,
}

impl AbortFlags {
    /// Returns the flag that aborts the work on a request.
    pub(super) fn abort_flag(&self, command: &PhaseCommand) -> &AtomicBool {
        match command {
            PhaseCommand::Replan { .. } => &self.rank_changes,
            PhaseCommand::Up(_) => &self.rank_lost,
            PhaseCommand::Down(_) => &self.stopping,
        }
    }

    /// Aborts all work.
    pub(super) fn stop(&self) {
        for flag in [&self.rank_changes, &self.rank_lost, &self.stopping] {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
enum QueuedJob {
    Step(AcceptedStep),
    Replan(PendingCommand),
}

/// The queues of a worker's thread.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    ranks: VecDeque<PendingCommand>,
    queue: VecDeque<QueuedJob>,
    /// Flag that is set while a re-planning is waiting or running.
    has_replan: bool,
    options: Option<ControllerConfig>,
    /// The plan of the latest dry run, to be shown.
    preview: Option<PlanPreview>,
    stop: bool,
}

impl Mailbox {
    /// Returns a mailbox with the steps that were stored but not processed before the start.
    pub(super) fn with_steps(steps: Vec<AcceptedStep>) -> Self {
        let mut mailbox = Self::default();
        mailbox.push_steps(steps);
        mailbox
    }

    /// Adds accepted steps.
    pub(super) fn push_steps(&mut self, steps: Vec<AcceptedStep>) {
        self.queue.extend(steps.into_iter().map(QueuedJob::Step));
    }

    /// Adds a request. Sets the flags that abort less urgent work.
    pub(super) fn push_request(
        &mut self,
        request: PendingCommand,
        interrupts: &AbortFlags,
    ) -> Result<(), BusyError> {
        match request.command {
            // The request is dropped, because nobody would answer it.
            _ if self.stop => {}
            PhaseCommand::Down(rank) | PhaseCommand::Up(rank) => {
                let same = |waiting: &PendingCommand| matches!(waiting.command, PhaseCommand::Down(r) | PhaseCommand::Up(r) if r == rank);
                if self.ranks.iter().any(same) {
                    return Err(BusyError::Rank(rank));
                }
                self.ranks.push_back(request);
                self.update_flags(interrupts);
            }
            PhaseCommand::Replan { .. } => {
                if self.has_replan {
                    return Err(BusyError::Replan);
                }
                self.has_replan = true;
                self.queue.push_back(QueuedJob::Replan(request));
            }
        }
        Ok(())
    }

    /// Returns an interrupted request to the front of its queue.
    pub(super) fn requeue_request(&mut self, request: PendingCommand) {
        match request.command {
            PhaseCommand::Replan { .. } => self.queue.push_front(QueuedJob::Replan(request)),
            _ => self.ranks.push_front(request),
        }
    }

    /// Notes that a request was answered.
    pub(super) fn mark_answered(&mut self, command: &PhaseCommand) {
        if matches!(command, PhaseCommand::Replan { .. }) {
            self.has_replan = false;
        }
    }

    /// Replaces the options from the next step on.
    pub(super) fn set_options(&mut self, options: ControllerConfig) {
        self.options = Some(options);
    }

    /// Queues the plan of a dry run to be shown.
    pub(super) fn push_preview(&mut self, next: PlanPreview) {
        self.preview = Some(next);
    }

    /// Stops the thread. Waiting requests are dropped, which closes their answer channels. The steps are in
    /// the store.
    pub(super) fn stop(&mut self) {
        self.stop = true;
        self.ranks.clear();
        self.queue.clear();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop
    }

    /// Takes the next piece of work.
    pub(super) fn next_job(&mut self, interrupts: &AbortFlags) -> Option<WorkerJob> {
        if self.stop {
            return Some(WorkerJob::Stop);
        }
        if let Some(options) = self.options.take() {
            return Some(WorkerJob::Config(options));
        }
        if let Some(next) = self.preview.take() {
            return Some(WorkerJob::Preview(next));
        }
        let lost = self.ranks.iter().position(|request| matches!(request.command, PhaseCommand::Down(_)));
        if let Some(request) = self.ranks.remove(lost.unwrap_or(0)) {
            self.update_flags(interrupts);
            return Some(WorkerJob::Command(request));
        }
        loop {
            match self.queue.pop_front()? {
                QueuedJob::Step(seen) => return Some(WorkerJob::Step(seen)),
                // The client has disconnected, so nobody waits for the plan.
                QueuedJob::Replan(request) if request.answer.is_closed() => self.has_replan = false,
                QueuedJob::Replan(request) => return Some(WorkerJob::Command(request)),
            }
        }
    }

    /// Sets the flags according to the waiting requests.
    fn update_flags(&self, interrupts: &AbortFlags) {
        let lost = self.ranks.iter().any(|request| matches!(request.command, PhaseCommand::Down(_)));
        let stopping = interrupts.stopping.load(Ordering::Relaxed);
        interrupts.rank_changes.store(stopping || !self.ranks.is_empty(), Ordering::Relaxed);
        interrupts.rank_lost.store(stopping || lost, Ordering::Relaxed);
    }
}

/// Returns a request to re-plan now, even if no decision is due.
pub(crate) fn manual_replan() -> PhaseCommand {
    PhaseCommand::Replan { trigger: Trigger::Manual, dry_run: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StepLoads;

    fn request(command: PhaseCommand) -> (PendingCommand, oneshot::Receiver<DecisionResult>) {
        let (answer, receive) = oneshot::channel();
        (PendingCommand { command, answer }, receive)
    }

    fn step(id: u64) -> AcceptedStep {
        AcceptedStep { accepted: id, step: StepLoads { id, counts: [1].into() } }
    }

    fn name(work: Option<WorkerJob>) -> String {
        match work {
            Some(WorkerJob::Command(request)) => format!("{:?}", request.command),
            Some(WorkerJob::Step(seen)) => format!("step {}", seen.step.id),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn rank_losses_come_first_and_steps_before_later_requests() {
        let (mut mailbox, interrupts) = (Mailbox::with_steps(vec![step(1)]), AbortFlags::default());
        let mut receivers = vec![];
        for command in [manual_replan(), PhaseCommand::Up(1), PhaseCommand::Down(2), PhaseCommand::Up(3)] {
            let (request, receive) = request(command);
            mailbox.push_request(request, &interrupts).unwrap();
            receivers.push(receive);
        }
        mailbox.push_steps(vec![step(2)]);
        assert!(interrupts.rank_lost.load(Ordering::Relaxed));
        let mut order = vec![];
        for _ in 0..6 {
            order.push(name(mailbox.next_job(&interrupts)));
        }
        let replanned = format!("{:?}", manual_replan());
        assert_eq!(order, ["Down(2)", "Up(1)", "Up(3)", "step 1", &replanned, "step 2"]);
        assert!(!interrupts.rank_changes.load(Ordering::Relaxed));
        assert!(mailbox.next_job(&interrupts).is_none());
    }

    #[test]
    fn queues_are_bounded_and_abandoned_requests_are_skipped() {
        let (mut mailbox, interrupts) = (Mailbox::default(), AbortFlags::default());
        let mut push = |command: PhaseCommand| {
            let (request, receive) = request(command);
            (mailbox.push_request(request, &interrupts), receive)
        };
        let (first, gone) = push(manual_replan());
        let rank = push(PhaseCommand::Down(0));
        first.unwrap();
        assert_eq!(push(manual_replan()).0, Err(BusyError::Replan));
        assert_eq!(push(PhaseCommand::Up(0)).0, Err(BusyError::Rank(0)));
        drop(gone);
        assert_eq!(name(mailbox.next_job(&interrupts)), "Down(0)");
        assert!(mailbox.next_job(&interrupts).is_none(), "nobody waits for the first request");
        let (again, _receive) = request(manual_replan());
        mailbox.push_request(again, &interrupts).unwrap();
        drop(rank);
    }
}
