//! A layer as a CUDA graph: recorded once, launched again and again, without the host between its kernels.

use super::route::Chooser;
use super::step::{Pass, parts};
use super::{Cuda, Path, Plan, Streams};
use crate::cuda::{CudaError, Graph};
use crate::exec::backend::Routed;
use crate::exec::error::ExecError;

/// One layer, recorded for a number of tokens per rank. It works on the memory of the backend that recorded it, and is refused once
/// that is another: after more tokens than there was room for, and after a switch of the layer.
#[derive(Debug)]
pub struct Recorded {
    graph: Graph,
    pass: Pass,
    stamp: u64,
}

impl Cuda {
    /// Records a layer for so many tokens per rank, from the norm to the outputs; with `residual` each token is added to its
    /// output.
    ///
    /// # Errors
    /// [`ExecError::Nothing`] where the host takes part: see [`crate::exec::cuda`]; and as [`crate::exec::Backend::layer`].
    pub fn record(&mut self, layer: usize, tokens: &[usize], residual: bool) -> Result<Recorded, ExecError> {
        if layer >= self.layers().len() {
            return Err(ExecError::Shape { what: "layer", given: layer, expected: self.layers().len() });
        }
        ExecError::expect("sources", tokens.len(), self.ranks.len())?;
        let pass = self.pass(layer, tokens.to_vec(), &Routed::Router)?;
        let host = |what: &str| {
            Err(ExecError::Nothing(format!("{what}: the host takes part, nothing can be recorded")))
        };
        if pass.chooser != Chooser::Device {
            return host("this router");
        }
        if matches!(self.plans[layer], Plan::Host(_)) {
            return host("this split");
        }
        if self.options.path == Path::Cublas {
            return host("cuBLAS");
        }
        if self.gpus.len() > 1 {
            return host("copies between GPUs");
        }
        self.synchronize()?;
        self.clock.reset(false, self.ranks.len());
        let first = self.ranks[0].gpu.clone();
        let of_layer = pass.clone();
        let graph = first.capture(|| {
            self.fork()?;
            let enqueued = self.enqueue_all(&of_layer, residual);
            // A recording has to come together again, whatever happened in it.
            self.join()?;
            enqueued.map_err(|error| match error {
                ExecError::Cuda(error) => error,
                other => CudaError::Driver { doing: "recording a layer", code: other.to_string() },
            })
        })?;
        let graph = graph.ok_or_else(|| ExecError::Nothing("nothing was recorded".into()))?;
        let stamp = self.stamps[layer];
        Ok(Recorded { graph, pass, stamp })
    }

    /// The other ranks' streams begin where the first one is.
    fn fork(&self) -> Result<(), CudaError> {
        let Some((first, others)) = self.ranks.split_first().filter(|_| self.options.streams == Streams::Own)
        else {
            return Ok(());
        };
        first.mark()?;
        others.iter().try_for_each(|rank| rank.wait(first))
    }

    /// The first rank's stream waits for the others.
    fn join(&self) -> Result<(), CudaError> {
        let Some((first, others)) = self.ranks.split_first().filter(|_| self.options.streams == Streams::Own)
        else {
            return Ok(());
        };
        others.iter().try_for_each(|rank| {
            rank.mark()?;
            first.wait(rank)
        })
    }

    /// The whole layer on the device.
    fn enqueue_all(&mut self, pass: &Pass, residual: bool) -> Result<(), ExecError> {
        for (at, rank) in self.ranks.iter().enumerate() {
            let layer = &self.gpus[rank.device].layers[pass.layer];
            let (buffers, _) = parts(rank)?;
            let args = self.config.route_args(0, pass.layer, at);
            rank.norm(buffers, layer, pass.tokens[at])?;
            rank.choose(buffers, layer, pass.tokens[at], &args, pass.top_k)?;
        }
        self.enqueue(pass, residual)
    }

    /// Whether a recorded layer's memory is still what it was.
    fn fits(&self, recorded: &Recorded) -> Result<(), ExecError> {
        if self.stamps.get(recorded.pass.layer) == Some(&recorded.stamp) {
            return Ok(());
        }
        Err(ExecError::Nothing(
            "the layer has other memory than when it was recorded: record it again".into(),
        ))
    }

    /// Sends tokens, `[token][H]` per rank, launches a recorded layer and brings its outputs back.
    ///
    /// # Errors
    /// When there are other numbers of tokens than were recorded, or the layer is to be recorded again; [`ExecError::Cuda`].
    pub fn launch(&mut self, recorded: &Recorded, tokens: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, ExecError> {
        self.fits(recorded)?;
        let (pass, hidden) = (&recorded.pass, self.config.model.hidden as usize);
        ExecError::expect("sources", tokens.len(), self.ranks.len())?;
        for (x, &n) in tokens.iter().zip(&pass.tokens) {
            ExecError::expect("numbers of a rank's tokens", x.len(), n * hidden)?;
        }
        self.send(pass, tokens)?;
        self.synchronize()?;
        recorded.graph.launch()?;
        self.ranks[0].gpu.synchronize()?;
        let of = |rank: &super::rank::Rank| {
            let n = pass.tokens[rank.own] * hidden;
            if n == 0 { Ok(vec![]) } else { Ok(rank.gpu.download(&parts(rank)?.0.out.slice(..n))?) }
        };
        self.ranks.iter().map(of).collect()
    }

    /// Launches a recorded layer `times` times on the tokens that were sent last, and says how many milliseconds each took.
    ///
    /// # Errors
    /// [`ExecError::Cuda`].
    pub fn time(&self, recorded: &Recorded, times: usize) -> Result<Vec<f64>, ExecError> {
        use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
        self.fits(recorded)?;
        let (stream, failed) = (self.ranks[0].gpu.stream(), CudaError::driver("timing a graph"));
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
