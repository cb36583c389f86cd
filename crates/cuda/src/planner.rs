//! Maps top-k ids to physical slots on the device: [`Planner`](evenkeel::planner::Planner) without the host.

use super::{CudaError, DeviceGather, DeviceSolver, DeviceSplit, GpuContext};
use crate::tables::{CHUNK_IDS, replica_layout};
use cudarc::driver::{CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use evenkeel_solver::Problem;
use std::sync::Arc;

/// An expert id of a router: `i32` or `i64`, -1 for none.
pub trait TopkId: DeviceRepr + sealed::Sealed {
    /// True if ids have 64 bits.
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

/// A planner that splits batches of some layers and assigns a slot to every token of one source rank. Every
/// call only enqueues work on the GPU's stream. Nothing is allocated after set-up, and all work can be
/// recorded ([`GpuContext::capture_graph`]).
#[derive(Debug)]
pub struct DevicePlanner {
    gpu: Arc<GpuContext>,
    solver: DeviceSolver,
    source: usize,
    experts: usize,
    ranks: usize,
    per_node: usize,
    /// Largest number of ids of a batch.
    capacity: usize,
    /// The replicas of all layers (`replica_layout`), and the start of each layer, with one more entry for
    /// the end.
    layouts: CudaSlice<u32>,
    begins: Vec<usize>,
    /// Counts of this source, `[E]`.
    own: CudaSlice<u32>,
    /// Histograms of the chunks, `[chunks][E]`.
    histograms: CudaSlice<u32>,
    /// Shares per replica.
    shares: CudaSlice<u64>,
    faults: CudaSlice<u32>,
}

impl DevicePlanner {
    /// Creates a planner for rank `source` of the cluster: one placement per layer, up to `capacity` ids per
    /// batch.
    ///
    /// # Errors
    /// Fails as [`DeviceSolver::new`] does. Returns [`CudaError::Shape`] if a placement does not fit this
    /// cluster, or if the source is not a rank.
    pub fn new(
        gpu: &Arc<GpuContext>,
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
            layouts.extend(replica_layout(placement)?);
            begins.push(layouts.len());
            copies = copies.max(placement.slots().len());
        }
        let solver = DeviceSolver::new(gpu, &problems, ranks)?;
        let experts = placements.first().map_or(0, Placement::experts);
        let failed = CudaError::driver_error("reserving memory for a planner");
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
            histograms: stream.alloc_zeros(capacity.div_ceil(CHUNK_IDS).max(1) * experts).map_err(&failed)?,
            shares: stream.alloc_zeros(copies).map_err(&failed)?,
            faults: stream.alloc_zeros(1).map_err(&failed)?,
            solver,
            gpu: Arc::clone(gpu),
        })
    }

    /// Returns the GPU of the planner.
    pub fn gpu(&self) -> &Arc<GpuContext> {
        &self.gpu
    }

    /// Returns the number of counts of all ranks, `R * E`.
    pub fn counts_len(&self) -> usize {
        self.ranks * self.experts
    }

    /// Returns the solver, for the split alone.
    pub fn solver(&mut self) -> &mut DeviceSolver {
        &mut self.solver
    }

    /// Returns this source's counts of the last batch, `[E]`.
    pub fn own_counts(&self) -> &CudaSlice<u32> {
        &self.own
    }

    /// Returns this source's share of every replica after the last [`compute_shares`](Self::compute_shares):
    /// experts ascending, their slots ascending.
    pub fn shares(&self) -> &CudaSlice<u64> {
        &self.shares
    }

    /// Enqueues the counting of a batch's ids, `[tokens * k]`.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] for more ids than the planner's capacity, and [`CudaError::Driver`] if a
    /// driver call fails.
    pub fn count_ids<Id: TopkId>(&mut self, ids: &CudaSlice<Id>) -> Result<(), CudaError> {
        let (n, experts) = (self.check_ids(ids.len())?, self.experts as u32);
        let failed = CudaError::driver_error("launching count");
        let chunks = ids.len().div_ceil(CHUNK_IDS) as u64;
        if chunks > 0 {
            let mut launch =
                self.gpu.stream().launch_builder(GpuContext::kernel_of::<Id>(&self.gpu.kernels.count));
            launch.arg(ids).arg(&n).arg(&experts).arg(&mut self.histograms).arg(&mut self.faults);
            let shape = launch_shape(chunks as usize, CHUNK_IDS, 4 * self.experts);
            #[allow(
                unsafe_code,
                reason = "arguments and sizes are those of ek_count_* in crates/cuda/kernels/count.cu"
            )]
            let launched = unsafe { launch.launch(shape) };
            launched.map_err(&failed)?;
        }
        let mut launch = self.gpu.stream().launch_builder(&self.gpu.kernels.count_before);
        launch.arg(&mut self.histograms).arg(&chunks).arg(&experts).arg(&mut self.own);
        let shape = launch_shape(self.experts, 32, 0);
        #[allow(
            unsafe_code,
            reason = "arguments and sizes are those of ek_count_before in crates/cuda/kernels/count.cu"
        )]
        let launched = unsafe { launch.launch(shape) };
        launched.map_err(failed)?;
        Ok(())
    }

    /// Publishes this source's counts for the other ranks. All ranks that one thread drives must offer before
    /// any [`collect_counts`](Self::collect_counts).
    ///
    /// # Errors
    /// Fails as [`DeviceGather::offer_counts`] does.
    pub fn offer_counts(&mut self, gather: &mut dyn DeviceGather) -> Result<(), CudaError> {
        gather.offer_counts(self.source, &self.own, &self.gpu)
    }

    /// Gathers the counts of all ranks for a layer.
    ///
    /// # Errors
    /// Fails as [`DeviceGather::collect_counts`] does. Returns [`CudaError::Shape`] if there is no such
    /// layer.
    pub fn collect_counts(&mut self, layer: usize, gather: &mut dyn DeviceGather) -> Result<(), CudaError> {
        let mut all = self.solver.counts_mut(layer)?;
        gather.collect_counts(self.source, &self.own, &mut all, &self.gpu)
    }

    /// Enqueues the split of a layer by the gathered counts.
    ///
    /// # Errors
    /// Fails as [`DeviceSolver::solve`] does.
    pub fn solve(&mut self, layer: usize) -> Result<(), CudaError> {
        self.solver.solve(layer..layer.saturating_add(1))
    }

    /// Enqueues this source's shares of a layer's replicas.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] if there is no such layer, and [`CudaError::Driver`] if a driver call
    /// fails.
    pub fn compute_shares(&mut self, layer: usize) -> Result<(), CudaError> {
        let (counts, quotas) = (self.solver.counts(layer)?, self.solver.quotas(layer)?);
        let layout = layer_layout(&self.layouts, &self.begins, layer);
        let [experts, ranks, per_node, source] =
            [self.experts, self.ranks, self.per_node, self.source].map(|n| n as u32);
        let mut launch = self.gpu.stream().launch_builder(&self.gpu.kernels.share);
        launch.arg(&layout).arg(&counts).arg(&quotas).arg(&experts).arg(&ranks).arg(&per_node).arg(&source);
        launch.arg(&mut self.shares);
        let shape = launch_shape(self.experts.div_ceil(128), 128, 0);
        #[allow(
            unsafe_code,
            reason = "arguments and sizes are those of ek_share in crates/cuda/kernels/share.cu"
        )]
        let launched = unsafe { launch.launch(shape) };
        launched.map_err(CudaError::driver_error("launching share"))?;
        Ok(())
    }

    /// Enqueues the mapping of every id to a slot by the last shares; -1 stays -1. The ids must be the
    /// counted ones.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] if there is no such layer, for too many ids, or for another number of
    /// slots. Returns [`CudaError::Driver`] if a driver call fails.
    pub fn map_ids<Id: TopkId>(
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
        let layout = layer_layout(&self.layouts, &self.begins, layer);
        let mut launch = self.gpu.stream().launch_builder(GpuContext::kernel_of::<Id>(&self.gpu.kernels.map));
        launch.arg(ids).arg(&n).arg(&experts).arg(&self.histograms).arg(&layout).arg(&self.shares);
        launch.arg(slots).arg(&mut self.faults);
        let shape = launch_shape(ids.len().div_ceil(CHUNK_IDS), CHUNK_IDS, 0);
        #[allow(
            unsafe_code,
            reason = "arguments and sizes are those of ek_map_* in crates/cuda/kernels/map.cu"
        )]
        let launched = unsafe { launch.launch(shape) };
        launched.map_err(CudaError::driver_error("launching map"))?;
        Ok(())
    }

    /// Runs all steps on one batch of a layer: counts, gathers, splits, shares and maps.
    ///
    /// # Errors
    /// Fails as each of the steps does.
    pub fn run<Id: TopkId>(
        &mut self,
        layer: usize,
        ids: &CudaSlice<Id>,
        slots: &mut CudaSlice<Id>,
        gather: &mut dyn DeviceGather,
    ) -> Result<(), CudaError> {
        self.count_ids(ids)?;
        self.offer_counts(gather)?;
        self.collect_counts(layer, gather)?;
        self.solve(layer)?;
        self.compute_shares(layer)?;
        self.map_ids(layer, ids, slots)
    }

    /// Enqueues a copy of the counts of all ranks, `[R][E]`, to the input of a layer's split. It serves
    /// callers that gather counts themselves.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] if there is no such layer, or for another number of counts. Returns
    /// [`CudaError::Driver`] if a driver call fails.
    pub fn copy_counts(&mut self, layer: usize, counts: &CudaSlice<u32>) -> Result<(), CudaError> {
        let expected = self.counts_len();
        if counts.len() != expected {
            return Err(CudaError::Shape { what: "counts", given: counts.len(), expected });
        }
        let mut all = self.solver.counts_mut(layer)?;
        self.gpu.stream().memcpy_dtod(counts, &mut all).map_err(CudaError::driver_error("copying counts"))
    }

    /// Waits and copies one layer's split back.
    ///
    /// # Errors
    /// Fails as [`DeviceSolver::download`] does.
    pub fn download(&self, layer: usize) -> Result<DeviceSplit, CudaError> {
        self.solver.download(layer)
    }

    /// Waits and checks whether any ids since the last check were neither -1 nor an expert, or were not
    /// counted. Such tokens have slot -1.
    ///
    /// # Errors
    /// Returns [`CudaError::Faults`] if there were any, and [`CudaError::Driver`] if a driver call fails.
    pub fn check_faults(&mut self) -> Result<(), CudaError> {
        let faults = self.gpu.download(&self.faults)?.first().copied().unwrap_or(0);
        self.gpu
            .stream()
            .memset_zeros(&mut self.faults)
            .map_err(CudaError::driver_error("clearing faults"))?;
        if faults == 0 { Ok(()) } else { Err(CudaError::Faults(faults)) }
    }

    fn check_ids(&self, given: usize) -> Result<u64, CudaError> {
        if given > self.capacity {
            return Err(CudaError::Shape { what: "ids", given, expected: self.capacity });
        }
        Ok(given as u64)
    }
}

/// Returns the replicas of a layer.
fn layer_layout<'a>(layouts: &'a CudaSlice<u32>, begins: &[usize], layer: usize) -> CudaView<'a, u32> {
    layouts.slice(begins[layer]..begins[layer + 1])
}

fn launch_shape(count: usize, lanes: usize, shared: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (count as u32, 1, 1),
        block_dim: (lanes as u32, 1, 1),
        shared_mem_bytes: shared as u32,
    }
}
