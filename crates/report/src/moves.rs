//! The imbalance against the moves of a replay: the gain of each move.

use super::html::{escape_text, format_count, format_ratio};
use super::svg::{RatioAxis, ShortNumber, SvgWriter, tick_label};
use super::{SimulationPage, open_section};
use evenkeel::split::SplitMethod;
use evenkeel_simulate::{ReplanSchedule, ReplayRow, is_pareto_optimal};
use std::fmt::Write as _;

const HEIGHT: f64 = 280.0;
const TOP: f64 = 12.0;
/// The space on the right, in percent, for the names of the policies.
const NAME_MARGIN: f64 = 18.0;
/// The most policies that are drawn, equal to the number of colours.
const MAX_SERIES: usize = 6;
/// The least distance of two names, in pixels.
const MIN_NAME_GAP: f64 = 15.0;

/// Returns the moves of one re-planning of all layers.
fn moves_per_replan(row: &ReplayRow) -> f64 {
    row.moves as f64 / row.replans.max(1) as f64
}

/// Returns the method to draw: the exact one, or else the first.
fn select_method(rows: &[ReplayRow]) -> Option<SplitMethod> {
    let exact = rows.iter().map(|row| row.method).find(|&method| method == SplitMethod::Exact);
    exact.or(rows.first().map(|row| row.method))
}

/// Writes the section with the chart, or nothing without a replay.
pub(super) fn write(out: &mut String, page: &SimulationPage<'_>) {
    let Some(method) = select_method(page.replayed) else { return };
    let rows: Vec<&ReplayRow> = page.replayed.iter().filter(|row| row.method == method).collect();
    let mut policies: Vec<&str> = Vec::new();
    for row in &rows {
        if !policies.contains(&row.policy.as_str()) {
            policies.push(&row.policy);
        }
    }
    let left_out = policies.len().saturating_sub(MAX_SERIES);
    policies.truncate(MAX_SERIES);
    let drawn: Vec<&ReplayRow> =
        rows.into_iter().filter(|row| policies.contains(&row.policy.as_str())).collect();
    let top = drawn.iter().map(|row| row.imbalance.mean).fold(1.0, f64::max);
    let least = drawn.iter().map(|row| row.imbalance.mean - 1.0).fold(f64::MAX, f64::min);
    let axis = RatioAxis::new(1.0 + (top - 1.0) * 1.06, least.max(0.01));
    let bent = if axis.is_stretched() { " The scale is stretched near 1." } else { "" };
    open_section(
        out,
        "moves",
        "The gain of moves",
        &format!(
            "Re-plannings along the trace with the {method} split. Each dot is one limit on moves, from never (left) to no \
             limit (right). Dots nearer to the lower left corner are better. Rings are the oracle, planned on \
             the very batches that it serves, and plans that change only if that pays.{bent}"
        ),
    );
    let most = drawn.iter().map(|row| moves_per_replan(row)).fold(1.0, f64::max);
    let x = |row: &ReplayRow| (moves_per_replan(row) / most).sqrt() * (100.0 - NAME_MARGIN);
    let y = |value: f64| TOP + (1.0 - axis.position_of(value)) * (HEIGHT - TOP);
    let best = drawn.iter().filter(|row| row.schedule != ReplanSchedule::Oracle);
    let best = best.min_by(|a, b| a.imbalance.mean.total_cmp(&b.imbalance.mean));
    let mut words = format!("Mean imbalance against moves per re-planning of {} policies.", policies.len());
    if let Some(best) = best {
        let _ = write!(
            words,
            " Lowest: {} with {} at {} moves.",
            best.policy,
            format_ratio(best.imbalance.mean),
            ShortNumber(moves_per_replan(best))
        );
    }
    out.push_str("<figure>\n");
    let mut svg = SvgWriter::open(out, "plot", HEIGHT + 42.0, &words);
    draw_axes(&mut svg, &axis, &y, most);
    let mut names: Vec<(f64, f64, usize)> = Vec::new();
    for (series, policy) in policies.iter().enumerate() {
        let mut own: Vec<&ReplayRow> = drawn.iter().copied().filter(|row| row.policy == *policy).collect();
        own.sort_by(|a, b| moves_per_replan(a).total_cmp(&moves_per_replan(b)));
        let on_line =
            |row: &&ReplayRow| !matches!(row.schedule, ReplanSchedule::Oracle | ReplanSchedule::IfItPays);
        let line: Vec<&ReplayRow> = own.iter().copied().filter(on_line).collect();
        for pair in line.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            svg.draw_line(
                &format!("s{series}"),
                x(from),
                y(from.imbalance.mean),
                x(to),
                y(to.imbalance.mean),
            );
        }
        // Dots lie over rings.
        own.sort_by_key(|row| on_line(row));
        for row in own {
            let class = if on_line(&row) { "full" } else { "hollow" };
            let front =
                if is_pareto_optimal(row, page.replayed) { "; none is better with as few moves" } else { "" };
            let said = format!(
                "{policy}, {}: {} at {} moves per re-planning{front}",
                schedule_label(row.schedule),
                format_ratio(row.imbalance.mean),
                ShortNumber(moves_per_replan(row))
            );
            svg.draw_with_tooltip(&said, |g| {
                g.draw_circle(&format!("s{series} {class}"), x(row), y(row.imbalance.mean), 4.5);
            });
        }
        if let Some(end) = line.last() {
            names.push((y(end.imbalance.mean), x(end), series));
        }
    }
    // Names stand at the last dots, and are shifted if they would overlap.
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = f64::NEG_INFINITY;
    for (at, end, series) in names {
        let at = (at + 4.0).max(lowest + MIN_NAME_GAP);
        lowest = at;
        svg.draw_text(&format!("start n{series}"), end.max(100.0 - NAME_MARGIN) + 1.5, at, policies[series]);
    }
    svg.close();
    let more = if left_out > 0 {
        format!(" {} more policies stand in the table of the command.", format_count(left_out))
    } else {
        String::new()
    };
    let _ = write!(
        out,
        "<figcaption>Moves across (square root), mean imbalance up. A move is an expert that a rank newly holds; the first plan \
         is not counted.{}</figcaption>\n</figure>\n</section>\n",
        escape_text(&more)
    );
}

/// Draws round values on both axes.
fn draw_axes(svg: &mut SvgWriter<'_>, axis: &RatioAxis, y: &impl Fn(f64) -> f64, most: f64) {
    for tick in axis.round_ticks(0.1) {
        svg.draw_line(if tick > 1.0 { "grid" } else { "one" }, 0.0, y(tick), 100.0 - NAME_MARGIN, y(tick));
        svg.draw_margin_text(y(tick) + 4.0, &tick_label(tick));
    }
    let mut last = f64::NEG_INFINITY;
    for tick in round_counts(most) {
        let at = (tick as f64 / most).sqrt() * (100.0 - NAME_MARGIN);
        if at - last >= 7.0 {
            svg.draw_text("middle soft", at, HEIGHT + 18.0, &format_count(tick));
            last = at;
        }
    }
    svg.draw_text(
        "middle soft",
        (100.0 - NAME_MARGIN) / 2.0,
        HEIGHT + 38.0,
        "moves per re-planning, all layers",
    );
}

fn schedule_label(pace: ReplanSchedule) -> String {
    match pace {
        ReplanSchedule::Never => "planned once".into(),
        ReplanSchedule::Periodic { max_moves: None } => "no limit".into(),
        ReplanSchedule::Periodic { max_moves: Some(moves) } => format!("at most {moves} per layer"),
        ReplanSchedule::IfItPays => "only moves that pay".into(),
        ReplanSchedule::Oracle => "oracle".into(),
    }
}

/// Returns round numbers from 0 up to `most`.
fn round_counts(most: f64) -> Vec<usize> {
    let mut all = vec![0];
    let mut unit = 1usize;
    while unit as f64 <= most && unit < usize::MAX / 10 {
        all.extend([unit, 2 * unit, 5 * unit].into_iter().filter(|&tick| tick as f64 <= most));
        unit *= 10;
    }
    all
}
