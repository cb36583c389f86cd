//! Plans: planned from a trace, read, written and exported.

use crate::planner::ek_planner;
use crate::status::{
    CallFailure, array_from_raw_mut, ek_status, free_handle, handle_from_raw, run_guarded, store_handle,
    text_from_raw,
};
use evenkeel::cluster::Cluster;
use evenkeel::export::{self, Dialect};
use evenkeel::place;
use evenkeel::plan::{BatchProvenance, Plan};
use evenkeel::planner::Planner;
use evenkeel_trace::{ReadOptions, read};
use std::ffi::c_char;
use std::path::{Path, PathBuf};

/// Placements for all busy layers of a model on one group of ranks.
pub struct ek_plan {
    inner: Plan,
}

/// Plans from a trace file or folder in any format that evenkeel reads. `redundant` counts slots beyond one
/// per expert over all ranks. `policy` is a name as on the command line ("recourse", "eplb", ..). NULL
/// selects the default. `groups` is the number of expert groups of the model, 1 if its router has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_new(
    trace: *const c_char,
    ranks: usize,
    nodes: usize,
    redundant: usize,
    groups: usize,
    policy: *const c_char,
    out: *mut *mut ek_plan,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: the texts and `out` belong to the caller.
        let path = PathBuf::from(unsafe { text_from_raw(trace, "trace") }?);
        let policy = if policy.is_null() { "recourse" } else { unsafe { text_from_raw(policy, "policy") }? };
        let trace = read(&[path], &ReadOptions::default(), &()).map_err(CallFailure::from_error)?;
        let cluster =
            Cluster::new(ranks, nodes, trace.experts(), redundant).map_err(CallFailure::from_error)?;
        let policy = place::policy(policy, groups, &cluster).map_err(CallFailure::from_error)?;
        let made = Plan::build(&trace, &cluster, policy.as_ref(), BatchProvenance::default(), &())
            .map_err(CallFailure::from_error)?;
        unsafe { store_handle(out, ek_plan { inner: made.plan }) }
    })
}

/// Reads and checks a plan file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_read(path: *const c_char, out: *mut *mut ek_plan) -> ek_status {
    run_guarded(|| {
        // SAFETY: the text and `out` belong to the caller.
        let path = unsafe { text_from_raw(path, "path") }?;
        let inner =
            Plan::read(Path::new(path)).map_err(|e| CallFailure::invalid_argument(format!("{path}: {e}")))?;
        unsafe { store_handle(out, ek_plan { inner }) }
    })
}

/// Frees a plan. NULL is a no-op.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_free(plan: *mut ek_plan) {
    // SAFETY: the handle came from this library and is not used again.
    unsafe { free_handle(plan) }
}

/// Returns the shape of a plan: planned layers, logical experts, ranks, slots on each rank. Any pointer to a
/// number may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_shape(
    plan: *const ek_plan,
    layers: *mut usize,
    experts: *mut usize,
    ranks: *mut usize,
    slots_per_rank: *mut usize,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `plan` is a handle. Each number is null or belongs to the caller.
        let plan = &unsafe { handle_from_raw(plan, "plan") }?.inner;
        let shape = [
            (layers, plan.layers.len()),
            (experts, plan.experts),
            (ranks, plan.cluster.ranks()),
            (slots_per_rank, plan.cluster.slots_per_rank()),
        ];
        for (out, value) in shape {
            if let Some(out) = unsafe { out.as_mut() } {
                *out = value;
            }
        }
        Ok(())
    })
}

/// Returns one planned layer by its position from 0. `id` receives the layer id in the model.
/// `physical_to_logical[ranks * slots_per_rank]` receives the expert of each slot, -1 for an empty slot.
/// Either pointer may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_layer(
    plan: *const ek_plan,
    position: usize,
    id: *mut u32,
    physical_to_logical: *mut i64,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `plan` is a handle. The memory is null or belongs to the caller.
        let plan = &unsafe { handle_from_raw(plan, "plan") }?.inner;
        let layers = plan.layers.len();
        let layer = plan.layers.get(position);
        let layer = layer.ok_or_else(|| {
            CallFailure::invalid_argument(format!("position {position}: the plan has {layers} layers"))
        })?;
        if let Some(id) = unsafe { id.as_mut() } {
            *id = layer.layer;
        }
        if !physical_to_logical.is_null() {
            let slots = layer.placement.slots().len();
            let map = unsafe { array_from_raw_mut(physical_to_logical, slots, "physical_to_logical") }?;
            for (out, id) in map.iter_mut().zip(layer.placement.slot_ids()) {
                *out = id;
            }
        }
        Ok(())
    })
}

/// Writes a plan to a file. `dialect` names a serving stack ("sglang", "trtllm", "vllm", "vllm-ascend") or
/// "eplb". NULL selects the plan file of evenkeel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_write(
    plan: *const ek_plan,
    path: *const c_char,
    dialect: *const c_char,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `plan` is a handle. The texts belong to the caller.
        let plan = &unsafe { handle_from_raw(plan, "plan") }?.inner;
        let path = unsafe { text_from_raw(path, "path") }?;
        let written = if dialect.is_null() {
            plan.to_json().map_err(CallFailure::from_error)?
        } else {
            let dialect: Dialect =
                unsafe { text_from_raw(dialect, "dialect") }?.parse().map_err(CallFailure::from_error)?;
            export::write(plan, dialect).map_err(CallFailure::from_error)?
        };
        std::fs::write(path, written).map_err(|e| CallFailure::invalid_argument(format!("{path}: {e}")))
    })
}

/// Makes a planner for one layer of a plan. `layer` is the layer id in the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_planner(
    plan: *const ek_plan,
    layer: u32,
    out: *mut *mut ek_planner,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: `plan` is a handle. `out` belongs to the caller.
        let plan = &unsafe { handle_from_raw(plan, "plan") }?.inner;
        let found = plan.layers.iter().find(|planned| planned.layer == layer);
        let found =
            found.ok_or_else(|| CallFailure::invalid_argument(format!("layer {layer} is not planned")))?;
        let (placement, experts) = (found.placement.clone(), plan.experts);
        let slots = placement.slots().len();
        let inner = Planner::new(placement, plan.cluster).map_err(CallFailure::from_error)?;
        unsafe { store_handle(out, ek_planner { inner, experts, slots }) }
    })
}
