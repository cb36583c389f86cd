//! The executor's kernels on one GPU, and the types of their arguments.

use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits};
use evenkeel_cuda::tables::source::EXEC_UNITS;
use evenkeel_cuda::tables::source::SPLIT_UNITS;
use evenkeel_cuda::{CudaError, GpuContext};
use std::sync::Arc;

/// An address in device memory; 0 for none.
pub(super) type DeviceAddress = u64;

/// Rows of the tiles of the grouped products, smallest first.
pub(super) const TILE_ROWS: [u32; 3] = [16, 64, 128];

/// Threads per block, for all kernels except those of one warp.
pub(super) const BLOCK_THREADS: u32 = 256;

/// Returns the address of an allocation.
pub(super) fn address<T>(memory: &CudaSlice<T>) -> DeviceAddress {
    // Event tracking is off, so the guard does nothing.
    memory.device_ptr(memory.stream()).0
}

/// Allocates memory filled with zeros. It has at least one number, because an allocation cannot be empty.
pub(super) fn zeros<T: DeviceRepr + ValidAsZeroBits>(
    gpu: &GpuContext,
    len: usize,
) -> Result<CudaSlice<T>, CudaError> {
    gpu.stream().alloc_zeros(len.max(1)).map_err(CudaError::driver_error("reserving device memory"))
}

/// Uploads values, which must not be empty.
pub(super) fn upload<T: DeviceRepr>(gpu: &GpuContext, values: &[T]) -> Result<CudaSlice<T>, CudaError> {
    gpu.upload(values)
}

/// One grouped matrix product: `Job` of crates/cuda/kernels/activation.h.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct GroupedGemm {
    pub(super) offsets: DeviceAddress,
    pub(super) cells: DeviceAddress,
    pub(super) rows: DeviceAddress,
    pub(super) base: DeviceAddress,
    pub(super) scale: DeviceAddress,
    pub(super) out: DeviceAddress,
    pub(super) first: u64,
    pub(super) second: u64,
    pub(super) first_bias: u64,
    pub(super) second_bias: u64,
    pub(super) groups: u32,
    pub(super) inner: u32,
    pub(super) columns: u32,
    pub(super) activation: u32,
}

#[allow(unsafe_code, reason = "laid out as the kernels' struct: addresses and whole numbers only")]
// SAFETY: the struct is `repr(C)` and has no other fields.
unsafe impl DeviceRepr for GroupedGemm {}

/// The selection and weighting rule of a router: `Rule` of crates/cuda/kernels/route.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct RouterRule {
    pub(super) bias: DeviceAddress,
    pub(super) selection: DeviceAddress,
    pub(super) scale: f64,
    pub(super) kind: u32,
    pub(super) experts: u32,
    pub(super) top_k: u32,
    pub(super) groups: u32,
    pub(super) top_groups: u32,
}

#[allow(unsafe_code, reason = "laid out as the kernels' struct: addresses and numbers only")]
// SAFETY: the struct is `repr(C)` and has no other fields.
unsafe impl DeviceRepr for RouterRule {}

impl RouterRule {
    /// Returns the bytes of shared memory for one token's choice: a number per expert, group and choice.
    pub(super) fn shared_bytes(&self) -> u32 {
        8 * (self.experts + self.groups + self.top_k)
    }
}

/// All kernels of one GPU.
#[derive(Debug)]
pub(super) struct ExecKernels {
    pub(super) norm: CudaFunction,
    pub(super) logits: CudaFunction,
    pub(super) choose: CudaFunction,
    pub(super) add_up: CudaFunction,
    pub(super) room: CudaFunction,
    pub(super) first_copy: CudaFunction,
    pub(super) bases: CudaFunction,
    pub(super) place: CudaFunction,
    pub(super) number_rows: CudaFunction,
    pub(super) pack: CudaFunction,
    pub(super) accept: CudaFunction,
    pub(super) answer: CudaFunction,
    pub(super) combine: CudaFunction,
    pub(super) permute: CudaFunction,
    pub(super) activate: CudaFunction,
    pub(super) weigh: CudaFunction,
    pub(super) count: CudaFunction,
    pub(super) count_before: CudaFunction,
    pub(super) pair: Vec<CudaFunction>,
    pub(super) single: Vec<CudaFunction>,
    /// Blocks of a grouped product that run at once, by tile size.
    pub(super) blocks: Vec<u32>,
    /// Bytes of shared memory that a block may request.
    shared: usize,
}

/// The target of kernel launches: code and a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct KernelLauncher<'a> {
    pub(super) kernels: &'a ExecKernels,
    pub(super) stream: &'a Arc<CudaStream>,
}

impl ExecKernels {
    pub(super) fn load(gpu: &GpuContext) -> Result<Arc<Self>, CudaError> {
        let [route, dispatch, ffn, dense] = EXEC_UNITS.map(|unit| gpu.load_kernels(unit));
        let count = gpu.load_kernels(SPLIT_UNITS[0])?;
        let lacking = || CudaError::Driver {
            doing: "finding a kernel",
            code: "fewer kernels than the unit names".into(),
        };
        let take = |functions: Vec<CudaFunction>| {
            let mut functions = functions.into_iter();
            move || functions.next().ok_or_else(lacking)
        };
        let (mut route, mut dispatch, mut dense) = (take(route?), take(dispatch?), take(dense?));
        let (mut count, ffn) = (take(count), ffn?);
        for function in &ffn {
            function
                .set_attribute(
                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    i32::try_from(gpu.device().shared_memory).unwrap_or(i32::MAX),
                )
                .map_err(CudaError::driver_error("requesting shared memory"))?;
        }
        let (pair, single) = ffn.split_at(ffn.len() / 2);
        // As many blocks as fit with tables for 256 groups. If fewer fit, the surplus blocks wait.
        let fit = |(function, rows): (&CudaFunction, u32)| {
            let shared = Self::gemm_shared_bytes(rows, 256) as usize;
            let fit = function.occupancy_max_active_blocks_per_multiprocessor(BLOCK_THREADS, shared, None);
            let fit = fit.map_err(CudaError::driver_error("asking how many blocks fit"))?.max(1);
            Ok(fit * gpu.device().multiprocessors as u32)
        };
        let blocks = pair.iter().zip(TILE_ROWS).map(fit).collect::<Result<Vec<u32>, CudaError>>()?;
        Ok(Arc::new(Self {
            norm: route()?,
            logits: route()?,
            choose: route()?,
            add_up: route()?,
            room: route()?,
            first_copy: dispatch()?,
            bases: dispatch()?,
            place: dispatch()?,
            number_rows: dispatch()?,
            pack: dispatch()?,
            accept: dispatch()?,
            answer: dispatch()?,
            combine: dispatch()?,
            permute: dense()?,
            activate: dense()?,
            weigh: dense()?,
            count: count()?,
            count_before: count().and_then(|_| count())?,
            pair: pair.to_vec(),
            single: single.to_vec(),
            blocks,
            shared: gpu.device().shared_memory,
        }))
    }

    /// Returns the bytes of shared memory of a grouped product with tiles of `rows` rows: three stages, and a
    /// number per group.
    pub(super) fn gemm_shared_bytes(rows: u32, groups: u32) -> u32 {
        3 * (rows + 128) * 64 * 2 + 4 * (groups + 1)
    }

    /// Returns the largest number of groups of a grouped product on this GPU.
    pub(super) fn max_groups(&self) -> usize {
        self.shared.saturating_sub(Self::gemm_shared_bytes(128, 0) as usize) / 4
    }
}
