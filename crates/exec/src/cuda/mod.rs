//! The CUDA backend: ranks with memories and streams of their own on one GPU, bf16 weights and activations, `f32` sums.
//!
//! In: the tokens of every rank. Out: what the layer adds to them. A layer's kernels (`kernels/route.cu`, `dispatch.cu`, `ffn.cu`
//! and those of the split) read from device memory how many tokens went where, so nothing between the first and the last one
//! waits for the host, and a graph can record all of it ([`Cuda::record`]). The host is asked where it must be: by routers that
//! draw random numbers or mix tokens, by splits other than the exact one, by room that overflows to the next choice, and by
//! cuBLAS ([`Path::Cublas`]), which takes the sizes of its products from the host.
//!
//! [`Peer`] is one rank alone, of a group whose others are in other processes.
//!
//! Ranks do not read each other's memory but for what is sent: counts, slots and weights of tokens, parcels, answers.

mod blas;
mod build;
mod cells;
mod clock;
mod collect;
mod dispatch;
mod experts;
mod far;
mod home;
mod kernels;
mod launch;
mod layers;
mod measure;
mod moves;
mod peer;
mod rank;
mod record;
mod route;
mod step;

pub use measure::Experts;
pub use peer::Peer;
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
use far::Far;
use home::{Home, of_rank};
use kernels::Kernels;
use layers::Layer;
use moves::Side;
use rank::Rank;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// The GPU, or the first of them.
    pub device: usize,
    /// How many GPUs, one behind the other; 0 is 1. Rank `r` is on the `r mod devices`-th.
    pub devices: usize,
    /// What multiplies.
    pub path: Path,
    /// How ranks share it.
    pub streams: Streams,
}

impl Options {
    fn ordinals(&self) -> std::ops::Range<usize> {
        self.device..self.device.saturating_add(self.devices.max(1))
    }

    /// Whether a backend could be opened here: a driver, this GPU, a compiler for its kernels, and cuBLAS where it is asked for.
    ///
    /// # Errors
    /// [`ExecError::Unavailable`] says what is missing.
    pub fn available(&self) -> Result<(), ExecError> {
        let look = || {
            let devices = probe()?;
            for ordinal in self.ordinals() {
                let Some(device) = devices.get(ordinal) else {
                    return Err(CudaError::Ordinal { ordinal, devices: devices.len() });
                };
                let (major, minor) = device.capability;
                if major < 8 {
                    return Err(CudaError::TooOld { ordinal, major, minor });
                }
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

/// One GPU: its kernels, and what all ranks on it have alike.
#[derive(Debug)]
struct Gpu {
    context: Arc<Context>,
    kernels: Arc<Kernels>,
    layers: Vec<Layer>,
}

/// The CUDA backend.
pub struct Cuda {
    config: ExecConfig,
    options: Options,
    gpus: Arc<Vec<Gpu>>,
    shape: CellShape,
    placements: Vec<Placement>,
    /// The ranks of this process, and what is theirs: all of the group, or one.
    mine: Vec<usize>,
    ranks: Vec<Rank>,
    homes: Vec<Home>,
    /// The way to the others, where there are others.
    far: Option<Rc<Far>>,
    /// Per layer; made with the buffers.
    plans: Vec<Plan>,
    /// Boards of tokens per expert, and per slot.
    boards: Option<[Box<dyn DeviceGather>; 2]>,
    blas: Vec<Blas>,
    clock: Clock,
    /// Whether the next pass' slots are there already.
    given: bool,
    /// Per GPU.
    sides: Vec<Side>,
    /// Per layer: a number that changes, and that no other backend has, when memory that a recorded layer works on goes.
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
        Self::begin(config, options, source, placements, None)
    }

    /// The same, or one rank of it: that of `far`.
    fn begin(
        config: ExecConfig,
        options: Options,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        far: Option<Rc<Far>>,
    ) -> Result<Self, ExecError> {
        let mine: Vec<usize> = match &far {
            Some(far) => vec![far.rank()],
            None => (0..config.cluster.ranks()).collect(),
        };
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
        let shape = CellShape::new(model.hidden as usize, model.intermediate as usize, model.activation);
        let shared = model.expert_parameters() * 2 * model.shared as u64;
        let gates = 4 * model.hidden * config.router.width(model.experts) as u64;
        let (ordinals, layers) = (options.ordinals(), 0..placements.len());
        let mut gpus = Vec::with_capacity(ordinals.len());
        for (at, ordinal) in ordinals.clone().enumerate() {
            let context = Context::open(ordinal)?;
            let kernels = Kernels::load(&context)?;
            let (slots, most) = (config.cluster.slots_per_rank(), kernels.most_groups());
            if slots > most {
                return Err(unavailable(format!("{slots} slots per rank: it takes {most}")));
            }
            let here = |rank: usize| rank % ordinals.len() == at;
            let of = |placement: &Placement| {
                let ranks = mine.iter().copied().filter(|&rank| here(rank));
                ranks.map(|rank| of_rank(placement, rank).iter().flatten().count()).sum::<usize>()
            };
            let cells: usize = placements.iter().map(of).sum();
            enough(
                &context,
                "weights",
                shape.bytes() * cells as u64 + (shared + gates) * layers.len() as u64,
            )?;
            gpus.push(Gpu { context, kernels, layers: vec![] });
        }
        for gpu in &mut gpus {
            let of = |layer| Layer::new(&gpu.context, source, layer, model, &config.router);
            gpu.layers = layers.clone().map(of).collect::<Result<_, _>>()?;
        }
        let this = Self {
            options,
            gpus: Arc::new(gpus),
            shape,
            placements: vec![],
            mine,
            ranks: vec![],
            homes: vec![],
            far,
            plans: vec![],
            boards: None,
            blas: vec![],
            clock: Clock::default(),
            given: false,
            sides: vec![],
            stamps: vec![],
            config,
        };
        this.build(source, placements, this.config.method)
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
        self.build(source, placements, method)
    }

    /// Waits for all ranks, and for what was sent to the GPUs.
    fn synchronize(&self) -> Result<(), ExecError> {
        self.ranks.iter().try_for_each(|rank| rank.gpu.synchronize())?;
        Ok(self.gpus.iter().try_for_each(|gpu| gpu.context.synchronize())?)
    }

    /// The GPU, or the first of them.
    pub fn gpu(&self) -> &Arc<Context> {
        &self.gpus[0].context
    }

    /// Which of the GPUs a rank is on.
    fn device(&self, rank: usize) -> usize {
        rank % self.gpus.len()
    }

    /// Layers, as every GPU has them.
    fn layers(&self) -> &[Layer] {
        &self.gpus[0].layers
    }

    /// Where in this process' lists a rank is.
    fn at(&self, rank: usize) -> Option<usize> {
        self.mine.iter().position(|&mine| mine == rank)
    }

    fn held(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<Cell>> {
        self.homes.get(self.at(rank)?)?.held(self.placements.get(layer)?, rank, layer, expert)
    }

    /// The first rank that holds an expert.
    fn first_holder(&self, layer: usize, expert: u32) -> Result<usize, ExecError> {
        let wrong = |what, given, expected| ExecError::Shape { what, given, expected };
        let placement =
            self.placements.get(layer).ok_or_else(|| wrong("layer", layer, self.placements.len()))?;
        if expert as usize >= placement.experts() {
            return Err(wrong("expert", expert as usize, placement.experts()));
        }
        Ok(placement.rank_of(placement.copies(expert as usize)[0]))
    }

    /// An expert on the first rank that holds it.
    fn original(&self, layer: usize, expert: u32) -> Result<Arc<Cell>, ExecError> {
        let rank = self.first_holder(layer, expert)?;
        self.held(rank, layer, expert).ok_or(ExecError::NotStaged { layer, rank, expert })
    }
}

/// A number that was never given before.
fn stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
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
        // What waits for other processes may have to be given up first.
        if let Some(far) = &self.far {
            let _ = self.ranks.iter().try_for_each(|rank| far.settle(rank));
            let _ = self.sides.iter().try_for_each(|side| far.moved(&side.gpu));
            if far.clings() {
                // A rank that hangs may go on with a message into this memory, or out of it, and the library has no way to give a
                // message up. So what was allocated stays, as it is, until the driver takes it back with the process.
                std::mem::forget(std::mem::take(&mut self.ranks));
                std::mem::forget(std::mem::take(&mut self.homes));
                std::mem::forget(std::mem::take(&mut self.sides));
                std::mem::forget(std::mem::take(&mut self.plans));
                return;
            }
        }
        // An error here was an error of the work itself, and is reported where that is waited for.
        let _ = self.synchronize();
        self.sides.iter().for_each(|side| {
            let _ = side.finish();
        });
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
