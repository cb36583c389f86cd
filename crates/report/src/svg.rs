//! A small SVG writer (percentages across, pixels down, looks by CSS class), and the axis that figures share.
//!
//! A figure has a height in pixels and takes the available width. Positions across are percentages of that
//! width. Only [`SvgWriter::draw_stretched`] parts are scaled, so type stays readable at any width.

use super::html::escape_text;
use std::fmt::{self, Display, Write as _};

/// One inline SVG figure, open until [`SvgWriter::close`].
pub(super) struct SvgWriter<'a> {
    out: &'a mut String,
}

/// A number in the fewest characters that show it to two decimals.
pub(super) struct ShortNumber(pub(super) f64);

impl Display for ShortNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.0.is_finite() { self.0 } else { 0.0 };
        let text = format!("{value:.2}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        f.write_str(if text == "-0" { "0" } else { text })
    }
}

impl<'a> SvgWriter<'a> {
    /// Opens a figure of the given height with a description (plain text).
    pub(super) fn open(out: &'a mut String, class: &str, height: f64, words: &str) -> Self {
        let _ = write!(
            out,
            "<svg class=\"{class}\" width=\"100%\" height=\"{}\" role=\"img\" aria-label=\"{}\">",
            ShortNumber(height),
            escape_text(words)
        );
        Self { out }
    }

    /// Opens a figure that only decorates the text next to it.
    pub(super) fn open_hidden(out: &'a mut String, class: &str, height: f64) -> Self {
        let _ = write!(
            out,
            "<svg class=\"{class}\" width=\"100%\" height=\"{}\" aria-hidden=\"true\">",
            ShortNumber(height)
        );
        Self { out }
    }

    /// Closes the figure.
    pub(super) fn close(self) {
        self.out.push_str("</svg>\n");
    }

    /// Draws a rectangle: `x` and `width` in percent, `y` and `height` in pixels.
    pub(super) fn draw_rect(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        let (x, y, w, h) = (ShortNumber(x), ShortNumber(y), ShortNumber(width), ShortNumber(height));
        let _ =
            write!(self.out, "<rect class=\"{class}\" x=\"{x}%\" y=\"{y}\" width=\"{w}%\" height=\"{h}\"/>");
    }

    /// Draws a line from (`x1` %, `y1` px) to (`x2` %, `y2` px).
    pub(super) fn draw_line(&mut self, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
        let (x1, y1, x2, y2) = (ShortNumber(x1), ShortNumber(y1), ShortNumber(x2), ShortNumber(y2));
        let _ =
            write!(self.out, "<line class=\"{class}\" x1=\"{x1}%\" y1=\"{y1}\" x2=\"{x2}%\" y2=\"{y2}\"/>");
    }

    /// Draws a circle around (`x` %, `y` px).
    pub(super) fn draw_circle(&mut self, class: &str, x: f64, y: f64, radius: f64) {
        let (x, y, r) = (ShortNumber(x), ShortNumber(y), ShortNumber(radius));
        let _ = write!(self.out, "<circle class=\"{class}\" cx=\"{x}%\" cy=\"{y}\" r=\"{r}\"/>");
    }

    /// Writes text at (`x` %, `y` px). The class aligns it (`start`, `middle`, `end`).
    pub(super) fn draw_text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let (x, y) = (ShortNumber(x), ShortNumber(y));
        let _ = write!(self.out, "<text class=\"{class}\" x=\"{x}%\" y=\"{y}\">{}</text>", escape_text(text));
    }

    /// Writes text that ends a few pixels left of the figure, in its margin.
    pub(super) fn draw_margin_text(&mut self, y: f64, text: &str) {
        let _ = write!(
            self.out,
            "<text class=\"end\" x=\"-7\" y=\"{}\">{}</text>",
            ShortNumber(y),
            escape_text(text)
        );
    }

    /// Draws a group that shows `words` under the pointer.
    pub(super) fn draw_with_tooltip(&mut self, words: &str, draw: impl FnOnce(&mut SvgWriter<'_>)) {
        let _ = write!(self.out, "<g><title>{}</title>", escape_text(words));
        draw(&mut SvgWriter { out: self.out });
        self.out.push_str("</g>");
    }

    /// Draws a part with its own coordinates, `0..width` by `0..height`. It is stretched over the whole
    /// width, and over `pixels` from `y` downwards. Only paths belong in it.
    pub(super) fn draw_stretched(
        &mut self,
        y: f64,
        pixels: f64,
        (width, height): (usize, usize),
        draw: impl FnOnce(&mut SvgWriter<'_>),
    ) {
        let (y, px) = (ShortNumber(y), ShortNumber(pixels));
        let _ = write!(
            self.out,
            "<svg y=\"{y}\" width=\"100%\" height=\"{px}\" viewBox=\"0 0 {width} {height}\" \
             preserveAspectRatio=\"none\">"
        );
        draw(&mut SvgWriter { out: self.out });
        self.out.push_str("</svg>");
    }

    /// Draws a path in the coordinates of the surrounding part.
    pub(super) fn draw_path(&mut self, class: &str, d: &str) {
        let _ = write!(self.out, "<path class=\"{class}\" d=\"{d}\"/>");
    }
}

/// A map of ratios from 1 upwards to 0 to 1. It is even if that shows all differences. Otherwise it is
/// stretched near 1 and compressed far from it (the inverse hyperbolic sine of the distance to 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RatioAxis {
    top: f64,
    knee: Option<f64>,
}

impl RatioAxis {
    /// Returns an axis for ratios up to `top`, which shows differences as small as `detail` above 1.
    pub(super) fn new(top: f64, detail: f64) -> Self {
        let top = if top.is_finite() { top.max(1.01) } else { 1.01 };
        let knee = (top - 1.0 > 8.0 * detail).then_some(detail.clamp(0.005, 1.0));
        Self { top, knee }
    }

    /// Returns whether small differences near 1 are stretched.
    pub(super) fn is_stretched(&self) -> bool {
        self.knee.is_some()
    }

    /// Returns the position of a ratio, 0 to 1.
    pub(super) fn position_of(&self, ratio: f64) -> f64 {
        let bend = |distance: f64| self.knee.map_or(distance, |knee| (distance / knee).asinh());
        let share = bend(ratio.max(1.0) - 1.0) / bend(self.top - 1.0);
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Returns round ratios, at least `apart` (0 to 1) from each other.
    pub(super) fn round_ticks(&self, apart: f64) -> Vec<f64> {
        const ROUND: [f64; 28] = [
            1.0, 1.002, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0,
            6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0,
        ];
        // Rounder numbers take their place first.
        let rank = |tick: f64| match tick {
            t if [1.0, 2.0, 5.0, 10.0, 1.5, 1.1, 1.01, 1.2, 1.05].contains(&t) => 0,
            t if [3.0, 1.02, 20.0, 50.0, 100.0, 4.0].contains(&t) => 1,
            _ => 2,
        };
        let mut ticks: Vec<f64> = vec![];
        for round in 0..3 {
            for tick in ROUND.into_iter().filter(|&t| rank(t) == round && t <= self.top) {
                if ticks
                    .iter()
                    .all(|&other| (self.position_of(other) - self.position_of(tick)).abs() >= apart)
                {
                    ticks.push(tick);
                }
            }
        }
        ticks.sort_by(f64::total_cmp);
        ticks
    }
}

/// Returns the label of a tick: `1`, `1.05`, `20`, each with the sign for "times".
pub(super) fn tick_label(tick: f64) -> String {
    let text = format!("{tick:.3}");
    format!("{}×", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, -0.001, 3.0, 2.5, 33.333, f64::NAN].map(|v| ShortNumber(v).to_string());
        assert_eq!(shown, ["0", "0", "3", "2.5", "33.33", "0"]);
    }

    #[test]
    #[allow(clippy::float_cmp)] // ends of an axis are exact
    fn an_axis_is_monotone_and_bends_only_where_it_must() {
        let (even, bent) = (RatioAxis::new(1.5, 0.1), RatioAxis::new(9.0, 0.02));
        assert!(!even.is_stretched() && bent.is_stretched());
        assert!((even.position_of(1.25) - 0.5).abs() < 1e-12);
        for axis in [even, bent] {
            let places: Vec<f64> = (0..100).map(|i| axis.position_of(0.9 + f64::from(i) * 0.1)).collect();
            assert!(places.is_sorted() && places[0] == 0.0 && places[99] == 1.0);
            let ticks = axis.round_ticks(0.1);
            assert!(ticks.len() >= 3 && ticks[0] == 1.0, "{ticks:?}");
            assert!(ticks.windows(2).all(|w| axis.position_of(w[1]) - axis.position_of(w[0]) >= 0.1));
        }
        assert!(bent.position_of(1.02) > 0.1);
        assert_eq!(RatioAxis::new(f64::NAN, 0.0).position_of(f64::NAN), 0.0);
    }
}
