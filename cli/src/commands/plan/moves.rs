//! Moves of a re-planned placement, in words and as a document.

use crate::render::table::render_table;
use evenkeel::plan::{LayerChange, LayerPlan, Plan};
use serde_json::{Value, json};

/// Returns the changes in words, with the single moves if `verbose` is set.
pub(super) fn moves_to_text(
    plan: &Plan,
    changes: &[LayerChange],
    horizon_steps: Option<u64>,
    verbose: bool,
) -> String {
    let moves: usize = changes.iter().map(|changed| changed.moves.len()).sum();
    let homeless: usize = changes.iter().map(|changed| changed.unplaced).sum();
    let mut text = format!("{moves} moves in {} layers", changes.len());
    if homeless > 0 {
        text += &format!("; {homeless} of them restore experts that lost their last replica");
    }
    text.push('\n');
    text += &horizon_steps.map_or(String::new(), |steps| payback_text(changes, steps));
    if verbose {
        let rows = plan.layers.iter().zip(changes).flat_map(|(layer, changed)| {
            changed.moves.iter().map(|m| {
                let from = m.from.map_or("lost".into(), |rank| rank.to_string());
                vec![
                    layer.layer.to_string(),
                    m.expert.to_string(),
                    from,
                    m.to.to_string(),
                    m.slot.to_string(),
                ]
            })
        });
        text += &render_table(&["layer", "expert", "from rank", "to rank", "slot"], rows.collect(), 0);
    }
    text
}

/// Returns the number of layers in which moves pay, and in which they do not.
fn payback_text(changes: &[LayerChange], horizon_steps: u64) -> String {
    let mut text = String::new();
    let verdicts = || changes.iter().filter_map(|changed| changed.verdict);
    for (made, outcome) in [(true, "it pays in"), (false, "it does not pay in")] {
        let these = || verdicts().filter(|v| v.accepted == made && v.considered > 0);
        let gain: i128 = these().map(|v| i128::from(v.gain_ps)).sum();
        let cost: u128 = these().map(|v| u128::from(v.cost_ps)).sum();
        if these().count() == 0 {
            continue;
        }
        text += &format!(
            "{outcome} {} layers: {} moves would save {:.3} ms over {} steps for {:.3} ms of copies\n",
            these().count(),
            these().map(|v| v.considered).sum::<usize>(),
            gain as f64 / 1e9,
            horizon_steps,
            cost as f64 / 1e9,
        );
    }
    let unchanged = verdicts().filter(|v| v.considered == 0).count();
    if unchanged > 0 {
        text += &format!("no move pays in {unchanged} layers\n");
    }
    text
}

/// Returns the changes as a document.
pub(super) fn moves_to_json(plan: &Plan, changes: &[LayerChange]) -> Value {
    let layer = |(layer, changed): (&LayerPlan, &LayerChange)| {
        json!({
            "layer": layer.layer,
            "moves": changed.moves.iter().map(|m| json!({
                "expert": m.expert, "from": m.from, "to": m.to, "slot": m.slot,
            })).collect::<Vec<_>>(),
            "lost_experts": changed.unplaced,
            "pays": changed.verdict.map(|v| json!({
                "gain_us": v.gain_ps as f64 / 1e6,
                "cost_us": v.cost_ps as f64 / 1e6,
                "considered": v.considered,
                "made": v.accepted,
            })),
        })
    };
    json!({
        "total": changes.iter().map(|changed| changed.moves.len()).sum::<usize>(),
        "layers": plan.layers.iter().zip(changes).map(layer).collect::<Vec<_>>(),
    })
}
