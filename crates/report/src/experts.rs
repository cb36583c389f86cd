//! The hottest experts of the busiest layers, and the ranks on which the best policy put their replicas.

use super::html::{escape_text, format_count, format_fixed, format_percent, format_ratio};
use super::layers::mean_imbalance;
use super::svg::SvgWriter;
use super::{RowComparison, SimulationPage, open_section, policy_name};
use evenkeel::place::Placement;
use std::fmt::Write as _;

/// The most layers and experts that are shown.
const MAX_LAYERS: usize = 4;
const MAX_EXPERTS: usize = 8;
/// The most ranks that are listed by number.
const MAX_LISTED_RANKS: usize = 12;

/// Writes the section with one table per layer.
pub(super) fn write(out: &mut String, page: &SimulationPage<'_>, comparison: &RowComparison<'_>) {
    let (before, after) = (comparison.before_row(), comparison.after_row());
    let outcome = comparison.outcome;
    let Some(planned) = outcome.planned.get(after.planned) else { return };
    let mut busiest: Vec<(f64, usize)> = before
        .layers
        .iter()
        .enumerate()
        .filter_map(|(at, judged)| Some((mean_imbalance(judged)?, at)))
        .collect();
    busiest.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    busiest.truncate(MAX_LAYERS);
    let which = match busiest.len() {
        1 => "layer".to_owned(),
        n => format!("{n} layers"),
    };
    open_section(
        out,
        "experts",
        "The hottest experts and their replicas",
        &format!(
            "The {which} with the worst imbalance before, their experts with the most tokens, and the ranks on which \
             <b>{}</b> places replicas of these experts to share the work. Filled squares are those ranks.",
            escape_text(policy_name(outcome, after))
        ),
    );
    out.push_str("<div class=\"pair\">\n");
    for (imbalance, at) in busiest {
        let (Some(&layer), Some(placement)) = (outcome.layers.get(at), planned.placements.get(at)) else {
            continue;
        };
        let improved = after.layers.get(at).and_then(mean_imbalance).filter(|_| comparison.has_difference());
        write_layer_table(out, page, layer, placement, imbalance, improved);
    }
    out.push_str("</div>\n</section>\n");
}

fn write_layer_table(
    out: &mut String,
    page: &SimulationPage<'_>,
    layer: usize,
    placement: &Placement,
    imbalance: f64,
    improved: Option<f64>,
) {
    let totals = page.trace.totals(layer);
    let all: f64 = totals.iter().map(|&tokens| tokens as f64).sum();
    let mut hottest: Vec<usize> = (0..totals.len().min(placement.experts())).collect();
    hottest.sort_by(|&a, &b| totals[b].cmp(&totals[a]).then(a.cmp(&b)));
    hottest.truncate(MAX_EXPERTS);
    hottest.retain(|&expert| totals[expert] > 0);
    let id = page.trace.layers().get(layer).copied().unwrap_or(0);
    let _ = write!(
        out,
        "<table class=\"experts\">\n<caption>Layer {id} <span class=\"soft\">imbalance {}{}</span></caption>\n\
         <thead><tr><th scope=\"col\">expert</th><th scope=\"col\">share of tokens</th>\
         <th scope=\"col\">replicas</th><th scope=\"col\">on ranks</th></tr></thead>\n<tbody>\n",
        format_ratio(imbalance),
        improved.map_or_else(String::new, |value| format!(" → {}", format_ratio(value)))
    );
    let most = hottest.first().map_or(1.0, |&e| totals[e] as f64);
    for expert in hottest {
        let tokens = totals[expert] as f64;
        let times = tokens / all * totals.len() as f64;
        let copies = placement.replicas(expert);
        let mut ranks: Vec<usize> = copies.iter().map(|&slot| placement.rank_of(slot)).collect();
        ranks.dedup();
        let _ = write!(out, "<tr><th scope=\"row\">{expert}</th><td class=\"share\">");
        let mut svg = SvgWriter::open_hidden(out, "plot bare share", 6.0);
        svg.draw_rect("track", 0.0, 0.0, 100.0, 6.0);
        svg.draw_rect("fill", 0.0, 0.0, tokens / most * 100.0, 6.0);
        svg.close();
        let _ = write!(
            out,
            "{} <span class=\"soft\">{}× average</span></td><td>{}</td><td class=\"where\">",
            format_percent(tokens / all),
            format_fixed(times, 1),
            format_count(copies.len())
        );
        draw_rank_strip(out, &ranks, placement.ranks());
        let listed: Vec<String> = ranks.iter().take(MAX_LISTED_RANKS).map(usize::to_string).collect();
        let more = ranks.len().saturating_sub(MAX_LISTED_RANKS);
        let _ = write!(out, "{}", listed.join(", "));
        if more > 0 {
            let _ = write!(out, " and {more} more");
        }
        out.push_str("</td></tr>\n");
    }
    out.push_str("</tbody>\n</table>\n");
}

/// Draws all ranks in a row, with those that hold a replica filled.
fn draw_rank_strip(out: &mut String, hosts: &[usize], ranks: usize) {
    let width = 100.0 / ranks.max(1) as f64;
    let mut svg = SvgWriter::open_hidden(out, "plot bare hosts", 10.0);
    svg.draw_rect("track", 0.0, 0.0, 100.0, 10.0);
    // The minimum width keeps a replica visible among hundreds of ranks.
    let seen = width.max(1.2);
    for &rank in hosts {
        let x = (rank as f64 * width + width / 2.0 - seen / 2.0).clamp(0.0, 100.0 - seen);
        svg.draw_rect("fill", x, 0.0, seen, 10.0);
    }
    if ranks <= 32 {
        for rank in 1..ranks {
            let x = rank as f64 * width;
            svg.draw_line("hair", x, 0.0, x, 10.0);
        }
    }
    svg.close();
}
