//! The report of a calibration: the time of experts, the fitted roofline, and its deviation.

use super::html::{escape_text, format_count, format_fixed, format_percent};
use super::svg::SvgWriter;
use super::{open_section, wrap_document};
use evenkeel_exec::calibrate::{CostPoint, RooflineFit};
use std::fmt::Write as _;

/// The content of the report of a calibration.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FitPage<'a> {
    /// The title of the report, as a browser tab shows it.
    pub title: String,
    /// The command line that produced it.
    pub command: String,
    /// The description of the measurement.
    pub setting: String,
    /// The fit.
    pub fit: &'a RooflineFit,
}

const HEIGHT: f64 = 300.0;
/// The units of the stretched part that holds the line.
const LINE_UNITS: usize = 1000;

impl<'a> FitPage<'a> {
    /// Creates the content of a report without title, command line and setting.
    pub fn new(fit: &'a RooflineFit) -> Self {
        Self { title: String::new(), command: String::new(), setting: String::new(), fit }
    }

    /// Sets [`Self::title`](#structfield.title).
    #[must_use]
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// Sets [`Self::command`](#structfield.command).
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }

    /// Sets [`Self::setting`](#structfield.setting).
    #[must_use]
    pub fn setting(mut self, setting: impl Into<String>) -> Self {
        self.setting = setting.into();
        self
    }

    /// Returns the report as one HTML document.
    pub fn to_html(&self) -> String {
        wrap_document(&self.title, |out| {
            let (fit, residual) = (self.fit, self.fit.residual_summary());
            super::headline::write_masthead(out, &self.title);
            let _ = writeln!(
                out,
                "<h1>Reading an expert takes <em>{} µs</em>, a token in it <em>{} µs</em>.</h1>\n<p class=\"say\">An expert \
                 with tokens takes the longer of the two times, its tokens in tiles of {}. Half of the measurements are \
                 within <b>{}</b> of that, the worst is off by {}. {}</p>\n</header>",
                format_fixed(fit.roofline.read as f64 / 1e6, 1),
                format_fixed(fit.roofline.token as f64 / 1e6, 3),
                fit.roofline.tile,
                format_percent(residual.p50),
                format_percent(residual.max),
                escape_text(&self.setting)
            );
            self.write_costs(out);
            self.write_residuals(out);
            open_section(out, "facts", "Origin of the figures", "The command that repeats this report.");
            let _ = writeln!(
                out,
                "<dl class=\"facts\">\n<dt>command</dt><dd><code class=\"command\">{}</code></dd>\n</dl>\n</section>",
                escape_text(&self.command)
            );
            super::provenance::write_footer(out);
        })
    }

    fn max_tokens(&self) -> f64 {
        self.fit.points.iter().map(|p| p.tokens as f64).fold(2.0, f64::max)
    }

    /// Returns the horizontal position of a number of tokens, 0 to 1, on a logarithmic scale.
    fn x_position(&self, tokens: f64) -> f64 {
        0.02 + 0.96 * tokens.ln() / self.max_tokens().ln()
    }

    fn write_costs(&self, out: &mut String) {
        open_section(
            out,
            "costs",
            "Time of one expert",
            "Both scales are logarithmic. Each dot is a measurement with one number of experts in a row; the line is the fit.",
        );
        let one = |p: &CostPoint| p.us / p.experts as f64;
        let cost = |tokens: u64| self.fit.predicted_us(&CostPoint { experts: 1, tokens, us: 0.0 });
        let all = || self.fit.points.iter().flat_map(|p| [one(p), cost(p.tokens)]);
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
        let (low, high) = (low.ln() - 0.1, high.ln() + 0.1);
        let y = |us: f64| 10.0 + (high - us.ln()) / (high - low) * (HEIGHT - 20.0);
        out.push_str("<figure>\n");
        let words = format!("Time of one expert, {} measurements and a fit.", self.fit.points.len());
        let mut svg = SvgWriter::open(out, "plot", HEIGHT + 24.0, &words);
        for power in -1..8 {
            let us = 10f64.powi(power);
            if (low..=high).contains(&us.ln()) {
                svg.draw_line("grid", 0.0, y(us), 100.0, y(us));
                svg.draw_margin_text(
                    y(us) + 4.0,
                    &if power < 3 { format!("{us} µs") } else { format!("{} ms", us / 1e3) },
                );
            }
        }
        let line: Vec<String> = (0..=LINE_UNITS)
            .map(|at| {
                let tokens = (((at as f64 / LINE_UNITS as f64 - 0.02) / 0.96) * self.max_tokens().ln()).exp();
                format!("{at} {:.1}", y(cost(tokens.max(1.0).round() as u64)))
            })
            .collect();
        svg.draw_stretched(0.0, HEIGHT, (LINE_UNITS, HEIGHT as usize), |part| {
            part.draw_path("fit", &format!("M{}", line.join("L")));
        });
        for point in &self.fit.points {
            let words = format!(
                "{} experts of {} tokens: {} µs each, {} fitted",
                point.experts,
                format_count(point.tokens as usize),
                format_fixed(one(point), 1),
                format_fixed(cost(point.tokens), 1)
            );
            svg.draw_with_tooltip(&words, |g| {
                g.draw_circle("dot", self.x_position(point.tokens as f64) * 100.0, y(one(point)), 4.0);
            });
        }
        self.draw_ticks(&mut svg);
        svg.close();
        out.push_str("<figcaption>Tokens of the expert across, time of the expert up.</figcaption>\n</figure>\n</section>\n");
    }

    fn draw_ticks(&self, svg: &mut SvgWriter<'_>) {
        let mut tokens: Vec<u64> = self.fit.points.iter().map(|p| p.tokens).collect();
        tokens.sort_unstable();
        tokens.dedup();
        for &tokens in tokens.iter().step_by(tokens.len().div_ceil(12).max(1)) {
            svg.draw_text(
                "middle soft",
                self.x_position(tokens as f64) * 100.0,
                HEIGHT + 18.0,
                &tokens.to_string(),
            );
        }
    }

    fn write_residuals(&self, out: &mut String) {
        open_section(
            out,
            "residual",
            "Deviation from the fit",
            "The measured time over the fitted one, minus 1. Above the line an expert takes longer than the roofline predicts. \
             The cost bends where a roofline has a corner, so the largest errors are expected there.",
        );
        let residuals = self.fit.residuals();
        let most = residuals.iter().fold(0.05f64, |m, r| m.max(r.abs()));
        let y = |r: f64| HEIGHT / 2.0 * (1.0 - r / most * 0.95);
        out.push_str("<figure>\n");
        let words = format!("Residuals of {} measurements.", residuals.len());
        let mut svg = SvgWriter::open(out, "plot", HEIGHT + 24.0, &words);
        for r in [-most, -most / 2.0, 0.0, most / 2.0, most] {
            svg.draw_line(if r == 0.0 { "one" } else { "grid" }, 0.0, y(r), 100.0, y(r));
            svg.draw_margin_text(y(r) + 4.0, &format!("{:+.0} %", r * 100.0));
        }
        for (point, &r) in self.fit.points.iter().zip(&residuals) {
            let x = self.x_position(point.tokens as f64) * 100.0;
            let words = format!("{} experts of {} tokens: {:+.1} %", point.experts, point.tokens, r * 100.0);
            svg.draw_with_tooltip(&words, |g| {
                g.draw_line("way", x, y(0.0), x, y(r));
                g.draw_circle("dot", x, y(r), 4.0);
            });
        }
        self.draw_ticks(&mut svg);
        svg.close();
        out.push_str("<figcaption>Tokens of the expert across.</figcaption>\n</figure>\n</section>\n");
    }
}
