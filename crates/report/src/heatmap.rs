//! The heat map of rank loads: layers down, ranks across, coloured by load over the average, before and
//! after.
//!
//! Colours are eleven fixed steps around 1, the same in every report, blue below and orange above.
//! Neighbouring cells of one colour are one stroke, and all strokes of a colour are one path. A panel of 61
//! layers by 288 ranks takes at most some hundred kilobytes. Larger panels are merged, and show the busiest
//! rank of each group.

use super::html::{format_fixed, format_ratio};
use super::svg::SvgWriter;
use super::{RowComparison, SimulationPage, open_section, row_label};
use evenkeel_simulate::SimulationRow;
use std::fmt::Write as _;

/// Upper ends of all colour steps but the last.
const COLOUR_STEPS: [f64; 10] = [0.5, 0.8, 0.9, 0.97, 1.03, 1.1, 1.25, 1.5, 2.0, 4.0];

/// The colour step around 1.
const AVERAGE_STEP: usize = 4;

/// The most columns and rows of a panel. Above these, neighbours are merged.
const MAX_COLUMNS: usize = 320;
const MAX_ROWS: usize = 160;

/// One row of cells: the mean load of a rank over the mean of all, or `None` without tokens.
struct HeatmapLine {
    label: String,
    cells: Vec<Option<f64>>,
    words: String,
}

/// Writes the section with both panels and their legend.
pub(super) fn write(out: &mut String, page: &SimulationPage<'_>, comparison: &RowComparison<'_>) {
    let joined = page.cluster.ranks().div_ceil(MAX_COLUMNS);
    let joins = if joined > 1 {
        format!(" {joined} neighbouring ranks share a column, coloured by the busiest of them.")
    } else {
        String::new()
    };
    open_section(
        out,
        "ranks",
        "Where the load sits",
        &format!(
            "One line per layer, one column per rank, coloured by the rank's load over all judged batches against \
             the average rank. Orange ranks work too much, blue ones wait.{joins}"
        ),
    );
    out.push_str("<div class=\"pair\">\n");
    draw_panel(out, page, comparison, "before", comparison.before_row());
    if comparison.has_difference() {
        draw_panel(out, page, comparison, "after", comparison.after_row());
    }
    out.push_str("</div>\n");
    draw_legend(out);
    out.push_str("</section>\n");
}

fn draw_panel(
    out: &mut String,
    page: &SimulationPage<'_>,
    comparison: &RowComparison<'_>,
    class: &str,
    row: &SimulationRow,
) {
    let lines = heatmap_lines(page, comparison, row);
    let (columns, rows) = (lines.first().map_or(1, |l| l.cells.len()), lines.len());
    let line_height = match rows {
        0..=12 => 22.0,
        13..=32 => 14.0,
        33..=72 => 8.0,
        _ => 5.0,
    };
    let height = line_height * rows as f64;
    // A panel of a single colour would look empty.
    let flat = lines.iter().flat_map(|l| &l.cells).flatten().all(|&cell| colour_step(cell) == AVERAGE_STEP);
    let worst = lines.iter().flat_map(|l| &l.cells).flatten().copied().fold(0.0, f64::max);
    let _ = write!(
        out,
        "<figure>\n<h3><span class=\"tag {class}\">{class}</span> {}</h3>\n",
        row_label(comparison.outcome, row)
    );
    let words = format!(
        "Heat map {class}: {rows} lines for layers, {columns} columns for ranks. The busiest rank of any layer has {} \
         times the average load over all batches.",
        format_ratio(worst)
    );
    let mut svg = SvgWriter::open(out, "plot heat", height + 20.0, &words);
    svg.draw_rect("empty", 0.0, 0.0, 100.0, height);
    svg.draw_stretched(0.0, height, (columns, rows), |part| {
        for (step, d) in stroke_paths(&lines).iter().enumerate().filter(|(_, d)| !d.is_empty()) {
            // Strokes run along the middle of their line.
            part.draw_path(&format!("h h{step}"), d);
        }
    });
    // Hairlines separate the cells if there is room for them.
    if line_height >= 8.0 {
        for at in 1..rows {
            let y = at as f64 * line_height;
            svg.draw_line("hair", 0.0, y, 100.0, y);
        }
    }
    if columns <= 64 {
        for at in 1..columns {
            let x = at as f64 * 100.0 / columns as f64;
            svg.draw_line("hair", x, 0.0, x, height);
        }
    }
    if flat {
        svg.draw_text("middle flat", 50.0, height / 2.0 + 5.0, "every rank within 3 % of the average");
    }
    // A transparent band over each line shows its numbers under the pointer.
    for (at, line) in lines.iter().enumerate() {
        svg.draw_with_tooltip(&line.words, |g| {
            g.draw_rect("over", 0.0, at as f64 * line_height, 100.0, line_height);
        });
    }
    let every = (15.0 / line_height).ceil() as usize;
    for (at, line) in lines.iter().enumerate().step_by(every) {
        svg.draw_margin_text((at as f64 + 0.5) * line_height + 4.0, &line.label);
    }
    draw_rank_ticks(&mut svg, page, height);
    svg.close();
    out.push_str("<figcaption>layers down, ranks across");
    if flat {
        out.push_str("; one colour means that no rank stands out over all batches");
    }
    if page.cluster.nodes() > 1 {
        let _ = write!(out, "; tick marks separate the {} nodes", page.cluster.nodes());
    }
    out.push_str("</figcaption>\n</figure>\n");
}

/// Returns the cells of a row of the outcome. Merges them if they are too many to draw.
fn heatmap_lines(
    page: &SimulationPage<'_>,
    comparison: &RowComparison<'_>,
    row: &SimulationRow,
) -> Vec<HeatmapLine> {
    let width = page.cluster.ranks().div_ceil(MAX_COLUMNS).max(1);
    let singles: Vec<HeatmapLine> = comparison
        .outcome
        .layers
        .iter()
        .zip(&row.layers)
        .map(|(&layer, judged)| {
            let id = page.trace.layers().get(layer).map_or_else(String::new, u32::to_string);
            let mean = judged.rank_tokens.iter().map(|&t| t as f64).sum::<f64>() / judged.ranks.max(1) as f64;
            let of = |&tokens: &u64| (mean > 0.0).then(|| tokens as f64 / mean);
            let ratios: Vec<Option<f64>> = judged.rank_tokens.iter().map(of).collect();
            let words = line_tooltip(&id, &ratios);
            let cells = ratios.chunks(width).map(busiest_ratio).collect();
            HeatmapLine { label: id, cells, words }
        })
        .collect();
    let tall = singles.len().div_ceil(MAX_ROWS).max(1);
    if tall == 1 {
        return singles;
    }
    let join = |group: &[HeatmapLine]| {
        let columns = group.first().map_or(0, |l| l.cells.len());
        let column = |c: usize| {
            busiest_ratio(&group.iter().map(|l| l.cells.get(c).copied().flatten()).collect::<Vec<_>>())
        };
        HeatmapLine {
            label: group.first().map_or_else(String::new, |l| l.label.clone()),
            cells: (0..columns).map(column).collect(),
            words: group.iter().map(|l| l.words.as_str()).collect::<Vec<_>>().join("\n"),
        }
    };
    singles.chunks(tall).map(join).collect()
}

fn busiest_ratio(group: &[Option<f64>]) -> Option<f64> {
    group.iter().flatten().copied().reduce(f64::max)
}

fn line_tooltip(id: &str, ratios: &[Option<f64>]) -> String {
    let known = || ratios.iter().enumerate().filter_map(|(rank, value)| value.map(|v| (rank, v)));
    let most = known().reduce(|a, b| if b.1 > a.1 { b } else { a });
    let least = known().reduce(|a, b| if b.1 < a.1 { b } else { a });
    match (most, least) {
        (Some((busy, high)), Some((idle, low))) => {
            format!(
                "layer {id}: most on rank {busy}, {}× the average; least on rank {idle}, {}×",
                format_ratio(high),
                format_fixed(low, 2)
            )
        }
        _ => format!("layer {id}: no tokens"),
    }
}

/// Returns the path data per colour step.
fn stroke_paths(lines: &[HeatmapLine]) -> Vec<String> {
    let mut paths = vec![String::new(); COLOUR_STEPS.len() + 1];
    for (y, line) in lines.iter().enumerate() {
        let mut x = 0;
        for run in line.cells.chunk_by(|a, b| a.map(colour_step) == b.map(colour_step)) {
            if let Some(Some(value)) = run.first() {
                let _ = write!(paths[colour_step(*value)], "M{x} {y}.5h{}", run.len());
            }
            x += run.len();
        }
    }
    paths
}

fn colour_step(value: f64) -> usize {
    COLOUR_STEPS.partition_point(|&end| end < value)
}

/// Draws rank numbers below, and marks at the ends of nodes.
fn draw_rank_ticks(svg: &mut SvgWriter<'_>, page: &SimulationPage<'_>, height: f64) {
    let (ranks, nodes) = (page.cluster.ranks(), page.cluster.nodes());
    let x = |rank: usize| rank as f64 * 100.0 / ranks as f64;
    if nodes > 1 && nodes <= 72 {
        for node in 1..nodes {
            let at = x(node * (ranks / nodes));
            svg.draw_line("node", at, height, at, height + 5.0);
        }
    }
    let every =
        [1, 2, 4, 8, 16, 32, 64, 128, 256].into_iter().find(|e| ranks.div_ceil(*e) <= 9).unwrap_or(512);
    for rank in (0..ranks).step_by(every) {
        svg.draw_text("middle soft", x(rank) + 50.0 / ranks as f64, height + 16.0, &rank.to_string());
    }
}

fn draw_legend(out: &mut String) {
    let last = COLOUR_STEPS.len();
    let width = 100.0 / (last + 1) as f64;
    out.push_str("<figure class=\"legend\">\n");
    let mut svg = SvgWriter::open(
        out,
        "plot bare",
        50.0,
        "Colour scale: blue below 0.97 times the average load, neutral to 1.03, orange above.",
    );
    svg.draw_text("start soft", 0.0, 11.0, "waits");
    svg.draw_text("middle soft", 4.5 * width, 11.0, "average");
    svg.draw_text("end soft", 100.0, 11.0, "works too much");
    for step in 0..=last {
        svg.draw_rect(&format!("f{step}"), step as f64 * width, 17.0, width, 14.0);
    }
    for (at, end) in COLOUR_STEPS.iter().enumerate() {
        let label = format!("{end:.2}");
        let label = label.trim_end_matches('0').trim_end_matches('.');
        svg.draw_text("middle soft", (at + 1) as f64 * width, 45.0, label);
    }
    svg.close();
    out.push_str("</figure>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_steps_around_one() {
        let steps = [0.0, 0.5, 0.96, 0.97, 1.0, 1.03, 1.04, 3.0, 4.0, 9.0].map(colour_step);
        assert_eq!(steps, [0, 0, 3, 3, 4, 4, 5, 9, 9, 10]);
    }

    #[test]
    fn runs_of_one_colour_are_one_stroke() {
        let cells = vec![Some(1.0), Some(1.01), None, Some(3.0), Some(1.0)];
        let paths = stroke_paths(&[HeatmapLine { label: "0".into(), cells, words: String::new() }]);
        assert_eq!(paths[4], "M0 0.5h2M4 0.5h1");
        assert_eq!(paths[9], "M3 0.5h1");
        assert_eq!(paths.iter().filter(|d| !d.is_empty()).count(), 2);
    }
}
