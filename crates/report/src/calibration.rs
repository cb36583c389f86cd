//! The report of a calibration: what experts cost, the roofline through it, and how far off that is.

use super::svg::Svg;
use super::text::{count, esc, fixed, percent};
use super::{frame, section};
use crate::exec::calibrate::{Fit, Point};
use std::fmt::Write as _;

/// Everything that the report of a calibration shows.
#[derive(Debug, Clone)]
pub struct FitPage<'a> {
    /// Name of the report, as the reader will find it in a browser tab.
    pub title: String,
    /// The command line that made it.
    pub command: String,
    /// What was measured, in words.
    pub setting: String,
    /// The fit.
    pub fit: &'a Fit,
}

const HEIGHT: f64 = 300.0;
/// Units of the stretched part that the line is drawn in.
const UNITS: usize = 1000;

impl FitPage<'_> {
    /// The report as one HTML document.
    pub fn html(&self) -> String {
        frame(&self.title, |out| {
            let (fit, residual) = (self.fit, self.fit.residual());
            super::headline::masthead(out, &self.title);
            let _ = writeln!(
                out,
                "<h1>Reading an expert takes <em>{} µs</em>, a token in it <em>{} µs</em>.</h1>\n<p class=\"say\">An expert \
                 with tokens takes the longer of the two times, its tokens in tiles of {}. Half of the measurements are \
                 within <b>{}</b> of that, the worst is off by {}. {}</p>\n</header>",
                fixed(fit.roofline.read as f64 / 1e6, 1),
                fixed(fit.roofline.token as f64 / 1e6, 3),
                fit.roofline.tile,
                percent(residual.p50),
                percent(residual.max),
                esc(&self.setting)
            );
            self.costs(out);
            self.residuals(out);
            section(out, "facts", "Where this comes from", "How to do it again.");
            let _ = writeln!(
                out,
                "<dl class=\"facts\">\n<dt>command</dt><dd><code class=\"command\">{}</code></dd>\n</dl>\n</section>",
                esc(&self.command)
            );
            super::facts::foot(out);
        })
    }

    fn most(&self) -> f64 {
        self.fit.points.iter().map(|p| p.tokens as f64).fold(2.0, f64::max)
    }

    /// Place of a number of tokens across, 0 to 1, in logarithms.
    fn x(&self, tokens: f64) -> f64 {
        0.02 + 0.96 * tokens.ln() / self.most().ln()
    }

    fn costs(&self, out: &mut String) {
        section(
            out,
            "costs",
            "Time of one expert",
            "Both scales are logarithmic. Dots are measured, a dot per number of experts in a row; the line is the fit.",
        );
        let one = |p: &Point| p.us / p.experts as f64;
        let cost = |tokens: u64| self.fit.fitted(&Point { experts: 1, tokens, us: 0.0 });
        let all = || self.fit.points.iter().flat_map(|p| [one(p), cost(p.tokens)]);
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
        let (low, high) = (low.ln() - 0.1, high.ln() + 0.1);
        let y = |us: f64| 10.0 + (high - us.ln()) / (high - low) * (HEIGHT - 20.0);
        out.push_str("<figure>\n");
        let words = format!("Time of one expert, {} measurements and a fit.", self.fit.points.len());
        let mut svg = Svg::open(out, "plot", HEIGHT + 24.0, &words);
        for power in -1..8 {
            let us = 10f64.powi(power);
            if (low..=high).contains(&us.ln()) {
                svg.line("grid", 0.0, y(us), 100.0, y(us));
                svg.margin_text(
                    y(us) + 4.0,
                    &if power < 3 { format!("{us} µs") } else { format!("{} ms", us / 1e3) },
                );
            }
        }
        let line: Vec<String> = (0..=UNITS)
            .map(|at| {
                let tokens = (((at as f64 / UNITS as f64 - 0.02) / 0.96) * self.most().ln()).exp();
                format!("{at} {:.1}", y(cost(tokens.max(1.0).round() as u64)))
            })
            .collect();
        svg.stretched(0.0, HEIGHT, (UNITS, HEIGHT as usize), |part| {
            part.path("fit", &format!("M{}", line.join("L")));
        });
        for point in &self.fit.points {
            let words = format!(
                "{} experts of {} tokens: {} µs each, {} fitted",
                point.experts,
                count(point.tokens as usize),
                fixed(one(point), 1),
                fixed(cost(point.tokens), 1)
            );
            svg.pointed(&words, |g| g.circle("dot", self.x(point.tokens as f64) * 100.0, y(one(point)), 4.0));
        }
        self.ticks(&mut svg);
        svg.close();
        out.push_str("<figcaption>Tokens of the expert across, time of the expert up.</figcaption>\n</figure>\n</section>\n");
    }

    fn ticks(&self, svg: &mut Svg<'_>) {
        let mut tokens: Vec<u64> = self.fit.points.iter().map(|p| p.tokens).collect();
        tokens.sort_unstable();
        tokens.dedup();
        for &tokens in tokens.iter().step_by(tokens.len().div_ceil(12).max(1)) {
            svg.text("middle soft", self.x(tokens as f64) * 100.0, HEIGHT + 18.0, &tokens.to_string());
        }
    }

    fn residuals(&self, out: &mut String) {
        section(
            out,
            "residual",
            "What the fit misses",
            "Measured over fitted, less one: above the line an expert takes longer than the roofline says. The cost bends where \
             a roofline has a corner, so the largest errors are expected there.",
        );
        let residuals = self.fit.residuals();
        let most = residuals.iter().fold(0.05f64, |m, r| m.max(r.abs()));
        let y = |r: f64| HEIGHT / 2.0 * (1.0 - r / most * 0.95);
        out.push_str("<figure>\n");
        let words = format!("Residuals of {} measurements.", residuals.len());
        let mut svg = Svg::open(out, "plot", HEIGHT + 24.0, &words);
        for r in [-most, -most / 2.0, 0.0, most / 2.0, most] {
            svg.line(if r == 0.0 { "one" } else { "grid" }, 0.0, y(r), 100.0, y(r));
            svg.margin_text(y(r) + 4.0, &format!("{:+.0} %", r * 100.0));
        }
        for (point, &r) in self.fit.points.iter().zip(&residuals) {
            let x = self.x(point.tokens as f64) * 100.0;
            let words = format!("{} experts of {} tokens: {:+.1} %", point.experts, point.tokens, r * 100.0);
            svg.pointed(&words, |g| {
                g.line("way", x, y(0.0), x, y(r));
                g.circle("dot", x, y(r), 4.0);
            });
        }
        self.ticks(&mut svg);
        svg.close();
        out.push_str("<figcaption>Tokens of the expert across.</figcaption>\n</figure>\n</section>\n");
    }
}
