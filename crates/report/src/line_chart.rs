//! The figure of an advice with lines, their points and one mark.
//!
//! In: lines of points with the words of their tooltips. Out: a legend and a figure.

use super::html::format_count;
use super::svg::SvgWriter;
use std::fmt::Write as _;

const HEIGHT: f64 = 320.0;
/// The units of the stretched part that holds lines.
const LINE_UNITS: usize = 1000;

/// A line of a figure: name, class and points of (x, y).
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) class: &'static str,
    pub(super) points: Vec<Point>,
}

/// A point of a figure with the words of its tooltip.
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) words: String,
}

/// Returns the round numbers of an axis from 0 to `top`, at most seven.
fn ticks(top: f64) -> Vec<f64> {
    let raw = (top / 5.0).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|round| round * power).into_iter().find(|&step| step >= raw);
    let step = step.unwrap_or(10.0 * power);
    (0..8).map(|at| f64::from(at) * step).take_while(|&tick| tick <= top).collect()
}

/// Draws lines with their points and one mark. Both axes begin at 0.
pub(super) fn draw_line_chart(
    out: &mut String,
    series: &[Series],
    mark: Option<(f64, f64)>,
    across: &str,
    up: &str,
) {
    let all = || series.iter().flat_map(|line| &line.points);
    let top_x = all().map(|point| point.x).fold(1e-9, f64::max) * 1.04;
    let top_y = all().map(|point| point.y).fold(1e-9, f64::max) * 1.06;
    let y = |value: f64| HEIGHT - 8.0 - value / top_y * (HEIGHT - 16.0);
    out.push_str("<p class=\"small\">");
    for line in series.iter().filter(|line| !line.points.is_empty()) {
        let _ = write!(
            out,
            "<svg class=\"sample\" width=\"12\" height=\"12\" aria-hidden=\"true\"><rect class=\"{} full\" width=\"12\" \
             height=\"12\"/></svg>{} &#160; ",
            line.class, line.name
        );
    }
    out.push_str("</p>\n<figure>\n");
    let counts: Vec<String> =
        series.iter().map(|line| format!("{}: {} points", line.name, line.points.len())).collect();
    let words = format!("{up} against {across}. {}", counts.join(", "));
    let mut svg = SvgWriter::open(out, "plot", HEIGHT + 24.0, &words);
    for tick in ticks(top_y) {
        svg.draw_line("grid", 0.0, y(tick), 100.0, y(tick));
        svg.draw_margin_text(y(tick) + 4.0, &format_count(tick.round() as usize));
    }
    for tick in ticks(top_x) {
        svg.draw_text(
            "middle soft",
            100.0 * tick / top_x,
            HEIGHT + 18.0,
            &format_count(tick.round() as usize),
        );
    }
    for line in series.iter().filter(|line| line.points.len() > 1) {
        let path: Vec<String> = line
            .points
            .iter()
            .map(|point| format!("{:.1} {:.1}", point.x / top_x * LINE_UNITS as f64, y(point.y)))
            .collect();
        svg.draw_stretched(0.0, HEIGHT, (LINE_UNITS, HEIGHT as usize), |part| {
            part.draw_path(&format!("line {}", line.class), &format!("M{}", path.join("L")));
        });
    }
    for line in series {
        for point in &line.points {
            svg.draw_with_tooltip(&point.words, |g| {
                g.draw_circle(&format!("{} full", line.class), 100.0 * point.x / top_x, y(point.y), 3.5);
            });
        }
    }
    if let Some((across, up)) = mark {
        svg.draw_with_tooltip("the advised deployment", |g| {
            g.draw_circle("chosen", 100.0 * across / top_x, y(up), 8.0);
        });
    }
    svg.close();
    let _ = writeln!(
        out,
        "<figcaption>Across: {across}. Up: {up}. The ring is the advised deployment.</figcaption>\n</figure>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ticks() {
        assert_eq!(ticks(2_300.0), [0.0, 500.0, 1_000.0, 1_500.0, 2_000.0]);
        assert!((2..=8).contains(&ticks(0.73).len()));
    }
}
