//! Looks for a GPU in an order in which nothing can panic: library, initialisation, devices.

use super::CudaError;
use cudarc::driver::{CudaContext, result, sys};
use std::fmt;

/// A version of the instruction set of GPUs, written as in `9.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComputeCapability {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A GPU of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuDevice {
    /// Number of the device, from 0.
    pub ordinal: usize,
    /// Name of the device.
    pub name: String,
    /// Compute capability, such as 9.0.
    pub capability: ComputeCapability,
    /// Shared memory that a block may request, in bytes.
    pub shared_memory: usize,
    /// Number of multiprocessors.
    pub multiprocessors: usize,
}

impl GpuDevice {
    /// Returns the architecture for which kernels are compiled, such as `sm_90`.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.capability.major, self.capability.minor)
    }
}

/// Returns the GPUs of this machine, at least one. The kernels may not support all of them.
///
/// # Errors
/// Returns [`CudaError::NoDriver`] without libcuda, and [`CudaError::NoDevice`] if it finds no GPU or cannot
/// use it.
pub fn probe_devices() -> Result<Vec<GpuDevice>, CudaError> {
    // Without the library every other call of cudarc panics.
    #[allow(unsafe_code, reason = "loads libcuda, whose initialisers are trusted, and unloads it")]
    let present = unsafe { sys::is_culib_present() };
    if !present {
        return Err(CudaError::NoDriver);
    }
    let unusable = |error: cudarc::driver::DriverError| CudaError::NoDevice(format!("{:?}", error.0));
    result::init().map_err(unusable)?;
    let count = CudaContext::device_count().map_err(unusable)?;
    if count <= 0 {
        return Err(CudaError::NoDevice("the driver lists no device".into()));
    }
    (0..count).map(describe_device).collect()
}

fn describe_device(ordinal: i32) -> Result<GpuDevice, CudaError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let failed = CudaError::driver_error("reading the properties of a CUDA device");
    let device = result::device::get(ordinal).map_err(&failed)?;
    let attribute = |which| {
        #[allow(unsafe_code, reason = "the device was obtained from the driver on the line above")]
        unsafe { result::device::get_attribute(device, which) }.map_err(&failed)
    };
    Ok(GpuDevice {
        ordinal: ordinal as usize,
        name: result::device::get_name(device).map_err(&failed)?,
        capability: ComputeCapability {
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        },
        shared_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
    })
}
