//! Results of a plan on ranks of unequal speeds.

use crate::render::table::render_table;
use evenkeel::evaluate::SummaryStats;
use evenkeel::plan::Plan;
use evenkeel::split::{Split, SplitObjective, Splitter};
use evenkeel::trace::Trace;
use serde_json::{Value, json};

/// Imbalance by speed of every batch: the busiest rank's tokens per speed, over all tokens per sum of speeds.
#[derive(Debug)]
pub(super) struct SpeedFigures {
    speeds: Vec<u32>,
    all: SummaryStats,
    layers: Vec<(u32, Option<SummaryStats>)>,
}

impl SpeedFigures {
    /// Splits the batches of the trace exactly at these speeds.
    pub(super) fn evaluate_plan(plan: &Plan, trace: &Trace, speeds: &[u32]) -> anyhow::Result<Self> {
        let (mut all, mut layers) = (Vec::new(), Vec::new());
        for layer in &plan.layers {
            let Ok(index) = trace.layers().binary_search(&layer.layer) else { continue };
            let goal = SplitObjective::default().speeds(speeds.to_vec());
            let mut splitter = Splitter::builder(layer.placement.clone()).objective(goal.clone()).build()?;
            let (mut split, mut own) = (Split::default(), Vec::new());
            for step in 0..trace.steps().len() {
                let loads = trace.loads(step, index);
                if loads.iter().any(|&load| load > 0) {
                    splitter.split(loads, &mut split)?;
                    let peak = goal.peak_cost(&layer.placement, &split.quotas, &[]);
                    own.push(peak.as_f64() / goal.mean_cost(layer.placement.ranks(), loads));
                }
            }
            layers.push((layer.layer, (!own.is_empty()).then(|| SummaryStats::from_values(own.clone()))));
            all.extend(own);
        }
        if all.is_empty() {
            anyhow::bail!("the trace holds no token in the layers of the plan: nothing can be judged");
        }
        Ok(Self { speeds: speeds.to_vec(), all: SummaryStats::from_values(all), layers })
    }

    pub(super) fn to_text(&self, verbose: bool) -> String {
        let mut text = format!(
            "by speeds {:?}: mean imbalance {:.3}, p95 {:.3} (a rank of speed 2 does twice the work; all other figures, also \
             those of the plan file, assume equal ranks)\n",
            self.speeds, self.all.mean, self.all.p95
        );
        if verbose {
            let mean =
                |s: &Option<SummaryStats>| s.map_or_else(|| "-".to_owned(), |s| format!("{:.3}", s.mean));
            let rows = self.layers.iter().map(|(layer, s)| vec![layer.to_string(), mean(s)]);
            text += &render_table(&["layer", "imbalance by speeds"], rows.collect(), 0);
        }
        text
    }

    pub(super) fn to_json(&self) -> Value {
        let layers = self.layers.iter().map(|(layer, s)| json!({ "layer": layer, "imbalance": s }));
        json!({ "speeds": self.speeds, "imbalance": self.all, "layers": layers.collect::<Vec<_>>() })
    }
}
