//! The result in plain words, with one picture and four figures.

use super::svg::Svg;
use super::text::{count, counted, esc, fixed, percent, ratio};
use super::{Comparison, Page, name_of, policy_of};
use crate::model::Model;
use crate::simulate::Row;
use crate::split::Method;
use std::fmt::Write as _;

/// The masthead and the result.
pub(super) fn write(out: &mut String, page: &Page<'_>, comparison: &Comparison<'_>, model: Option<&Model>) {
    let (before, after) = (comparison.before(), comparison.after());
    let outcome = comparison.outcome;
    masthead(out, &page.title);
    let _ = writeln!(out, "<h1>{}</h1>", sentence(comparison));
    let setting = format!(
        "{} of {}, {} experts each, on {} with {} per rank",
        counted(outcome.batches, "batch", "batches"),
        counted(outcome.layers.len(), "layer", "layers"),
        count(page.trace.experts()),
        counted(page.cluster.ranks(), "rank", "ranks"),
        counted(page.cluster.slots_per_rank(), "slot", "slots"),
    );
    let compared = match (comparison.differs(), outcome.rows.len()) {
        (true, _) => format!(
            "<b>After</b> is the best row, {}; <b>before</b> is {}. ",
            name_of(outcome, after),
            name_of(outcome, before)
        ),
        (false, 1) => format!("Only {} was judged. ", name_of(outcome, before)),
        (false, rows) => {
            format!("None of the {rows} rows judged does better than {}. ", name_of(outcome, before))
        }
    };
    let _ = writeln!(
        out,
        "<p class=\"say\">Every step waits for its busiest rank. {compared}Means over {setting}.</p>"
    );
    waterline(out, comparison);
    cards(out, page, comparison, model);
    out.push_str("</header>\n");
}

/// The result in one sentence. The split that stacks do by themselves comes first where the best row is split exactly.
fn sentence(comparison: &Comparison<'_>) -> String {
    let (before, after) = (comparison.before(), comparison.after());
    let times = |row: &Row| format!("<em>{} times</em> the average work", ratio(row.imbalance.mean));
    if !comparison.differs() {
        return format!("The busiest rank does {}.", times(after));
    }
    let instead = format!("instead of <b>{} times</b>", ratio(before.imbalance.mean));
    match comparison.own_rule() {
        Some(row) if after.method == Method::Exact => format!(
            "The busiest rank does {} {instead} with the {} split, which stacks do by themselves, and {} times with the \
             exact one.",
            times(row),
            row.method,
            ratio(after.imbalance.mean)
        ),
        _ => format!("The busiest rank does {} {instead}.", times(after)),
    }
}

/// What is said where nothing was judged.
pub(super) fn nothing(out: &mut String, page: &Page<'_>) {
    masthead(out, &page.title);
    out.push_str(
        "<h1>Nothing was judged.</h1>\n<p class=\"say\">The steps to judge on hold no tokens; what is known about \
         the trace stands below.</p>\n</header>\n",
    );
}

pub(super) fn masthead(out: &mut String, title: &str) {
    // A hull on a level line.
    out.push_str(
        "<header>\n<p class=\"mast\"><svg class=\"mark\" viewBox=\"0 0 32 20\" width=\"32\" height=\"20\" \
         aria-hidden=\"true\"><path class=\"hull\" d=\"M4 7H28Q25 15 16 15Q7 15 4 7Z\"/>\
         <path class=\"level\" d=\"M0 7H32M16 15V20\"/></svg> <b>evenkeel</b> ",
    );
    let _ = writeln!(out, "<span>{}</span></p>", esc(title));
}

/// Before and after as bars against the average rank.
fn waterline(out: &mut String, comparison: &Comparison<'_>) {
    let outcome = comparison.outcome;
    let mut bars = vec![("before", comparison.before())];
    if comparison.differs() {
        bars.push(("after", comparison.after()));
    }
    let longest = bars.iter().map(|(_, row)| row.imbalance.mean).fold(1.0, f64::max);
    let percent_of = |value: f64| value / (longest * 1.02) * 100.0;
    let said = bars.iter().map(|(class, row)| format!("{class} {}", ratio(row.imbalance.mean)));
    let words = format!(
        "Busiest rank's load as a multiple of the average rank's: {}.",
        said.collect::<Vec<_>>().join(", ")
    );
    out.push_str("<figure class=\"hero\">\n");
    let height = bars.len() as f64 * 40.0 + 20.0;
    let mut svg = Svg::open(out, "plot bare", height, &words);
    for (at, (class, row)) in bars.iter().enumerate() {
        let (top, end) = (at as f64 * 40.0 + 20.0, percent_of(row.imbalance.mean));
        let label = format!("{class} {}", ratio(row.imbalance.mean));
        svg.rect(&format!("bar {class}"), 0.0, top, end, 30.0);
        let inside = format!("start on-{class}");
        svg.text(&inside, 1.0, top + 20.0, &label);
    }
    let one = percent_of(1.0);
    svg.line("one", one, 12.0, one, height);
    svg.text("end soft", one, 9.0, "the average rank");
    svg.close();
    let names = bars.iter().map(|(class, row)| {
        format!("<span class=\"key {class}\"></span>{class}: <b>{}</b>", name_of(outcome, row))
    });
    let _ = writeln!(
        out,
        "<figcaption>{}. A perfect step would end every bar at the line.</figcaption>\n</figure>",
        names.collect::<Vec<_>>().join(" · ")
    );
}

fn cards(out: &mut String, page: &Page<'_>, comparison: &Comparison<'_>, model: Option<&Model>) {
    let (before, after) = (comparison.before(), comparison.after());
    let outcome = comparison.outcome;
    let differs = comparison.differs();
    let change = |from: String, to: String| {
        if differs {
            format!("<s>{from}</s> <span class=\"to\">→</span> <b>{to}</b>")
        } else {
            format!("<b>{to}</b>")
        }
    };
    out.push_str("<dl class=\"cards\">\n");
    card(
        out,
        "Batches that cannot be better",
        &change(percent(before.at_bound), percent(after.at_bound)),
        &format!(
            "Their busiest rank carries the least that any placement and split could give it: all tokens divided \
             by {}, rounded up.",
            counted(page.cluster.ranks(), "rank", "ranks")
        ),
    );
    if differs {
        let (old, new) = (total_peak(before), total_peak(after));
        let saved = (1.0 - new / old).max(0.0);
        card(
            out,
            "Work of the busiest rank",
            &format!("<b>−{}</b>", percent(saved)),
            &format!(
                "Where the experts' share of a step takes as long as its busiest rank has tokens, that share \
                 becomes {}× as fast. Attention, communication, and batches so small that reading weights \
                 dominates, do not follow this figure.",
                ratio(old / new)
            ),
        );
    }
    card(
        out,
        "Left to gain",
        &change(percent(before.excess.mean), percent(after.excess.mean)),
        "Mean excess: how far the busiest rank stays above the least possible, in parts of the average rank's load.",
    );
    let moves = outcome.planned.get(after.planned).map_or(0, |p| p.moves);
    let memory = model.map(|model| Memory::of(page, model));
    let shown = memory.as_ref().map_or(String::new(), |memory| format!("<b>{}</b> per rank, ", memory.size));
    card(
        out,
        "The price",
        &format!("{shown}<b>{}</b> {}", count(moves), if moves == 1 { "move" } else { "moves" }),
        &format!(
            "{}Moves are expert weights to copy, over all layers, when {} replaces the contiguous placement; then \
             {}&#160;µs of one CPU core per split (median).",
            memory.map_or(String::new(), |memory| memory.words),
            esc(policy_of(outcome, after)),
            micro(after.split_us.p50)
        ),
    );
    out.push_str("</dl>\n");
}

/// What redundant slots cost each rank.
struct Memory {
    size: String,
    words: String,
}

impl Memory {
    fn of(page: &Page<'_>, model: &Model) -> Self {
        let (ranks, redundant) =
            (page.cluster.ranks(), page.cluster.usable_slots().saturating_sub(page.trace.experts()));
        let bytes = model.bytes_per_rank(redundant as u64 * model.layers as u64, ranks);
        Self {
            size: format!("{}&#160;GB", fixed(bytes as f64 / 1e9, 2)),
            words: format!(
                "Memory for {} in each of {}, as {model} keeps its weights. ",
                counted(redundant, "redundant slot", "redundant slots"),
                counted(model.layers, "MoE layer", "MoE layers"),
            ),
        }
    }
}

fn card(out: &mut String, name: &str, value: &str, explanation: &str) {
    let _ = writeln!(
        out,
        "<div><dt>{name}</dt><dd class=\"value\">{value}</dd><dd class=\"small\">{explanation}</dd></div>"
    );
}

/// The peaks of all batches added up: what the steps have to wait for.
fn total_peak(row: &Row) -> f64 {
    row.layers.iter().flat_map(|judged| &judged.peaks).map(|&peak| peak as f64).sum()
}

/// Microseconds in about three digits.
pub(super) fn micro(us: f64) -> String {
    let digits = match us {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    fixed(us, digits)
}
