//! The background thread that copies experts into staging slots.

use crate::clock::time_work;
use crate::error::ExecError;
use crate::weights::ExpertWeights;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The job of copying an expert to a rank.
#[derive(Debug)]
pub(super) struct CopyJob {
    pub(super) layer: usize,
    pub(super) rank: usize,
    pub(super) expert: u32,
    pub(super) weights: Arc<ExpertWeights>,
    pub(super) took: Duration,
}

/// A thread that runs its jobs in order.
#[derive(Debug)]
pub(super) struct CopyThread {
    jobs: Option<Sender<CopyJob>>,
    done: Receiver<CopyJob>,
    thread: Option<JoinHandle<()>>,
    /// Number of jobs under way.
    begun: usize,
}

impl CopyThread {
    pub(super) fn new() -> Self {
        let (jobs, taken) = channel::<CopyJob>();
        let (finished, done) = channel();
        let thread = std::thread::spawn(move || {
            for mut job in taken {
                let CopyJob { weights, took, .. } = &mut job;
                time_work(took, || *weights = Arc::new(ExpertWeights::clone(weights)));
                if finished.send(job).is_err() {
                    return;
                }
            }
        });
        Self { jobs: Some(jobs), done, thread: Some(thread), begun: 0 }
    }

    /// Begins to copy `weights`, which another rank holds.
    pub(super) fn start_copy(
        &mut self,
        layer: usize,
        rank: usize,
        expert: u32,
        weights: Arc<ExpertWeights>,
    ) -> Result<(), ExecError> {
        self.begun += 1;
        let job = CopyJob { layer, rank, expert, weights, took: Duration::ZERO };
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or(ExecError::Mover)
    }

    /// Waits for all jobs.
    pub(super) fn wait_for_copies(&mut self) -> Result<Vec<CopyJob>, ExecError> {
        let jobs = std::mem::take(&mut self.begun);
        (0..jobs).map(|_| self.done.recv().map_err(|_| ExecError::Mover)).collect()
    }
}

impl Drop for CopyThread {
    fn drop(&mut self) {
        // The thread ends when the sender is dropped.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
