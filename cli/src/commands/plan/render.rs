//! Report of `evenkeel plan` on a plan, in words and as a document.

use super::fault_tolerance::{LayerLosses, losses_to_json, losses_to_text};
use super::link_budget::LinkUsage;
use super::moves::{moves_to_json, moves_to_text};
use super::speeds::SpeedFigures;
use crate::args::blend::PartFigures;
use crate::render::cluster::cluster_to_json;
use crate::render::memory::RedundancyMemory;
use crate::render::split_figures::{figures_to_json, figures_to_text};
use crate::render::table::render_table;
use evenkeel::place::{BoundProof, MeanBound, PlacementBound};
use evenkeel::plan::{LayerChange, Plan, PlanReport};
use evenkeel::trace::Trace;
use serde_json::json;
use std::path::Path;

/// Results of a plan beyond its imbalance.
#[derive(Debug, Default)]
pub(super) struct PlanDetails {
    /// Steps within which moves have to pay.
    pub(super) horizon_steps: Option<u64>,
    /// Memory cost of redundancy, if a model is known.
    pub(super) memory: Option<RedundancyMemory>,
    pub(super) changes: Option<Vec<LayerChange>>,
    /// Received bytes of the ranks, under a budget for all layers.
    pub(super) links: Option<LinkUsage>,
    pub(super) losses: Option<LayerLosses>,
    /// Redundant slots of each layer, under a budget for all.
    pub(super) redundant: Option<Vec<usize>>,
    pub(super) by_speed: Option<SpeedFigures>,
    pub(super) parts: Option<PartFigures>,
}

impl PlanDetails {
    pub(super) fn to_text(&self, plan: &Plan, verbose: bool) -> String {
        let mut text = self.memory.as_ref().map_or(String::new(), RedundancyMemory::render_text);
        text += &self.parts.as_ref().map_or(String::new(), PartFigures::to_text);
        if let Some(redundant) = &self.redundant {
            let used: usize = redundant.iter().sum();
            text += &format!("{used} redundant slots in all layers\n");
            if verbose {
                let rows = plan.layers.iter().zip(redundant);
                let rows = rows.map(|(layer, slots)| vec![layer.layer.to_string(), slots.to_string()]);
                text += &render_table(&["layer", "redundant slots"], rows.collect(), 0);
            }
        }
        if let Some(changes) = &self.changes {
            text += &moves_to_text(plan, changes, self.horizon_steps, verbose);
        }
        if let Some(links) = &self.links {
            text += &links.to_text();
        }
        if let Some(losses) = &self.losses {
            text += &losses_to_text(losses);
        }
        if let Some(by_speed) = &self.by_speed {
            text += &by_speed.to_text(verbose);
        }
        text
    }
}

pub(super) fn plan_to_json(
    output: Option<&Path>,
    trace: &Trace,
    made: &PlanReport,
    details: &PlanDetails,
) -> serde_json::Value {
    let plan = &made.plan;
    let bound = PlacementBound::mean_of_layers(&made.bounds);
    json!({
        "plan": output,
        "policy": plan.provenance.policy,
        "cluster": cluster_to_json(&plan.cluster, plan.experts),
        "layers": plan.layers.iter().zip(&made.bounds).map(|(l, bound)| json!({
            "layer": l.layer,
            "imbalance": l.imbalance,
            "bound": l.bound,
            "placement_bound": { "imbalance": bound.imbalance, "proof": bound.proof.to_string() },
            "doubled": l.placement.same_rank_duplicates(),
        })).collect::<Vec<_>>(),
        "idle_layers": plan.idle_layers,
        "unrecorded_layers": plan.unrecorded_layers,
        "for": plan.provenance.target,
        "memory": details.memory.as_ref().map(RedundancyMemory::render_json),
        "figures": figures_to_json(&plan.provenance),
        "expected": { "split": plan.provenance.split, "imbalance": plan.provenance.imbalance,
                      "batches": plan.provenance.judged },
        "placement_bound": { "imbalance": bound.imbalance, "layers_above_mean": bound.layers_above_mean },
        "plan_ms": made.plan_time.as_secs_f64() * 1e3,
        "moves": details.changes.as_ref().map(|changes| moves_to_json(plan, changes)),
        "link_budget": details.links.as_ref().map(LinkUsage::to_json),
        "after_loss": details.losses.as_ref().map(|losses| losses_to_json(losses)),
        "redundant_by_layer": details.redundant,
        "on_each_trace": details.parts.as_ref().map(PartFigures::to_json),
        "by_speed": details.by_speed.as_ref().map(SpeedFigures::to_json),
        "notices": trace.notices(),
    })
}

pub(super) fn plan_to_text(made: &PlanReport, verbose: bool) -> String {
    let plan = &made.plan;
    let doubled: usize = plan.layers.iter().map(|l| l.placement.same_rank_duplicates()).sum();
    let mut text = format!(
        "{} experts x {} layers on {} ranks x {} slots, by {}\n",
        plan.experts,
        plan.layers.len(),
        plan.cluster.ranks(),
        plan.cluster.slots_per_rank(),
        plan.provenance.policy,
    );
    if !plan.idle_layers.is_empty() {
        text += &format!("{} idle layers left out: {:?}\n", plan.idle_layers.len(), plan.idle_layers);
    }
    text += &figures_to_text(&plan.provenance);
    text += &bound_to_text(&made.bounds);
    if doubled > 0 {
        text += &format!(
            "{doubled} replicas share a rank with another replica of their expert: they use memory and serve nothing\n"
        );
    }
    text += &format!("planned in {:.2} ms\n", made.plan_time.as_secs_f64() * 1e3);
    if verbose {
        let rows = plan.layers.iter().zip(&made.bounds).map(|(l, bound)| {
            vec![
                l.layer.to_string(),
                format!("{:.3}", l.imbalance),
                format!("{:.3}", l.bound),
                format!("{:.3}", bound.imbalance),
                bound.proof.to_string(),
                l.placement.same_rank_duplicates().to_string(),
            ]
        });
        let header = ["layer", "imbalance", "mean", "placement_bound", "proved by", "doubled"];
        text += &render_table(&header, rows.collect(), 0);
    }
    text
}

/// Returns the proved lower bound of all placements, in one line.
fn bound_to_text(bounds: &[PlacementBound]) -> String {
    let MeanBound { imbalance, layers_above_mean, .. } = PlacementBound::mean_of_layers(bounds);
    let proved = |proof: BoundProof| bounds.iter().filter(|bound| bound.proof == proof).count();
    let how = match layers_above_mean {
        0 => "= mean: nothing better is proved".to_owned(),
        _ => format!(
            "of {} layers, {} by trying all placements, {} by counting copies, {} = mean",
            bounds.len(),
            proved(BoundProof::Enumerated),
            proved(BoundProof::ReplicaCount) + proved(BoundProof::SharedReplicas),
            proved(BoundProof::Mean)
        ),
    };
    format!("placement_bound {imbalance:.3} ({how})\n")
}
