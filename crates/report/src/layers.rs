//! The imbalance layer by layer: a ring before, a dot after, and a line between them.

use super::html::format_ratio;
use super::svg::{RatioAxis, SvgWriter, tick_label};
use super::{RowComparison, SimulationPage, open_section};
use evenkeel::evaluate::LayerEvaluation;
use std::fmt::Write as _;

const HEIGHT: f64 = 220.0;
const TOP: f64 = 10.0;

/// Returns the mean imbalance of a layer's batches, or `None` if none was judged.
pub(super) fn mean_imbalance(judged: &LayerEvaluation) -> Option<f64> {
    let batches = judged.peaks.len();
    (batches > 0).then(|| (0..batches).map(|b| judged.imbalance(b)).sum::<f64>() / batches as f64)
}

/// Writes the section with the chart.
pub(super) fn write(out: &mut String, page: &SimulationPage<'_>, comparison: &RowComparison<'_>) {
    let (before, after) = (comparison.before_row(), comparison.after_row());
    let points: Vec<(u32, Option<f64>, Option<f64>)> = comparison
        .outcome
        .layers
        .iter()
        .zip(before.layers.iter().zip(&after.layers))
        .map(|(&layer, (b, a))| {
            (page.trace.layers().get(layer).copied().unwrap_or(0), mean_imbalance(b), mean_imbalance(a))
        })
        .collect();
    let top = points.iter().flat_map(|p| [p.1, p.2]).flatten().fold(1.0, f64::max);
    let axis = RatioAxis::new(top, (after.imbalance.mean - 1.0).max(0.02));
    let bent = if axis.is_stretched() { " The scale is stretched near 1." } else { "" };
    let explanation = if comparison.has_difference() {
        "Mean imbalance of each layer's batches: the ring is before, the dot after. The further a dot falls, the less \
         that layer waits."
    } else {
        "Mean imbalance of each layer's batches: the further up, the longer that layer waits for its busiest rank."
    };
    open_section(out, "layers", "Layer by layer", &format!("{explanation}{bent}"));
    let worst = points.iter().filter_map(|p| p.1.map(|v| (v, p.0))).max_by(|a, b| a.0.total_cmp(&b.0));
    let mut words = format!(
        "Mean imbalance of {} layers: {} before, {} after.",
        points.len(),
        format_ratio(before.imbalance.mean),
        format_ratio(after.imbalance.mean)
    );
    if let Some((value, layer)) = worst {
        let _ = write!(words, " Worst before: layer {layer} with {}.", format_ratio(value));
    }
    out.push_str("<figure>\n");
    let mut svg = SvgWriter::open(out, "plot", HEIGHT + 24.0, &words);
    let y = |value: f64| TOP + (1.0 - axis.position_of(value)) * (HEIGHT - TOP);
    for tick in axis.round_ticks(0.12) {
        svg.draw_line(if tick > 1.0 { "grid" } else { "one" }, 0.0, y(tick), 100.0, y(tick));
        svg.draw_margin_text(y(tick) + 4.0, &tick_label(tick));
    }
    let radius = if points.len() > 96 { 2.5 } else { 4.0 };
    let x = |at: usize| (at as f64 + 0.5) * 100.0 / points.len() as f64;
    for (at, &(layer, b, a)) in points.iter().enumerate() {
        let (Some(b), Some(a)) = (b, a) else { continue };
        if !comparison.has_difference() {
            svg.draw_with_tooltip(&format!("layer {layer}: {}", format_ratio(b)), |g| {
                g.draw_circle("ring", x(at), y(b), radius);
            });
            continue;
        }
        svg.draw_with_tooltip(
            &format!("layer {layer}: {} before, {} after", format_ratio(b), format_ratio(a)),
            |g| {
                g.draw_line("way", x(at), y(b), x(at), y(a));
                g.draw_circle("ring", x(at), y(b), radius);
                g.draw_circle("dot", x(at), y(a), radius);
            },
        );
    }
    let every = [1, 2, 4, 5, 10, 20, 50].into_iter().find(|e| points.len().div_ceil(*e) <= 13).unwrap_or(100);
    for (at, point) in points.iter().enumerate().step_by(every) {
        svg.draw_text("middle soft", x(at), HEIGHT + 18.0, &point.0.to_string());
    }
    svg.close();
    let key = |class: &str| {
        format!(
            "<svg class=\"sample\" width=\"16\" height=\"16\" aria-hidden=\"true\"><circle class=\"{class}\" \
             cx=\"8\" cy=\"8\" r=\"4\"/></svg>"
        )
    };
    let keys = if comparison.has_difference() {
        format!("{}before · {}after · ", key("ring"), key("dot"))
    } else {
        String::new()
    };
    let _ =
        write!(out, "<figcaption>{keys}layers across, imbalance up.</figcaption>\n</figure>\n</section>\n");
}
