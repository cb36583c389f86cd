//! The CUDA backend: ranks with memories and streams of their own on one GPU, bf16 weights and activations, `f32` sums.
//!
//! In: the tokens of every rank. Out: what the layer adds to them. A layer's kernels (`kernels/route.cu`, `dispatch.cu`, `ffn.cu`
//! and those of the split) read from device memory how many tokens went where, so nothing between the first and the last one
//! waits for the host, and a graph can record all of it ([`Cuda::record`]). The host is asked where it must be: by routers that
//! draw random numbers or mix tokens, by splits other than the exact one, by room that overflows to the next choice, and by
//! cuBLAS ([`Path::Cublas`]), which takes the sizes of its products from the host.
//!
//! Ranks do not read each other's memory but for what is sent: counts, slots and weights of tokens, parcels, answers.

mod blas;
mod build;
mod cells;
mod clock;
mod collect;
mod dispatch;
mod experts;
mod home;
mod kernels;
mod launch;
mod layers;
mod measure;
mod moves;
mod rank;
mod record;
mod route;
mod step;

pub use measure::Experts;
pub use record::Recorded;

use super::backend::{Backend, ExecConfig, LayerInput, LayerRun};
use super::error::ExecError;
use super::weights::{Dtype, WeightSource};
use crate::cuda::{Context, CudaError, DeviceGather, DevicePlanner, nvrtc_version, probe};
use crate::place::Placement;
use crate::planner::Planner;
use crate::split::Method;
use blas::Blas;
use cells::{Cell, CellShape};
use clock::Clock;
use home::Home;
use kernels::Kernels;
use layers::Layer;
use moves::Side;
use rank::Rank;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// What multiplies the experts' matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Path {
    /// Our own grouped products, which read their sizes from device memory.
    #[default]
    Own,
    /// cuBLAS' grouped products, for which every rank's host waits for its sizes once per layer.
    Cublas,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Path::Own => "own",
            Path::Cublas => "cublas",
        })
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "own" => Ok(Path::Own),
            "cublas" => Ok(Path::Cublas),
            _ => Err(format!("unknown products `{name}`: expected own or cublas")),
        }
    }
}

/// How ranks share a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Streams {
    /// One after the other, so that each rank's phases are timed alone.
    #[default]
    Alone,
    /// All at once, each on a stream of its own.
    Own,
}

/// What a backend runs on, besides the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The GPU.
    pub device: usize,
    /// What multiplies.
    pub path: Path,
    /// How ranks share it.
    pub streams: Streams,
}

impl Options {
    /// Whether a backend could be opened here: a driver, this GPU, a compiler for its kernels, and cuBLAS where it is asked for.
    ///
    /// # Errors
    /// [`ExecError::Unavailable`] says what is missing.
    pub fn available(&self) -> Result<(), ExecError> {
        let look = || {
            let devices = probe()?;
            let Some(device) = devices.get(self.device) else {
                return Err(CudaError::Ordinal { ordinal: self.device, devices: devices.len() });
            };
            let (major, minor) = device.capability;
            if major < 8 {
                return Err(CudaError::TooOld { ordinal: self.device, major, minor });
            }
            nvrtc_version()?;
            if self.path == Path::Cublas { blas::present() } else { Ok(()) }
        };
        look().map_err(|error| ExecError::Unavailable { backend: "cuda", reason: error.to_string() })
    }
}

/// What splits a layer's batches, on every rank.
#[derive(Debug)]
enum Plan {
    /// Nothing: first copies.
    None,
    /// The device.
    Device(Vec<DevicePlanner>),
    /// The host.
    Host(Vec<Planner>),
}

/// The CUDA backend.
pub struct Cuda {
    config: ExecConfig,
    options: Options,
    gpu: Arc<Context>,
    layers: Arc<Vec<Layer>>,
    shape: CellShape,
    placements: Vec<Placement>,
    ranks: Vec<Rank>,
    homes: Vec<Home>,
    /// Per layer; made with the buffers.
    plans: Vec<Plan>,
    /// Boards of tokens per expert, and per slot.
    boards: Option<[Box<dyn DeviceGather>; 2]>,
    blas: Vec<Blas>,
    clock: Clock,
    /// Whether the next pass' slots are there already.
    given: bool,
    side: Side,
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
    /// Builds the ranks' memories on a GPU: one placement per layer, weights from `source`.
    ///
    /// # Errors
    /// Without a usable GPU; for `f32`, or widths that are no multiples of 8; where memory does not suffice, before any of it is
    /// taken; when weights cannot be had or have other shapes than the model's, or a placement does not fit.
    pub fn new(
        config: ExecConfig,
        options: Options,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
    ) -> Result<Self, ExecError> {
        let unavailable = |reason: String| ExecError::Unavailable { backend: "cuda", reason };
        if config.dtype != Dtype::Bf16 {
            return Err(unavailable(format!("it runs bf16, not {}", config.dtype)));
        }
        let model = &config.model;
        for (what, width) in [("tokens", model.hidden), ("experts", model.intermediate)] {
            if !width.is_multiple_of(8) {
                return Err(unavailable(format!("{what} are {width} wide: it takes multiples of 8")));
            }
        }
        options.available()?;
        let gpu = Context::open(options.device)?;
        let kernels = Kernels::load(&gpu)?;
        let cluster = config.cluster;
        if cluster.slots_per_rank() > kernels.most_groups() {
            return Err(unavailable(format!(
                "{} slots per rank: it takes {}",
                cluster.slots_per_rank(),
                kernels.most_groups()
            )));
        }
        let shape = CellShape::new(model.hidden as usize, model.intermediate as usize, model.activation);
        let cells: usize = placements.iter().map(|p| p.slots().iter().flatten().count()).sum();
        let shared = model.expert_parameters() * 2 * model.shared as u64;
        let gates = 4 * model.hidden * config.router.width(model.experts) as u64;
        let needed = shape.bytes() * cells as u64 + (shared + gates) * placements.len() as u64;
        enough(&gpu, "weights", needed)?;
        let layers = (0..placements.len())
            .map(|layer| Layer::new(&gpu, source, layer, model, &config.router))
            .collect::<Result<Vec<_>, _>>()?;
        let side = Side::new(&gpu)?;
        let this = Self {
            options,
            layers: Arc::new(layers),
            shape,
            placements: vec![],
            ranks: vec![],
            homes: vec![],
            plans: vec![],
            boards: None,
            blas: vec![],
            clock: Clock::default(),
            given: false,
            side,
            gpu,
            config,
        };
        this.build(source, placements, this.config.method, &kernels)
    }

    /// The same model on the same group and GPU with other placements and another split; a rank's experts are shared with this
    /// backend where it holds them already.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn with(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<Method>,
    ) -> Result<Self, ExecError> {
        let kernels = match self.ranks.first() {
            Some(rank) => Arc::clone(&rank.kernels),
            None => Kernels::load(&self.gpu)?,
        };
        self.build(source, placements, method, &kernels)
    }

    /// Waits for all ranks.
    fn synchronize(&self) -> Result<(), ExecError> {
        self.ranks.iter().try_for_each(|rank| Ok(rank.gpu.synchronize()?))
    }

    /// The GPU.
    pub fn gpu(&self) -> &Arc<Context> {
        &self.gpu
    }

    fn held(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<Cell>> {
        self.homes.get(rank)?.held(self.placements.get(layer)?, rank, layer, expert)
    }

    /// An expert on the first rank that holds it.
    fn original(&self, layer: usize, expert: u32) -> Result<Arc<Cell>, ExecError> {
        let wrong = |what, given, expected| ExecError::Shape { what, given, expected };
        let placement =
            self.placements.get(layer).ok_or_else(|| wrong("layer", layer, self.placements.len()))?;
        if expert as usize >= placement.experts() {
            return Err(wrong("expert", expert as usize, placement.experts()));
        }
        let rank = placement.rank_of(placement.copies(expert as usize)[0]);
        self.held(rank, layer, expert).ok_or(ExecError::NotStaged { layer, rank, expert })
    }
}

/// [`ExecError::Memory`] where a GPU has less free memory than needed.
fn enough(gpu: &Context, what: &'static str, needed: u64) -> Result<(), ExecError> {
    let (free, _) = gpu.memory()?;
    if needed <= free {
        return Ok(());
    }
    Err(ExecError::Memory { what, device: gpu.device().name.clone(), needed, free })
}

impl Drop for Cuda {
    /// Memory is freed on the stream that it came from: nobody else must be at work on it.
    fn drop(&mut self) {
        // An error here was an error of the work itself, and is reported where that is waited for.
        let _ = self.synchronize();
        let _ = self.side.finish();
    }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        self.run_layer(input)
    }

    fn placement(&self, layer: usize) -> &Placement {
        &self.placements[layer]
    }

    fn bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError> {
        self.original(layer, expert).map(|_| self.shape.counted())
    }

    fn copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        self.begin_copy(layer, rank, expert)
    }

    fn arrive(&mut self) -> Result<Vec<Duration>, ExecError> {
        self.finish_copies()
    }

    fn switch(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        self.switch_layer(layer, placement)
    }

    fn memory(&self) -> Vec<[u64; 2]> {
        self.bytes_held()
    }
}
