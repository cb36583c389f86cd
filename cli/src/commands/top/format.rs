//! The state of a service in words.

use super::documents::{ServiceState, stopped_seconds};
use evenkeel_serve::wire::PhaseView;
use evenkeel_serve::{Decision, DecisionOutcome, MoveRecord, PlanPreview, Trigger};

pub(super) fn result_sentence(
    view: &PhaseView,
    imbalance: Option<f64>,
    service: Option<&ServiceState>,
) -> String {
    let Some(now) = imbalance else { return "No tokens in the latest steps.".into() };
    let bound = view.state.latest.map_or(1.0, |point| point.bound);
    let first = service.and_then(|service| {
        service.history.decisions.iter().find(|decision| decision.trigger == Trigger::First)
    });
    let without =
        first.map(|decision| decision.imbalance.before).filter(|&before| view.state.plan > 0 && before > now);
    let instead = without.map_or(String::new(), |before| format!(" instead of {before:.3}"));
    format!(
        "The busiest rank does {now:.3} times the average work{instead}; {bound:.3} is the least possible."
    )
}

pub(super) fn plan_sentence(view: &PhaseView) -> String {
    let state = &view.state;
    let steps = |step: Option<u64>| step.map_or("-".into(), |step| step.to_string());
    let plan = if state.plan == 0 {
        "No plan yet".into()
    } else {
        format!("Plan {} since step {}", state.plan, steps(state.plan_step))
    };
    let due = if state.planning {
        "a decision is being computed".into()
    } else {
        format!("next decision within {} steps", state.due_in)
    };
    let lag = if state.lag > 0 { format!(", {} steps behind", state.lag) } else { String::new() };
    let quiet = stopped_seconds(state).map_or(String::new(), |quiet| format!(", no loads for {quiet} s"));
    let down = if state.down.is_empty() { String::new() } else { format!(", down: {:?}", state.down) };
    format!(
        "{plan}; step {}{lag}{quiet}; {due}; {} layers, {} experts, {} of {} ranks{down}",
        steps(state.step),
        state.layers.len(),
        state.experts,
        view.ranks.len(),
        view.shape.ranks
    )
}

pub(super) fn outcome_name(outcome: DecisionOutcome) -> &'static str {
    match outcome {
        DecisionOutcome::Applied => "re-planned",
        DecisionOutcome::Kept => "kept",
        DecisionOutcome::DryRun => "dry run",
        DecisionOutcome::Skipped => "skipped",
        DecisionOutcome::Failed => "failed",
    }
}

pub(super) fn decision_figures(decision: &Decision) -> String {
    let step = decision.step.map_or(String::new(), |step| format!("step {step}, "));
    let plan = if decision.outcome == DecisionOutcome::Applied {
        format!("plan {}, ", decision.plan)
    } else {
        String::new()
    };
    let moves = if decision.moves > 0 {
        format!(", {} moves in {} layers", decision.moves, decision.layers)
    } else {
        String::new()
    };
    let bytes = decision
        .bytes
        .filter(|&bytes| bytes > 0)
        .map_or(String::new(), |bytes| format!(", {}", format_bytes(bytes)));
    format!("{step}{plan}{:.3} -> {:.3}{moves}{bytes}", decision.imbalance.before, decision.imbalance.after)
}

pub(super) fn moves_title(next: &PlanPreview) -> &'static str {
    match next.outcome {
        DecisionOutcome::Applied => "Moves of the last plan",
        DecisionOutcome::DryRun => "Moves the next plan would make",
        _ => "Moves that were considered",
    }
}

/// Returns a line per move, at most `most`.
pub(super) fn move_lines(next: &PlanPreview, most: usize) -> Vec<String> {
    if next.moves.is_empty() {
        return vec!["none".into()];
    }
    let shown = if next.moves.len() > most { most.saturating_sub(1) } else { next.moves.len() };
    let line = |m: &MoveRecord| {
        let from = m.from.map_or("lost".into(), |from| format!("rank {from}"));
        format!("layer {} expert {}: {from} -> rank {}", m.layer, m.expert, m.to)
    };
    let mut lines: Vec<String> = next.moves.iter().take(shown).map(line).collect();
    if shown < next.moves.len() {
        lines.push(format!("and {} more", next.moves.len() - shown));
    }
    lines
}

pub(super) fn as_sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

/// Returns bytes in the suitable unit.
pub(super) fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let at = (bytes.max(1).ilog2() / 10).min(4);
    let value = bytes as f64 / (1u64 << (10 * at)) as f64;
    let digits = usize::from(at > 0 && value < 10.0);
    format!("{value:.digits$} {}", UNITS[at as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_sentences_read_well() {
        assert_eq!(
            [0, 999, 1536, 14 << 20, 3 << 40].map(format_bytes),
            ["0 B", "999 B", "1.5 KiB", "14 MiB", "3.0 TiB"]
        );
        assert_eq!(as_sentence("asked for"), "Asked for.");
        assert_eq!(as_sentence(""), "");
    }
}
