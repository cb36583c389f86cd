//! The fast loop on a GPU, on a framework's own memory and stream.
//!
//! Addresses come from Python as numbers; `evenkeel/cuda.py` takes them from tensors and checks type, device and length.

use crate::convert::{cluster_of, placement, rows};
use crate::errors::{Unavailable, error, refuse};
use evenkeel::cuda::{Context, CudaError, DevicePlanner as Core, Handover, probe};
use numpy::PyReadonlyArray2;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

/// The message for a machine without what is needed, the plain error for anything else.
fn failed(err: CudaError) -> PyErr {
    if err.is_unavailable() { Unavailable::new_err(err.to_string()) } else { error(err) }
}

/// The GPUs of this machine: (name, compute capability) each. Raises `Unavailable` where there is none.
#[pyfunction]
pub(crate) fn devices() -> PyResult<Vec<(String, (u32, u32))>> {
    Ok(probe().map_err(failed)?.into_iter().map(|device| (device.name, device.capability)).collect())
}

/// GPUs that planners of this process hold open: all planners of one share its kernels and its stream.
static OPEN: LazyLock<Mutex<HashMap<usize, Weak<Context>>>> = LazyLock::new(Mutex::default);

fn open(device: usize) -> Result<Arc<Context>, CudaError> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gpu) = open.get(&device).and_then(Weak::upgrade) {
        return Ok(gpu);
    }
    let gpu = Context::open(device)?;
    open.insert(device, Arc::downgrade(&gpu));
    Ok(gpu)
}

struct Inner {
    planner: Core,
    handover: Handover,
}

/// Splits and redirects on a GPU, for one source rank: one placement per layer, up to `capacity` ids per batch.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct DevicePlanner {
    inner: Mutex<Inner>,
    #[pyo3(get)]
    experts: usize,
    #[pyo3(get)]
    ranks: usize,
    #[pyo3(get)]
    device: usize,
}

impl DevicePlanner {
    fn lock(&self) -> MutexGuard<'_, Inner> {
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
        let maps = rows(&physical_to_logical);
        let placements =
            maps.iter().map(|map| placement(map, ranks, experts)).collect::<PyResult<Vec<_>>>()?;
        let first =
            placements.first().ok_or_else(|| refuse("physical_to_logical: expected a row per layer"))?;
        let (cluster, experts) = (cluster_of(first, nodes)?, first.experts());
        let inner = py.detach(|| {
            let gpu = open(device)?;
            let planner = Core::new(&gpu, &placements, &cluster, source, capacity)?;
            Ok(Inner { handover: Handover::new(&gpu)?, planner })
        });
        Ok(Self { inner: Mutex::new(inner.map_err(failed)?), experts, ranks, device })
    }

    /// Address of this source's counts, `[experts]` of uint32, as the last `count` leaves them.
    fn own_counts(&self) -> u64 {
        use evenkeel::cuda::cudarc::driver::DevicePtr as _;
        let inner = self.lock();
        let (address, _guard) = inner.planner.own_counts().device_ptr(inner.planner.gpu().stream());
        address
    }

    /// Enqueues counting.
    fn count(&self, ids: u64, len: usize, wide: bool, stream: u64) -> PyResult<()> {
        let Inner { planner, handover } = &mut *self.lock();
        #[allow(
            unsafe_code,
            reason = "cuda.py checked the tensor that the address is of, and whose stream it is"
        )]
        let enqueued = unsafe {
            if wide {
                handover.count::<i64>(planner, ids, len, stream)
            } else {
                handover.count::<i32>(planner, ids, len, stream)
            }
        };
        enqueued.map_err(failed)
    }

    /// Enqueues the split by the counts of all ranks, and the slots of the ids that were counted.
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
        let Inner { planner, handover } = &mut *self.lock();
        #[allow(
            unsafe_code,
            reason = "cuda.py checked the tensors that the addresses are of, and whose stream it is"
        )]
        let enqueued = unsafe {
            if wide {
                handover.redirect::<i64>(planner, layer, counts, (ids, len), slots, stream)
            } else {
                handover.redirect::<i32>(planner, layer, counts, (ids, len), slots, stream)
            }
        };
        enqueued.map_err(failed)
    }

    /// Waits for the GPU and raises `Error` if an id was no expert, or was not counted.
    fn check_faults(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lock().planner.check_faults()).map_err(failed)
    }
}
