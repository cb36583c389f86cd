//! The fast loop on a GPU: counts, the exact split, shares and slots, without a round trip to the host.
//!
//! In: placements, once; then per batch and layer the top-k ids in device memory. Out: physical slots in device memory,
//! the same as [`Planner`](crate::planner::Planner) gives, bit for bit. The kernels are in `kernels/` and described in
//! docs/kernels.md; [`crate::kernels`] prepares what they read.
//!
//! CUDA is looked for when it is asked for, never when this library is loaded: no CUDA is needed to build, and without
//! a driver [`probe`] says so in an error. NVRTC compiles the kernels on first use ([`compile`]).
//!
//! ```no_run
//! use evenkeel::cluster::Cluster;
//! use evenkeel::cuda::{DevicePlanner, Context, SameDevice};
//! use evenkeel::place::Placement;
//!
//! // Two ranks, each with both experts; this process is rank 0, on GPU 0. Two layers, up to 4096 ids per batch.
//! let placement = Placement::new(2, 2, vec![Some(0), Some(1), Some(0), Some(1)])?;
//! let cluster = Cluster::new(2, 1, 2, 2)?;
//! let gpu = Context::open(0)?;
//! let mut planner = DevicePlanner::new(&gpu, &[placement.clone(), placement], &cluster, 0, 4096)?;
//!
//! // Ids come from the router, in device memory; here they are sent there.
//! let ids = gpu.upload(&[0i32, 1, 0, -1])?;
//! let mut slots = gpu.upload(&[0i32; 4])?;
//! // Ranks of several processes use `Nccl` instead.
//! let mut gather = SameDevice::new(&gpu, 2, 2)?;
//! planner.run(1, &ids, &mut slots, &mut gather)?;
//! println!("{:?}", gpu.download(&slots)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compile;
mod context;
mod error;
mod foreign;
mod gather;
mod planner;
mod probe;
mod solver;

pub use compile::{cache_folder, compile, compile_cached, compile_with_log, nvrtc_version};
pub use context::{Context, Graph};
pub use error::CudaError;
pub use foreign::{Foreign, Handover};
pub use gather::{DeviceGather, Nccl, Peers, SameDevice};
pub use planner::{DevicePlanner, TopkId};
pub use probe::{Device, probe};
pub use solver::{DeviceSolver, DeviceSplit};

/// The driver's own types, for those who hold device memory already.
pub use cudarc;
