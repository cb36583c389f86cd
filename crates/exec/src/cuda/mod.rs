//! The CUDA backend: ranks with separate memories and streams on one or more GPUs, bf16 weights and
//! activations, `f32` sums.
//!
//! Input: the tokens of every rank. Output: the values that the layer adds to them. A layer's kernels
//! (`crates/cuda/kernels/route.cu`, `dispatch.cu`, `ffn.cu` and those of the split) read from device memory
//! how many tokens went to each slot. So nothing between the first and the last kernel waits for the host,
//! and a graph can record all of it ([`Cuda::record_layer`]). The host takes part in four cases:
//!
//! - A router draws random numbers or mixes tokens.
//! - The split is not the exact one, or has dynamic slots.
//! - Overflow goes to the next choice.
//! - cuBLAS ([`GemmPath::Cublas`]) takes the sizes of its products from the host.
//!
//! The ranks of this process are all ranks of the group, or one ([`Cuda::join`]). A rank among processes
//! enqueues exactly the work that it enqueues among ranks of one process, in the same order. So results are
//! identical bit for bit.
//!
//! Ranks read each other's memory only for sent data: counts, slots and weights of tokens, send buffers,
//! answers, copied experts.

mod allocate;
mod cublas;
mod dynamic_slots;
mod expert_buffer;
mod expert_slots;
mod expert_timer;
mod experts;
mod graph;
mod kernels;
mod launch;
mod layer_pass;
mod migration;
mod phases;
mod rank;
mod readback;
mod remote;
mod replicated;
mod route;
mod stage_timer;

pub use expert_timer::ExpertTimer;
pub use graph::RecordedLayer;

use super::backend::{Backend, ExecConfig, LayerInput, LayerRun};
use super::comm::ProcessGroup;
use super::error::{ExecError, UnknownName};
use super::placement_state::{PlacementState, experts_of_rank};
use super::weights::{Dtype, WeightSource};
use evenkeel::place::Placement;
use evenkeel::split::SplitMethod;
use evenkeel_cuda::{CudaError, DeviceGather, GpuContext, nvrtc_version, probe_devices};
use expert_buffer::{ExpertBuffer, ExpertLayout};
use kernels::ExecKernels;
use migration::CopyStream;
use rank::CudaRank;
use remote::RemoteRanks;
use replicated::DeviceLayer;
use stage_timer::StageTimer;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The implementation of the experts' matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GemmPath {
    /// The grouped products of this project's kernels, which read their sizes from device memory.
    #[default]
    Own,
    /// The grouped products of cuBLAS. Every rank's host waits for their sizes once per layer.
    Cublas,
}

impl fmt::Display for GemmPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            GemmPath::Own => "own",
            GemmPath::Cublas => "cublas",
        })
    }
}

impl FromStr for GemmPath {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "own" => Ok(GemmPath::Own),
            "cublas" => Ok(GemmPath::Cublas),
            _ => Err(UnknownName::new("products", name, "own or cublas")),
        }
    }
}

/// The sharing of a GPU between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamSharing {
    /// Ranks run one after the other, so that each rank's phases are timed separately.
    #[default]
    Alone,
    /// All ranks run at once, each on its own stream.
    Own,
}

/// The options of a backend apart from the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CudaOptions {
    /// The only GPU, or the first one.
    pub device: usize,
    /// Number of consecutive GPUs; 0 means 1. Rank `r` is on GPU `r mod devices` of them.
    pub devices: usize,
    /// The implementation of matrix products.
    pub path: GemmPath,
    /// The sharing of a GPU between ranks.
    pub streams: StreamSharing,
}

impl CudaOptions {
    /// Sets [`Self::device`](#structfield.device).
    #[must_use]
    pub fn device(mut self, device: usize) -> Self {
        self.device = device;
        self
    }

    /// Sets [`Self::devices`](#structfield.devices).
    #[must_use]
    pub fn devices(mut self, devices: usize) -> Self {
        self.devices = devices;
        self
    }

    /// Sets [`Self::path`](#structfield.path).
    #[must_use]
    pub fn path(mut self, path: GemmPath) -> Self {
        self.path = path;
        self
    }

    /// Sets [`Self::streams`](#structfield.streams).
    #[must_use]
    pub fn streams(mut self, streams: StreamSharing) -> Self {
        self.streams = streams;
        self
    }

    fn gpu_ordinals(&self) -> std::ops::Range<usize> {
        self.device..self.device.saturating_add(self.devices.max(1))
    }

    /// Checks whether a backend can be opened on this machine: it needs a driver, these GPUs, a compiler for
    /// its kernels, and cuBLAS if requested.
    ///
    /// # Errors
    /// Returns [`ExecError::Unavailable`] with the missing part.
    pub fn check_available(&self) -> Result<(), ExecError> {
        let look = || {
            let devices = probe_devices()?;
            for ordinal in self.gpu_ordinals() {
                let Some(device) = devices.get(ordinal) else {
                    return Err(CudaError::Ordinal { ordinal, devices: devices.len() });
                };
                let (major, minor) = (device.capability.major, device.capability.minor);
                if major < 8 {
                    return Err(CudaError::TooOld { ordinal, major, minor });
                }
            }
            nvrtc_version()?;
            if self.path == GemmPath::Cublas { cublas::check_cublas() } else { Ok(()) }
        };
        look().map_err(|error| ExecError::Unavailable { backend: "cuda", reason: error.to_string() })
    }
}

/// One GPU: its kernels, and the weights that all ranks on it share.
#[derive(Debug)]
struct SharedGpu {
    context: Arc<GpuContext>,
    kernels: Arc<ExecKernels>,
    layers: Vec<DeviceLayer>,
}

/// The CUDA backend.
pub struct Cuda {
    config: ExecConfig,
    options: CudaOptions,
    gpus: Arc<Vec<SharedGpu>>,
    shape: ExpertLayout,
    state: PlacementState,
    /// The ranks of this process: all of the group, or one.
    ranks: Vec<CudaRank>,
    /// The connection to ranks in other processes, if any.
    remote: Option<Rc<RemoteRanks>>,
    /// Boards of tokens per expert, and per slot.
    boards: Option<[Box<dyn DeviceGather>; 2]>,
    clock: StageTimer,
    /// Background streams, per GPU.
    sides: Vec<CopyStream>,
    /// A number per layer, unique over all backends. It changes when memory of a recorded layer is freed.
    stamps: Vec<u64>,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda")
            .field("config", &self.config)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Cuda {
    /// Builds the memories of the ranks on the GPUs: one placement per layer, weights from `source`.
    ///
    /// # Errors
    /// Fails in these cases:
    ///
    /// - There is no usable GPU.
    /// - The dtype is `f32`, or widths are not multiples of 8.
    /// - Memory is short; this is checked before allocation.
    /// - Weights cannot be read, or have other shapes than the model's.
    /// - A placement does not fit.
    pub fn new(
        config: ExecConfig,
        options: CudaOptions,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
    ) -> Result<Self, ExecError> {
        let group = Rc::new(ProcessGroup::local(config.cluster));
        Self::build(config, options, source, placements, (group, None))
    }

    /// Builds the memory of this process's rank on the GPU that its communicator assigned, which `options`
    /// must name. There is one placement per layer, the same in all processes, and weights of its own slots
    /// from `source`. With `verify_splits` the processes compare digests of every split.
    ///
    /// # Errors
    /// Fails as [`Cuda::new`] does, and if a placement differs from that of the other processes.
    pub fn join(
        config: ExecConfig,
        options: CudaOptions,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        group: Rc<ProcessGroup>,
        verify_splits: bool,
    ) -> Result<Self, ExecError> {
        let options = CudaOptions { devices: 1, ..options };
        let remote = RemoteRanks::new(Rc::clone(&group), verify_splits);
        Self::build(config, options, source, placements, (group, Some(remote)))
    }

    fn build(
        config: ExecConfig,
        options: CudaOptions,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        (group, remote): (Rc<ProcessGroup>, Option<Rc<RemoteRanks>>),
    ) -> Result<Self, ExecError> {
        let unavailable = |reason: String| ExecError::Unavailable { backend: "cuda", reason };
        if config.dtype != Dtype::Bf16 {
            return Err(unavailable(format!("dtype {}, expected bf16", config.dtype)));
        }
        let model = &config.model;
        for (what, width) in [("tokens", model.hidden), ("experts", model.intermediate)] {
            if !width.is_multiple_of(8) {
                return Err(unavailable(format!("{what} have a width of {width}, expected a multiple of 8")));
            }
        }
        options.check_available()?;
        let shape = ExpertLayout::new(model.hidden as usize, model.intermediate as usize, model.activation);
        let shared = model.expert_parameters() * 2 * model.shared as u64;
        let gates = 4 * model.hidden * config.router.logit_width(model.experts) as u64;
        let (ordinals, layers) = (options.gpu_ordinals(), 0..placements.len());
        let mut gpus = Vec::with_capacity(ordinals.len());
        for (at, ordinal) in ordinals.clone().enumerate() {
            let context = GpuContext::open(ordinal)?;
            let kernels = ExecKernels::load(&context)?;
            let (slots, most) = (config.slots_per_rank(), kernels.max_groups());
            if slots > most {
                return Err(unavailable(format!("{slots} slots per rank, expected at most {most}")));
            }
            let here = |rank: usize| rank % ordinals.len() == at;
            let of = |placement: &Placement| {
                let ranks = group.local_ranks().filter(|&rank| here(rank));
                ranks.map(|rank| experts_of_rank(placement, rank).iter().flatten().count()).sum::<usize>()
            };
            let dynamic = group.local_ranks().filter(|&rank| here(rank)).count()
                * config.dynamic_cells(placements.len());
            let cells: usize = placements.iter().map(of).sum::<usize>() + dynamic;
            check_memory(
                &context,
                "weights",
                shape.bytes() * cells as u64 + (shared + gates) * layers.len() as u64,
            )?;
            gpus.push(SharedGpu { context, kernels, layers: vec![] });
        }
        for gpu in &mut gpus {
            let of = |layer| DeviceLayer::new(&gpu.context, source, layer, model, &config.router);
            gpu.layers = layers.clone().map(of).collect::<Result<_, _>>()?;
        }
        let method = config.method;
        let state = PlacementState::new(&config, group, vec![], [shape.weight_bytes(), 0])?;
        let this = Self {
            options,
            gpus: Arc::new(gpus),
            shape,
            state,
            ranks: vec![],
            remote,
            boards: None,
            clock: StageTimer::default(),
            sides: vec![],
            stamps: vec![],
            config,
        };
        this.build_backend(source, placements, method)
    }

    /// Waits for all ranks, and for data sent to the GPUs.
    fn synchronize(&self) -> Result<(), ExecError> {
        self.ranks.iter().try_for_each(|rank| rank.gpu.synchronize())?;
        Ok(self.gpus.iter().try_for_each(|gpu| gpu.context.synchronize())?)
    }

    /// Returns the only GPU, or the first one.
    pub fn first_gpu(&self) -> &Arc<GpuContext> {
        &self.gpus[0].context
    }

    /// Returns the index of a rank's GPU.
    fn device_of(&self, rank: usize) -> usize {
        rank % self.gpus.len()
    }

    /// Returns the layers, which are equal on every GPU.
    fn device_layers(&self) -> &[DeviceLayer] {
        &self.gpus[0].layers
    }

    /// Returns the ranks of this process, and the way to the others.
    fn group(&self) -> &Rc<ProcessGroup> {
        self.state.group()
    }

    /// Returns the index of a rank in this process's lists.
    fn local_index(&self, rank: usize) -> Option<usize> {
        self.group().is_local(rank).then(|| rank - self.group().rank())
    }

    fn held_buffer(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<ExpertBuffer>> {
        let placement = self.state.placements().get(layer)?;
        self.ranks.get(self.local_index(rank)?)?.experts.find_buffer(placement, rank, layer, expert)
    }

    /// Returns an expert from the first rank that holds it.
    fn home_buffer(&self, layer: usize, expert: u32) -> Result<Arc<ExpertBuffer>, ExecError> {
        let rank = self.state.home_rank(layer, expert)?;
        self.held_buffer(rank, layer, expert).ok_or(ExecError::NotStaged { layer, rank, expert })
    }
}

/// Returns a unique number.
fn next_stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Returns [`ExecError::Memory`] if a GPU has less free memory than needed.
fn check_memory(gpu: &GpuContext, what: &'static str, needed: u64) -> Result<(), ExecError> {
    let free = gpu.device_memory()?.free;
    if needed <= free {
        return Ok(());
    }
    Err(ExecError::Memory { what, device: gpu.device().name.clone(), needed, free })
}

impl Drop for Cuda {
    /// Waits for all work, because memory is freed on the stream that allocated it and nothing else may still
    /// use it.
    fn drop(&mut self) {
        // Exchanges with other processes may have to be abandoned first.
        if let Some(far) = &self.remote {
            let _ = self.ranks.iter().try_for_each(|rank| far.synchronize(rank));
            let _ = self.sides.iter().try_for_each(|side| far.wait_for_moves(&side.gpu));
            if far.must_leak() {
                // A hung rank may later continue a message from or to this memory, and the library cannot
                // withdraw it. So the allocations stay until the driver frees them with the process.
                std::mem::forget(std::mem::take(&mut self.ranks));
                std::mem::forget(std::mem::take(&mut self.sides));
                return;
            }
        }
        // An error here is an error of the work itself, which is reported where its results are waited for.
        let _ = self.synchronize();
        self.sides.iter().for_each(|side| {
            let _ = side.wait_for_copies();
        });
    }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn with_placements(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<SplitMethod>,
    ) -> Result<Self, ExecError> {
        self.build_backend(source, placements, method)
    }

    fn state(&self) -> &PlacementState {
        &self.state
    }

    fn run_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        self.forward_layer(input).map_err(|error| match &self.remote {
            Some(far) => far.full_error(error),
            None => error,
        })
    }

    fn start_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        self.copy_expert(layer, rank, expert)
    }

    fn wait_for_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        self.collect_copies()
    }

    fn activate_placement(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        self.switch_layer(layer, placement)
    }
}
