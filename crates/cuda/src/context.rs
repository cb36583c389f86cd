//! One GPU with the kernels loaded, and the stream that everything of ours runs on.

use super::compile::{cache_folder, compile, compile_cached};
use super::probe::{Device, probe};
use super::{CudaError, TopkId};
use crate::kernels::source::{UNITS, Unit};
use cudarc::driver::sys::{CUfunction_attribute_enum, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

/// A GPU that is ready to split. All work of its planners is enqueued on one stream, in order.
#[derive(Debug)]
pub struct Context {
    device: Device,
    stream: Arc<CudaStream>,
    pub(super) kernels: Kernels,
}

/// The kernels; those that read ids for 32 and for 64 bits.
#[derive(Debug, Clone)]
pub(super) struct Kernels {
    pub(super) count: [CudaFunction; 2],
    pub(super) count_before: CudaFunction,
    pub(super) solve: CudaFunction,
    pub(super) share: CudaFunction,
    pub(super) map: [CudaFunction; 2],
}

/// Enqueued work, recorded once and launched again and again (a CUDA graph). It writes to the memory that it was
/// recorded with: planners and vectors in it are to be kept as long as it is launched.
pub struct Graph(CudaGraph);

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

impl Graph {
    /// Launches the recorded work on the stream that it was recorded on.
    ///
    /// # Errors
    /// [`CudaError::Driver`] if the driver refuses.
    pub fn launch(&self) -> Result<(), CudaError> {
        self.0.launch().map_err(CudaError::driver("launching a graph"))
    }
}

impl Context {
    /// Opens a GPU and loads the kernels, compiled for it by NVRTC unless [`cache_folder`] has them.
    ///
    /// # Errors
    /// As [`probe`] and [`compile`]; [`CudaError::Ordinal`] and [`CudaError::TooOld`] for a GPU that will not do.
    pub fn open(ordinal: usize) -> Result<Arc<Context>, CudaError> {
        let devices = probe()?;
        let count = devices.len();
        let device =
            devices.into_iter().nth(ordinal).ok_or(CudaError::Ordinal { ordinal, devices: count })?;
        let (major, minor) = device.capability;
        if major < 8 {
            return Err(CudaError::TooOld { ordinal, major, minor });
        }
        let failed = CudaError::driver("opening a CUDA device");
        let context = CudaContext::new(ordinal).map_err(&failed)?;
        #[allow(
            unsafe_code,
            reason = "what we allocate is used on one stream only, and Peers waits for events of its own; events \
                      recorded before a capture would break it"
        )]
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.new_stream().map_err(&failed)?;
        let modules = UNITS.map(|unit| load(&context, unit, &device.arch()));
        let [count, solve, share, map] = modules;
        let (count, map) = (count?, map?);
        let kernels = Kernels {
            count: [function(&count, "ek_count_i32")?, function(&count, "ek_count_i64")?],
            count_before: function(&count, "ek_count_before")?,
            solve: function(&solve?, "ek_solve")?,
            share: function(&share?, "ek_share")?,
            map: [function(&map, "ek_map_i32")?, function(&map, "ek_map_i64")?],
        };
        for kernel in [&kernels.solve, &kernels.count[0], &kernels.count[1]] {
            let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            kernel
                .set_attribute(most, i32::try_from(device.shared_memory).unwrap_or(i32::MAX))
                .map_err(CudaError::driver("asking for shared memory"))?;
        }
        Ok(Arc::new(Context { device, stream, kernels }))
    }

    /// The same GPU and kernels with a stream of its own, whose work runs beside this one's.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn fork(&self) -> Result<Arc<Context>, CudaError> {
        let stream = self.stream.context().new_stream().map_err(CudaError::driver("making a stream"))?;
        Ok(Arc::new(Context { device: self.device.clone(), stream, kernels: self.kernels.clone() }))
    }

    /// Bytes of device memory that are free, and all there are.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let failed = CudaError::driver("asking for free memory");
        let (free, all) = self.stream.context().mem_get_info().map_err(failed)?;
        Ok((free as u64, all as u64))
    }

    /// The kernels of a unit, compiled for this GPU, in the order of their names.
    pub(crate) fn functions(&self, unit: Unit) -> Result<Vec<CudaFunction>, CudaError> {
        let module = load(self.stream.context(), unit, &self.device.arch())?;
        unit.kernels.iter().map(|name| function(&module, name)).collect()
    }

    /// What this GPU is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stream that work is enqueued on. Memory that other streams write is to be waited for on this one.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Copies values to new device memory.
    ///
    /// # Errors
    /// [`CudaError::Driver`], for want of memory for instance.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>, CudaError> {
        self.stream.clone_htod(values).map_err(CudaError::driver("copying to the device"))
    }

    /// Waits for the stream and copies values back.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong in a kernel before.
    pub fn download<T: DeviceRepr>(&self, values: &impl DevicePtr<T>) -> Result<Vec<T>, CudaError> {
        let failed = CudaError::driver("copying from the device");
        let copy = self.stream.clone_dtoh(values).map_err(&failed)?;
        self.stream.synchronize().map_err(failed)?;
        Ok(copy)
    }

    /// Waits until all enqueued work is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`] for what went wrong in it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(CudaError::driver("waiting for the device"))
    }

    /// Records what `enqueue` enqueues on this GPU's stream, instead of running it; `None` if that is nothing.
    ///
    /// # Errors
    /// What `enqueue` returns; [`CudaError::Driver`] if something in it cannot be recorded.
    pub fn capture(
        &self,
        enqueue: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Option<Graph>, CudaError> {
        let failed = CudaError::driver("recording a graph");
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(&failed)?;
        let enqueued = enqueue();
        // The capture must end whatever happened in it.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        enqueued?;
        Ok(graph.map_err(failed)?.map(Graph))
    }

    pub(super) fn kernel_of<Id: TopkId>(kernels: &[CudaFunction; 2]) -> &CudaFunction {
        &kernels[usize::from(Id::WIDE)]
    }
}

fn load(context: &Arc<CudaContext>, unit: Unit, arch: &str) -> Result<Arc<CudaModule>, CudaError> {
    let cubin = match cache_folder() {
        // A cache that cannot be written is no reason not to run.
        Some(folder) => match compile_cached(unit, arch, &folder) {
            Err(CudaError::Cache { .. }) => compile(unit, arch)?,
            other => other?,
        },
        None => compile(unit, arch)?,
    };
    context.load_module(Ptx::from_binary(cubin)).map_err(CudaError::driver("loading a kernel"))
}

fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction, CudaError> {
    module.load_function(name).map_err(CudaError::driver("finding a kernel"))
}
