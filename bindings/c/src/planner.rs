//! The fast loop: splits of batches, and which slot serves which token.

use crate::status::{Failure, array, array_mut, ek_status, give, guarded, handle_mut, take};
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use evenkeel::planner::Planner;

/// Splits batches of one layer and says which slot serves which token.
pub struct ek_planner {
    pub(crate) inner: Planner,
    pub(crate) experts: usize,
    pub(crate) slots: usize,
}

/// The group that a placement is for.
pub(crate) fn cluster(placement: &Placement, nodes: usize) -> Result<Cluster, Failure> {
    let (slots, experts) = (placement.slots().len(), placement.experts());
    let redundant = slots.checked_sub(experts);
    let redundant =
        redundant.ok_or_else(|| Failure::invalid(format!("{slots} slots cannot hold {experts} experts")))?;
    Cluster::new(placement.ranks(), nodes, experts, redundant).map_err(Failure::of)
}

/// Makes a planner for one layer: `physical_to_logical[slots]` says which expert each slot holds (-1: none), rank r having the
/// slots r * slots / ranks and on; `nodes` divides `ranks`. The planner is put where `out` points.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_new(
    physical_to_logical: *const i64,
    slots: usize,
    experts: usize,
    ranks: usize,
    nodes: usize,
    out: *mut *mut ek_planner,
) -> ek_status {
    guarded(|| {
        // SAFETY: `slots` values are there, says the caller; `out` is theirs.
        let map = unsafe { array(physical_to_logical, slots, "physical_to_logical") }?;
        let placement = Placement::of_ids(experts, ranks, map).map_err(Failure::of)?;
        let cluster = cluster(&placement, nodes)?;
        let inner = Planner::new(placement, cluster).map_err(Failure::of)?;
        unsafe { give(out, ek_planner { inner, experts, slots }) }
    })
}

/// Frees a planner; null is let be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_free(planner: *mut ek_planner) {
    // SAFETY: it came from this library and is not used again.
    unsafe { take(planner) }
}

/// Splits one batch. `counts[ranks * experts]` are the tokens that each rank routed to each expert, rank by rank.
/// `quotas[slots]` receives the tokens that each slot serves and `peak` the busiest rank's; either may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_split(
    planner: *mut ek_planner,
    counts: *const u64,
    len: usize,
    quotas: *mut u64,
    peak: *mut u64,
) -> ek_status {
    guarded(|| {
        // SAFETY: handle and arrays are the caller's, of the lengths they say.
        let planner = unsafe { handle_mut(planner, "planner") }?;
        let counts = unsafe { array(counts, len, "counts") }?;
        let slots = planner.slots;
        let split = planner.inner.split(counts).map_err(Failure::of)?;
        if !quotas.is_null() {
            unsafe { array_mut(quotas, slots, "quotas") }?.copy_from_slice(&split.quotas);
        }
        // SAFETY: null or room for one value.
        if let Some(peak) = unsafe { peak.as_mut() } {
            *peak = split.peak();
        }
        Ok(())
    })
}

unsafe fn count<Id: Copy + Into<i64>>(
    planner: *mut ek_planner,
    ids: *const Id,
    len: usize,
    counts: *mut u64,
) -> ek_status {
    guarded(|| {
        // SAFETY: as the functions below say.
        let planner = unsafe { handle_mut(planner, "planner") }?;
        let ids = unsafe { array(ids, len, "ids") }?;
        let counts = unsafe { array_mut(counts, planner.experts, "counts") }?;
        planner.inner.count(ids, counts).map_err(Failure::of)
    })
}

unsafe fn redirect<Id: Copy + Into<i64> + TryFrom<u32>>(
    planner: *mut ek_planner,
    ids: *const Id,
    len: usize,
    source: usize,
    slots: *mut Id,
) -> ek_status {
    guarded(|| {
        // SAFETY: as the functions below say.
        let planner = unsafe { handle_mut(planner, "planner") }?;
        let ids = unsafe { array(ids, len, "ids") }?;
        let slots = unsafe { array_mut(slots, len, "slots") }?;
        planner.inner.redirect_into(ids, source, slots).map_err(Failure::of)
    })
}

/// Counts one source's `ids[len]` (-1: none) into `counts[experts]`: what the other ranks have to be told.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_count_i32(
    planner: *mut ek_planner,
    ids: *const i32,
    len: usize,
    counts: *mut u64,
) -> ek_status {
    // SAFETY: the caller's promise.
    unsafe { count(planner, ids, len, counts) }
}

/// As ek_planner_count_i32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_count_i64(
    planner: *mut ek_planner,
    ids: *const i64,
    len: usize,
    counts: *mut u64,
) -> ek_status {
    // SAFETY: the caller's promise.
    unsafe { count(planner, ids, len, counts) }
}

/// Writes to `slots[len]`, other memory than `ids`, the physical slot of every one of rank `source`'s `ids[len]`, by the last
/// split; -1 stays -1. The ids are those that were counted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_redirect_i32(
    planner: *mut ek_planner,
    ids: *const i32,
    len: usize,
    source: usize,
    slots: *mut i32,
) -> ek_status {
    // SAFETY: the caller's promise.
    unsafe { redirect(planner, ids, len, source, slots) }
}

/// As ek_planner_redirect_i32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_redirect_i64(
    planner: *mut ek_planner,
    ids: *const i64,
    len: usize,
    source: usize,
    slots: *mut i64,
) -> ek_status {
    // SAFETY: the caller's promise.
    unsafe { redirect(planner, ids, len, source, slots) }
}
