//! Surviving losses: what was asked for, and what every possible loss would do to a plan.

use anyhow::Context as _;
use evenkeel::place::{AfterLoss, Cover, after_loss};
use evenkeel::plan::Plan;
use evenkeel::trace::Trace;
use serde_json::{Value, json};
use std::str::FromStr;

/// `1` or `best`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Secure(pub(crate) Cover);

impl FromStr for Secure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1" => Ok(Secure(Cover::All)),
            "best" => Ok(Secure(Cover::Heaviest)),
            _ => Err("expected 1 (every expert survives the loss of any one rank) or best (the heaviest do)"
                .into()),
        }
    }
}

/// All losses of all layers: (real layer id, one per rank).
pub(super) fn losses(plan: &Plan, trace: &Trace) -> anyhow::Result<Vec<(u32, Vec<AfterLoss>)>> {
    plan.layers
        .iter()
        .map(|layer| {
            let index = trace
                .layers()
                .binary_search(&layer.layer)
                .ok()
                .with_context(|| format!("layer {} of the plan is not in the trace", layer.layer))?;
            let batches = (0..trace.steps().len()).map(|step| trace.loads(step, index));
            Ok((layer.layer, after_loss(&layer.placement, batches)?))
        })
        .collect()
}

/// The loss that is worst on average, and the one that leaves most tokens unserved.
fn worst(losses: &[(u32, Vec<AfterLoss>)]) -> Option<[(u32, AfterLoss); 2]> {
    let all = || losses.iter().flat_map(|(layer, ranks)| ranks.iter().map(move |loss| (*layer, *loss)));
    let worst = all().reduce(|a, b| if b.1.imbalance > a.1.imbalance { b } else { a })?;
    let risk = all().reduce(|a, b| if share(&b.1) > share(&a.1) { b } else { a })?;
    Some([worst, risk])
}

fn share(loss: &AfterLoss) -> f64 {
    loss.tokens_at_risk as f64 / loss.tokens.max(1) as f64
}

/// In words.
pub(super) fn words(losses: &[(u32, Vec<AfterLoss>)]) -> String {
    let Some([(layer, worst), (risk_layer, risk)]) = worst(losses) else { return String::new() };
    let mut text = format!(
        "after the loss of a rank: mean imbalance {:.3} at worst (rank {} in layer {layer}), {:.3} in its worst batch\n",
        worst.imbalance, worst.rank, worst.worst
    );
    if risk.tokens_at_risk == 0 {
        text += "every expert survives the loss of any one rank\n";
    } else {
        text += &format!(
            "at risk: {:.2}% of the tokens of layer {risk_layer} with rank {} ({} experts live there alone)\n",
            100.0 * share(&risk),
            risk.rank,
            risk.experts_at_risk
        );
    }
    text
}

/// As a document.
pub(super) fn document(losses: &[(u32, Vec<AfterLoss>)]) -> Value {
    let Some([(layer, worst), (risk_layer, risk)]) = worst(losses) else { return Value::Null };
    json!({
        "every_expert_survives": risk.tokens_at_risk == 0
            && losses.iter().all(|(_, ranks)| ranks.iter().all(|loss| loss.experts_at_risk == 0)),
        "worst_imbalance": { "layer": layer, "rank": worst.rank, "mean": worst.imbalance, "max": worst.worst },
        "most_at_risk": { "layer": risk_layer, "rank": risk.rank, "experts": risk.experts_at_risk,
                          "tokens": risk.tokens_at_risk, "share": share(&risk) },
    })
}
