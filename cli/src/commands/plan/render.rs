//! What `evenkeel plan` tells of a plan, in words and as a document.

use super::and_args::Parts;
use super::links::Links;
use super::memory::Memory;
use super::output::table;
use super::speeds::BySpeed;
use super::{figures, past_args, secure_args};
use evenkeel::place::{AfterLoss, Bound, Proof};
use evenkeel::plan::{Changed, Horizon, Made, Plan};
use evenkeel::trace::Trace;
use serde_json::json;
use std::path::Path;

/// What is told of a plan beyond its imbalance.
#[derive(Debug, Default)]
pub(super) struct Further {
    pub(super) horizon: Option<Horizon>,
    /// What redundancy costs, where a model is known.
    pub(super) memory: Option<Memory>,
    pub(super) changes: Option<Vec<Changed>>,
    /// What ranks receive, under a budget for all layers.
    pub(super) links: Option<Links>,
    pub(super) losses: Option<Vec<(u32, Vec<AfterLoss>)>>,
    /// Redundant slots of each layer, under a budget for all.
    pub(super) redundant: Option<Vec<usize>>,
    pub(super) by_speed: Option<BySpeed>,
    pub(super) parts: Option<Parts>,
}

impl Further {
    pub(super) fn words(&self, plan: &Plan, verbose: bool) -> String {
        let mut text = self.memory.as_ref().map_or(String::new(), Memory::words);
        text += &self.parts.as_ref().map_or(String::new(), Parts::words);
        if let Some(redundant) = &self.redundant {
            let used: usize = redundant.iter().sum();
            text += &format!("{used} redundant slots in all layers\n");
            if verbose {
                let rows = plan.layers.iter().zip(redundant);
                let rows = rows.map(|(layer, slots)| vec![layer.layer.to_string(), slots.to_string()]);
                text += &table(&["layer", "redundant slots"], rows.collect(), 0);
            }
        }
        if let Some(changes) = &self.changes {
            text += &past_args::words(plan, changes, self.horizon.as_ref(), verbose);
        }
        if let Some(links) = &self.links {
            text += &links.words();
        }
        if let Some(losses) = &self.losses {
            text += &secure_args::words(losses);
        }
        if let Some(by_speed) = &self.by_speed {
            text += &by_speed.words(verbose);
        }
        text
    }
}

pub(super) fn document(
    output: Option<&Path>,
    trace: &Trace,
    made: &Made,
    more: &Further,
) -> serde_json::Value {
    let plan = &made.plan;
    json!({
        "plan": output,
        "policy": plan.provenance.policy,
        "cluster": super::cluster_args::document(&plan.cluster, plan.experts),
        "layers": plan.layers.iter().zip(&made.bounds).map(|(l, bound)| json!({
            "layer": l.layer,
            "imbalance": l.imbalance,
            "bound": l.bound,
            "placement_bound": { "imbalance": bound.imbalance, "proof": bound.proof.to_string() },
            "doubled": l.placement.doubled(),
        })).collect::<Vec<_>>(),
        "idle_layers": plan.idle_layers,
        "for": plan.provenance.target,
        "memory": more.memory.as_ref().map(Memory::document),
        "figures": figures::document(&plan.provenance),
        "expected": { "split": plan.provenance.split, "imbalance": plan.provenance.imbalance,
                      "batches": plan.provenance.judged },
        "placement_bound": { "imbalance": Bound::of_all(&made.bounds).0,
                             "layers_above_mean": Bound::of_all(&made.bounds).1 },
        "plan_ms": made.plan_time.as_secs_f64() * 1e3,
        "moves": more.changes.as_ref().map(|changes| past_args::document(plan, changes)),
        "link_budget": more.links.as_ref().map(Links::document),
        "after_loss": more.losses.as_ref().map(|losses| secure_args::document(losses)),
        "redundant_by_layer": more.redundant,
        "on_each_trace": more.parts.as_ref().map(Parts::document),
        "by_speed": more.by_speed.as_ref().map(BySpeed::document),
        "notices": trace.notices(),
    })
}

pub(super) fn summary(made: &Made, verbose: bool) -> String {
    let plan = &made.plan;
    let doubled: usize = plan.layers.iter().map(|l| l.placement.doubled()).sum();
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
    text += &figures::words(&plan.provenance);
    text += &placement_bound(&made.bounds);
    if doubled > 0 {
        text +=
            &format!("{doubled} copies share a rank with another copy of their expert: memory without use\n");
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
                l.placement.doubled().to_string(),
            ]
        });
        let header = ["layer", "imbalance", "mean", "placement_bound", "proved by", "doubled"];
        text += &table(&header, rows.collect(), 0);
    }
    text
}

/// What is proved that no placement can be below, in one line.
fn placement_bound(bounds: &[Bound]) -> String {
    let (imbalance, better) = Bound::of_all(bounds);
    let proved = |proof: Proof| bounds.iter().filter(|bound| bound.proof == proof).count();
    let how = match better {
        0 => "= mean: nothing better is proved".to_owned(),
        _ => format!(
            "of {} layers, {} by trying all placements, {} by counting copies, {} = mean",
            bounds.len(),
            proved(Proof::Enumerated),
            proved(Proof::Copies),
            proved(Proof::Mean)
        ),
    };
    format!("placement_bound {imbalance:.3} ({how})\n")
}
