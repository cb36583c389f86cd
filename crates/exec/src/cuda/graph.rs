//! A layer as a CUDA graph: recorded once, launched repeatedly, without the host between its kernels.

use super::layer_pass::{LayerPass, buffers_and_tables};
use super::rank::LayerPlanner;
use super::route::ChoiceSource;
use super::{Cuda, GemmPath, StreamSharing};
use crate::backend::RoutingSource;
use crate::error::ExecError;
use evenkeel_cuda::{CapturedGraph, CudaError};

/// One layer, recorded for a number of tokens per rank. It uses the memory of the backend that recorded it.
/// It becomes invalid when that memory is replaced: after more tokens than there was room for, and after a
/// switch of the layer.
#[derive(Debug)]
pub struct RecordedLayer {
    graph: CapturedGraph,
    pass: LayerPass,
    stamp: u64,
}

impl Cuda {
    /// Records a layer for `tokens` tokens per rank, from the norm to the outputs. With `residual` each token
    /// is added to its output.
    ///
    /// # Errors
    /// Returns [`ExecError::Nothing`] if the host takes part (see [`crate::cuda`]). Otherwise fails as
    /// [`crate::Backend::run_layer`] does.
    pub fn record_layer(
        &mut self,
        layer: usize,
        tokens: &[usize],
        residual: bool,
    ) -> Result<RecordedLayer, ExecError> {
        if layer >= self.device_layers().len() {
            return Err(ExecError::Shape {
                what: "layer",
                given: layer,
                expected: self.device_layers().len(),
            });
        }
        ExecError::expect_size("sources", tokens.len(), self.ranks.len())?;
        let pass = self.prepare_pass((0, layer), tokens.to_vec(), &RoutingSource::Router)?;
        let host = |what: &str| {
            Err(ExecError::Nothing(format!("{what}: the host takes part, so the layer cannot be recorded")))
        };
        if pass.chooser != ChoiceSource::Device {
            return host("this router");
        }
        if self.ranks.iter().any(|rank| matches!(rank.planners[layer], LayerPlanner::Host(_))) {
            return host("this split");
        }
        if self.options.path == GemmPath::Cublas {
            return host("cuBLAS");
        }
        if self.gpus.len() > 1 {
            return host("copies between GPUs");
        }
        self.synchronize()?;
        self.clock.reset(false, self.ranks.len());
        let first = self.ranks[0].gpu.clone();
        let of_layer = pass.clone();
        let graph = first.capture_graph(|| {
            self.fork_streams()?;
            let enqueued = self.enqueue_layer(&of_layer, RoutingSource::Router, residual);
            // The streams must join the recording again, even after an error in it.
            self.join_streams()?;
            enqueued.map(drop).map_err(|error| match error {
                ExecError::Cuda(error) => error,
                other => CudaError::Driver { doing: "recording a layer", code: other.to_string() },
            })
        })?;
        let graph = graph.ok_or_else(|| ExecError::Nothing("nothing was recorded".into()))?;
        let stamp = self.stamps[layer];
        Ok(RecordedLayer { graph, pass, stamp })
    }

    /// Makes the other ranks' streams wait for the first one.
    fn fork_streams(&self) -> Result<(), CudaError> {
        let Some((first, others)) =
            self.ranks.split_first().filter(|_| self.options.streams == StreamSharing::Own)
        else {
            return Ok(());
        };
        first.record_mark()?;
        others.iter().try_for_each(|rank| rank.wait_for(first))
    }

    /// Makes the first rank's stream wait for the others.
    fn join_streams(&self) -> Result<(), CudaError> {
        let Some((first, others)) =
            self.ranks.split_first().filter(|_| self.options.streams == StreamSharing::Own)
        else {
            return Ok(());
        };
        others.iter().try_for_each(|rank| {
            rank.record_mark()?;
            first.wait_for(rank)
        })
    }

    /// Checks that the memory of a recorded layer has not been replaced.
    fn check_recording(&self, recorded: &RecordedLayer) -> Result<(), ExecError> {
        if self.stamps.get(recorded.pass.layer) == Some(&recorded.stamp) {
            return Ok(());
        }
        Err(ExecError::Nothing(
            "the memory of the layer was replaced after the recording: record the layer again".into(),
        ))
    }

    /// Sends tokens, `[token][H]` per rank, launches a recorded layer and returns its outputs.
    ///
    /// # Errors
    /// Fails if the numbers of tokens differ from the recorded ones, or if the layer must be recorded again.
    /// Returns [`ExecError::Cuda`] if a CUDA call fails.
    pub fn launch_recorded(
        &mut self,
        recorded: &RecordedLayer,
        tokens: &[Vec<f32>],
    ) -> Result<Vec<Vec<f32>>, ExecError> {
        self.check_recording(recorded)?;
        let (pass, hidden) = (&recorded.pass, self.config.model.hidden as usize);
        ExecError::expect_size("sources", tokens.len(), self.ranks.len())?;
        for (x, &n) in tokens.iter().zip(&pass.tokens) {
            ExecError::expect_size("numbers of a rank's tokens", x.len(), n * hidden)?;
        }
        self.upload_tokens(pass, tokens)?;
        self.synchronize()?;
        recorded.graph.launch()?;
        self.ranks[0].gpu.synchronize()?;
        let of = |rank: &super::rank::CudaRank| {
            let n = pass.tokens[rank.own] * hidden;
            if n == 0 {
                Ok(vec![])
            } else {
                Ok(rank.gpu.download(&buffers_and_tables(rank)?.0.out.slice(..n))?)
            }
        };
        self.ranks.iter().map(of).collect()
    }

    /// Launches a recorded layer `times` times on the tokens that were sent last. Returns the milliseconds of
    /// each launch.
    ///
    /// # Errors
    /// Returns [`ExecError::Cuda`] if a CUDA call fails.
    pub fn time_recorded(&self, recorded: &RecordedLayer, times: usize) -> Result<Vec<f64>, ExecError> {
        use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
        self.check_recording(recorded)?;
        let (stream, failed) = (self.ranks[0].gpu.stream(), CudaError::driver_error("timing a graph"));
        let mut all = Vec::with_capacity(times);
        for _ in 0..times {
            let begin = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(&failed)?;
            recorded.graph.launch()?;
            let end = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(&failed)?;
            all.push(f64::from(begin.elapsed_ms(&end).map_err(&failed)?));
        }
        Ok(all)
    }
}
