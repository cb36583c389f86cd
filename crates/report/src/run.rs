//! The report of a run: the speed of the plan compared with no plan and a perfect balance, and its time by
//! phase.

use super::html::{escape_text, format_count, format_fixed, format_percent, format_quantity, format_ratio};
use super::svg::{RatioAxis, SvgWriter, tick_label};
use super::{open_section, wrap_document};
use evenkeel_exec::LayerStage;
use evenkeel_exec::run::{ExecRun, RunReport, RunVariant, StepRow};
use std::fmt::Write as _;

/// The content of the report of a run.
#[derive(Debug, Clone)]
pub struct RunPage<'a> {
    /// The title of the report, as a browser tab shows it.
    pub title: String,
    /// The command line that produced it.
    pub command: String,
    /// The description of the run.
    pub setting: String,
    /// The run.
    pub run: &'a ExecRun<'a>,
    /// The result of the run.
    pub outcome: &'a RunReport,
}

/// The most steps that are drawn. For longer runs, only every n-th step is drawn.
const MAX_DRAWN_STEPS: usize = 400;

impl RunPage<'_> {
    /// Returns the report as one HTML document.
    pub fn to_html(&self) -> String {
        wrap_document(&self.title, |out| {
            self.write_headline(out);
            self.write_imbalance(out);
            self.write_phases(out);
            self.write_provenance(out);
        })
    }

    fn write_headline(&self, out: &mut String) {
        let outcome = self.outcome;
        super::headline::write_masthead(out, &self.title);
        let (plan, none) = (outcome.measured_imbalance().mean, outcome.unplanned_imbalance().mean);
        let share = |variant| outcome.share_of_balanced(variant).map(format_percent);
        let _ = match (share(RunVariant::Plan), share(RunVariant::None)) {
            (Some(plan), Some(none)) => writeln!(
                out,
                "<h1>The plan runs at <em>{plan}</em> of a perfect balance, no plan at <b>{none}</b>.</h1>"
            ),
            _ => {
                writeln!(
                    out,
                    "<h1>The busiest rank served <em>{} times</em> the average.</h1>",
                    format_ratio(plan)
                )
            }
        };
        let check = match outcome.check {
            Some(check) => format!(
                "Every step was compared with a dense reference in double precision. The largest error of a token is \
                 {:.1e}, with {:.0e} allowed. ",
                check.output,
                self.run.exec.dtype.error_bound()
            ),
            None => String::new(),
        };
        let _ = writeln!(
            out,
            "<p class=\"say\">{check}Times are <b>modelled parallel</b>: every rank was timed alone, and a step takes as \
             long as its slowest rank between two exchanges. The time of the network is not included. A perfect balance has equally \
             many tokens and choices, spread evenly over all experts, on the placement without redundant replicas.</p>"
        );
        if self.run.compare {
            self.draw_bars(out);
        }
        let _ = writeln!(out, "<dl class=\"cards\">");
        let unplanned = self.run.compare.then_some(none);
        let from = unplanned.map_or(String::new(), |none| format!("<s>{}</s> → ", format_ratio(none)));
        for (name, value, small) in [
            (
                "Imbalance",
                format!("{from}<b>{}</b>", format_ratio(plan)),
                "Busiest rank's tokens over the average's, mean.",
            ),
            (
                "Served as split",
                format!("<b>{}</b>", if outcome.matches_prediction() { "to the token" } else { "not" }),
                "The check that every rank serves exactly the tokens of the split, in every batch.",
            ),
            (
                "Moves",
                format!("<b>{}</b>", format_count(outcome.total_moves().copies)),
                "Experts copied during the forward pass.",
            ),
        ] {
            let _ = writeln!(
                out,
                "<div><dt>{name}</dt><dd class=\"value\">{value}</dd><dd class=\"small\">{small}</dd></div>"
            );
        }
        out.push_str("</dl>\n</header>\n");
    }

    /// Draws tokens per second as bars.
    fn draw_bars(&self, out: &mut String) {
        let rate = |variant| self.outcome.token_rate(variant, |time| time.modelled).unwrap_or(0.0);
        let most = RunVariant::ALL.map(rate).into_iter().fold(1.0, f64::max);
        let said: Vec<String> = RunVariant::ALL
            .iter()
            .map(|&v| format!("{} {}", v.name(), format_count(rate(v) as usize)))
            .collect();
        out.push_str("<figure class=\"hero\">\n");
        let mut svg =
            SvgWriter::open(out, "plot bare", 120.0, &format!("Tokens per second: {}.", said.join(", ")));
        for (at, (variant, words)) in RunVariant::ALL.into_iter().zip(&said).enumerate() {
            let class = if variant == RunVariant::Plan { "after" } else { "before" };
            let top = at as f64 * 40.0;
            svg.draw_rect(&format!("bar {class}"), 0.0, top, rate(variant) / most * 98.0, 30.0);
            svg.draw_text(&format!("start on-{class}"), 1.0, top + 20.0, words);
        }
        svg.close();
        out.push_str(
            "<figcaption>Tokens per second, modelled parallel; the median step.</figcaption>\n</figure>\n",
        );
    }

    /// Writes the section with the imbalance step by step.
    fn write_imbalance(&self, out: &mut String) {
        let steps = &self.outcome.steps;
        let every = steps.len().div_ceil(MAX_DRAWN_STEPS).max(1);
        let of = |loads: &[Vec<u64>]| {
            let one = |loads: &Vec<u64>| {
                let sum: u64 = loads.iter().sum();
                let peak = loads.iter().copied().max().unwrap_or(0);
                (sum > 0).then(|| peak as f64 * loads.len() as f64 / sum as f64)
            };
            let all: Vec<f64> = loads.iter().filter_map(one).collect();
            (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
        };
        let points: Vec<(&StepRow, Option<f64>, Option<f64>)> =
            steps.iter().step_by(every).map(|step| (step, of(&step.unplanned), of(&step.served))).collect();
        let top = points.iter().flat_map(|p| [p.1, p.2]).flatten().fold(1.0, f64::max);
        let axis = RatioAxis::new(top, (self.outcome.measured_imbalance().mean - 1.0).max(0.02));
        open_section(
            out,
            "steps",
            "Step by step",
            "Imbalance, mean over the layers: the ring is without a plan, the dot with it; a line below marks a step before \
             which a layer's experts had moved.",
        );
        out.push_str("<figure>\n");
        let words = format!("Imbalance of {} steps.", points.len());
        let mut svg = SvgWriter::open(out, "plot", 244.0, &words);
        let y = |value: f64| 10.0 + (1.0 - axis.position_of(value)) * 210.0;
        for tick in axis.round_ticks(0.12) {
            svg.draw_line(if tick > 1.0 { "grid" } else { "one" }, 0.0, y(tick), 100.0, y(tick));
            svg.draw_margin_text(y(tick) + 4.0, &tick_label(tick));
        }
        let radius = if points.len() > 96 { 2.5 } else { 4.0 };
        for (at, &(step, none, plan)) in points.iter().enumerate() {
            let x = (at as f64 + 0.5) * 100.0 / points.len() as f64;
            if let Some(none) = none {
                svg.draw_circle("ring", x, y(none), radius);
            }
            if let Some(plan) = plan {
                svg.draw_with_tooltip(&format!("step {}: {}", at * every, format_ratio(plan)), |g| {
                    g.draw_circle("dot", x, y(plan), radius);
                });
            }
            if !step.moved.switched.is_empty() {
                svg.draw_line("median", x, 230.0, x, 242.0);
            }
        }
        svg.close();
        out.push_str("<figcaption>Steps across, imbalance up.</figcaption>\n</figure>\n</section>\n");
    }

    /// Writes the section with the time of each phase.
    fn write_phases(&self, out: &mut String) {
        open_section(
            out,
            "phases",
            "Time by phase",
            "Milliseconds per step with the plan, over all layers, every rank timed alone. A separate thread copies the \
             moving experts at the same time.",
        );
        out.push_str("<div class=\"wide\"><table class=\"numbers\"><thead><tr><th>rank</th>");
        for phase in LayerStage::ALL {
            let _ = write!(out, "<th>{phase}</th>");
        }
        out.push_str("<th>moves</th><th>MiB</th><th>staging MiB</th></tr></thead><tbody>\n");
        let moves = self.outcome.total_moves();
        let steps = self.outcome.steps.len().max(1) as f64;
        for (rank, memory) in self.outcome.memory.iter().enumerate() {
            let _ = write!(out, "<tr><th scope=\"row\">{rank}</th>");
            let times = LayerStage::ALL
                .map(|phase| self.outcome.stage_time(RunVariant::Plan, rank, phase).as_secs_f64());
            let copied = moves.copied.get(rank).map_or(0.0, std::time::Duration::as_secs_f64) / steps;
            for time in times.into_iter().chain([copied]) {
                let _ = write!(out, "<td>{}</td>", format_fixed(time * 1e3, 3));
            }
            for bytes in [memory.in_use, memory.staged] {
                let _ = write!(out, "<td>{}</td>", format_fixed(bytes as f64 / f64::from(1 << 20), 1));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n</section>\n");
    }

    fn write_provenance(&self, out: &mut String) {
        open_section(out, "facts", "Origin of the figures", "The run, and the command that repeats it.");
        let _ = writeln!(
            out,
            "<dl class=\"facts\">\n<dt>ran</dt><dd>{}</dd>\n<dt>steps</dt><dd>{}</dd>\n<dt>command</dt><dd><code \
             class=\"command\">{}</code></dd>\n</dl>\n</section>",
            escape_text(self.setting.trim()),
            format_quantity(self.outcome.steps.len(), "step", "steps"),
            escape_text(&self.command)
        );
        super::provenance::write_footer(out);
    }
}
