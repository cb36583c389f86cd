//! What a plan achieves on ranks of unequal speeds.

use super::output::table;
use evenkeel::plan::Plan;
use evenkeel::simulate::Summary;
use evenkeel::split::{Goal, GoalSplitter};
use evenkeel::trace::Trace;
use serde_json::{Value, json};

/// Peak over mean by speeds, of every batch: the busiest rank's tokens per speed over all tokens per all speeds.
#[derive(Debug)]
pub(super) struct BySpeed {
    speeds: Vec<u32>,
    all: Summary,
    layers: Vec<(u32, Summary)>,
}

impl BySpeed {
    /// Splits the batches of the trace exactly at these speeds.
    pub(super) fn of(plan: &Plan, trace: &Trace, speeds: &[u32]) -> anyhow::Result<BySpeed> {
        let (mut all, mut layers) = (Vec::new(), Vec::new());
        for layer in &plan.layers {
            let Ok(index) = trace.layers().binary_search(&layer.layer) else { continue };
            let goal = Goal { speeds: speeds.to_vec(), ..Goal::default() };
            let mut splitter = GoalSplitter::new(layer.placement.clone(), goal)?;
            let mut own = Vec::new();
            for step in 0..trace.steps().len() {
                let loads = trace.loads(step, index);
                if loads.iter().any(|&load| load > 0) {
                    own.push(splitter.split(loads, 0)?.peak.as_f64() / splitter.mean_cost(loads, 0));
                }
            }
            layers.push((layer.layer, Summary::of(own.clone())));
            all.extend(own);
        }
        Ok(BySpeed { speeds: speeds.to_vec(), all: Summary::of(all), layers })
    }

    pub(super) fn words(&self, verbose: bool) -> String {
        let mut text = format!(
            "by speeds {:?}: mean imbalance {:.3}, p95 {:.3} (a rank of speed 2 does twice the work; all other figures, also \
             the plan file's, take ranks to be equal)\n",
            self.speeds, self.all.mean, self.all.p95
        );
        if verbose {
            let rows = self.layers.iter().map(|(layer, s)| vec![layer.to_string(), format!("{:.3}", s.mean)]);
            text += &table(&["layer", "imbalance by speeds"], rows.collect(), 0);
        }
        text
    }

    pub(super) fn document(&self) -> Value {
        let layers = self.layers.iter().map(|(layer, s)| json!({ "layer": layer, "imbalance": s }));
        json!({ "speeds": self.speeds, "imbalance": self.all, "layers": layers.collect::<Vec<_>>() })
    }
}
