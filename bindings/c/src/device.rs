//! The fast loop on a GPU, in the caller's memory and on the caller's stream.

use crate::planner::{cluster_from_raw, ek_cluster, placement_cluster};
use crate::status::{
    CallFailure, array_from_raw, ek_status, free_handle, handle_from_raw, handle_from_raw_mut, run_guarded,
    store_handle,
};
use evenkeel::place::Placement;
use evenkeel_cuda::cudarc::driver::DevicePtr as _;
use evenkeel_cuda::{CudaError, DevicePlanner, ForeignIds, GpuContext, StreamHandover};
use std::ffi::c_void;

/// Planner that splits and redirects batches on one GPU, for one source rank.
pub struct ek_device_planner {
    planner: DevicePlanner,
    handover: StreamHandover,
}

fn device_failure(err: CudaError) -> CallFailure {
    let unavailable = err.is_unavailable();
    let failure = CallFailure::from_error(err);
    if unavailable { CallFailure { status: ek_status::EK_UNAVAILABLE, ..failure } } else { failure }
}

/// Makes a planner on GPU `device` for rank `source`. `physical_to_logical[layers * slots]` has one row per
/// layer. A batch has at most `capacity` ids. Returns EK_UNAVAILABLE if no usable GPU exists.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_device_planner_new(
    physical_to_logical: *const i64,
    layers: usize,
    cluster: *const ek_cluster,
    source: usize,
    capacity: usize,
    device: usize,
    out: *mut *mut ek_device_planner,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `cluster` is null or points to sizes.
        let ek_cluster { experts, ranks, nodes, slots } = unsafe { cluster_from_raw(cluster) }?;
        let values = layers.checked_mul(slots).filter(|&all| all > 0);
        let values = values
            .ok_or_else(|| CallFailure::invalid_argument("expected at least one layer and one slot"))?;
        // SAFETY: the caller guarantees `values` values at `physical_to_logical` and a valid `out`.
        let maps = unsafe { array_from_raw(physical_to_logical, values, "physical_to_logical") }?;
        let placements = maps.chunks(slots).map(|map| Placement::from_ids(experts, ranks, map));
        let placements = placements.collect::<Result<Vec<_>, _>>().map_err(CallFailure::from_error)?;
        let cluster = placement_cluster(&placements[0], nodes)?;
        let gpu = GpuContext::open(device).map_err(device_failure)?;
        let planner =
            DevicePlanner::new(&gpu, &placements, &cluster, source, capacity).map_err(device_failure)?;
        let handover = StreamHandover::new(&gpu).map_err(device_failure)?;
        unsafe { store_handle(out, ek_device_planner { planner, handover }) }
    })
}

/// Frees a planner. NULL is a no-op.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_device_planner_free(planner: *mut ek_device_planner) {
    // SAFETY: the handle came from this library and is not used again.
    unsafe { free_handle(planner) }
}

/// Returns the address of this rank's counts, `[experts]` of uint32 in device memory, in `out`. The last
/// ek_device_planner_count defines their values. The ranks gather these counts, for example with
/// ncclAllGather.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_device_planner_own_counts(
    planner: *const ek_device_planner,
    out: *mut *const u32,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `planner` is a handle. `out` is null or has room for a pointer.
        let planner = unsafe { handle_from_raw(planner, "planner") }?;
        let out = unsafe { out.as_mut() }.ok_or_else(|| CallFailure::invalid_argument("out: null"))?;
        let (address, _in_order) = planner.planner.own_counts().device_ptr(planner.planner.gpu().stream());
        *out = address as usize as *const u32;
        Ok(())
    })
}

/// Enqueues the counting of `ids[len]` in device memory on the caller's `stream` (a cudaStream_t). Each id
/// has `id_bytes` bytes, 4 or 8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_device_planner_count(
    planner: *mut ek_device_planner,
    ids: *const c_void,
    len: usize,
    id_bytes: usize,
    stream: *mut c_void,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `planner` is a handle. Memory and stream belong to the caller.
        let planner = unsafe { handle_from_raw_mut(planner, "planner") }?;
        let (gpu, handover) = (&mut planner.planner, &planner.handover);
        let ids = ForeignIds { address: ids as u64, len };
        let enqueued = match id_bytes {
            4 => unsafe { handover.count_ids::<i32>(gpu, ids, stream as u64) },
            8 => unsafe { handover.count_ids::<i64>(gpu, ids, stream as u64) },
            _ => return Err(CallFailure::invalid_argument(format!("id_bytes {id_bytes}: expected 4 or 8"))),
        };
        enqueued.map_err(device_failure)
    })
}

/// Enqueues the split of one layer, given by its position, and writes the slot of every counted id to
/// `slots[len]`. `counts[ranks * experts]` are the gathered counts of all ranks. All memory is device memory.
/// No call waits for the host, so a CUDA graph can record it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_device_planner_redirect(
    planner: *mut ek_device_planner,
    layer: usize,
    counts: *const u32,
    ids: *const c_void,
    len: usize,
    id_bytes: usize,
    slots: *mut c_void,
    stream: *mut c_void,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `planner` is a handle. Memory and stream belong to the caller.
        let planner = unsafe { handle_from_raw_mut(planner, "planner") }?;
        let (gpu, handover) = (&mut planner.planner, &planner.handover);
        let ids = ForeignIds { address: ids as u64, len };
        let (counts, slots, stream) = (counts as u64, slots as u64, stream as u64);
        let enqueued = match id_bytes {
            4 => unsafe { handover.redirect_ids::<i32>(gpu, layer, counts, ids, slots, stream) },
            8 => unsafe { handover.redirect_ids::<i64>(gpu, layer, counts, ids, slots, stream) },
            _ => return Err(CallFailure::invalid_argument(format!("id_bytes {id_bytes}: expected 4 or 8"))),
        };
        enqueued.map_err(device_failure)
    })
}
