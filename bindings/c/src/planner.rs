//! The fast loop: splits of batches, and the slot that serves each token.

use crate::status::{
    CallFailure, array_from_raw, array_from_raw_mut, ek_status, free_handle, handle_from_raw_mut,
    run_guarded, store_handle,
};
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use evenkeel::planner::Planner;

/// Sizes of one layer on a group of ranks. Rank r owns slots / ranks slots, from r * slots / ranks on.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ek_cluster {
    /// Experts of the layer.
    pub experts: usize,
    /// Ranks of the group.
    pub ranks: usize,
    /// Nodes that hold the ranks, a divisor of `ranks`.
    pub nodes: usize,
    /// Slots of all ranks, a multiple of `ranks`.
    pub slots: usize,
}

/// Reads the sizes at a pointer.
///
/// # Safety
/// `cluster` is null or points to sizes.
pub(crate) unsafe fn cluster_from_raw(cluster: *const ek_cluster) -> Result<ek_cluster, CallFailure> {
    // SAFETY: the caller guarantees it.
    unsafe { cluster.as_ref() }.copied().ok_or_else(|| CallFailure::invalid_argument("cluster: null"))
}

/// Planner that splits the batches of one layer and redirects their tokens to slots.
pub struct ek_planner {
    pub(crate) inner: Planner,
    pub(crate) experts: usize,
    pub(crate) slots: usize,
}

/// Returns the cluster of a placement.
pub(crate) fn placement_cluster(placement: &Placement, nodes: usize) -> Result<Cluster, CallFailure> {
    let (slots, experts) = (placement.slots().len(), placement.experts());
    let redundant = slots.checked_sub(experts);
    let redundant = redundant.ok_or_else(|| {
        CallFailure::invalid_argument(format!("{slots} slots cannot hold {experts} experts"))
    })?;
    Cluster::new(placement.ranks(), nodes, experts, redundant).map_err(CallFailure::from_error)
}

/// Makes a planner for one layer and stores it in `out`. `physical_to_logical[slots]` has the expert of each
/// slot, -1 for an empty slot.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_new(
    physical_to_logical: *const i64,
    cluster: *const ek_cluster,
    out: *mut *mut ek_planner,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `cluster` is null or points to sizes.
        let ek_cluster { experts, ranks, nodes, slots } = unsafe { cluster_from_raw(cluster) }?;
        // SAFETY: the caller guarantees `slots` values at `physical_to_logical` and a valid `out`.
        let map = unsafe { array_from_raw(physical_to_logical, slots, "physical_to_logical") }?;
        let placement = Placement::from_ids(experts, ranks, map).map_err(CallFailure::from_error)?;
        let cluster = placement_cluster(&placement, nodes)?;
        let inner = Planner::new(placement, cluster).map_err(CallFailure::from_error)?;
        unsafe { store_handle(out, ek_planner { inner, experts, slots }) }
    })
}

/// Frees a planner. NULL is a no-op.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_free(planner: *mut ek_planner) {
    // SAFETY: the handle came from this library and is not used again.
    unsafe { free_handle(planner) }
}

/// Splits one batch. `counts[ranks * experts]` are the tokens that each rank routed to each expert, rank by
/// rank. `quotas[slots]` receives the tokens that each slot serves. `peak` receives the tokens of the busiest
/// rank. Either may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_split(
    planner: *mut ek_planner,
    counts: *const u64,
    len: usize,
    quotas: *mut u64,
    peak: *mut u64,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: the handle and the arrays belong to the caller and have the stated lengths.
        let planner = unsafe { handle_from_raw_mut(planner, "planner") }?;
        let counts = unsafe { array_from_raw(counts, len, "counts") }?;
        let slots = planner.slots;
        let split = planner.inner.split(counts).map_err(CallFailure::from_error)?;
        if !quotas.is_null() {
            unsafe { array_from_raw_mut(quotas, slots, "quotas") }?.copy_from_slice(&split.quotas);
        }
        // SAFETY: `peak` is null or has room for one value.
        if let Some(peak) = unsafe { peak.as_mut() } {
            *peak = split.peak();
        }
        Ok(())
    })
}

unsafe fn count_ids<Id: Copy + Into<i64>>(
    planner: *mut ek_planner,
    ids: *const Id,
    len: usize,
    counts: *mut u64,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: the public functions below state the requirements.
        let planner = unsafe { handle_from_raw_mut(planner, "planner") }?;
        let ids = unsafe { array_from_raw(ids, len, "ids") }?;
        let counts = unsafe { array_from_raw_mut(counts, planner.experts, "counts") }?;
        planner.inner.count_ids(ids, counts).map_err(CallFailure::from_error)
    })
}

unsafe fn redirect_ids<Id: Copy + Into<i64> + TryFrom<u32>>(
    planner: *mut ek_planner,
    ids: *const Id,
    len: usize,
    source: usize,
    slots: *mut Id,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: the public functions below state the requirements.
        let planner = unsafe { handle_from_raw_mut(planner, "planner") }?;
        let ids = unsafe { array_from_raw(ids, len, "ids") }?;
        let slots = unsafe { array_from_raw_mut(slots, len, "slots") }?;
        planner.inner.redirect_into(ids, source, slots).map_err(CallFailure::from_error)
    })
}

/// Counts the tokens per expert of one source's `ids[len]` (-1: none) into `counts[experts]`. The other ranks
/// need these counts before they can split.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_count_i32(
    planner: *mut ek_planner,
    ids: *const i32,
    len: usize,
    counts: *mut u64,
) -> ek_status {
    // SAFETY: the caller guarantees the documented pointers.
    unsafe { count_ids(planner, ids, len, counts) }
}

/// Counts ids of 64 bits, like ek_planner_count_i32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_count_i64(
    planner: *mut ek_planner,
    ids: *const i64,
    len: usize,
    counts: *mut u64,
) -> ek_status {
    // SAFETY: the caller guarantees the documented pointers.
    unsafe { count_ids(planner, ids, len, counts) }
}

/// Writes the physical slot of each of rank `source`'s `ids[len]` by the last split to `slots[len]`. The ids
/// are the counted ones. -1 stays -1. `slots` and `ids` do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_redirect_i32(
    planner: *mut ek_planner,
    ids: *const i32,
    len: usize,
    source: usize,
    slots: *mut i32,
) -> ek_status {
    // SAFETY: the caller guarantees the documented pointers.
    unsafe { redirect_ids(planner, ids, len, source, slots) }
}

/// Redirects ids of 64 bits, like ek_planner_redirect_i32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_redirect_i64(
    planner: *mut ek_planner,
    ids: *const i64,
    len: usize,
    source: usize,
    slots: *mut i64,
) -> ek_status {
    // SAFETY: the caller guarantees the documented pointers.
    unsafe { redirect_ids(planner, ids, len, source, slots) }
}
