//! The result in plain words, with the times if they are known, one picture and four figures.

use super::html::{escape_text, format_count, format_fixed, format_percent, format_quantity, format_ratio};
use super::svg::SvgWriter;
use super::{RowComparison, SimulationPage, policy_name, row_label};
use evenkeel::model::MoeModel;
use evenkeel::split::SplitMethod;
use evenkeel_simulate::{SimulationRow, TimedRow, Verdict, format_ms};
use std::fmt::Write as _;

/// Writes the masthead and the result.
pub(super) fn write(
    out: &mut String,
    page: &SimulationPage<'_>,
    comparison: &RowComparison<'_>,
    model: Option<&MoeModel>,
) {
    let (before, after) = (comparison.before_row(), comparison.after_row());
    let outcome = comparison.outcome;
    write_masthead(out, &page.title);
    let balance = headline_sentence(comparison);
    match page.verdict {
        Some(verdict) => {
            let _ = writeln!(out, "<h1>{}</h1>", escape_text(&verdict.to_sentence()));
            draw_times(out, page, verdict);
            let eplb = verdict.eplb_sentence().unwrap_or_default();
            let _ = writeln!(out, "<p class=\"say\">{} {balance}</p>", escape_text(&eplb));
        }
        None => {
            let _ = writeln!(out, "<h1>{balance}</h1>");
        }
    }
    let setting = format!(
        "{} of {}, {} experts each, on {} with {} per rank",
        format_quantity(outcome.batches, "batch", "batches"),
        format_quantity(outcome.layers.len(), "layer", "layers"),
        format_count(page.trace.experts()),
        format_quantity(page.cluster.ranks(), "rank", "ranks"),
        format_quantity(page.cluster.slots_per_rank(), "slot", "slots"),
    );
    let compared = match (comparison.has_difference(), outcome.rows.len()) {
        (true, _) => format!(
            "<b>After</b> is the best row, {}; <b>before</b> is {}. ",
            row_label(outcome, after),
            row_label(outcome, before)
        ),
        (false, 1) => format!("Only {} was judged. ", row_label(outcome, before)),
        (false, rows) => {
            format!("None of the {rows} rows judged does better than {}. ", row_label(outcome, before))
        }
    };
    let _ = writeln!(
        out,
        "<p class=\"say\">Every step waits for its busiest rank. {compared}Means over {setting}.</p>"
    );
    draw_waterline(out, comparison);
    write_cards(out, page, comparison, model);
    out.push_str("</header>\n");
}

/// Returns the result in one sentence. If the best row has the exact split, the stacks' own split comes
/// first.
fn headline_sentence(comparison: &RowComparison<'_>) -> String {
    let (before, after) = (comparison.before_row(), comparison.after_row());
    let times =
        |row: &SimulationRow| format!("<em>{} times</em> the average work", format_ratio(row.imbalance.mean));
    if !comparison.has_difference() {
        return format!("The busiest rank does {}.", times(after));
    }
    let instead = format!("instead of <b>{} times</b>", format_ratio(before.imbalance.mean));
    match comparison.own_rule() {
        Some(row) if after.method == SplitMethod::Exact => format!(
            "The busiest rank does {} {instead} with the {} split, which stacks do by themselves, and {} times with the \
             exact one.",
            times(row),
            row.method,
            format_ratio(after.imbalance.mean)
        ),
        _ => format!("The busiest rank does {} {instead}.", times(after)),
    }
}

/// Writes the headline of a report without judged batches.
pub(super) fn write_empty(out: &mut String, page: &SimulationPage<'_>) {
    write_masthead(out, &page.title);
    out.push_str(
        "<h1>Nothing was judged.</h1>\n<p class=\"say\">The judged steps hold no tokens. The section below \
         describes the trace.</p>\n</header>\n",
    );
}

pub(super) fn write_masthead(out: &mut String, title: &str) {
    // The mark is a hull on a level line.
    out.push_str(
        "<header>\n<p class=\"mast\"><svg class=\"mark\" viewBox=\"0 0 32 20\" width=\"32\" height=\"20\" \
         aria-hidden=\"true\"><path class=\"hull\" d=\"M4 7H28Q25 15 16 15Q7 15 4 7Z\"/>\
         <path class=\"level\" d=\"M0 7H32M16 15V20\"/></svg> <b>evenkeel</b> ",
    );
    let _ = writeln!(out, "<span>{}</span></p>", escape_text(title));
}

/// Draws the time of a step by every row as bars.
fn draw_times(out: &mut String, page: &SimulationPage<'_>, verdict: &Verdict) {
    let longest = verdict.rows.iter().map(|row| row.step_ms).fold(f64::MIN_POSITIVE, f64::max);
    let label = |row: &TimedRow| {
        let policy = page.outcome.planned.get(row.planned).map_or("", |planned| planned.policy.as_str());
        format!("{policy}, {}: {} ms", row.method, format_ms(row.step_ms))
    };
    let said: Vec<String> = verdict.rows.iter().map(label).collect();
    out.push_str("<figure class=\"hero\">\n");
    let words = format!("Time of a step in the MoE layers: {}.", said.join("; "));
    let mut svg = SvgWriter::open(out, "plot bare", verdict.rows.len() as f64 * 40.0, &words);
    for (at, (row, label)) in verdict.rows.iter().zip(&said).enumerate() {
        let class = if at == verdict.best { "after" } else { "before" };
        let (top, length) = (at as f64 * 40.0, row.step_ms / longest * 100.0);
        svg.draw_rect(&format!("bar {class}"), 0.0, top, length, 30.0);
        // A label that is longer than its bar needs the colour of text on the page.
        let on = if length < 40.0 { "before" } else { class };
        svg.draw_text(&format!("start on-{on}"), 1.0, top + 20.0, label);
    }
    svg.close();
    out.push_str(
        "<figcaption>Time of a step in the MoE layers, attention and dense layers left out. The fastest row is \
         highlighted.</figcaption>\n</figure>\n",
    );
}

/// Draws the imbalance before and after as bars against the average rank.
fn draw_waterline(out: &mut String, comparison: &RowComparison<'_>) {
    let outcome = comparison.outcome;
    let mut bars = vec![("before", comparison.before_row())];
    if comparison.has_difference() {
        bars.push(("after", comparison.after_row()));
    }
    let longest = bars.iter().map(|(_, row)| row.imbalance.mean).fold(1.0, f64::max);
    let percent_of = |value: f64| value / (longest * 1.02) * 100.0;
    let said = bars.iter().map(|(class, row)| format!("{class} {}", format_ratio(row.imbalance.mean)));
    let words = format!(
        "Busiest rank's load as a multiple of the average rank's: {}.",
        said.collect::<Vec<_>>().join(", ")
    );
    out.push_str("<figure class=\"hero\">\n");
    let height = bars.len() as f64 * 40.0 + 20.0;
    let mut svg = SvgWriter::open(out, "plot bare", height, &words);
    for (at, (class, row)) in bars.iter().enumerate() {
        let (top, end) = (at as f64 * 40.0 + 20.0, percent_of(row.imbalance.mean));
        let label = format!("{class} {}", format_ratio(row.imbalance.mean));
        svg.draw_rect(&format!("bar {class}"), 0.0, top, end, 30.0);
        let inside = format!("start on-{class}");
        svg.draw_text(&inside, 1.0, top + 20.0, &label);
    }
    let one = percent_of(1.0);
    svg.draw_line("one", one, 12.0, one, height);
    svg.draw_text("end soft", one, 9.0, "the average rank");
    svg.close();
    let names = bars.iter().map(|(class, row)| {
        format!("<span class=\"key {class}\"></span>{class}: <b>{}</b>", row_label(outcome, row))
    });
    let _ = writeln!(
        out,
        "<figcaption>{}. A perfect step would end every bar at the line.</figcaption>\n</figure>",
        names.collect::<Vec<_>>().join(" · ")
    );
}

fn write_cards(
    out: &mut String,
    page: &SimulationPage<'_>,
    comparison: &RowComparison<'_>,
    model: Option<&MoeModel>,
) {
    let (before, after) = (comparison.before_row(), comparison.after_row());
    let outcome = comparison.outcome;
    let differs = comparison.has_difference();
    let change = |from: String, to: String| {
        if differs {
            format!("<s>{from}</s> <span class=\"to\">→</span> <b>{to}</b>")
        } else {
            format!("<b>{to}</b>")
        }
    };
    out.push_str("<dl class=\"cards\">\n");
    write_card(
        out,
        "Batches that cannot be better",
        &change(format_percent(before.at_bound), format_percent(after.at_bound)),
        &format!(
            "Their busiest rank carries the least that any placement and split could give it: all tokens divided \
             by {}, rounded up.",
            format_quantity(page.cluster.ranks(), "rank", "ranks")
        ),
    );
    if differs {
        let (old, new) = (total_peak(before), total_peak(after));
        let saved = (1.0 - new / old).max(0.0);
        write_card(
            out,
            "Work of the busiest rank",
            &format!("<b>−{}</b>", format_percent(saved)),
            &format!(
                "The experts' share of a step becomes {}× as fast, if its time is proportional to the tokens of \
                 the busiest rank. This figure does not apply to attention, to communication, or to batches so \
                 small that reading weights dominates.",
                format_ratio(old / new)
            ),
        );
    }
    write_card(
        out,
        "Left to gain",
        &change(format_percent(before.excess.mean), format_percent(after.excess.mean)),
        "Mean excess: the distance of the busiest rank above the lowest possible peak, in parts of the average load.",
    );
    let moves = outcome.planned.get(after.planned).map_or(0, |p| p.moves);
    let memory = model.map(|model| RedundancyMemory::for_model(page, model));
    let shown = memory.as_ref().map_or(String::new(), |memory| format!("<b>{}</b> per rank, ", memory.size));
    write_card(
        out,
        "The price",
        &format!("{shown}<b>{}</b> {}", format_count(moves), if moves == 1 { "move" } else { "moves" }),
        &format!(
            "{}Moves are expert weights to copy, over all layers, when {} replaces the contiguous placement. Each \
             split takes {}&#160;µs of one CPU core (median).",
            memory.map_or(String::new(), |memory| memory.words),
            escape_text(policy_name(outcome, after)),
            format_micros(after.split_us.p50)
        ),
    );
    out.push_str("</dl>\n");
}

/// The memory that redundant slots cost each rank.
struct RedundancyMemory {
    size: String,
    words: String,
}

impl RedundancyMemory {
    fn for_model(page: &SimulationPage<'_>, model: &MoeModel) -> Self {
        let (ranks, redundant) =
            (page.cluster.ranks(), page.cluster.usable_slots().saturating_sub(page.trace.experts()));
        let bytes = model.bytes_per_rank(redundant as u64 * model.layers as u64, ranks);
        Self {
            size: format!("{}&#160;GB", format_fixed(bytes as f64 / 1e9, 2)),
            words: format!(
                "Memory for {} in each of {}, as {model} keeps its weights. ",
                format_quantity(redundant, "redundant slot", "redundant slots"),
                format_quantity(model.layers, "MoE layer", "MoE layers"),
            ),
        }
    }
}

fn write_card(out: &mut String, name: &str, value: &str, explanation: &str) {
    let _ = writeln!(
        out,
        "<div><dt>{name}</dt><dd class=\"value\">{value}</dd><dd class=\"small\">{explanation}</dd></div>"
    );
}

/// Returns the sum of the peaks of all batches, which the steps have to wait for.
fn total_peak(row: &SimulationRow) -> f64 {
    row.layers.iter().flat_map(|judged| &judged.peaks).map(|&peak| peak as f64).sum()
}

/// Formats microseconds with about three digits.
pub(super) fn format_micros(us: f64) -> String {
    let digits = match us {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format_fixed(us, digits)
}
