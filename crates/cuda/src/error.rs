//! Errors between this program and a GPU.

use crate::tables::ProgramError;
use cudarc::cublas::result::CublasError;
use cudarc::driver::DriverError;
use std::path::PathBuf;
use thiserror::Error;

/// An error in the use of a GPU.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver library.
    #[error("no CUDA driver: libcuda is not on the library path")]
    NoDriver,
    /// The driver finds no usable GPU.
    #[error("no usable CUDA device: {0}")]
    NoDevice(String),
    /// The requested GPU does not exist.
    #[error("there is no CUDA device {ordinal}: this machine has {devices}")]
    Ordinal {
        /// The requested device.
        ordinal: usize,
        /// Number of devices.
        devices: usize,
    },
    /// The GPU is too old for the kernels.
    #[error("CUDA device {ordinal} has compute capability {major}.{minor}: the kernels need 8.0 or later")]
    TooOld {
        /// The device.
        ordinal: usize,
        /// Major version of its compute capability.
        major: u32,
        /// Minor version of its compute capability.
        minor: u32,
    },
    /// There is no NVRTC library.
    #[error(
        "no NVRTC: libnvrtc.so is not on the library path (pip install nvidia-cuda-nvrtc, or `make kernels`, and \
         name its folder in LD_LIBRARY_PATH)"
    )]
    NoCompiler,
    /// NVRTC rejected a kernel. This is a defect of this program, or NVRTC does not know the architecture.
    #[error("NVRTC cannot compile {unit} for {arch}: {log}")]
    Compile {
        /// The unit.
        unit: &'static str,
        /// The requested architecture.
        arch: String,
        /// The log of the compiler.
        log: String,
    },
    /// The cache of compiled kernels could not be written.
    #[error("{path}: {source}")]
    Cache {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A call into the driver failed.
    #[error("{doing}: {code}")]
    Driver {
        /// The failed call.
        doing: &'static str,
        /// The driver's name for the error.
        code: String,
    },
    /// A call into NCCL failed, or the library is missing.
    #[error("{doing}: {code}")]
    Nccl {
        /// The failed call.
        doing: &'static str,
        /// NCCL's name for the error.
        code: String,
    },
    /// There is no cuBLAS library.
    #[error("no cuBLAS: libcublas.so is not on the library path (--ffn own does not need it)")]
    NoBlas,
    /// A call into cuBLAS failed.
    #[error("{doing}: {code}")]
    Blas {
        /// The failed call.
        doing: &'static str,
        /// cuBLAS' name for the error.
        code: String,
    },
    /// The kernel does not support a problem.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The solver does not support a placement.
    #[error(transparent)]
    Solver(#[from] evenkeel_solver::SolverError),
    /// A problem does not fit into the shared memory of a block.
    #[error(
        "layer {layer} needs {needed} bytes of shared memory, but a block of this device has {available}"
    )]
    SharedMemory {
        /// The layer.
        layer: usize,
        /// Bytes needed.
        needed: usize,
        /// Bytes available.
        available: usize,
    },
    /// A vector has another length than required.
    #[error("{what}: found {given}, expected {expected}")]
    Shape {
        /// The vector.
        what: &'static str,
        /// Length of the vector.
        given: usize,
        /// The required or largest length or number.
        expected: usize,
    },
    /// Ids were neither -1 nor an expert, or tokens were not counted.
    #[error("{0} ids were neither -1 nor an expert, or were not counted before they were mapped")]
    Faults(u32),
}

impl CudaError {
    /// Returns whether the cause is a missing part of this machine (driver, GPU or library) rather than a
    /// failure.
    pub fn is_unavailable(&self) -> bool {
        use CudaError::{NoCompiler, NoDevice, NoDriver, TooOld};
        matches!(self, NoDriver | NoDevice(_) | NoCompiler | TooOld { .. })
    }

    /// Returns a function that converts an error of the driver into one of this crate. `doing` is the failed
    /// call.
    pub fn driver_error(doing: &'static str) -> impl Fn(DriverError) -> CudaError {
        move |error| CudaError::Driver { doing, code: format!("{:?}", error.0) }
    }

    /// Returns a function that converts an error of cuBLAS into one of this crate. `doing` is the failed
    /// call.
    pub fn blas_error(doing: &'static str) -> impl Fn(CublasError) -> CudaError {
        move |error| CudaError::Blas { doing, code: format!("{:?}", error.0) }
    }
}
