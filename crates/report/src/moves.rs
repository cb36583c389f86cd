//! Imbalance against moves, where planning was replayed: what each copied expert buys.

use super::svg::{Axis, Short, Svg, tick_label};
use super::text::{count, esc, ratio};
use super::{Page, section};
use crate::simulate::{Pace, Replayed, on_front};
use crate::split::Method;
use std::fmt::Write as _;

const HEIGHT: f64 = 280.0;
const TOP: f64 = 12.0;
/// Room on the right, in percent, for the names of the policies.
const NAMES: f64 = 18.0;
/// Most policies that are drawn: as many as have a colour.
const SERIES: usize = 6;
/// Least distance of two names, in pixels.
const APART: f64 = 15.0;

/// Moves of one re-planning of all layers.
fn moves(row: &Replayed) -> f64 {
    row.moves as f64 / row.replans.max(1) as f64
}

/// The method that is drawn: the exact one, or the first.
fn method(rows: &[Replayed]) -> Option<Method> {
    let exact = rows.iter().map(|row| row.method).find(|&method| method == Method::Exact);
    exact.or(rows.first().map(|row| row.method))
}

/// The section with the chart; nothing where nothing was replayed.
pub(super) fn write(out: &mut String, page: &Page<'_>) {
    let Some(method) = method(page.replayed) else { return };
    let rows: Vec<&Replayed> = page.replayed.iter().filter(|row| row.method == method).collect();
    let mut policies: Vec<&str> = Vec::new();
    for row in &rows {
        if !policies.contains(&row.policy.as_str()) {
            policies.push(&row.policy);
        }
    }
    let left_out = policies.len().saturating_sub(SERIES);
    policies.truncate(SERIES);
    let drawn: Vec<&Replayed> =
        rows.into_iter().filter(|row| policies.contains(&row.policy.as_str())).collect();
    let top = drawn.iter().map(|row| row.imbalance.mean).fold(1.0, f64::max);
    let least = drawn.iter().map(|row| row.imbalance.mean - 1.0).fold(f64::MAX, f64::min);
    let axis = Axis::new(1.0 + (top - 1.0) * 1.06, least.max(0.01));
    let bent = if axis.bent() { " The scale is stretched near 1." } else { "" };
    section(
        out,
        "moves",
        "What moves buy",
        &format!(
            "Planned again and again along the trace, {method} split: each dot is one limit on moves, from never (left) to no \
             limit (right). The nearer to the lower left corner, the better; rings are the oracle, planned on \
             the very batches it serves, and plans changed only where that pays.{bent}"
        ),
    );
    let most = drawn.iter().map(|row| moves(row)).fold(1.0, f64::max);
    let x = |row: &Replayed| (moves(row) / most).sqrt() * (100.0 - NAMES);
    let y = |value: f64| TOP + (1.0 - axis.at(value)) * (HEIGHT - TOP);
    let best = drawn.iter().filter(|row| row.pace != Pace::Oracle);
    let best = best.min_by(|a, b| a.imbalance.mean.total_cmp(&b.imbalance.mean));
    let mut words = format!("Mean imbalance against moves per re-planning of {} policies.", policies.len());
    if let Some(best) = best {
        let _ = write!(
            words,
            " Lowest: {} with {} at {} moves.",
            best.policy,
            ratio(best.imbalance.mean),
            Short(moves(best))
        );
    }
    out.push_str("<figure>\n");
    let mut svg = Svg::open(out, "plot", HEIGHT + 42.0, &words);
    axes(&mut svg, &axis, &y, most);
    let mut names: Vec<(f64, f64, usize)> = Vec::new();
    for (series, policy) in policies.iter().enumerate() {
        let mut own: Vec<&Replayed> = drawn.iter().copied().filter(|row| row.policy == *policy).collect();
        own.sort_by(|a, b| moves(a).total_cmp(&moves(b)));
        let on_line = |row: &&Replayed| !matches!(row.pace, Pace::Oracle | Pace::IfItPays);
        let line: Vec<&Replayed> = own.iter().copied().filter(on_line).collect();
        for pair in line.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            svg.line(&format!("s{series}"), x(from), y(from.imbalance.mean), x(to), y(to.imbalance.mean));
        }
        // Dots lie over rings.
        own.sort_by_key(|row| on_line(row));
        for row in own {
            let class = if on_line(&row) { "full" } else { "hollow" };
            let front = if on_front(row, page.replayed) { "; none is better with as few moves" } else { "" };
            let said = format!(
                "{policy}, {}: {} at {} moves per re-planning{front}",
                pace(row.pace),
                ratio(row.imbalance.mean),
                Short(moves(row))
            );
            svg.pointed(&said, |g| {
                g.circle(&format!("s{series} {class}"), x(row), y(row.imbalance.mean), 4.5);
            });
        }
        if let Some(end) = line.last() {
            names.push((y(end.imbalance.mean), x(end), series));
        }
    }
    // Names beside the last dots, pushed apart where they would meet.
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = f64::NEG_INFINITY;
    for (at, end, series) in names {
        let at = (at + 4.0).max(lowest + APART);
        lowest = at;
        svg.text(&format!("start n{series}"), end.max(100.0 - NAMES) + 1.5, at, policies[series]);
    }
    svg.close();
    let more = if left_out > 0 {
        format!(" {} more policies stand in the table of the command.", count(left_out))
    } else {
        String::new()
    };
    let _ = write!(
        out,
        "<figcaption>Moves across (square root), mean imbalance up. A move is an expert that a rank newly holds; the first plan \
         is not counted.{}</figcaption>\n</figure>\n</section>\n",
        esc(&more)
    );
}

/// Round values on both sides.
fn axes(svg: &mut Svg<'_>, axis: &Axis, y: &impl Fn(f64) -> f64, most: f64) {
    for tick in axis.ticks(0.1) {
        svg.line(if tick > 1.0 { "grid" } else { "one" }, 0.0, y(tick), 100.0 - NAMES, y(tick));
        svg.margin_text(y(tick) + 4.0, &tick_label(tick));
    }
    let mut last = f64::NEG_INFINITY;
    for tick in ticks(most) {
        let at = (tick as f64 / most).sqrt() * (100.0 - NAMES);
        if at - last >= 7.0 {
            svg.text("middle soft", at, HEIGHT + 18.0, &count(tick));
            last = at;
        }
    }
    svg.text("middle soft", (100.0 - NAMES) / 2.0, HEIGHT + 38.0, "moves per re-planning, all layers");
}

fn pace(pace: Pace) -> String {
    match pace {
        Pace::Never => "planned once".into(),
        Pace::Again { max_moves: None } => "no limit".into(),
        Pace::Again { max_moves: Some(moves) } => format!("at most {moves} per layer"),
        Pace::IfItPays => "where moves pay".into(),
        Pace::Oracle => "oracle".into(),
    }
}

/// Round numbers from 0 up to `most`.
fn ticks(most: f64) -> Vec<usize> {
    let mut all = vec![0];
    let mut unit = 1usize;
    while unit as f64 <= most && unit < usize::MAX / 10 {
        all.extend([unit, 2 * unit, 5 * unit].into_iter().filter(|&tick| tick as f64 <= most));
        unit *= 10;
    }
    all
}
