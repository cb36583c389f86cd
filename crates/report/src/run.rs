//! The report of a run: how fast the plan is beside no plan and a perfect balance, and where its time goes.

use super::svg::{Axis, Svg, tick_label};
use super::text::{count, counted, esc, fixed, percent, ratio};
use super::{frame, section};
use crate::exec::Phase;
use crate::exec::run::{Outcome, Run, StepRow, Variant};
use std::fmt::Write as _;

/// Everything that the report of a run shows.
#[derive(Debug, Clone)]
pub struct RunPage<'a> {
    /// Name of the report, as the reader will find it in a browser tab.
    pub title: String,
    /// The command line that made it.
    pub command: String,
    /// What ran, in words.
    pub setting: String,
    /// What was run.
    pub run: &'a Run<'a>,
    /// What came out.
    pub outcome: &'a Outcome,
}

/// Most steps that are drawn; of more, every second, third ..
const DRAWN: usize = 400;

impl RunPage<'_> {
    /// The report as one HTML document.
    pub fn html(&self) -> String {
        frame(&self.title, |out| {
            self.headline(out);
            self.imbalance(out);
            self.phases(out);
            self.facts(out);
        })
    }

    fn headline(&self, out: &mut String) {
        let outcome = self.outcome;
        super::headline::masthead(out, &self.title);
        let (plan, none) = (outcome.measured().mean, outcome.unplanned().mean);
        let share = |variant| outcome.share_of_balanced(variant).map(percent);
        let _ = match (share(Variant::Plan), share(Variant::None)) {
            (Some(plan), Some(none)) => writeln!(
                out,
                "<h1>The plan runs at <em>{plan}</em> of a perfect balance, no plan at <b>{none}</b>.</h1>"
            ),
            _ => {
                writeln!(out, "<h1>The busiest rank served <em>{} times</em> the average.</h1>", ratio(plan))
            }
        };
        let check = match outcome.check {
            Some(check) => format!(
                "Every step was compared with one dense memory in double precision: the largest error of a token is \
                 {:.1e}, with {:.0e} allowed. ",
                check.output,
                self.run.exec.dtype.bound()
            ),
            None => String::new(),
        };
        let _ = writeln!(
            out,
            "<p class=\"say\">{check}Times are <b>modelled parallel</b>: every rank was timed alone, and a step takes as \
             long as its slowest rank between two exchanges; what wires cost is not in them. A perfect balance is as many \
             tokens and choices, spread so that every expert gets as many, on the placement without copies.</p>"
        );
        if self.run.compare {
            self.bars(out);
        }
        let _ = writeln!(out, "<dl class=\"cards\">");
        let unplanned = self.run.compare.then_some(none);
        let from = unplanned.map_or(String::new(), |none| format!("<s>{}</s> → ", ratio(none)));
        for (name, value, small) in [
            (
                "Imbalance",
                format!("{from}<b>{}</b>", ratio(plan)),
                "Busiest rank's tokens over the average's, mean.",
            ),
            (
                "Served as split",
                format!("<b>{}</b>", if outcome.to_the_token() { "to the token" } else { "not" }),
                "Whether every rank served in every batch just the tokens that the split says.",
            ),
            (
                "Moves",
                format!("<b>{}</b>", count(outcome.moves().copies)),
                "Experts copied beside the forward pass.",
            ),
        ] {
            let _ = writeln!(
                out,
                "<div><dt>{name}</dt><dd class=\"value\">{value}</dd><dd class=\"small\">{small}</dd></div>"
            );
        }
        out.push_str("</dl>\n</header>\n");
    }

    /// Tokens per second as bars.
    fn bars(&self, out: &mut String) {
        let rate = |variant| self.outcome.rate(variant, |time| time.modelled).unwrap_or(0.0);
        let most = Variant::ALL.map(rate).into_iter().fold(1.0, f64::max);
        let said: Vec<String> =
            Variant::ALL.iter().map(|&v| format!("{} {}", v.name(), count(rate(v) as usize))).collect();
        out.push_str("<figure class=\"hero\">\n");
        let mut svg = Svg::open(out, "plot bare", 120.0, &format!("Tokens per second: {}.", said.join(", ")));
        for (at, (variant, words)) in Variant::ALL.into_iter().zip(&said).enumerate() {
            let class = if variant == Variant::Plan { "after" } else { "before" };
            let top = at as f64 * 40.0;
            svg.rect(&format!("bar {class}"), 0.0, top, rate(variant) / most * 98.0, 30.0);
            svg.text(&format!("start on-{class}"), 1.0, top + 20.0, words);
        }
        svg.close();
        out.push_str(
            "<figcaption>Tokens per second, modelled parallel; the median step.</figcaption>\n</figure>\n",
        );
    }

    /// Step by step.
    fn imbalance(&self, out: &mut String) {
        let steps = &self.outcome.steps;
        let every = steps.len().div_ceil(DRAWN).max(1);
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
        let axis = Axis::new(top, (self.outcome.measured().mean - 1.0).max(0.02));
        section(
            out,
            "steps",
            "Step by step",
            "Imbalance, mean over the layers: the ring is without a plan, the dot with it; a line below marks a step before \
             which a layer's experts had moved.",
        );
        out.push_str("<figure>\n");
        let words = format!("Imbalance of {} steps.", points.len());
        let mut svg = Svg::open(out, "plot", 244.0, &words);
        let y = |value: f64| 10.0 + (1.0 - axis.at(value)) * 210.0;
        for tick in axis.ticks(0.12) {
            svg.line(if tick > 1.0 { "grid" } else { "one" }, 0.0, y(tick), 100.0, y(tick));
            svg.margin_text(y(tick) + 4.0, &tick_label(tick));
        }
        let radius = if points.len() > 96 { 2.5 } else { 4.0 };
        for (at, &(step, none, plan)) in points.iter().enumerate() {
            let x = (at as f64 + 0.5) * 100.0 / points.len() as f64;
            if let Some(none) = none {
                svg.circle("ring", x, y(none), radius);
            }
            if let Some(plan) = plan {
                svg.pointed(&format!("step {}: {}", at * every, ratio(plan)), |g| {
                    g.circle("dot", x, y(plan), radius);
                });
            }
            if !step.moved.switched.is_empty() {
                svg.line("median", x, 230.0, x, 242.0);
            }
        }
        svg.close();
        out.push_str("<figcaption>Steps across, imbalance up.</figcaption>\n</figure>\n</section>\n");
    }

    /// Where the time goes.
    fn phases(&self, out: &mut String) {
        section(
            out,
            "phases",
            "Where the time goes",
            "Milliseconds per step on the plan, all layers, every rank timed alone; copies of experts run beside it on a \
             thread of their own.",
        );
        out.push_str("<div class=\"wide\"><table class=\"numbers\"><thead><tr><th>rank</th>");
        for phase in Phase::ALL {
            let _ = write!(out, "<th>{phase}</th>");
        }
        out.push_str("<th>moves</th><th>MiB</th><th>staging MiB</th></tr></thead><tbody>\n");
        let moves = self.outcome.moves();
        let steps = self.outcome.steps.len().max(1) as f64;
        for (rank, memory) in self.outcome.memory.iter().enumerate() {
            let _ = write!(out, "<tr><th scope=\"row\">{rank}</th>");
            let times = Phase::ALL.map(|phase| self.outcome.phase(Variant::Plan, rank, phase).as_secs_f64());
            let copied = moves.copied.get(rank).map_or(0.0, std::time::Duration::as_secs_f64) / steps;
            for time in times.into_iter().chain([copied]) {
                let _ = write!(out, "<td>{}</td>", fixed(time * 1e3, 3));
            }
            for bytes in memory {
                let _ = write!(out, "<td>{}</td>", fixed(*bytes as f64 / f64::from(1 << 20), 1));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n</section>\n");
    }

    fn facts(&self, out: &mut String) {
        section(out, "facts", "Where this comes from", "What ran, and how to do it again.");
        let _ = writeln!(
            out,
            "<dl class=\"facts\">\n<dt>ran</dt><dd>{}</dd>\n<dt>steps</dt><dd>{}</dd>\n<dt>command</dt><dd><code \
             class=\"command\">{}</code></dd>\n</dl>\n</section>",
            esc(self.setting.trim()),
            counted(self.outcome.steps.len(), "step", "steps"),
            esc(&self.command)
        );
        super::facts::foot(out);
    }
}
