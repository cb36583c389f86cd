//! The fast loop on a GPU, on the caller's memory and stream.

use crate::planner::cluster;
use crate::status::{Failure, array, ek_status, give, guarded, handle, handle_mut, take};
use evenkeel::cuda::cudarc::driver::DevicePtr as _;
use evenkeel::cuda::{Context, CudaError, DevicePlanner, Handover};
use evenkeel::place::Placement;
use std::ffi::c_void;

/// Splits and redirects batches on one GPU, for one source rank.
pub struct ek_device_planner {
    planner: DevicePlanner,
    handover: Handover,
}

fn failed(err: CudaError) -> Failure {
    let unavailable = err.is_unavailable();
    let failure = Failure::of(err);
    if unavailable { Failure { status: ek_status::EK_UNAVAILABLE, ..failure } } else { failure }
}

/// Makes a planner on GPU `device` for rank `source`: one row of `physical_to_logical[layers * slots]` per layer, up to
/// `capacity` ids per batch. EK_UNAVAILABLE where there is no GPU that will do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_device_planner_new(
    physical_to_logical: *const i64,
    layers: usize,
    slots: usize,
    experts: usize,
    ranks: usize,
    nodes: usize,
    source: usize,
    capacity: usize,
    device: usize,
    out: *mut *mut ek_device_planner,
) -> ek_status {
    guarded(|| {
        let values = layers.checked_mul(slots).filter(|&all| all > 0);
        let values = values.ok_or_else(|| Failure::invalid("expected at least one layer and one slot"))?;
        // SAFETY: as many values are there, says the caller; `out` is theirs.
        let maps = unsafe { array(physical_to_logical, values, "physical_to_logical") }?;
        let placements = maps.chunks(slots).map(|map| Placement::of_ids(experts, ranks, map));
        let placements = placements.collect::<Result<Vec<_>, _>>().map_err(Failure::of)?;
        let cluster = cluster(&placements[0], nodes)?;
        let gpu = Context::open(device).map_err(failed)?;
        let planner = DevicePlanner::new(&gpu, &placements, &cluster, source, capacity).map_err(failed)?;
        let handover = Handover::new(&gpu).map_err(failed)?;
        unsafe { give(out, ek_device_planner { planner, handover }) }
    })
}

/// Frees a planner; null is let be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_device_planner_free(planner: *mut ek_device_planner) {
    // SAFETY: it came from this library and is not used again.
    unsafe { take(planner) }
}

/// Where the planner keeps this rank's counts, `[experts]` of uint32 in device memory, as ek_device_planner_count leaves them:
/// what the ranks gather (ncclAllGather, say).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_device_planner_own_counts(
    planner: *const ek_device_planner,
    out: *mut *const u32,
) -> ek_status {
    guarded(|| {
        // SAFETY: a handle; null or room for a pointer.
        let planner = unsafe { handle(planner, "planner") }?;
        let out = unsafe { out.as_mut() }.ok_or_else(|| Failure::invalid("out: null"))?;
        let (address, _in_order) = planner.planner.own_counts().device_ptr(planner.planner.gpu().stream());
        *out = address as usize as *const u32;
        Ok(())
    })
}

/// Enqueues the counting of `ids[len]` in device memory, of `id_bytes` 4 or 8 each, on the caller's `stream` (a cudaStream_t).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_device_planner_count(
    planner: *mut ek_device_planner,
    ids: *const c_void,
    len: usize,
    id_bytes: usize,
    stream: *mut c_void,
) -> ek_status {
    guarded(|| {
        // SAFETY: a handle; memory and stream are the caller's.
        let planner = unsafe { handle_mut(planner, "planner") }?;
        let (gpu, handover) = (&mut planner.planner, &planner.handover);
        let enqueued = match id_bytes {
            4 => unsafe { handover.count::<i32>(gpu, ids as u64, len, stream as u64) },
            8 => unsafe { handover.count::<i64>(gpu, ids as u64, len, stream as u64) },
            _ => return Err(Failure::invalid(format!("id_bytes {id_bytes}: expected 4 or 8"))),
        };
        enqueued.map_err(failed)
    })
}

/// Enqueues the split of a layer (by its position) by `counts[ranks * experts]`, everybody's, and writes the slot of every id
/// that was counted to `slots[len]`. All memory is the device's; nothing waits for the host, so a graph can record it.
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
    guarded(|| {
        // SAFETY: a handle; memory and stream are the caller's.
        let planner = unsafe { handle_mut(planner, "planner") }?;
        let (gpu, handover) = (&mut planner.planner, &planner.handover);
        let (counts, ids, slots, stream) = (counts as u64, (ids as u64, len), slots as u64, stream as u64);
        let enqueued = match id_bytes {
            4 => unsafe { handover.redirect::<i32>(gpu, layer, counts, ids, slots, stream) },
            8 => unsafe { handover.redirect::<i64>(gpu, layer, counts, ids, slots, stream) },
            _ => return Err(Failure::invalid(format!("id_bytes {id_bytes}: expected 4 or 8"))),
        };
        enqueued.map_err(failed)
    })
}
