//! The fast loop: splits of batches, and the slot that serves each token.

use crate::status::{
    CallFailure, array_from_raw, array_from_raw_mut, ek_status, free_handle, handle_from_raw_mut,
    run_guarded, store_handle,
};
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use evenkeel::planner::Planner;
use evenkeel::split::{CopyAim, DynamicSlots, SlotMemory};

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
        // SAFETY: the caller guarantees `slots` values at `physical_to_logical` and a valid `out`.
        let (placement, cluster) = unsafe { read_placement(physical_to_logical, cluster) }?;
        let inner = Planner::new(placement, cluster).map_err(CallFailure::from_error)?;
        unsafe { store_planner(inner, out) }
    })
}

/// Dynamic slots of every rank, which receive copies of experts before each batch. On every rank they follow
/// the static slots.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ek_dynamic_slots {
    /// sizeof(ek_dynamic_slots), so that later versions can add fields.
    pub size: usize,
    /// Dynamic slots of each rank.
    pub per_rank: usize,
    /// True if every layer has slots of its own, so that copies stay until others replace them. False if all
    /// layers share the slots, so that every layer finds them empty.
    pub kept: bool,
    /// True if at most `max_copies` copies take the lowest peak. False if the fewest copies hold the busiest
    /// rank within `imbalance_millionths` of the mean load above it.
    pub has_max_copies: bool,
    /// Copies before a batch, at most.
    pub max_copies: u32,
    /// Millionths of the mean load, for example 10000 for 1 %.
    pub imbalance_millionths: u32,
}

/// Copy of an expert before a batch.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ek_copy {
    /// Logical expert.
    pub expert: u32,
    /// Rank that sends the weights.
    pub from: u32,
    /// Rank that receives them.
    pub to: u32,
    /// Slot that receives them, numbered over all ranks.
    pub slot: u32,
}

/// Makes a planner with dynamic slots, like ek_planner_new otherwise. `cluster` has the static slots. The
/// planner numbers `slots + ranks * per_rank` slots. ek_planner_split then also chooses copies, which
/// ek_planner_copies returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_new_dynamic(
    physical_to_logical: *const i64,
    cluster: *const ek_cluster,
    dynamic: *const ek_dynamic_slots,
    out: *mut *mut ek_planner,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `dynamic` is null or points to dynamic slots.
        let dynamic = unsafe { dynamic.as_ref() }.copied();
        let dynamic = dynamic.ok_or_else(|| CallFailure::invalid_argument("dynamic: null"))?;
        if dynamic.size != size_of::<ek_dynamic_slots>() {
            let (found, expected) = (dynamic.size, size_of::<ek_dynamic_slots>());
            let message = format!("dynamic: size {found}: expected {expected}");
            return Err(CallFailure::invalid_argument(message));
        }
        // SAFETY: the caller guarantees these pointers.
        let (placement, cluster) = unsafe { read_placement(physical_to_logical, cluster) }?;
        let memory = if dynamic.kept { SlotMemory::Kept } else { SlotMemory::Shared };
        let aim = if dynamic.has_max_copies {
            CopyAim::Copies(dynamic.max_copies)
        } else {
            CopyAim::Imbalance(dynamic.imbalance_millionths)
        };
        let slots = DynamicSlots::new(dynamic.per_rank, memory).aim(aim);
        let planner = Planner::with_dynamic_slots(placement, cluster, slots);
        unsafe { store_planner(planner.map_err(CallFailure::from_error)?, out) }
    })
}

/// Reads the static placement of a planner.
///
/// # Safety
/// `cluster` is null or points to sizes, and `map` has as many values as they state slots.
unsafe fn read_placement(
    map: *const i64,
    cluster: *const ek_cluster,
) -> Result<(Placement, Cluster), CallFailure> {
    // SAFETY: the caller guarantees both.
    let ek_cluster { experts, ranks, nodes, slots } = unsafe { cluster_from_raw(cluster) }?;
    let map = unsafe { array_from_raw(map, slots, "physical_to_logical") }?;
    let placement = Placement::from_ids(experts, ranks, map).map_err(CallFailure::from_error)?;
    let cluster = placement_cluster(&placement, nodes)?;
    Ok((placement, cluster))
}

/// Stores a handle of a planner.
///
/// # Safety
/// `out` is null or has room for a handle.
unsafe fn store_planner(inner: Planner, out: *mut *mut ek_planner) -> Result<(), CallFailure> {
    let (experts, slots) = (inner.placement().experts(), inner.placement().slots().len());
    unsafe { store_handle(out, ek_planner { inner, experts, slots }) }
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

/// Chooses copies for the loads that are expected of the next batch, `expected[experts]`, so that other work
/// can hide them. The next ek_planner_split makes no other copies. ek_planner_copies returns them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_prepare_copies(
    planner: *mut ek_planner,
    expected: *const u64,
    len: usize,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: the handle and the array belong to the caller and have the stated length.
        let planner = unsafe { handle_from_raw_mut(planner, "planner") }?;
        let expected = unsafe { array_from_raw(expected, len, "expected") }?;
        planner.inner.prepare_copies(expected).map_err(CallFailure::from_error)?;
        Ok(())
    })
}

/// Stores the number of copies of the last ek_planner_split or ek_planner_prepare_copies in `count`, and the
/// copies in `copies[room]`. `copies` may be null with room 0. More copies than room are an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_copies(
    planner: *mut ek_planner,
    copies: *mut ek_copy,
    room: usize,
    count: *mut usize,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: the handle and the pointers belong to the caller, and `copies` has the stated room.
        let planner = unsafe { handle_from_raw_mut(planner, "planner") }?;
        let found = planner.inner.last_copies();
        if let Some(count) = unsafe { count.as_mut() } {
            *count = found.len();
        }
        if copies.is_null() && room == 0 {
            return Ok(());
        }
        if found.len() > room {
            let message = format!("copies: room for {room}: expected {}", found.len());
            return Err(CallFailure::invalid_argument(message));
        }
        let copies = unsafe { array_from_raw_mut(copies, room, "copies") }?;
        for (out, copy) in copies.iter_mut().zip(found) {
            let from = copy.from.unwrap_or(copy.to);
            *out = ek_copy { expert: copy.expert, from, to: copy.to, slot: copy.slot };
        }
        Ok(())
    })
}

/// Stores the expert of each slot, static and dynamic, by the last ek_planner_split in
/// `physical_to_logical[len]`, -1 for an empty slot.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_planner_placement(
    planner: *mut ek_planner,
    physical_to_logical: *mut i64,
    len: usize,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: the handle and the array belong to the caller and have the stated length.
        let planner = unsafe { handle_from_raw_mut(planner, "planner") }?;
        if len != planner.slots {
            let message = format!("physical_to_logical: room for {len}: expected {}", planner.slots);
            return Err(CallFailure::invalid_argument(message));
        }
        let map = unsafe { array_from_raw_mut(physical_to_logical, len, "physical_to_logical") }?;
        for (slot, id) in map.iter_mut().zip(planner.inner.placement().slot_ids()) {
            *slot = id;
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
