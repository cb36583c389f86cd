//! Plans: made from a trace, read, written, exported.

use crate::planner::ek_planner;
use crate::status::{Failure, array_mut, ek_status, give, guarded, handle, take, text};
use evenkeel::cluster::Cluster;
use evenkeel::export::{self, Dialect};
use evenkeel::place;
use evenkeel::plan::{Origin, Plan};
use evenkeel::planner::Planner;
use evenkeel::trace::{ReadOptions, read};
use std::ffi::c_char;
use std::path::{Path, PathBuf};

/// Placements for all busy layers of a model on one group of ranks.
pub struct ek_plan {
    inner: Plan,
}

/// Plans from a trace file or folder in any format that evenkeel reads. `redundant` counts slots beyond one per expert over
/// all ranks; `policy` is a name as on the command line ("recourse", "eplb", ..), null for the default; `groups` are the
/// model's expert groups, 1 where routing knows none.
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
    guarded(|| {
        // SAFETY: texts and `out` are the caller's.
        let path = PathBuf::from(unsafe { text(trace, "trace") }?);
        let policy = if policy.is_null() { "recourse" } else { unsafe { text(policy, "policy") }? };
        let trace = read(&[path], &ReadOptions::default(), &()).map_err(Failure::of)?;
        let cluster = Cluster::new(ranks, nodes, trace.experts(), redundant).map_err(Failure::of)?;
        let policy = place::policy(policy, groups, &cluster).map_err(Failure::of)?;
        let made =
            Plan::make(&trace, &cluster, policy.as_ref(), Origin::default(), &()).map_err(Failure::of)?;
        unsafe { give(out, ek_plan { inner: made.plan }) }
    })
}

/// Reads and checks a plan file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_read(path: *const c_char, out: *mut *mut ek_plan) -> ek_status {
    guarded(|| {
        // SAFETY: text and `out` are the caller's.
        let path = unsafe { text(path, "path") }?;
        let inner = Plan::read(Path::new(path)).map_err(|e| Failure::invalid(format!("{path}: {e}")))?;
        unsafe { give(out, ek_plan { inner }) }
    })
}

/// Frees a plan; null is let be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_free(plan: *mut ek_plan) {
    // SAFETY: it came from this library and is not used again.
    unsafe { take(plan) }
}

/// The shape of a plan: planned layers, logical experts, ranks, slots on each rank. Any pointer to a number may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_shape(
    plan: *const ek_plan,
    layers: *mut usize,
    experts: *mut usize,
    ranks: *mut usize,
    slots_per_rank: *mut usize,
) -> ek_status {
    guarded(|| {
        // SAFETY: a handle, and numbers that are null or the caller's.
        let plan = &unsafe { handle(plan, "plan") }?.inner;
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

/// One planned layer, by its position from 0: its real id, and which expert each slot holds, into
/// `physical_to_logical[ranks * slots_per_rank]`, -1 for an empty slot. Either pointer may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_layer(
    plan: *const ek_plan,
    position: usize,
    id: *mut u32,
    physical_to_logical: *mut i64,
) -> ek_status {
    guarded(|| {
        // SAFETY: a handle, and memory that is null or the caller's.
        let plan = &unsafe { handle(plan, "plan") }?.inner;
        let layers = plan.layers.len();
        let layer = plan.layers.get(position);
        let layer = layer
            .ok_or_else(|| Failure::invalid(format!("position {position}: the plan has {layers} layers")))?;
        if let Some(id) = unsafe { id.as_mut() } {
            *id = layer.layer;
        }
        if !physical_to_logical.is_null() {
            let slots = layer.placement.slots().len();
            let map = unsafe { array_mut(physical_to_logical, slots, "physical_to_logical") }?;
            for (out, id) in map.iter_mut().zip(layer.placement.ids()) {
                *out = id;
            }
        }
        Ok(())
    })
}

/// Writes a plan to a file: as evenkeel reads it where `dialect` is null, or as a serving stack does: "sglang", "trtllm",
/// "vllm", "vllm-ascend", "eplb".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_write(
    plan: *const ek_plan,
    path: *const c_char,
    dialect: *const c_char,
) -> ek_status {
    guarded(|| {
        // SAFETY: a handle and texts of the caller's.
        let plan = &unsafe { handle(plan, "plan") }?.inner;
        let path = unsafe { text(path, "path") }?;
        let written = if dialect.is_null() {
            plan.to_json().map_err(Failure::of)?
        } else {
            let dialect: Dialect = unsafe { text(dialect, "dialect") }?.parse().map_err(Failure::of)?;
            export::write(plan, dialect).map_err(Failure::of)?
        };
        std::fs::write(path, written).map_err(|e| Failure::invalid(format!("{path}: {e}")))
    })
}

/// Makes a planner for one layer of a plan, by its real id.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_planner(
    plan: *const ek_plan,
    layer: u32,
    out: *mut *mut ek_planner,
) -> ek_status {
    guarded(|| {
        // SAFETY: a handle, and `out` of the caller's.
        let plan = &unsafe { handle(plan, "plan") }?.inner;
        let found = plan.layers.iter().find(|planned| planned.layer == layer);
        let found = found.ok_or_else(|| Failure::invalid(format!("layer {layer} is not planned")))?;
        let (placement, experts) = (found.placement.clone(), plan.experts);
        let slots = placement.slots().len();
        let inner = Planner::new(placement, plan.cluster).map_err(Failure::of)?;
        unsafe { give(out, ek_planner { inner, experts, slots }) }
    })
}
