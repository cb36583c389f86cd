//! What can go wrong between this program and a GPU.

use crate::kernels::ProgramError;
use cudarc::cublas::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::nccl::result::NcclError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a GPU could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No driver library.
    #[error("no CUDA driver: libcuda is not on the library path")]
    NoDriver,
    /// A driver, but no GPU that it can use.
    #[error("no usable CUDA device: {0}")]
    NoDevice(String),
    /// A GPU that is not there.
    #[error("there is no CUDA device {ordinal}: this machine has {devices}")]
    Ordinal {
        /// The device asked for.
        ordinal: usize,
        /// Devices there are.
        devices: usize,
    },
    /// A GPU too old for the kernels.
    #[error("CUDA device {ordinal} has compute capability {major}.{minor}: the kernels want 8.0 or later")]
    TooOld {
        /// The device.
        ordinal: usize,
        /// Its compute capability.
        major: u32,
        /// And the digit behind the point.
        minor: u32,
    },
    /// No NVRTC library.
    #[error(
        "no NVRTC: libnvrtc.so is not on the library path (pip install nvidia-cuda-nvrtc, or `make kernels`, and \
         name its folder in LD_LIBRARY_PATH)"
    )]
    NoCompiler,
    /// NVRTC refused a kernel; a defect of this program, or an architecture that it does not know.
    #[error("NVRTC cannot compile {unit} for {arch}: {log}")]
    Compile {
        /// The unit.
        unit: &'static str,
        /// The architecture asked for.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// The cache of compiled kernels could not be written.
    #[error("{path}: {source}")]
    Cache {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A call into the driver failed.
    #[error("{doing}: {code}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The driver's name for the error.
        code: String,
    },
    /// No NCCL library.
    #[error("no NCCL: libnccl.so is not on the library path (libnccl.so.2 needs a link of that name)")]
    NoNccl,
    /// A call into NCCL failed.
    #[error("{doing}: {code}")]
    Nccl {
        /// What was being done.
        doing: &'static str,
        /// NCCL's name for the error.
        code: String,
    },
    /// No cuBLAS library.
    #[error("no cuBLAS: libcublas.so is not on the library path (--ffn own does without)")]
    NoBlas,
    /// A call into cuBLAS failed.
    #[error("{doing}: {code}")]
    Blas {
        /// What was being done.
        doing: &'static str,
        /// cuBLAS' name for the error.
        code: String,
    },
    /// The kernel cannot take a problem.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The solver cannot take a placement.
    #[error(transparent)]
    Solver(#[from] evenkeel_solver::Error),
    /// A problem that does not fit into the shared memory of a block.
    #[error("layer {layer} needs {needed} bytes of shared memory, a block of this device has {available}")]
    SharedMemory {
        /// The layer.
        layer: usize,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// Vectors of another length than asked for.
    #[error("{what}: {given} given, {expected} expected")]
    Shape {
        /// What has the wrong length.
        what: &'static str,
        /// Its length.
        given: usize,
        /// The length, or number, it must have, or must not exceed.
        expected: usize,
    },
    /// Ids that are neither -1 nor an expert, or tokens that were not counted.
    #[error("{0} ids were neither -1 nor an expert, or were not counted before they were mapped")]
    Faults(u32),
}

impl CudaError {
    /// A driver error; says what was being done. The error's name is ours: an old driver cannot name it.
    /// Does this machine lack what is needed, rather than something having gone wrong?
    pub fn is_unavailable(&self) -> bool {
        use CudaError::{NoCompiler, NoDevice, NoDriver, TooOld};
        matches!(self, NoDriver | NoDevice(_) | NoCompiler | TooOld { .. })
    }

    pub(crate) fn driver(doing: &'static str) -> impl Fn(DriverError) -> CudaError {
        move |error| CudaError::Driver { doing, code: format!("{:?}", error.0) }
    }

    pub(crate) fn blas(doing: &'static str) -> impl Fn(CublasError) -> CudaError {
        move |error| CudaError::Blas { doing, code: format!("{:?}", error.0) }
    }

    pub(super) fn nccl(doing: &'static str) -> impl Fn(NcclError) -> CudaError {
        move |error| CudaError::Nccl { doing, code: format!("{:?}", error.0) }
    }
}
