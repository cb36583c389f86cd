//! The distribution of the imbalance over the batches: one strip per policy and split, whose thickness shows
//! the frequency.

use super::html::{escape_text, format_percent, format_ratio};
use super::svg::{RatioAxis, SvgWriter, tick_label};
use super::{RowComparison, open_section, policy_name};
use evenkeel_simulate::{SimulationResult, SimulationRow};
use std::fmt::Write as _;

const HEIGHT: f64 = 40.0;
const BINS: usize = 160;
/// The margin on both sides, in percent, so that marks at the ends stay inside.
const MARGIN: f64 = 1.5;

/// Writes the section with one strip per row.
pub(super) fn write(out: &mut String, outcome: &SimulationResult, comparison: &RowComparison<'_>) {
    let axis = imbalance_axis(outcome);
    let bent = if axis.is_stretched() {
        " The scale is stretched near 1, where good rows differ, and squeezed far from it."
    } else {
        ""
    };
    open_section(
        out,
        "spread",
        "Good and bad batches",
        &format!(
            "Each shape is thick where many batches lie. A good row is a short shape at the left edge, at 1. A long \
             tail means that some batches still wait.{bent}"
        ),
    );
    out.push_str("<figure class=\"strips\">\n");
    write_ruler(out, &axis);
    for (at, row) in outcome.rows.iter().enumerate() {
        let class = comparison.css_class(at);
        let policy = policy_name(outcome, row);
        let tag = if class.is_empty() {
            String::new()
        } else {
            format!(" <span class=\"tag {class}\">{class}</span>")
        };
        let _ = write!(out, "<div class=\"strip\"><p><b>{}</b> {}{tag}</p>", escape_text(policy), row.method);
        write_strip(out, &axis, row, policy, class);
        out.push_str("</div>\n");
    }
    write_ruler(out, &axis);
    out.push_str(
        "<figcaption><svg class=\"sample\" width=\"16\" height=\"16\" aria-hidden=\"true\"><line class=\"median\" \
         x1=\"8\" y1=\"1\" x2=\"8\" y2=\"15\"/></svg>half of the batches lie left of it (median) · \
         <svg class=\"sample\" width=\"16\" height=\"16\" aria-hidden=\"true\"><line class=\"p95\" x1=\"8\" y1=\"3\" \
         x2=\"8\" y2=\"13\"/></svg>19 of 20 do (p95) · <svg class=\"sample\" width=\"16\" height=\"16\" \
         aria-hidden=\"true\"><circle class=\"worst\" cx=\"8\" cy=\"8\" r=\"3\"/></svg>the worst batch. Across: \
         imbalance, the busiest rank's load over the average.</figcaption>\n</figure>\n</section>\n",
    );
}

/// Returns one scale for all rows. It reaches the worst batch, and its detail distinguishes the better half
/// of the rows.
fn imbalance_axis(outcome: &SimulationResult) -> RatioAxis {
    let top = outcome.rows.iter().map(|row| row.imbalance.max).fold(1.0, f64::max);
    let mut typical: Vec<f64> = outcome.rows.iter().map(|row| row.imbalance.p95 - 1.0).collect();
    typical.sort_by(f64::total_cmp);
    RatioAxis::new(top, typical.first().copied().unwrap_or(0.0).max(0.01))
}

fn axis_percent(axis: &RatioAxis, ratio: f64) -> f64 {
    MARGIN + axis.position_of(ratio) * (100.0 - 2.0 * MARGIN)
}

fn write_ruler(out: &mut String, axis: &RatioAxis) {
    out.push_str("<div class=\"strip ruler\"><p></p>");
    let mut svg = SvgWriter::open_hidden(out, "plot bare", 18.0);
    for (nth, tick) in axis.round_ticks(0.085).into_iter().enumerate() {
        let class = if nth == 0 { "start soft" } else { "middle soft" };
        let x = if nth == 0 { 0.0 } else { axis_percent(axis, tick) };
        svg.draw_text(class, x, 13.0, &tick_label(tick));
    }
    svg.close();
    out.push_str("</div>\n");
}

fn write_strip(out: &mut String, axis: &RatioAxis, row: &SimulationRow, policy: &str, class: &str) {
    let words = format!(
        "{policy}, {}: imbalance mean {}, median {}, 95 % of batches below {}, worst {}; {} at the bound.",
        row.method,
        format_ratio(row.imbalance.mean),
        format_ratio(row.imbalance.p50),
        format_ratio(row.imbalance.p95),
        format_ratio(row.imbalance.max),
        format_percent(row.at_bound)
    );
    let middle = HEIGHT / 2.0;
    let mut svg = SvgWriter::open(out, &format!("plot bare row {class}"), HEIGHT, &words);
    for tick in axis.round_ticks(0.085) {
        let x = axis_percent(axis, tick);
        svg.draw_line("grid", x, 0.0, x, HEIGHT);
    }
    let (low, high) = (axis_percent(axis, 1.0), axis_percent(axis, row.imbalance.max));
    svg.draw_line("whisker", low, middle, high, middle);
    svg.draw_stretched(0.0, HEIGHT, (BINS + 1, 200), |part| {
        part.draw_path("shape", &density_outline(axis, row));
    });
    let (median, p95) = (axis_percent(axis, row.imbalance.p50), axis_percent(axis, row.imbalance.p95));
    svg.draw_line("p95", p95, middle - 7.0, p95, middle + 7.0);
    svg.draw_line("median", median, middle - 13.0, median, middle + 13.0);
    svg.draw_circle("worst", high, middle, 3.0);
    svg.close();
}

/// Returns the outline of a row's batches in `BINS + 1` by 200 units. It is mirrored, and thickest where most
/// batches lie.
fn density_outline(axis: &RatioAxis, row: &SimulationRow) -> String {
    let mut bins = vec![0.0f64; BINS + 1];
    for judged in &row.layers {
        for batch in 0..judged.peaks.len() {
            let at = axis_percent(axis, judged.imbalance(batch)) / 100.0 * BINS as f64;
            bins[(at as usize).min(BINS)] += 1.0;
        }
    }
    // Smooth a little, because single bins are noise.
    let weights = [1.0, 3.0, 4.0, 3.0, 1.0];
    let smooth: Vec<f64> = (0..=BINS)
        .map(|at| {
            let near = weights.iter().enumerate().filter_map(|(w, weight)| {
                let from = (at + w).checked_sub(2)?;
                Some(bins.get(from)? * weight)
            });
            near.sum()
        })
        .collect();
    let most = smooth.iter().copied().fold(0.0, f64::max);
    if most <= 0.0 {
        return "M0 100".to_owned();
    }
    let half: Vec<i32> = smooth.iter().map(|count| (count / most * 88.0).round() as i32).collect();
    let first = half.iter().position(|&h| h > 0).unwrap_or(0);
    let last = half.iter().rposition(|&h| h > 0).unwrap_or(0);
    let mut d = format!("M{first} 100");
    let shown = || half.iter().enumerate().take(last + 1).skip(first);
    for (at, half) in shown() {
        let _ = write!(d, "L{at}.5 {}", 100 - half);
    }
    let _ = write!(d, "L{} 100", last + 1);
    for (at, half) in shown().rev() {
        let _ = write!(d, "L{at}.5 {}", 100 + half);
    }
    d.push('Z');
    d
}
