//! Plans: planned from a trace, read, written and exported.

use crate::planner::ek_planner;
use crate::status::{
    CallFailure, array_from_raw, array_from_raw_mut, ek_status, free_handle, handle_from_raw, run_guarded,
    store_handle, text_from_raw,
};
use evenkeel::cluster::Cluster;
use evenkeel::economics::MoveEconomics;
use evenkeel::export::{self, Dialect};
use evenkeel::gpu::GpuSpec;
use evenkeel::model::MoeModel;
use evenkeel::place::{self, Coverage};
use evenkeel::plan::{Constraints, LinkBudget, Plan, PlanRequest};
use evenkeel::planner::Planner;
use evenkeel_trace::{ReadOptions, read};
use std::ffi::c_char;
use std::path::{Path, PathBuf};

/// Placements for all busy layers of a model on one group of ranks.
pub struct ek_plan {
    inner: Plan,
}

/// Cluster, policy and constraints of a plan. Set `size` to `sizeof(ek_plan_options)` and all other members
/// that have no value to 0, as `ek_plan_options options = {sizeof options, 8, 1, 8, 1};` does.
#[repr(C)]
pub struct ek_plan_options {
    /// Size of this structure in bytes.
    pub size: usize,
    /// Ranks of the group.
    pub ranks: usize,
    /// Nodes that hold the ranks.
    pub nodes: usize,
    /// Slots beyond one per expert over all ranks. With `uneven`, some ranks have one slot less.
    pub redundant: usize,
    /// Expert groups of the model, 1 if its router has none.
    pub groups: usize,
    /// Name of the policy as on the command line ("recourse", "eplb", ..). NULL selects the default.
    pub policy: *const c_char,
    /// True if the slots need not divide over the ranks.
    pub uneven: bool,
    /// Experts that have to survive the loss of any one rank: 0 none, 1 all, 2 as many as possible.
    pub coverage: u32,
    /// Speed of each rank, `[speed_count]`. NULL means equal ranks.
    pub speeds: *const u32,
    /// Number of speeds.
    pub speed_count: usize,
    /// True if all layers share `memory_budget` redundant slots.
    pub has_memory_budget: bool,
    /// Redundant slots of all layers together.
    pub memory_budget: usize,
    /// Plan that runs now. NULL plans from scratch.
    pub previous: *const ek_plan,
    /// Ranks of `previous` that are lost, `[lost_rank_count]`.
    pub lost_ranks: *const usize,
    /// Number of lost ranks.
    pub lost_rank_count: usize,
    /// True if `max_moves` limits the moves of each layer.
    pub has_max_moves: bool,
    /// Highest number of moves per layer.
    pub max_moves: usize,
    /// Steps within which moves have to pay. 0 accepts all moves.
    pub horizon_steps: u64,
    /// Gigabits per second that a rank receives, for `horizon_steps`.
    pub link_gbps: u64,
    /// Bytes that a rank may receive over all layers. 0 sets no limit.
    pub link_bytes: u64,
    /// Model that runs, as in "deepseek-v3", for `horizon_steps` and `link_bytes`.
    pub model: *const c_char,
    /// GPU that runs it, as in "h100", for `horizon_steps`.
    pub gpu: *const c_char,
}

/// Plans from a trace file or folder in any format that evenkeel reads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ek_plan_new(
    trace: *const c_char,
    options: *const ek_plan_options,
    out: *mut *mut ek_plan,
) -> ek_status {
    run_guarded(|| {
        // SAFETY: the texts, the options and `out` belong to the caller.
        let path = PathBuf::from(unsafe { text_from_raw(trace, "trace") }?);
        let options = unsafe { handle_from_raw(options, "options") }?;
        if options.size != size_of::<ek_plan_options>() {
            return Err(CallFailure::invalid_argument(format!(
                "options: size {}, expected {}",
                options.size,
                size_of::<ek_plan_options>()
            )));
        }
        let policy = unsafe { optional_text(options.policy, "policy") }?.unwrap_or("recourse");
        let trace = read(&[path], &ReadOptions::default(), &()).map_err(CallFailure::from_error)?;
        let cluster = if options.uneven { Cluster::with_uneven_slots } else { Cluster::new };
        let cluster = cluster(options.ranks, options.nodes, trace.experts(), options.redundant)
            .map_err(CallFailure::from_error)?;
        let policy = place::policy(policy, options.groups, &cluster).map_err(CallFailure::from_error)?;
        let previous = if options.previous.is_null() {
            None
        } else {
            Some(&unsafe { handle_from_raw(options.previous, "previous") }?.inner)
        };
        let request = PlanRequest::new(&trace, cluster, policy.as_ref()).previous(previous);
        let made = request
            .constraints(unsafe { constraints(options) }?)
            .run(&())
            .map_err(CallFailure::from_error)?;
        unsafe { store_handle(out, ek_plan { inner: made.plan }) }
    })
}

/// Returns the constraints that the options state.
///
/// # Safety
/// The arrays and texts of the options belong to the caller.
unsafe fn constraints(options: &ek_plan_options) -> Result<Constraints, CallFailure> {
    let mut limits = Constraints::default();
    limits.coverage = match options.coverage {
        0 => None,
        1 => Some(Coverage::All),
        2 => Some(Coverage::Heaviest),
        other => return Err(CallFailure::invalid_argument(format!("coverage {other}: expected 0 to 2"))),
    };
    // SAFETY: the caller of this function guarantees it for all pointers below.
    if !options.speeds.is_null() {
        limits.speeds = unsafe { array_from_raw(options.speeds, options.speed_count, "speeds") }?.to_vec();
    }
    if !options.lost_ranks.is_null() {
        let lost = unsafe { array_from_raw(options.lost_ranks, options.lost_rank_count, "lost_ranks") }?;
        limits.lost_ranks = lost.to_vec();
    }
    limits.memory_budget = options.has_memory_budget.then_some(options.memory_budget);
    limits.max_moves = options.has_max_moves.then_some(options.max_moves);
    let model: Option<MoeModel> = match unsafe { optional_text(options.model, "model") }? {
        None => None,
        Some(name) => Some(name.parse().map_err(CallFailure::from_error)?),
    };
    let gpu: Option<GpuSpec> = match unsafe { optional_text(options.gpu, "gpu") }? {
        None => None,
        Some(name) => Some(name.parse().map_err(CallFailure::from_error)?),
    };
    if options.horizon_steps > 0 {
        let (Some(model), Some(gpu)) = (&model, &gpu) else {
            return Err(CallFailure::invalid_argument("horizon_steps: expected model and gpu too"));
        };
        let economics = MoveEconomics::on_link(options.horizon_steps, options.link_gbps, model, gpu);
        limits.economics =
            Some(economics.ok_or_else(|| CallFailure::invalid_argument("link_gbps 0: expected 1 or more"))?);
    }
    if options.link_bytes > 0 {
        let Some(model) = &model else {
            return Err(CallFailure::invalid_argument("link_bytes: expected model too"));
        };
        let expert_bytes = model.expert_bytes();
        limits.link_budget = Some(LinkBudget { bytes: options.link_bytes, expert_bytes });
    }
    Ok(limits)
}

/// Returns a text of the caller, `None` for NULL.
///
/// # Safety
/// `start` is null or a text that ends with a zero byte.
unsafe fn optional_text<'a>(start: *const c_char, what: &str) -> Result<Option<&'a str>, CallFailure> {
    if start.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller guarantees it.
    unsafe { text_from_raw(start, what) }.map(Some)
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
