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
        let failed = CudaError::driver_error("timing a phase");
        let at = self.taken[rank];
        if self.events[rank].len() == at {
            let event = || gpu.stream().context().new_event(Some(CU_EVENT_DEFAULT)).map_err(&failed);
            self.events[rank].push([event()?, event()?]);
        }
        self.taken[rank] = at + 1;
        self.spans.push((rank, phase, at));
        self.events[rank][at][0].record(gpu.stream()).map_err(&failed)?;
        let done = enqueue()?;
        self.events[rank][at][1].record(gpu.stream()).map_err(failed)?;
        Ok(done)
    }

    /// Adds the spans to `times`. Returns the time from the start of the first span to the end of the last.
    /// The streams must be synchronised first.
    pub(super) fn read_times(&self, times: &mut [StageTimes]) -> Result<Option<Duration>, CudaError> {
        let failed = CudaError::driver_error("reading a time");
        let took = |[begin, end]: [&CudaEvent; 2]| {
            let ms = begin.elapsed_ms(end).map_err(&failed)?;
            Ok(Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default())
        };
        for &(rank, phase, at) in &self.spans {
            let [begin, end] = &self.events[rank][at];
            times[rank][phase as usize] += took([begin, end])?;
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
        took([begin, end]).map(Some)
    }
}
