//! How long each rank's phases take on the device, by events around them on the rank's stream.

use crate::cuda::{Context, CudaError};
use crate::exec::backend::{Phase, Times};
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use std::time::Duration;

/// Spans of one layer; events are kept for the next. A clock that is off records nothing, so that a graph can be recorded.
#[derive(Debug, Default)]
pub(super) struct Clock {
    on: bool,
    /// Rank, phase, and the events' places.
    spans: Vec<(usize, Phase, usize)>,
    /// Per rank, pairs of events.
    events: Vec<Vec<[CudaEvent; 2]>>,
    /// Events of each rank in use.
    taken: Vec<usize>,
}

impl Clock {
    /// Begins anew.
    pub(super) fn reset(&mut self, on: bool, ranks: usize) {
        self.on = on;
        self.spans.clear();
        self.events.resize_with(ranks, Vec::new);
        self.taken = vec![0; ranks];
    }

    /// Enqueues work of a rank's phase between two events.
    pub(super) fn span<T, E: From<CudaError>>(
        &mut self,
        gpu: &Context,
        rank: usize,
        phase: Phase,
        enqueue: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if !self.on {
            return enqueue();
        }
        let failed = CudaError::driver("timing a phase");
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

    /// Adds the spans to `times` and says how long it was from the first one's beginning to the last one's end. The streams
    /// have been waited for.
    pub(super) fn read(&self, times: &mut [Times]) -> Result<Option<Duration>, CudaError> {
        let failed = CudaError::driver("reading a time");
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
        // Events of two devices know nothing of each other's time.
        if begin.context() != end.context() {
            return Ok(None);
        }
        took([begin, end]).map(Some)
    }
}
