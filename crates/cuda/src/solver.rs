//! The exact split of several layers on the device.

use super::{CudaError, GpuContext};
use crate::tables::SolveProgram;
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, LaunchConfig, PushKernelArg};
use evenkeel_solver::Problem;
use std::ops::Range;
use std::sync::Arc;

/// Threads per block of `ek_solve`.
const BLOCK_THREADS: u32 = 256;

/// A solver that splits batches of some layers. Input: counts `[layer][source][item]`. Output: quotas, rank
/// loads, peaks and certificates. All are in device memory, and the results equal those of
/// [`evenkeel_solver::solve`] bit for bit.
#[derive(Debug)]
pub struct DeviceSolver {
    gpu: Arc<GpuContext>,
    programs: Vec<SolveProgram>,
    sources: usize,
    items: usize,
    ranks: usize,
    /// Quotas per layer: the number of pairs of the largest layer.
    stride: usize,
    hot: bool,
    shared_bytes: usize,
    words: CudaSlice<u32>,
    begins: CudaSlice<u32>,
    counts: CudaSlice<u32>,
    quotas: CudaSlice<u64>,
    rank_loads: CudaSlice<u64>,
    peaks: CudaSlice<u64>,
    certificates: CudaSlice<u32>,
}

/// The shared memory of a block of the solver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockMemory {
    /// Its size in bytes.
    pub bytes: usize,
    /// Flag that is set if it contains the tables that every wave reads.
    pub holds_tables: bool,
}

/// The split of one layer, copied back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceSplit {
    /// The quota of every (item, host) pair, in the numbering of [`evenkeel_solver::Hosts`].
    pub quotas: Vec<u64>,
    /// The load of every rank, base load included.
    pub rank_loads: Vec<u64>,
    /// The largest rank load.
    pub peak: u64,
    /// The ranks, ascending, that prove the peak.
    pub certificate: Vec<u32>,
}

impl DeviceSolver {
    /// Uploads the problems of all layers, which must have the same numbers of ranks and items. `sources` is
    /// the number of rows of counts of a batch; the split uses their sum.
    ///
    /// # Errors
    /// Returns [`CudaError::Program`] for a problem that the kernel does not support, and
    /// [`CudaError::SharedMemory`] for one that is too large. Returns [`CudaError::Shape`] for no layers or
    /// different sizes, and [`CudaError::Driver`] if a driver call fails.
    pub fn new(
        gpu: &Arc<GpuContext>,
        problems: &[Problem],
        sources: usize,
    ) -> Result<DeviceSolver, CudaError> {
        let shape = |what, given, expected| Err(CudaError::Shape { what, given, expected });
        let programs: Vec<SolveProgram> = problems.iter().map(SolveProgram::new).collect::<Result<_, _>>()?;
        let Some(first) = programs.first() else { return shape("layers", 0, 1) };
        let (items, ranks) = (first.items(), first.ranks());
        if sources == 0 || sources > ranks {
            return shape("sources", sources, ranks);
        }
        for program in &programs {
            if program.items() != items {
                return shape("items", program.items(), items);
            }
            if program.ranks() != ranks {
                return shape("ranks", program.ranks(), ranks);
            }
        }
        let available = gpu.device().shared_memory;
        let most = |hot: bool| programs.iter().map(|program| program.shared_bytes(hot)).max().unwrap_or(0);
        if let Some(layer) = programs.iter().position(|program| program.shared_bytes(false) > available) {
            let needed = programs[layer].shared_bytes(false);
            return Err(CudaError::SharedMemory { layer, needed, available });
        }
        let hot = most(true) <= available;
        let mut words = Vec::new();
        let mut begins = Vec::new();
        for program in &programs {
            begins.push(u32::try_from(words.len()).map_err(|_| CudaError::Shape {
                what: "words of all programs",
                given: words.len(),
                expected: u32::MAX as usize,
            })?);
            words.extend_from_slice(program.words());
        }
        let layers = programs.len();
        let stride = programs.iter().map(SolveProgram::pairs).max().unwrap_or(0);
        let failed = CudaError::driver_error("reserving memory for the split");
        let stream = gpu.stream();
        Ok(DeviceSolver {
            sources,
            items,
            ranks,
            stride,
            hot,
            shared_bytes: most(hot),
            words: gpu.upload(&words)?,
            begins: gpu.upload(&begins)?,
            counts: stream.alloc_zeros(layers * sources * items).map_err(&failed)?,
            quotas: stream.alloc_zeros(layers * stride).map_err(&failed)?,
            rank_loads: stream.alloc_zeros(layers * ranks).map_err(&failed)?,
            peaks: stream.alloc_zeros(layers).map_err(&failed)?,
            certificates: stream.alloc_zeros(layers * ranks.div_ceil(32)).map_err(&failed)?,
            gpu: Arc::clone(gpu),
            programs,
        })
    }

    /// Returns the compiled problems, one per layer.
    pub fn programs(&self) -> &[SolveProgram] {
        &self.programs
    }

    /// Returns the shared memory of a block.
    pub fn shared_memory(&self) -> BlockMemory {
        BlockMemory { bytes: self.shared_bytes, holds_tables: self.hot }
    }

    /// Returns a layer's counts, `[source][item]`, to be written before [`solve`](Self::solve).
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] if there is no such layer.
    pub fn counts_mut(&mut self, layer: usize) -> Result<CudaViewMut<'_, u32>, CudaError> {
        self.check_layer(layer)?;
        let row = self.sources * self.items;
        Ok(self.counts.slice_mut(layer * row..(layer + 1) * row))
    }

    /// Returns a layer's counts, `[source][item]`.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] if there is no such layer.
    pub fn counts(&self, layer: usize) -> Result<CudaView<'_, u32>, CudaError> {
        self.check_layer(layer)?;
        let row = self.sources * self.items;
        Ok(self.counts.slice(layer * row..(layer + 1) * row))
    }

    /// Copies a layer's counts to the device.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] unless they are `[source][item]`, and [`CudaError::Driver`] if a driver
    /// call fails.
    pub fn upload_counts(&mut self, layer: usize, counts: &[u32]) -> Result<(), CudaError> {
        let expected = self.sources * self.items;
        if counts.len() != expected {
            return Err(CudaError::Shape { what: "counts", given: counts.len(), expected });
        }
        let stream = Arc::clone(self.gpu.stream());
        let mut to = self.counts_mut(layer)?;
        stream.memcpy_htod(counts, &mut to).map_err(CudaError::driver_error("copying counts to the device"))
    }

    /// Returns a layer's quotas, one per pair.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] if there is no such layer.
    pub fn quotas(&self, layer: usize) -> Result<CudaView<'_, u64>, CudaError> {
        self.check_layer(layer)?;
        Ok(self.quotas.slice(layer * self.stride..layer * self.stride + self.programs[layer].pairs()))
    }

    /// Enqueues the split of these layers, one block each.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] if there are no such layers, and [`CudaError::Driver`] if a driver call
    /// fails.
    pub fn solve(&mut self, layers: Range<usize>) -> Result<(), CudaError> {
        if layers.is_empty() {
            return Ok(());
        }
        self.check_layer(layers.end - 1)?;
        let certificate_stride = self.ranks.div_ceil(32);
        let (begin, end) = (layers.start, layers.end);
        let row = self.sources * self.items;
        let counts = self.counts.slice(begin * row..end * row);
        let mut quotas = self.quotas.slice_mut(begin * self.stride..end * self.stride);
        let mut rank_loads = self.rank_loads.slice_mut(begin * self.ranks..end * self.ranks);
        let mut peaks = self.peaks.slice_mut(begin..end);
        let mut certificates =
            self.certificates.slice_mut(begin * certificate_stride..end * certificate_stride);
        let [first, sources, items, ranks] = [begin, self.sources, self.items, self.ranks].map(|n| n as u32);
        let [stride, certificate_stride] = [self.stride, certificate_stride].map(|n| n as u32);
        let hot = u32::from(self.hot);
        let mut launch = self.gpu.stream().launch_builder(&self.gpu.kernels.solve);
        launch.arg(&self.words).arg(&self.begins).arg(&first).arg(&counts).arg(&sources).arg(&items);
        launch.arg(&ranks).arg(&hot).arg(&mut quotas).arg(&stride).arg(&mut rank_loads).arg(&mut peaks);
        launch.arg(&mut certificates).arg(&certificate_stride);
        let shape = LaunchConfig {
            grid_dim: ((end - begin) as u32, 1, 1),
            block_dim: (BLOCK_THREADS, 1, 1),
            shared_mem_bytes: self.shared_bytes as u32,
        };
        #[allow(
            unsafe_code,
            reason = "arguments and sizes are those of ek_solve in crates/cuda/kernels/solve.cu"
        )]
        let launched = unsafe { launch.launch(shape) };
        launched.map_err(CudaError::driver_error("launching solve"))?;
        Ok(())
    }

    /// Waits and copies one layer's split back.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] if there is no such layer, and [`CudaError::Driver`] if a driver call
    /// fails.
    pub fn download(&self, layer: usize) -> Result<DeviceSplit, CudaError> {
        let quotas = self.gpu.download(&self.quotas(layer)?)?;
        let rank_loads =
            self.gpu.download(&self.rank_loads.slice(layer * self.ranks..(layer + 1) * self.ranks))?;
        let peak = self.gpu.download(&self.peaks.slice(layer..=layer))?.first().copied().unwrap_or(0);
        let stride = self.ranks.div_ceil(32);
        let bits = self.gpu.download(&self.certificates.slice(layer * stride..(layer + 1) * stride))?;
        let inside = |rank: &u32| bits[*rank as usize / 32] >> (rank % 32) & 1 == 1;
        Ok(DeviceSplit {
            quotas,
            rank_loads,
            peak,
            certificate: (0..self.ranks as u32).filter(inside).collect(),
        })
    }

    fn check_layer(&self, layer: usize) -> Result<(), CudaError> {
        if layer < self.programs.len() {
            return Ok(());
        }
        Err(CudaError::Shape { what: "layer", given: layer, expected: self.programs.len() - 1 })
    }
}
