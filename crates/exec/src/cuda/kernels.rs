//! The executor's kernels on one GPU, and what their arguments are made of.

use crate::cuda::{Context, CudaError};
use crate::kernels::source::EXEC_UNITS;
use crate::kernels::source::UNITS;
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits};
use std::sync::Arc;

/// An address in device memory; 0 for none.
pub(super) type Address = u64;

/// Rows of the tiles that the grouped products come in, smallest first.
pub(super) const TILES: [u32; 3] = [16, 64, 128];

/// Lanes of all kernels but those of one warp.
pub(super) const LANES: u32 = 256;

/// Where memory begins.
pub(super) fn address<T>(memory: &CudaSlice<T>) -> Address {
    // Nothing is tracked by events, so the guard does nothing.
    memory.device_ptr(memory.stream()).0
}

/// New memory, all zero; at least one number, since there is no memory of nothing.
pub(super) fn zeros<T: DeviceRepr + ValidAsZeroBits>(
    gpu: &Context,
    len: usize,
) -> Result<CudaSlice<T>, CudaError> {
    gpu.stream().alloc_zeros(len.max(1)).map_err(CudaError::driver("reserving device memory"))
}

/// New memory with what is given, which is not nothing.
pub(super) fn upload<T: DeviceRepr>(gpu: &Context, values: &[T]) -> Result<CudaSlice<T>, CudaError> {
    gpu.upload(values)
}

/// One grouped matrix product: `Job` of kernels/activation.h.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Job {
    pub(super) offsets: Address,
    pub(super) cells: Address,
    pub(super) rows: Address,
    pub(super) base: Address,
    pub(super) scale: Address,
    pub(super) out: Address,
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
// SAFETY: `repr(C)`, and no other fields.
unsafe impl DeviceRepr for Job {}

/// How a router selects and weighs: `Rule` of kernels/route.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Rule {
    pub(super) bias: Address,
    pub(super) selection: Address,
    pub(super) scale: f64,
    pub(super) kind: u32,
    pub(super) experts: u32,
    pub(super) top_k: u32,
    pub(super) groups: u32,
    pub(super) top_groups: u32,
}

#[allow(unsafe_code, reason = "laid out as the kernels' struct: addresses and numbers only")]
// SAFETY: `repr(C)`, and no other fields.
unsafe impl DeviceRepr for Rule {}

impl Rule {
    /// Shared memory that a token's choice takes: a number per expert, group and choice.
    pub(super) fn shared(&self) -> u32 {
        8 * (self.experts + self.groups + self.top_k)
    }
}

/// All kernels of one GPU.
#[derive(Debug)]
pub(super) struct Kernels {
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
    /// Blocks of a grouped product that run at once, by the size of its tiles.
    pub(super) blocks: Vec<u32>,
    /// Shared memory that a block may ask for.
    shared: usize,
}

/// A place to launch kernels: their code and a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct On<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) stream: &'a Arc<CudaStream>,
}

impl Kernels {
    pub(super) fn load(gpu: &Context) -> Result<Arc<Self>, CudaError> {
        let [route, dispatch, ffn, dense] = EXEC_UNITS.map(|unit| gpu.functions(unit));
        let count = gpu.functions(UNITS[0])?;
        let lacking =
            || CudaError::Driver { doing: "finding a kernel", code: "fewer than its unit names".into() };
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
                .map_err(CudaError::driver("asking for shared memory"))?;
        }
        let (pair, single) = ffn.split_at(ffn.len() / 2);
        // As many as fit with the tables of a few groups; one too many waits for its turn.
        let fit = |(function, rows): (&CudaFunction, u32)| {
            let shared = Self::ffn_shared(rows, 256) as usize;
            let fit = function.occupancy_max_active_blocks_per_multiprocessor(LANES, shared, None);
            let fit = fit.map_err(CudaError::driver("asking how many blocks fit"))?.max(1);
            Ok(fit * gpu.device().multiprocessors as u32)
        };
        let blocks = pair.iter().zip(TILES).map(fit).collect::<Result<Vec<u32>, CudaError>>()?;
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

    /// Shared memory of a grouped product with tiles of so many rows: three stages, and a number per group.
    pub(super) fn ffn_shared(rows: u32, groups: u32) -> u32 {
        3 * (rows + 128) * 64 * 2 + 4 * (groups + 1)
    }

    /// The largest number of groups that a grouped product can take here.
    pub(super) fn most_groups(&self) -> usize {
        self.shared.saturating_sub(Self::ffn_shared(128, 0) as usize) / 4
    }
}
