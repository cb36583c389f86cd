//! Fault tolerance: its option, and the consequences of every possible loss of a rank for a plan.

use anyhow::Context as _;
use evenkeel::place::{Coverage, RankLossEffect, rank_loss_effects};
use evenkeel::plan::Plan;
use evenkeel::trace::Trace;
use serde_json::{Value, json};
use std::str::FromStr;
use thiserror::Error;

/// Argument of the form `1` or `best`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RankLossTarget(pub(crate) Coverage);

/// Error of text that is no [`RankLossTarget`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected 1 (every expert survives the loss of any one rank) or best (the heaviest do)")]
pub(crate) struct RankLossTargetError;

impl FromStr for RankLossTarget {
    type Err = RankLossTargetError;

    fn from_str(text: &str) -> Result<Self, RankLossTargetError> {
        match text {
            "1" => Ok(RankLossTarget(Coverage::All)),
            "best" => Ok(RankLossTarget(Coverage::Heaviest)),
            _ => Err(RankLossTargetError),
        }
    }
}

/// Consequences of the loss of each rank, layer by layer: the real layer id, and one entry per rank.
pub(super) type LayerLosses = Vec<(u32, Vec<RankLossEffect>)>;

/// Returns the consequences of all losses in all layers.
pub(super) fn evaluate_losses(plan: &Plan, trace: &Trace) -> anyhow::Result<LayerLosses> {
    plan.layers
        .iter()
        .map(|layer| {
            let index = trace
                .layers()
                .binary_search(&layer.layer)
                .ok()
                .with_context(|| format!("layer {} of the plan is not in the trace", layer.layer))?;
            let batches = (0..trace.steps().len()).map(|step| trace.loads(step, index));
            Ok((layer.layer, rank_loss_effects(&layer.placement, batches)?))
        })
        .collect()
}

/// Returns the loss with the highest average imbalance, and the one that leaves most tokens unserved.
fn worst_losses(losses: &[(u32, Vec<RankLossEffect>)]) -> Option<[(u32, RankLossEffect); 2]> {
    let all = || losses.iter().flat_map(|(layer, ranks)| ranks.iter().map(move |loss| (*layer, *loss)));
    let worst = all().reduce(|a, b| if b.1.imbalance > a.1.imbalance { b } else { a })?;
    let risk = all().reduce(|a, b| if share_at_risk(&b.1) > share_at_risk(&a.1) { b } else { a })?;
    Some([worst, risk])
}

fn share_at_risk(loss: &RankLossEffect) -> f64 {
    loss.tokens_at_risk as f64 / loss.tokens.max(1) as f64
}

/// Returns the losses in words.
pub(super) fn losses_to_text(losses: &[(u32, Vec<RankLossEffect>)]) -> String {
    let Some([(layer, worst), (risk_layer, risk)]) = worst_losses(losses) else { return String::new() };
    let mut text = format!(
        "after the loss of a rank: mean imbalance {:.3} at worst (rank {} in layer {layer}), {:.3} in its worst batch\n",
        worst.imbalance, worst.rank, worst.worst
    );
    if risk.tokens_at_risk == 0 {
        text += "every expert survives the loss of any one rank\n";
    } else {
        text += &format!(
            "at risk: {:.2}% of the tokens of layer {risk_layer} with rank {} ({} experts live there alone)\n",
            100.0 * share_at_risk(&risk),
            risk.rank,
            risk.experts_at_risk
        );
    }
    text
}

/// Returns the losses as a document.
pub(super) fn losses_to_json(losses: &[(u32, Vec<RankLossEffect>)]) -> Value {
    let Some([(layer, worst), (risk_layer, risk)]) = worst_losses(losses) else { return Value::Null };
    json!({
        "every_expert_survives": risk.tokens_at_risk == 0
            && losses.iter().all(|(_, ranks)| ranks.iter().all(|loss| loss.experts_at_risk == 0)),
        "worst_imbalance": { "layer": layer, "rank": worst.rank, "mean": worst.imbalance, "max": worst.worst },
        "most_at_risk": { "layer": risk_layer, "rank": risk.rank, "experts": risk.experts_at_risk,
                          "tokens": risk.tokens_at_risk, "share": share_at_risk(&risk) },
    })
}
