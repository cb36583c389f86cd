//! Imbalance layer by layer: a ring before, a dot after, and the way between them.

use super::svg::{Axis, Svg, tick_label};
use super::text::ratio;
use super::{Comparison, Page, section};
use crate::simulate::Judged;
use std::fmt::Write as _;

const HEIGHT: f64 = 220.0;
const TOP: f64 = 10.0;

/// Mean imbalance of a layer's batches; none where none was judged.
pub(super) fn mean(judged: &Judged) -> Option<f64> {
    let batches = judged.peaks.len();
    (batches > 0).then(|| (0..batches).map(|b| judged.imbalance(b)).sum::<f64>() / batches as f64)
}

/// The section with the chart.
pub(super) fn write(out: &mut String, page: &Page<'_>, comparison: &Comparison<'_>) {
    let (before, after) = (comparison.before(), comparison.after());
    let points: Vec<(u32, Option<f64>, Option<f64>)> = comparison
        .outcome
        .layers
        .iter()
        .zip(before.layers.iter().zip(&after.layers))
        .map(|(&layer, (b, a))| (page.trace.layers().get(layer).copied().unwrap_or(0), mean(b), mean(a)))
        .collect();
    let top = points.iter().flat_map(|p| [p.1, p.2]).flatten().fold(1.0, f64::max);
    let axis = Axis::new(top, (after.imbalance.mean - 1.0).max(0.02));
    let bent = if axis.bent() { " The scale is stretched near 1." } else { "" };
    let explanation = if comparison.differs() {
        "Mean imbalance of each layer's batches: the ring is before, the dot after; the further a dot falls, the less \
         that layer waits."
    } else {
        "Mean imbalance of each layer's batches: the further up, the longer that layer waits for its busiest rank."
    };
    section(out, "layers", "Layer by layer", &format!("{explanation}{bent}"));
    let worst = points.iter().filter_map(|p| p.1.map(|v| (v, p.0))).max_by(|a, b| a.0.total_cmp(&b.0));
    let mut words = format!(
        "Mean imbalance of {} layers: {} before, {} after.",
        points.len(),
        ratio(before.imbalance.mean),
        ratio(after.imbalance.mean)
    );
    if let Some((value, layer)) = worst {
        let _ = write!(words, " Worst before: layer {layer} with {}.", ratio(value));
    }
    out.push_str("<figure>\n");
    let mut svg = Svg::open(out, "plot", HEIGHT + 24.0, &words);
    let y = |value: f64| TOP + (1.0 - axis.at(value)) * (HEIGHT - TOP);
    for tick in axis.ticks(0.12) {
        svg.line(if tick > 1.0 { "grid" } else { "one" }, 0.0, y(tick), 100.0, y(tick));
        svg.margin_text(y(tick) + 4.0, &tick_label(tick));
    }
    let radius = if points.len() > 96 { 2.5 } else { 4.0 };
    let x = |at: usize| (at as f64 + 0.5) * 100.0 / points.len() as f64;
    for (at, &(layer, b, a)) in points.iter().enumerate() {
        let (Some(b), Some(a)) = (b, a) else { continue };
        if !comparison.differs() {
            svg.pointed(&format!("layer {layer}: {}", ratio(b)), |g| g.circle("ring", x(at), y(b), radius));
            continue;
        }
        svg.pointed(&format!("layer {layer}: {} before, {} after", ratio(b), ratio(a)), |g| {
            g.line("way", x(at), y(b), x(at), y(a));
            g.circle("ring", x(at), y(b), radius);
            g.circle("dot", x(at), y(a), radius);
        });
    }
    let every = [1, 2, 4, 5, 10, 20, 50].into_iter().find(|e| points.len().div_ceil(*e) <= 13).unwrap_or(100);
    for (at, point) in points.iter().enumerate().step_by(every) {
        svg.text("middle soft", x(at), HEIGHT + 18.0, &point.0.to_string());
    }
    svg.close();
    let key = |class: &str| {
        format!(
            "<svg class=\"sample\" width=\"16\" height=\"16\" aria-hidden=\"true\"><circle class=\"{class}\" \
             cx=\"8\" cy=\"8\" r=\"4\"/></svg>"
        )
    };
    let keys = if comparison.differs() {
        format!("{}before · {}after · ", key("ring"), key("dot"))
    } else {
        String::new()
    };
    let _ =
        write!(out, "<figcaption>{keys}layers across, imbalance up.</figcaption>\n</figure>\n</section>\n");
}
