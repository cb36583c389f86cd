//! The hottest experts of the busiest layers, and where the best policy put their copies.

use super::layers::mean;
use super::svg::Svg;
use super::text::{count, esc, fixed, percent, ratio};
use super::{Comparison, Page, policy_of, section};
use crate::place::Placement;
use std::fmt::Write as _;

/// Layers and experts shown.
const LAYERS: usize = 4;
const EXPERTS: usize = 8;
/// Most ranks that are listed by number.
const LISTED: usize = 12;

/// The section with one table per layer.
pub(super) fn write(out: &mut String, page: &Page<'_>, comparison: &Comparison<'_>) {
    let (before, after) = (comparison.before(), comparison.after());
    let outcome = comparison.outcome;
    let Some(planned) = outcome.planned.get(after.planned) else { return };
    let mut busiest: Vec<(f64, usize)> =
        before.layers.iter().enumerate().filter_map(|(at, judged)| Some((mean(judged)?, at))).collect();
    busiest.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    busiest.truncate(LAYERS);
    let which = match busiest.len() {
        1 => "layer".to_owned(),
        n => format!("{n} layers"),
    };
    section(
        out,
        "experts",
        "The hottest experts and their copies",
        &format!(
            "The {which} with the worst imbalance before: which experts draw the most tokens, and the ranks on which \
             <b>{}</b> keeps a copy of each, so that they can share the work. Filled squares are those ranks.",
            esc(policy_of(outcome, after))
        ),
    );
    out.push_str("<div class=\"pair\">\n");
    for (imbalance, at) in busiest {
        let (Some(&layer), Some(placement)) = (outcome.layers.get(at), planned.placements.get(at)) else {
            continue;
        };
        let improved = after.layers.get(at).and_then(mean).filter(|_| comparison.differs());
        layer_table(out, page, layer, placement, imbalance, improved);
    }
    out.push_str("</div>\n</section>\n");
}

fn layer_table(
    out: &mut String,
    page: &Page<'_>,
    layer: usize,
    placement: &Placement,
    imbalance: f64,
    improved: Option<f64>,
) {
    let totals = page.trace.totals(layer);
    let all: f64 = totals.iter().map(|&tokens| tokens as f64).sum();
    let mut hottest: Vec<usize> = (0..totals.len().min(placement.experts())).collect();
    hottest.sort_by(|&a, &b| totals[b].cmp(&totals[a]).then(a.cmp(&b)));
    hottest.truncate(EXPERTS);
    hottest.retain(|&expert| totals[expert] > 0);
    let id = page.trace.layers().get(layer).copied().unwrap_or(0);
    let _ = write!(
        out,
        "<table class=\"experts\">\n<caption>Layer {id} <span class=\"soft\">imbalance {}{}</span></caption>\n\
         <thead><tr><th scope=\"col\">expert</th><th scope=\"col\">share of tokens</th>\
         <th scope=\"col\">copies</th><th scope=\"col\">on ranks</th></tr></thead>\n<tbody>\n",
        ratio(imbalance),
        improved.map_or_else(String::new, |value| format!(" → {}", ratio(value)))
    );
    let most = hottest.first().map_or(1.0, |&e| totals[e] as f64);
    for expert in hottest {
        let tokens = totals[expert] as f64;
        let times = tokens / all * totals.len() as f64;
        let copies = placement.copies(expert);
        let mut ranks: Vec<usize> = copies.iter().map(|&slot| placement.rank_of(slot)).collect();
        ranks.dedup();
        let _ = write!(out, "<tr><th scope=\"row\">{expert}</th><td class=\"share\">");
        let mut svg = Svg::open_hidden(out, "plot bare share", 6.0);
        svg.rect("track", 0.0, 0.0, 100.0, 6.0);
        svg.rect("fill", 0.0, 0.0, tokens / most * 100.0, 6.0);
        svg.close();
        let _ = write!(
            out,
            "{} <span class=\"soft\">{}× average</span></td><td>{}</td><td class=\"where\">",
            percent(tokens / all),
            fixed(times, 1),
            count(copies.len())
        );
        rank_strip(out, &ranks, placement.ranks());
        let listed: Vec<String> = ranks.iter().take(LISTED).map(usize::to_string).collect();
        let more = ranks.len().saturating_sub(LISTED);
        let _ = write!(out, "{}", listed.join(", "));
        if more > 0 {
            let _ = write!(out, " and {more} more");
        }
        out.push_str("</td></tr>\n");
    }
    out.push_str("</tbody>\n</table>\n");
}

/// All ranks in a row, those with a copy filled.
fn rank_strip(out: &mut String, hosts: &[usize], ranks: usize) {
    let width = 100.0 / ranks.max(1) as f64;
    let mut svg = Svg::open_hidden(out, "plot bare hosts", 10.0);
    svg.rect("track", 0.0, 0.0, 100.0, 10.0);
    // Never so thin that a copy among hundreds of ranks gets lost.
    let seen = width.max(1.2);
    for &rank in hosts {
        let x = (rank as f64 * width + width / 2.0 - seen / 2.0).clamp(0.0, 100.0 - seen);
        svg.rect("fill", x, 0.0, seen, 10.0);
    }
    if ranks <= 32 {
        for rank in 1..ranks {
            let x = rank as f64 * width;
            svg.line("hair", x, 0.0, x, 10.0);
        }
    }
    svg.close();
}
