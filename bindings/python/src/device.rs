//! The fast loop on a GPU, in a framework's own memory and on its stream.
//!
//! Addresses come from Python as numbers. `evenkeel/cuda.py` takes them from tensors and checks type, device
//! and length.

use crate::convert::{cluster_of, placement_from_slots, read_rows};
use crate::errors::{Unavailable, input_error, library_error};
use evenkeel_cuda::{
    CudaError, DevicePlanner as Core, ForeignIds, GpuContext, StreamHandover, probe_devices,
};
use numpy::PyReadonlyArray2;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

/// Returns `Unavailable` if the machine lacks a requirement, `Error` for any other failure.
fn device_error(err: CudaError) -> PyErr {
    if err.is_unavailable() { Unavailable::new_err(err.to_string()) } else { library_error(err) }
}

/// Returns (name, compute capability) of each GPU of this machine. Raises `Unavailable` if it has none.
#[pyfunction]
pub(crate) fn devices() -> PyResult<Vec<(String, (u32, u32))>> {
    Ok(probe_devices()
        .map_err(device_error)?
        .into_iter()
        .map(|device| (device.name, (device.capability.major, device.capability.minor)))
        .collect())
}

/// Contexts of the GPUs that planners of this process hold open. All planners of one GPU share its kernels
/// and its stream.
static OPEN_CONTEXTS: LazyLock<Mutex<HashMap<usize, Weak<GpuContext>>>> = LazyLock::new(Mutex::default);

fn open_context(device: usize) -> Result<Arc<GpuContext>, CudaError> {
    let mut open = OPEN_CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gpu) = open.get(&device).and_then(Weak::upgrade) {
        return Ok(gpu);
    }
    let gpu = GpuContext::open(device)?;
    open.insert(device, Arc::downgrade(&gpu));
    Ok(gpu)
}

struct DeviceState {
    planner: Core,
    handover: StreamHandover,
}

/// Planner that splits and redirects on a GPU for one source rank: one placement per layer, at most
/// `capacity` ids per batch.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct DevicePlanner {
    inner: Mutex<DeviceState>,
    #[pyo3(get)]
    experts: usize,
    #[pyo3(get)]
    ranks: usize,
    #[pyo3(get)]
    device: usize,
}

impl DevicePlanner {
    fn lock(&self) -> MutexGuard<'_, DeviceState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl DevicePlanner {
    #[new]
    #[pyo3(signature = (physical_to_logical, ranks, source, capacity, *, device=0, nodes=1, experts=None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new(
        py: Python<'_>,
        physical_to_logical: PyReadonlyArray2<'_, i64>,
        ranks: usize,
        source: usize,
        capacity: usize,
        device: usize,
        nodes: usize,
        experts: Option<usize>,
    ) -> PyResult<Self> {
        let maps = read_rows(&physical_to_logical)?;
        let placements =
            maps.iter().map(|map| placement_from_slots(map, ranks, experts)).collect::<PyResult<Vec<_>>>()?;
        let first =
            placements.first().ok_or_else(|| input_error("physical_to_logical: expected a row per layer"))?;
        let (cluster, experts) = (cluster_of(first, nodes)?, first.experts());
        let inner = py.detach(|| {
            let gpu = open_context(device)?;
            let planner = Core::new(&gpu, &placements, &cluster, source, capacity)?;
            Ok(DeviceState { handover: StreamHandover::new(&gpu)?, planner })
        });
        Ok(Self { inner: Mutex::new(inner.map_err(device_error)?), experts, ranks, device })
    }

    /// Returns the address of this source's counts, `[experts]` of uint32, as the last `count` leaves them.
    fn own_counts(&self) -> u64 {
        use evenkeel_cuda::cudarc::driver::DevicePtr as _;
        let inner = self.lock();
        let (address, _guard) = inner.planner.own_counts().device_ptr(inner.planner.gpu().stream());
        address
    }

    /// Enqueues the counting of a batch's ids.
    fn count(&self, ids: u64, len: usize, wide: bool, stream: u64) -> PyResult<()> {
        let DeviceState { planner, handover } = &mut *self.lock();
        let ids = ForeignIds { address: ids, len };
        #[allow(unsafe_code, reason = "cuda.py checked the tensor at the address, and its stream")]
        let enqueued = unsafe {
            if wide {
                handover.count_ids::<i64>(planner, ids, stream)
            } else {
                handover.count_ids::<i32>(planner, ids, stream)
            }
        };
        enqueued.map_err(device_error)
    }

    /// Enqueues the split by the counts of all ranks, and the slots of the counted ids.
    #[allow(clippy::too_many_arguments, reason = "addresses and lengths")]
    fn redirect(
        &self,
        layer: usize,
        counts: u64,
        ids: u64,
        len: usize,
        wide: bool,
        slots: u64,
        stream: u64,
    ) -> PyResult<()> {
        let DeviceState { planner, handover } = &mut *self.lock();
        let ids = ForeignIds { address: ids, len };
        #[allow(unsafe_code, reason = "cuda.py checked the tensors at the addresses, and their stream")]
        let enqueued = unsafe {
            if wide {
                handover.redirect_ids::<i64>(planner, layer, counts, ids, slots, stream)
            } else {
                handover.redirect_ids::<i32>(planner, layer, counts, ids, slots, stream)
            }
        };
        enqueued.map_err(device_error)
    }

    /// Waits for the GPU. Raises `Error` if an id was no expert or was not counted.
    fn check_faults(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lock().planner.check_faults()).map_err(device_error)
    }
}
