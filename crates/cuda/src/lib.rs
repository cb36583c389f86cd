//! The fast loop on a GPU: counts, the exact split, shares and slots, without a round trip to the host.
//!
//! Input: placements, once; then per batch and layer the top-k ids in device memory. Output: physical slots
//! in device memory, equal bit for bit to those of [`Planner`](evenkeel::planner::Planner). The kernels are
//! in `kernels/` and described in docs/kernels.md; [`tables`] prepares their inputs.
//!
//! CUDA is loaded on first use, never with this library. No CUDA is needed to build, and without a driver
//! [`probe_devices`] returns an error. NVRTC compiles the kernels on first use ([`compile`]).
//!
//! ```no_run
//! use evenkeel::cluster::Cluster;
//! use evenkeel_cuda::{DevicePlanner, GpuContext, SameDeviceGather};
//! use evenkeel::place::Placement;
//!
//! // Two ranks, each with both experts; this process is rank 0, on GPU 0.
//! // Two layers, up to 4096 ids per batch.
//! let placement = Placement::new(2, 2, vec![Some(0), Some(1), Some(0), Some(1)])?;
//! let cluster = Cluster::new(2, 1, 2, 2)?;
//! let gpu = GpuContext::open(0)?;
//! let mut planner = DevicePlanner::new(&gpu, &[placement.clone(), placement], &cluster, 0, 4096)?;
//!
//! // Ids come from the router, in device memory. This example uploads them.
//! let ids = gpu.upload(&[0i32, 1, 0, -1])?;
//! let mut slots = gpu.upload(&[0i32; 4])?;
//! // Ranks of several processes use `NcclGather` instead.
//! let mut gather = SameDeviceGather::new(&gpu, 2, 2)?;
//! planner.run(1, &ids, &mut slots, &mut gather)?;
//! println!("{:?}", gpu.download(&slots)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

mod compile;
mod context;
mod error;
mod foreign;
mod gather;
pub mod nccl;
mod planner;
mod probe;
mod solver;
pub mod tables;

pub use compile::{
    CompiledUnit, NvrtcVersion, cache_folder, compile, compile_cached, compile_with_log, nvrtc_version,
};
pub use context::{CapturedGraph, DeviceMemory, GpuContext};
pub use error::CudaError;
pub use foreign::{ForeignIds, ForeignSlice, StreamHandover};
pub use gather::{DeviceGather, NcclGather, PeerGather, SameDeviceGather};
pub use planner::{DevicePlanner, TopkId};
pub use probe::{ComputeCapability, GpuDevice, probe_devices};
pub use solver::{BlockMemory, DeviceSolver, DeviceSplit};

/// The driver's own types, for callers that already own device memory.
pub use cudarc;
