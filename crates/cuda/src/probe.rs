//! Is there a GPU? Asked in an order in which nothing can panic: library, initialisation, devices.

use super::CudaError;
use cudarc::driver::{CudaContext, result, sys};

/// A GPU of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its number, from 0.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability, such as (9, 0).
    pub capability: (u32, u32),
    /// Shared memory that a block may ask for, in bytes.
    pub shared_memory: usize,
    /// Multiprocessors.
    pub multiprocessors: usize,
}

impl Device {
    /// The architecture that kernels are compiled for, such as `sm_90`.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

/// The GPUs that the kernels can run on are among these; at least one.
///
/// # Errors
/// [`CudaError::NoDriver`] without libcuda; [`CudaError::NoDevice`] where it finds no GPU, or cannot use it.
pub fn probe() -> Result<Vec<Device>, CudaError> {
    // Every other call of cudarc panics without the library.
    #[allow(unsafe_code, reason = "loads libcuda, whose initialisers are trusted, and lets go of it")]
    let present = unsafe { sys::is_culib_present() };
    if !present {
        return Err(CudaError::NoDriver);
    }
    let unusable = |error: cudarc::driver::DriverError| CudaError::NoDevice(format!("{:?}", error.0));
    result::init().map_err(unusable)?;
    let count = CudaContext::device_count().map_err(unusable)?;
    if count <= 0 {
        return Err(CudaError::NoDevice("the driver lists none".into()));
    }
    (0..count).map(describe).collect()
}

fn describe(ordinal: i32) -> Result<Device, CudaError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let failed = CudaError::driver("asking a CUDA device what it is");
    let device = result::device::get(ordinal).map_err(&failed)?;
    let attribute = |which| {
        #[allow(unsafe_code, reason = "the device was obtained from the driver on the line above")]
        unsafe { result::device::get_attribute(device, which) }.map_err(&failed)
    };
    Ok(Device {
        ordinal: ordinal as usize,
        name: result::device::get_name(device).map_err(&failed)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        shared_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
    })
}
