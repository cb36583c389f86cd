//! The thread beside the forward pass that copies experts into staging slots.

use crate::exec::clock::timed;
use crate::exec::error::ExecError;
use crate::exec::weights::ExpertWeights;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// An expert for a rank.
#[derive(Debug)]
pub(super) struct Parcelled {
    pub(super) layer: usize,
    pub(super) rank: usize,
    pub(super) expert: u32,
    pub(super) weights: Arc<ExpertWeights>,
    pub(super) took: Duration,
}

/// Copies what it is given, in order.
#[derive(Debug)]
pub(super) struct Side {
    jobs: Option<Sender<Parcelled>>,
    done: Receiver<Parcelled>,
    thread: Option<JoinHandle<()>>,
    /// Layer, rank, expert and bytes of what is on its way.
    pub(super) begun: Vec<(usize, usize, u32, u64)>,
}

impl Side {
    pub(super) fn new() -> Self {
        let (jobs, taken) = channel::<Parcelled>();
        let (finished, done) = channel();
        let thread = std::thread::spawn(move || {
            for mut job in taken {
                let Parcelled { weights, took, .. } = &mut job;
                timed(took, || *weights = Arc::new(ExpertWeights::clone(weights)));
                if finished.send(job).is_err() {
                    return;
                }
            }
        });
        Self { jobs: Some(jobs), done, thread: Some(thread), begun: Vec::new() }
    }

    /// Begins to copy `weights`, which another rank holds.
    pub(super) fn begin(
        &mut self,
        layer: usize,
        rank: usize,
        expert: u32,
        weights: Arc<ExpertWeights>,
    ) -> Result<(), ExecError> {
        self.begun.push((layer, rank, expert, weights.bytes()));
        let job = Parcelled { layer, rank, expert, weights, took: Duration::ZERO };
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or(ExecError::Mover)
    }

    /// Waits for everything that was begun.
    pub(super) fn finish(&mut self) -> Result<Vec<Parcelled>, ExecError> {
        let waited = self.begun.iter().map(|_| self.done.recv().map_err(|_| ExecError::Mover)).collect();
        self.begun.clear();
        waited
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Without a sender the thread ends.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
