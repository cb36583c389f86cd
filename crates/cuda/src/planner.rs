//! From top-k ids to physical slots on the device: [`Planner`](crate::planner::Planner) without the host.

use super::{Context, CudaError, DeviceGather, DeviceSolver, DeviceSplit};
use crate::cluster::Cluster;
use crate::kernels::{CHUNK, copy_layout};
use crate::place::Placement;
use cudarc::driver::{CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use evenkeel_solver::Problem;
use std::sync::Arc;

/// Expert ids as routers write them: `i32` or `i64`, -1 for none.
pub trait TopkId: DeviceRepr + sealed::Sealed {
    /// Whether ids have 64 bits.
    const WIDE: bool;
}

impl TopkId for i32 {
    const WIDE: bool = false;
}

impl TopkId for i64 {
    const WIDE: bool = true;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for i32 {}
    impl Sealed for i64 {}
}

/// Splits batches of some layers and says which slot serves which token, for one source rank. Every call only enqueues
/// work on the GPU's stream; nothing is allocated after set-up, and all of it can be recorded ([`Context::capture`]).
#[derive(Debug)]
pub struct DevicePlanner {
    gpu: Arc<Context>,
    solver: DeviceSolver,
    source: usize,
    experts: usize,
    ranks: usize,
    per_node: usize,
    /// The most ids of a batch.
    capacity: usize,
    /// All layers' copies (`copy_layout`), and where each layer's begin; one more for the end.
    layouts: CudaSlice<u32>,
    begins: Vec<usize>,
    /// `[E]`
    own: CudaSlice<u32>,
    /// `[chunks][E]`
    histograms: CudaSlice<u32>,
    /// Per copy.
    shares: CudaSlice<u64>,
    faults: CudaSlice<u32>,
}

impl DevicePlanner {
    /// A planner for rank `source` of the cluster: one placement per layer, up to `capacity` ids per batch.
    ///
    /// # Errors
    /// As [`DeviceSolver::new`]; [`CudaError::Shape`] if a placement is not for this cluster or the source is no rank.
    pub fn new(
        gpu: &Arc<Context>,
        placements: &[Placement],
        cluster: &Cluster,
        source: usize,
        capacity: usize,
    ) -> Result<DevicePlanner, CudaError> {
        let ranks = cluster.ranks();
        if source >= ranks {
            return Err(CudaError::Shape { what: "source", given: source, expected: ranks - 1 });
        }
        let mut problems = Vec::new();
        let mut layouts = Vec::new();
        let mut begins = vec![0];
        let mut copies = 0;
        for placement in placements {
            if placement.ranks() != ranks {
                let given = placement.ranks();
                return Err(CudaError::Shape { what: "ranks of a placement", given, expected: ranks });
            }
            problems.push(Problem::new(placement.hosts()?));
            layouts.extend(copy_layout(placement)?);
            begins.push(layouts.len());
            copies = copies.max(placement.slots().len());
        }
        let solver = DeviceSolver::new(gpu, &problems, ranks)?;
        let experts = placements.first().map_or(0, Placement::experts);
        let failed = CudaError::driver("reserving memory for a planner");
        let stream = gpu.stream();
        Ok(DevicePlanner {
            source,
            experts,
            ranks,
            per_node: ranks / cluster.nodes(),
            capacity,
            layouts: gpu.upload(&layouts)?,
            begins,
            own: stream.alloc_zeros(experts).map_err(&failed)?,
            histograms: stream.alloc_zeros(capacity.div_ceil(CHUNK).max(1) * experts).map_err(&failed)?,
            shares: stream.alloc_zeros(copies).map_err(&failed)?,
            faults: stream.alloc_zeros(1).map_err(&failed)?,
            solver,
            gpu: Arc::clone(gpu),
        })
    }

    /// The GPU that it works on.
    pub fn gpu(&self) -> &Arc<Context> {
        &self.gpu
    }

    /// Counts of all ranks, `R * E`.
    pub fn counts_len(&self) -> usize {
        self.ranks * self.experts
    }

    /// The split on its own.
    pub fn solver(&mut self) -> &mut DeviceSolver {
        &mut self.solver
    }

    /// This source's counts of the last batch, `[E]`.
    pub fn own_counts(&self) -> &CudaSlice<u32> {
        &self.own
    }

    /// This source's share of every copy by the last [`share`](Self::share), experts ascending, their slots ascending.
    pub fn shares(&self) -> &CudaSlice<u64> {
        &self.shares
    }

    /// Enqueues the counting of a batch's ids, `[tokens * k]`.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for more ids than the planner's capacity; [`CudaError::Driver`].
    pub fn count<Id: TopkId>(&mut self, ids: &CudaSlice<Id>) -> Result<(), CudaError> {
        let (n, experts) = (self.check_ids(ids.len())?, self.experts as u32);
        let failed = CudaError::driver("launching count");
        let chunks = ids.len().div_ceil(CHUNK) as u64;
        if chunks > 0 {
            let mut launch =
                self.gpu.stream().launch_builder(Context::kernel_of::<Id>(&self.gpu.kernels.count));
            launch.arg(ids).arg(&n).arg(&experts).arg(&mut self.histograms).arg(&mut self.faults);
            let shape = blocks(chunks as usize, CHUNK, 4 * self.experts);
            #[allow(unsafe_code, reason = "arguments and sizes are those of ek_count_* in kernels/count.cu")]
            let launched = unsafe { launch.launch(shape) };
            launched.map_err(&failed)?;
        }
        let mut launch = self.gpu.stream().launch_builder(&self.gpu.kernels.count_before);
        launch.arg(&mut self.histograms).arg(&chunks).arg(&experts).arg(&mut self.own);
        let shape = blocks(self.experts, 32, 0);
        #[allow(unsafe_code, reason = "arguments and sizes are those of ek_count_before in kernels/count.cu")]
        let launched = unsafe { launch.launch(shape) };
        launched.map_err(failed)?;
        Ok(())
    }

    /// Puts this source's counts where the other ranks find them. All ranks that one thread drives offer first, then
    /// all [`collect`](Self::collect).
    ///
    /// # Errors
    /// Those of the gathering.
    pub fn offer(&mut self, gather: &mut dyn DeviceGather) -> Result<(), CudaError> {
        gather.offer(self.source, &self.own, &self.gpu)
    }

    /// Gathers the counts of all ranks as those of a layer.
    ///
    /// # Errors
    /// Those of the gathering; [`CudaError::Shape`] for a layer that is not there.
    pub fn collect(&mut self, layer: usize, gather: &mut dyn DeviceGather) -> Result<(), CudaError> {
        let mut all = self.solver.counts_mut(layer)?;
        gather.collect(self.source, &self.own, &mut all, &self.gpu)
    }

    /// Enqueues the split of a layer by the counts that were gathered.
    ///
    /// # Errors
    /// As [`DeviceSolver::solve`].
    pub fn solve(&mut self, layer: usize) -> Result<(), CudaError> {
        self.solver.solve(layer..layer.saturating_add(1))
    }

    /// Enqueues this source's shares of a layer's copies.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a layer that is not there; [`CudaError::Driver`].
    pub fn share(&mut self, layer: usize) -> Result<(), CudaError> {
        let (counts, quotas) = (self.solver.counts(layer)?, self.solver.quotas(layer)?);
        let layout = layout(&self.layouts, &self.begins, layer);
        let [experts, ranks, per_node, source] =
            [self.experts, self.ranks, self.per_node, self.source].map(|n| n as u32);
        let mut launch = self.gpu.stream().launch_builder(&self.gpu.kernels.share);
        launch.arg(&layout).arg(&counts).arg(&quotas).arg(&experts).arg(&ranks).arg(&per_node).arg(&source);
        launch.arg(&mut self.shares);
        let shape = blocks(self.experts.div_ceil(128), 128, 0);
        #[allow(unsafe_code, reason = "arguments and sizes are those of ek_share in kernels/share.cu")]
        let launched = unsafe { launch.launch(shape) };
        launched.map_err(CudaError::driver("launching share"))?;
        Ok(())
    }

    /// Enqueues the slot of every id by the last shares; -1 stays -1. The ids are those that were counted.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a layer that is not there, too many ids or another number of slots;
    /// [`CudaError::Driver`].
    pub fn map<Id: TopkId>(
        &mut self,
        layer: usize,
        ids: &CudaSlice<Id>,
        slots: &mut CudaSlice<Id>,
    ) -> Result<(), CudaError> {
        self.solver.quotas(layer)?;
        let (n, experts) = (self.check_ids(ids.len())?, self.experts as u32);
        if slots.len() != ids.len() {
            return Err(CudaError::Shape { what: "slots", given: slots.len(), expected: ids.len() });
        }
        if ids.is_empty() {
            return Ok(());
        }
        let layout = layout(&self.layouts, &self.begins, layer);
        let mut launch = self.gpu.stream().launch_builder(Context::kernel_of::<Id>(&self.gpu.kernels.map));
        launch.arg(ids).arg(&n).arg(&experts).arg(&self.histograms).arg(&layout).arg(&self.shares);
        launch.arg(slots).arg(&mut self.faults);
        let shape = blocks(ids.len().div_ceil(CHUNK), CHUNK, 0);
        #[allow(unsafe_code, reason = "arguments and sizes are those of ek_map_* in kernels/map.cu")]
        let launched = unsafe { launch.launch(shape) };
        launched.map_err(CudaError::driver("launching map"))?;
        Ok(())
    }

    /// All of it: counts, gathers, splits, shares and maps one batch of a layer.
    ///
    /// # Errors
    /// As each of the steps.
    pub fn run<Id: TopkId>(
        &mut self,
        layer: usize,
        ids: &CudaSlice<Id>,
        slots: &mut CudaSlice<Id>,
        gather: &mut dyn DeviceGather,
    ) -> Result<(), CudaError> {
        self.count(ids)?;
        self.offer(gather)?;
        self.collect(layer, gather)?;
        self.solve(layer)?;
        self.share(layer)?;
        self.map(layer, ids, slots)
    }

    /// Enqueues copying the counts of all ranks, `[R][E]`, to where a layer's split takes them from, for those who gather
    /// counts themselves.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a layer that is not there or another number of counts; [`CudaError::Driver`].
    pub fn take_counts(&mut self, layer: usize, counts: &CudaSlice<u32>) -> Result<(), CudaError> {
        let expected = self.counts_len();
        if counts.len() != expected {
            return Err(CudaError::Shape { what: "counts", given: counts.len(), expected });
        }
        let mut all = self.solver.counts_mut(layer)?;
        self.gpu.stream().memcpy_dtod(counts, &mut all).map_err(CudaError::driver("copying counts"))
    }

    /// Waits and copies one layer's split back.
    ///
    /// # Errors
    /// As [`DeviceSolver::download`].
    pub fn download(&self, layer: usize) -> Result<DeviceSplit, CudaError> {
        self.solver.download(layer)
    }

    /// Waits, and says whether any ids since the last check were no expert or not counted: such tokens got slot -1.
    ///
    /// # Errors
    /// [`CudaError::Faults`] if there were; [`CudaError::Driver`].
    pub fn check_faults(&mut self) -> Result<(), CudaError> {
        let faults = self.gpu.download(&self.faults)?.first().copied().unwrap_or(0);
        self.gpu.stream().memset_zeros(&mut self.faults).map_err(CudaError::driver("clearing faults"))?;
        if faults == 0 { Ok(()) } else { Err(CudaError::Faults(faults)) }
    }

    fn check_ids(&self, given: usize) -> Result<u64, CudaError> {
        if given > self.capacity {
            return Err(CudaError::Shape { what: "ids", given, expected: self.capacity });
        }
        Ok(given as u64)
    }
}

/// A layer's copies.
fn layout<'a>(layouts: &'a CudaSlice<u32>, begins: &[usize], layer: usize) -> CudaView<'a, u32> {
    layouts.slice(begins[layer]..begins[layer + 1])
}

fn blocks(count: usize, lanes: usize, shared: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (count as u32, 1, 1),
        block_dim: (lanes as u32, 1, 1),
        shared_mem_bytes: shared as u32,
    }
}
