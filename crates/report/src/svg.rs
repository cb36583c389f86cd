//! A small SVG writer: percentages across, pixels down, looks by CSS class; and the axis that figures share.
//!
//! A figure has a height in pixels and takes the width it is given. Positions across are percentages of that width,
//! so nothing but [`Svg::stretched`] parts is ever scaled, and type stays readable at any width.

use super::text::esc;
use std::fmt::{self, Display, Write as _};

/// One inline SVG figure, open until [`Svg::close`].
pub(super) struct Svg<'a> {
    out: &'a mut String,
}

/// A number in as few characters as show it to two decimals.
pub(super) struct Short(pub(super) f64);

impl Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.0.is_finite() { self.0 } else { 0.0 };
        let text = format!("{value:.2}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        f.write_str(if text == "-0" { "0" } else { text })
    }
}

impl<'a> Svg<'a> {
    /// Opens a figure of the given height that is described in words (plain text).
    pub(super) fn open(out: &'a mut String, class: &str, height: f64, words: &str) -> Self {
        let _ = write!(
            out,
            "<svg class=\"{class}\" width=\"100%\" height=\"{}\" role=\"img\" aria-label=\"{}\">",
            Short(height),
            esc(words)
        );
        Self { out }
    }

    /// Opens a figure that only decorates what the text beside it says.
    pub(super) fn open_hidden(out: &'a mut String, class: &str, height: f64) -> Self {
        let _ = write!(
            out,
            "<svg class=\"{class}\" width=\"100%\" height=\"{}\" aria-hidden=\"true\">",
            Short(height)
        );
        Self { out }
    }

    /// Ends the figure.
    pub(super) fn close(self) {
        self.out.push_str("</svg>\n");
    }

    /// A rectangle: `x` and `width` in percent, `y` and `height` in pixels.
    pub(super) fn rect(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        let (x, y, w, h) = (Short(x), Short(y), Short(width), Short(height));
        let _ =
            write!(self.out, "<rect class=\"{class}\" x=\"{x}%\" y=\"{y}\" width=\"{w}%\" height=\"{h}\"/>");
    }

    /// A line from (`x1` %, `y1` px) to (`x2` %, `y2` px).
    pub(super) fn line(&mut self, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
        let (x1, y1, x2, y2) = (Short(x1), Short(y1), Short(x2), Short(y2));
        let _ =
            write!(self.out, "<line class=\"{class}\" x1=\"{x1}%\" y1=\"{y1}\" x2=\"{x2}%\" y2=\"{y2}\"/>");
    }

    /// A circle around (`x` %, `y` px).
    pub(super) fn circle(&mut self, class: &str, x: f64, y: f64, radius: f64) {
        let (x, y, r) = (Short(x), Short(y), Short(radius));
        let _ = write!(self.out, "<circle class=\"{class}\" cx=\"{x}%\" cy=\"{y}\" r=\"{r}\"/>");
    }

    /// Text at (`x` %, `y` px); the class aligns it (`start`, `middle`, `end`).
    pub(super) fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let (x, y) = (Short(x), Short(y));
        let _ = write!(self.out, "<text class=\"{class}\" x=\"{x}%\" y=\"{y}\">{}</text>", esc(text));
    }

    /// Text that ends a few pixels left of the figure, in its margin.
    pub(super) fn margin_text(&mut self, y: f64, text: &str) {
        let _ = write!(self.out, "<text class=\"end\" x=\"-7\" y=\"{}\">{}</text>", Short(y), esc(text));
    }

    /// A group that shows `words` when it is pointed at.
    pub(super) fn pointed(&mut self, words: &str, draw: impl FnOnce(&mut Svg<'_>)) {
        let _ = write!(self.out, "<g><title>{}</title>", esc(words));
        draw(&mut Svg { out: self.out });
        self.out.push_str("</g>");
    }

    /// A part with its own coordinates, `0..width` by `0..height`, stretched over the whole width and `pixels` from
    /// `y` downwards. Only paths belong in it.
    pub(super) fn stretched(
        &mut self,
        y: f64,
        pixels: f64,
        (width, height): (usize, usize),
        draw: impl FnOnce(&mut Svg<'_>),
    ) {
        let (y, px) = (Short(y), Short(pixels));
        let _ = write!(
            self.out,
            "<svg y=\"{y}\" width=\"100%\" height=\"{px}\" viewBox=\"0 0 {width} {height}\" \
             preserveAspectRatio=\"none\">"
        );
        draw(&mut Svg { out: self.out });
        self.out.push_str("</svg>");
    }

    /// A path in the coordinates of the part around it.
    pub(super) fn path(&mut self, class: &str, d: &str) {
        let _ = write!(self.out, "<path class=\"{class}\" d=\"{d}\"/>");
    }
}

/// Maps ratios from 1 upwards onto 0 to 1: evenly where that shows everything, else stretched near 1 and
/// squeezed far from it (the inverse hyperbolic sine of the distance to 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    top: f64,
    knee: Option<f64>,
}

impl Axis {
    /// An axis for ratios up to `top`, that has to show differences as small as `detail` above 1.
    pub(super) fn new(top: f64, detail: f64) -> Self {
        let top = if top.is_finite() { top.max(1.01) } else { 1.01 };
        let knee = (top - 1.0 > 8.0 * detail).then_some(detail.clamp(0.005, 1.0));
        Self { top, knee }
    }

    /// Whether near differences are stretched.
    pub(super) fn bent(&self) -> bool {
        self.knee.is_some()
    }

    /// Position of a ratio, 0 to 1.
    pub(super) fn at(&self, ratio: f64) -> f64 {
        let bend = |distance: f64| self.knee.map_or(distance, |knee| (distance / knee).asinh());
        let share = bend(ratio.max(1.0) - 1.0) / bend(self.top - 1.0);
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Round ratios, at least `apart` (0 to 1) from each other.
    pub(super) fn ticks(&self, apart: f64) -> Vec<f64> {
        const ROUND: [f64; 28] = [
            1.0, 1.002, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0,
            6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0,
        ];
        // Rounder numbers claim their room first.
        let rank = |tick: f64| match tick {
            t if [1.0, 2.0, 5.0, 10.0, 1.5, 1.1, 1.01, 1.2, 1.05].contains(&t) => 0,
            t if [3.0, 1.02, 20.0, 50.0, 100.0, 4.0].contains(&t) => 1,
            _ => 2,
        };
        let mut ticks: Vec<f64> = vec![];
        for round in 0..3 {
            for tick in ROUND.into_iter().filter(|&t| rank(t) == round && t <= self.top) {
                if ticks.iter().all(|&other| (self.at(other) - self.at(tick)).abs() >= apart) {
                    ticks.push(tick);
                }
            }
        }
        ticks.sort_by(f64::total_cmp);
        ticks
    }
}

/// How an axis calls a tick: `1`, `1.05`, `20`, each with the sign for "times".
pub(super) fn tick_label(tick: f64) -> String {
    let text = format!("{tick:.3}");
    format!("{}×", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, -0.001, 3.0, 2.5, 33.333, f64::NAN].map(|v| Short(v).to_string());
        assert_eq!(shown, ["0", "0", "3", "2.5", "33.33", "0"]);
    }

    #[test]
    #[allow(clippy::float_cmp)] // ends of an axis are exact
    fn an_axis_is_monotone_and_bends_only_where_it_must() {
        let (even, bent) = (Axis::new(1.5, 0.1), Axis::new(9.0, 0.02));
        assert!(!even.bent() && bent.bent());
        assert!((even.at(1.25) - 0.5).abs() < 1e-12);
        for axis in [even, bent] {
            let places: Vec<f64> = (0..100).map(|i| axis.at(0.9 + f64::from(i) * 0.1)).collect();
            assert!(places.is_sorted() && places[0] == 0.0 && places[99] == 1.0);
            let ticks = axis.ticks(0.1);
            assert!(ticks.len() >= 3 && ticks[0] == 1.0, "{ticks:?}");
            assert!(ticks.windows(2).all(|w| axis.at(w[1]) - axis.at(w[0]) >= 0.1));
        }
        assert!(bent.at(1.02) > 0.1);
        assert_eq!(Axis::new(f64::NAN, 0.0).at(f64::NAN), 0.0);
    }
}
