//! All numbers in one table, with the best of each column marked.

use super::headline::format_micros;
use super::html::{escape_text, format_count, format_fixed, format_percent};
use super::{RowComparison, open_section};
use evenkeel_simulate::{PolicyPlacements, SimulationResult, SimulationRow};
use std::fmt::Write as _;

struct TableColumn {
    group: &'static str,
    name: &'static str,
    /// Formats the cell.
    show: fn(&SimulationRow, &PolicyPlacements) -> String,
    /// Returns the compared value; the lowest is best. `None` means that the column has no best cell.
    rank: Option<fn(&SimulationRow, &PolicyPlacements) -> f64>,
}

const COLUMNS: [TableColumn; 13] = [
    TableColumn {
        group: "imbalance",
        name: "mean",
        show: |r, _| format_fixed(r.imbalance.mean, 3),
        rank: Some(|r, _| r.imbalance.mean),
    },
    TableColumn {
        group: "imbalance",
        name: "p50",
        show: |r, _| format_fixed(r.imbalance.p50, 3),
        rank: Some(|r, _| r.imbalance.p50),
    },
    TableColumn {
        group: "imbalance",
        name: "p95",
        show: |r, _| format_fixed(r.imbalance.p95, 3),
        rank: Some(|r, _| r.imbalance.p95),
    },
    TableColumn {
        group: "imbalance",
        name: "p99",
        show: |r, _| format_fixed(r.imbalance.p99, 3),
        rank: Some(|r, _| r.imbalance.p99),
    },
    TableColumn {
        group: "imbalance",
        name: "max",
        show: |r, _| format_fixed(r.imbalance.max, 3),
        rank: Some(|r, _| r.imbalance.max),
    },
    TableColumn {
        group: "bound",
        name: "mean",
        show: |r, _| format_fixed(r.lower_bound.mean, 3),
        rank: None,
    },
    TableColumn {
        group: "bound",
        name: "reached",
        show: |r, _| format_percent(r.at_bound),
        rank: Some(|r, _| -r.at_bound),
    },
    TableColumn {
        group: "excess",
        name: "mean",
        show: |r, _| format_fixed(r.excess.mean, 3),
        rank: Some(|r, _| r.excess.mean),
    },
    TableColumn {
        group: "excess",
        name: "p95",
        show: |r, _| format_fixed(r.excess.p95, 3),
        rank: Some(|r, _| r.excess.p95),
    },
    TableColumn {
        group: "split, µs",
        name: "p50",
        show: |r, _| format_micros(r.split_us.p50),
        rank: Some(|r, _| r.split_us.p50),
    },
    TableColumn {
        group: "split, µs",
        name: "p99",
        show: |r, _| format_micros(r.split_us.p99),
        rank: Some(|r, _| r.split_us.p99),
    },
    TableColumn {
        group: "placement",
        name: "moves",
        show: |_, p| format_count(p.moves),
        rank: Some(|_, p| p.moves as f64),
    },
    TableColumn {
        group: "placement",
        name: "plan ms",
        show: |_, p| format_micros(p.plan_time.as_secs_f64() * 1e3),
        rank: Some(|_, p| p.plan_time.as_secs_f64()),
    },
];

/// The number of columns that belong to the policy. They are shown once for all its splits.
const POLICY_COLUMNS: usize = 2;

/// Writes the section with the table.
pub(super) fn write(out: &mut String, outcome: &SimulationResult, comparison: &RowComparison<'_>) {
    open_section(
        out,
        "numbers",
        "The numbers",
        "Imbalance is the busiest rank's load over the average (1 is perfect); of 100 batches, 95 stay below p95. \
         The bound is the least that any placement could reach, whole tokens only; excess is what remains above it.",
    );
    out.push_str("<div class=\"wide\" role=\"region\" aria-labelledby=\"numbers\" tabindex=\"0\">\n<table class=\"numbers\">\n<thead>\n<tr><th scope=\"col\" rowspan=\"2\">policy</th><th scope=\"col\" rowspan=\"2\">split</th>");
    for group in COLUMNS.chunk_by(|a, b| a.group == b.group) {
        let _ = write!(
            out,
            "<th scope=\"colgroup\" colspan=\"{}\" class=\"group\">{}</th>",
            group.len(),
            group.first().map_or("", |c| c.group)
        );
    }
    out.push_str("</tr>\n<tr>");
    for (at, column) in COLUMNS.iter().enumerate() {
        let _ = write!(out, "<th scope=\"col\"{}>{}</th>", first_of_group(at), column.name);
    }
    out.push_str("</tr>\n</thead>\n");
    let best: Vec<Option<String>> = COLUMNS.iter().map(|column| best_cell(outcome, column)).collect();
    for (at, planned) in outcome.planned.iter().enumerate() {
        let rows: Vec<(usize, &SimulationRow)> =
            outcome.rows.iter().enumerate().filter(|(_, r)| r.planned == at).collect();
        out.push_str("<tbody>\n");
        for (nth, (index, row)) in rows.iter().enumerate() {
            let _ = write!(out, "<tr class=\"{}\">", comparison.css_class(*index));
            if nth == 0 {
                let _ = write!(
                    out,
                    "<th scope=\"rowgroup\" rowspan=\"{}\" class=\"policy\">{}</th>",
                    rows.len(),
                    escape_text(&planned.policy)
                );
            }
            let _ = write!(
                out,
                "<th scope=\"row\">{}{}</th>",
                row.method,
                class_tag(comparison.css_class(*index))
            );
            for (c, column) in COLUMNS.iter().enumerate() {
                let span = match COLUMNS.len() - c {
                    left if left > POLICY_COLUMNS => String::new(),
                    _ if nth > 0 => continue,
                    _ => format!(" rowspan=\"{}\"", rows.len()),
                };
                let shown = (column.show)(row, planned);
                let cell = if best[c].as_ref() == Some(&shown) {
                    format!("<b>{shown}<span class=\"unseen\"> (best)</span></b>")
                } else {
                    shown
                };
                let _ = write!(out, "<td{}{span}>{cell}</td>", first_of_group(c));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n");
    }
    out.push_str(
        "</table>\n</div>\n<p class=\"small\">Bold and underlined: the best of its column. Moves are counted from \
         the contiguous placement, over all layers; plan ms is summed over layers; timings were taken on the machine \
         that made this report.</p>\n</section>\n",
    );
}

fn first_of_group(at: usize) -> &'static str {
    if at == 0 || COLUMNS[at - 1].group != COLUMNS[at].group { " class=\"lead\"" } else { "" }
}

fn class_tag(class: &str) -> String {
    if class.is_empty() { String::new() } else { format!(" <span class=\"tag {class}\">{class}</span>") }
}

/// Returns the text of the best cell in a column, or `None` if all cells are equal.
fn best_cell(outcome: &SimulationResult, column: &TableColumn) -> Option<String> {
    let rank = column.rank?;
    let cells: Vec<(f64, String)> = outcome
        .rows
        .iter()
        .filter_map(|row| outcome.planned.get(row.planned).map(|p| (rank(row, p), (column.show)(row, p))))
        .collect();
    let best = cells.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
    cells.iter().any(|(_, shown)| *shown != best.1).then(|| best.1.clone())
}
