//! A GPU with the kernels loaded, and the stream of all work on it.

use super::compile::{cache_folder, compile, compile_cached};
use super::probe::{ComputeCapability, GpuDevice, probe_devices};
use super::{CudaError, TopkId};
use crate::tables::source::{KernelUnit, SPLIT_UNITS};
use cudarc::driver::sys::{CUfunction_attribute_enum, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

/// A GPU that is ready to split. All work of its planners is enqueued on one stream, in order.
#[derive(Debug)]
pub struct GpuContext {
    device: GpuDevice,
    stream: Arc<CudaStream>,
    pub(super) kernels: SplitKernels,
}

/// Amounts of device memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceMemory {
    /// Memory that can be allocated.
    pub free: u64,
    /// All memory of the GPU.
    pub total: u64,
}

/// The kernels. Those that read ids exist for 32 and for 64 bits.
#[derive(Debug, Clone)]
pub(super) struct SplitKernels {
    pub(super) count: [CudaFunction; 2],
    pub(super) count_before: CudaFunction,
    pub(super) solve: CudaFunction,
    pub(super) share: CudaFunction,
    pub(super) map: [CudaFunction; 2],
}

/// Enqueued work, recorded once and launched repeatedly (a CUDA graph). It writes to the memory with which it
/// was recorded. Its planners and vectors must be kept as long as it is launched.
pub struct CapturedGraph(CudaGraph);

impl std::fmt::Debug for CapturedGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

impl CapturedGraph {
    /// Launches the recorded work on the stream on which it was recorded.
    ///
    /// # Errors
    /// Returns [`CudaError::Driver`] if the driver refuses.
    pub fn launch(&self) -> Result<(), CudaError> {
        self.0.launch().map_err(CudaError::driver_error("launching a graph"))
    }
}

impl GpuContext {
    /// Opens a GPU and loads the kernels. NVRTC compiles them for it unless [`cache_folder`] has them.
    ///
    /// # Errors
    /// Fails as [`probe_devices`] and [`compile`] do. Returns [`CudaError::Ordinal`] and
    /// [`CudaError::TooOld`] for an unsuitable GPU.
    pub fn open(ordinal: usize) -> Result<Arc<GpuContext>, CudaError> {
        let devices = probe_devices()?;
        let count = devices.len();
        let device =
            devices.into_iter().nth(ordinal).ok_or(CudaError::Ordinal { ordinal, devices: count })?;
        let ComputeCapability { major, minor } = device.capability;
        if major < 8 {
            return Err(CudaError::TooOld { ordinal, major, minor });
        }
        let failed = CudaError::driver_error("opening a CUDA device");
        let context = CudaContext::new(ordinal).map_err(&failed)?;
        #[allow(
            unsafe_code,
            reason = "memory is used on one stream only, and transfers between GPUs wait for their own events; \
                      an event recorded before a capture would break it"
        )]
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.new_stream().map_err(&failed)?;
        let modules = SPLIT_UNITS.map(|unit| load_unit(&context, unit, &device.arch()));
        let [count, solve, share, map] = modules;
        let (count, map) = (count?, map?);
        let kernels = SplitKernels {
            count: [find_kernel(&count, "ek_count_i32")?, find_kernel(&count, "ek_count_i64")?],
            count_before: find_kernel(&count, "ek_count_before")?,
            solve: find_kernel(&solve?, "ek_solve")?,
            share: find_kernel(&share?, "ek_share")?,
            map: [find_kernel(&map, "ek_map_i32")?, find_kernel(&map, "ek_map_i64")?],
        };
        for kernel in [&kernels.solve, &kernels.count[0], &kernels.count[1]] {
            let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            kernel
                .set_attribute(most, i32::try_from(device.shared_memory).unwrap_or(i32::MAX))
                .map_err(CudaError::driver_error("requesting shared memory"))?;
        }
        Ok(Arc::new(GpuContext { device, stream, kernels }))
    }

    /// Opens the same GPU and kernels with another stream, whose work runs concurrently with this one's.
    ///
    /// # Errors
    /// Returns [`CudaError::Driver`] if a driver call fails.
    pub fn fork_stream(&self) -> Result<Arc<GpuContext>, CudaError> {
        let stream =
            self.stream.context().new_stream().map_err(CudaError::driver_error("creating a stream"))?;
        Ok(Arc::new(GpuContext { device: self.device.clone(), stream, kernels: self.kernels.clone() }))
    }

    /// Returns the amounts of device memory.
    ///
    /// # Errors
    /// Returns [`CudaError::Driver`] if a driver call fails.
    pub fn device_memory(&self) -> Result<DeviceMemory, CudaError> {
        let failed = CudaError::driver_error("reading the amount of free memory");
        let (free, total) = self.stream.context().mem_get_info().map_err(failed)?;
        Ok(DeviceMemory { free: free as u64, total: total as u64 })
    }

    /// Loads the kernels of a unit, compiled for this GPU, in the order of their names.
    ///
    /// # Errors
    /// Fails if the unit cannot be compiled or loaded.
    pub fn load_kernels(&self, unit: KernelUnit) -> Result<Vec<CudaFunction>, CudaError> {
        let module = load_unit(self.stream.context(), unit, &self.device.arch())?;
        unit.kernels.iter().map(|name| find_kernel(&module, name)).collect()
    }

    /// Returns the properties of this GPU.
    pub fn device(&self) -> &GpuDevice {
        &self.device
    }

    /// Returns the stream on which work is enqueued. It must wait for memory that other streams write.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Copies values to new device memory.
    ///
    /// # Errors
    /// Returns [`CudaError::Driver`] if a driver call fails, for instance for lack of memory.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>, CudaError> {
        self.stream.clone_htod(values).map_err(CudaError::driver_error("copying to the device"))
    }

    /// Waits for the stream and copies values back.
    ///
    /// # Errors
    /// Returns [`CudaError::Driver`] if a driver call fails, also for errors of earlier kernels.
    pub fn download<T: DeviceRepr>(&self, values: &impl DevicePtr<T>) -> Result<Vec<T>, CudaError> {
        let failed = CudaError::driver_error("copying from the device");
        let copy = self.stream.clone_dtoh(values).map_err(&failed)?;
        self.stream.synchronize().map_err(failed)?;
        Ok(copy)
    }

    /// Waits until all enqueued work is complete.
    ///
    /// # Errors
    /// Returns [`CudaError::Driver`] for errors in that work.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(CudaError::driver_error("waiting for the device"))
    }

    /// Records the work that `enqueue` enqueues on this GPU's stream, instead of running it. Returns `None`
    /// if there is none.
    ///
    /// # Errors
    /// Fails as `enqueue` does. Returns [`CudaError::Driver`] if a part of the work cannot be recorded.
    pub fn capture_graph(
        &self,
        enqueue: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Option<CapturedGraph>, CudaError> {
        let failed = CudaError::driver_error("recording a graph");
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(&failed)?;
        let enqueued = enqueue();
        // The capture must end even after an error in it.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        enqueued?;
        Ok(graph.map_err(failed)?.map(CapturedGraph))
    }

    pub(super) fn kernel_of<Id: TopkId>(kernels: &[CudaFunction; 2]) -> &CudaFunction {
        &kernels[usize::from(Id::WIDE)]
    }
}

fn load_unit(context: &Arc<CudaContext>, unit: KernelUnit, arch: &str) -> Result<Arc<CudaModule>, CudaError> {
    let cubin = match cache_folder() {
        // A cache that cannot be written does not prevent a run.
        Some(folder) => match compile_cached(unit, arch, &folder) {
            Err(CudaError::Cache { .. }) => compile(unit, arch)?,
            other => other?,
        },
        None => compile(unit, arch)?,
    };
    context.load_module(Ptx::from_binary(cubin)).map_err(CudaError::driver_error("loading a kernel"))
}

fn find_kernel(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction, CudaError> {
    module.load_function(name).map_err(CudaError::driver_error("finding a kernel"))
}
