//! Measures each rank's phases on the device, by events on the rank's stream.

use crate::backend::{LayerStage, StageTimes};
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use evenkeel_cuda::{CudaError, GpuContext};
use std::time::Duration;

/// The spans of one layer. Events are kept for the next layer. A clock that is off records nothing, so that a
/// graph can be recorded.
#[derive(Debug, Default)]
pub(super) struct StageTimer {
    on: bool,
    /// Rank, phase, and the index of the events.
    spans: Vec<(usize, LayerStage, usize)>,
    /// Rank and index of the events around its waits for copies.
    waits: Vec<(usize, usize)>,
    /// Pairs of events per rank.
    events: Vec<Vec<[CudaEvent; 2]>>,
    /// Events of each rank in use.
    taken: Vec<usize>,
}

impl StageTimer {
    /// Discards all spans and prepares the next layer.
    pub(super) fn reset(&mut self, on: bool, ranks: usize) {
        self.on = on;
        self.spans.clear();
        self.waits.clear();
        self.events.resize_with(ranks, Vec::new);
        self.taken = vec![0; ranks];
    }

    /// Enqueues work of a rank's phase between two events.
    pub(super) fn record_span<T, E: From<CudaError>>(
        &mut self,
        gpu: &GpuContext,
        rank: usize,
        phase: LayerStage,
        enqueue: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if !self.on {
            return enqueue();
        }
        let (at, done) = self.record_events(gpu, rank, enqueue)?;
        self.spans.push((rank, phase, at));
        Ok(done)
    }

    /// Enqueues a rank's wait for copies between two events.
    pub(super) fn record_wait<E: From<CudaError>>(
        &mut self,
        gpu: &GpuContext,
        rank: usize,
        enqueue: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.on {
            return enqueue();
        }
        let (at, ()) = self.record_events(gpu, rank, enqueue)?;
        self.waits.push((rank, at));
        Ok(())
    }

    /// Enqueues work between two events of a rank. Returns their index.
    fn record_events<T, E: From<CudaError>>(
        &mut self,
        gpu: &GpuContext,
        rank: usize,
        enqueue: impl FnOnce() -> Result<T, E>,
    ) -> Result<(usize, T), E> {
        let failed = CudaError::driver_error("timing a phase");
        let at = self.taken[rank];
        if self.events[rank].len() == at {
            let event = || gpu.stream().context().new_event(Some(CU_EVENT_DEFAULT)).map_err(&failed);
            self.events[rank].push([event()?, event()?]);
        }
        self.taken[rank] = at + 1;
        self.events[rank][at][0].record(gpu.stream()).map_err(&failed)?;
        let done = enqueue()?;
        self.events[rank][at][1].record(gpu.stream()).map_err(failed)?;
        Ok((at, done))
    }

    /// Adds the waits for copies to those of the ranks. The streams must be synchronised first.
    pub(super) fn read_waits(&self, waits: &mut [Duration]) -> Result<(), CudaError> {
        for &(rank, at) in &self.waits {
            waits[rank] += elapsed(self.events[rank][at].each_ref())?;
        }
        Ok(())
    }

    /// Adds the spans to `times`. Returns the time from the start of the first span to the end of the last.
    /// The streams must be synchronised first.
    pub(super) fn read_times(&self, times: &mut [StageTimes]) -> Result<Option<Duration>, CudaError> {
        for &(rank, phase, at) in &self.spans {
            times[rank][phase as usize] += elapsed(self.events[rank][at].each_ref())?;
        }
        let (Some(&(first, _, begin)), Some(&(last, _, end))) = (self.spans.first(), self.spans.last())
        else {
            return Ok(None);
        };
        let (begin, end) = (&self.events[first][begin][0], &self.events[last][end][1]);
        // Events of two devices have no common time.
        if begin.context() != end.context() {
            return Ok(None);
        }
        elapsed([begin, end]).map(Some)
    }
}

/// Returns the time between two events.
fn elapsed([begin, end]: [&CudaEvent; 2]) -> Result<Duration, CudaError> {
    let ms = begin.elapsed_ms(end).map_err(CudaError::driver_error("reading a time"))?;
    Ok(Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default())
}
