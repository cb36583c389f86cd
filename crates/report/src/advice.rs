//! The report of an advice: the answer, the Pareto front, the parts of a step, and the effect of the batch.

use super::html::{escape_text, format_count, format_fixed, format_percent};
use super::svg::SvgWriter;
use super::{open_section, wrap_document};
use evenkeel_advise::{Advice, AdviceRequest, Deployment, LaunchCommand, StepTime};
use std::fmt::Write as _;

/// The content of the report of an advice.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AdvicePage<'a> {
    /// The command line that produced it.
    pub command: String,
    /// The advice.
    pub advice: &'a Advice,
    /// The question.
    pub request: &'a AdviceRequest<'a>,
    /// Commands that start the deployment.
    pub launch: &'a [LaunchCommand],
}

const HEIGHT: f64 = 320.0;
/// The units of the stretched part that holds lines.
const LINE_UNITS: usize = 1000;
/// Height of a bar and its distance to the next one, pixels.
const BAR: f64 = 26.0;
const ROW: f64 = 52.0;

/// Names and classes of the parts of a step.
const PARTS: [(&str, &str); 7] = [
    ("attention", "s3"),
    ("dense", "s5"),
    ("experts", "s2"),
    ("exchange", "s0"),
    ("imbalance", "s1"),
    ("planning", "s4"),
    ("streaming", "s6"),
];

fn parts_of(step: &StepTime) -> [f64; 7] {
    [
        step.attention_ms,
        step.dense_ms,
        step.experts_ms,
        step.exchange_ms,
        step.imbalance_ms,
        step.planning_ms,
        step.streaming_ms,
    ]
}

/// A line of a figure: name, class and points of (x, y).
struct Series {
    name: &'static str,
    class: &'static str,
    points: Vec<Point>,
}

/// A point of a figure with the words of its tooltip.
struct Point {
    x: f64,
    y: f64,
    words: String,
}

impl<'a> AdvicePage<'a> {
    /// Creates the content of a report without a command line.
    pub fn new(advice: &'a Advice, request: &'a AdviceRequest<'a>, launch: &'a [LaunchCommand]) -> Self {
        Self { command: String::new(), advice, request, launch }
    }

    /// Sets [`Self::command`](#structfield.command).
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }

    /// Returns the report as one HTML document.
    pub fn to_html(&self) -> String {
        let (model, gpu) = (&self.request.model.name, self.request.times.gpu().name);
        let title = format!("Deployment of {model} on {gpu}");
        wrap_document(&title, |out| {
            self.write_answer(out, &title);
            self.write_front(out);
            self.write_parts(out);
            self.write_batches(out);
            self.write_memory(out);
            self.write_table(out);
            self.write_launch(out);
            self.write_facts(out);
            super::provenance::write_footer(out);
        })
    }

    fn write_answer(&self, out: &mut String, title: &str) {
        super::headline::write_masthead(out, title);
        let mut sentences = self.advice.sentences.iter();
        let verdict = sentences.next().map_or("", String::as_str);
        let (lead, rest) = verdict.split_once(": ").unwrap_or((verdict, ""));
        let _ = write!(
            out,
            "<h1><em>{}</em>{}</h1>\n<p class=\"say\">",
            escape_text(lead),
            if rest.is_empty() { String::new() } else { format!(": {}", escape_text(rest)) }
        );
        for sentence in sentences {
            let _ = write!(out, "{} ", escape_text(sentence));
        }
        let best = self.advice.best();
        let workload = &self.request.workload;
        let _ = write!(
            out,
            "</p>\n</header>\n<dl class=\"cards\">\n{}{}{}{}</dl>\n",
            card(
                "Output tokens per second and GPU",
                &format_fixed(best.tokens_per_s_per_gpu, 0),
                &format!(
                    "prompts of {} and answers of {} tokens",
                    format_count(workload.input as usize),
                    format_count(workload.output as usize)
                )
            ),
            card(
                "Time per output token",
                &format!("{} ms", format_fixed(best.tpot_ms, 1)),
                &format!("first token after {} ms, without queueing", format_fixed(best.prefill.ttft_ms, 0))
            ),
            card(
                "Memory of a decoding GPU",
                &format!("{} GB", format_fixed(best.memory.total() / 1e9, 0)),
                &format!(
                    "of {} GB; {} GB in redundant experts",
                    self.request.times.gpu().memory,
                    format_fixed(best.memory.redundant / 1e9, 1)
                )
            ),
            card(
                "Gain of balancing",
                &signed_percent(self.advice.gain),
                &format!("error of the figure: {}", format_percent(self.advice.error))
            ),
        );
    }

    fn write_front(&self, out: &mut String) {
        open_section(
            out,
            "front",
            "Throughput of a GPU and speed for a user",
            "Each line is a Pareto front: no deployment of its kind is better in both. Up and to the right is better.",
        );
        let fronts = [
            ("nothing balanced", "s0", self.front_of(&|found| found.choice.policy.name() == "contiguous")),
            ("EPLB", "s1", self.front_of(&|found| found.choice.policy.name() == "eplb")),
            ("recourse", "s2", self.front_of(&|found| found.choice.policy.name() == "recourse")),
        ];
        let series: Vec<Series> =
            fronts.into_iter().map(|(name, class, points)| Series { name, class, points }).collect();
        let best = self.advice.best();
        let marked = (1e3 / best.tpot_ms, best.tokens_per_s_per_gpu);
        draw_chart(
            out,
            &series,
            Some(marked),
            "output tokens per second of a user",
            "output tokens per second and GPU",
        );
        out.push_str("</section>\n");
    }

    /// Returns the Pareto front of the deployments of a kind, by ascending rate of a user.
    fn front_of(&self, of: &dyn Fn(&Deployment) -> bool) -> Vec<Point> {
        let mut fastest = f64::INFINITY;
        let mut points = Vec::new();
        for found in self.advice.search.deployments.iter().filter(|found| of(found)) {
            if found.tpot_ms < fastest {
                fastest = found.tpot_ms;
                let words = format!(
                    "{}, {} redundant, {} requests per GPU: {:.0} tokens/s per GPU, {:.1} ms per token",
                    found.parallel_text(),
                    found.choice.redundant,
                    found.batch,
                    found.tokens_per_s_per_gpu,
                    found.tpot_ms
                );
                points.push(Point { x: 1e3 / found.tpot_ms, y: found.tokens_per_s_per_gpu, words });
            }
        }
        points
    }

    fn write_parts(&self, out: &mut String) {
        open_section(
            out,
            "parts",
            "Where a decode step goes",
            "The GPUs and the batch are those of the advised deployment, and tokens/s those of one GPU. Imbalance is the wait for \
             the fullest rank.",
        );
        out.push_str("<p class=\"small\">");
        for (name, class) in PARTS {
            let _ = write!(
                out,
                "<svg class=\"sample\" width=\"12\" height=\"12\" aria-hidden=\"true\"><rect class=\"{class} full\" \
                 width=\"12\" height=\"12\"/></svg>{name} &#160; "
            );
        }
        out.push_str("</p>\n<figure>\n");
        let compared = &self.advice.compared;
        let most = compared.iter().map(|row| row.decode.total_ms()).fold(f64::MIN_POSITIVE, f64::max);
        let words: Vec<String> =
            compared.iter().map(|row| format!("{} {:.1} ms", row.name, row.decode.total_ms())).collect();
        let mut svg = SvgWriter::open(out, "plot bare", ROW * compared.len() as f64 + 6.0, &words.join(", "));
        for (at, row) in compared.iter().enumerate() {
            let y = ROW * at as f64;
            let label = format!(
                "{}: {} ms, {} tokens/s",
                row.name,
                format_fixed(row.decode.total_ms(), 1),
                format_count(row.tokens_per_s_per_gpu.round() as usize)
            );
            svg.draw_text("start", 0.0, y + 15.0, &label);
            let mut x = 0.0;
            for ((name, class), ms) in PARTS.iter().zip(parts_of(&row.decode)) {
                let width = 100.0 * ms / most;
                svg.draw_with_tooltip(&format!("{name}: {ms:.2} ms"), |g| {
                    g.draw_rect(&format!("{class} full"), x, y + 21.0, width, BAR);
                });
                x += width;
            }
        }
        svg.close();
        out.push_str("</figure>\n</section>\n");
    }

    fn write_batches(&self, out: &mut String) {
        open_section(
            out,
            "batches",
            "The effect of the batch",
            "Output tokens per second and GPU on the GPUs of the advised deployment, by requests per GPU. With few requests \
             reading weights decides, and balancing gains little.",
        );
        let best = self.advice.best();
        let of = |policy: &str| {
            let mut points: Vec<Point> = Vec::new();
            let deployments = &self.advice.search.deployments;
            let same =
                |found: &&Deployment| found.parallel == best.parallel && found.choice.policy.name() == policy;
            let mut batches: Vec<u64> = deployments.iter().filter(same).map(|found| found.batch).collect();
            batches.sort_unstable();
            batches.dedup();
            for batch in batches {
                // Deployments are sorted by their rate, so the first one is the best.
                let first = deployments.iter().filter(same).find(|found| found.batch == batch);
                points.extend(first.map(|found| Point {
                    x: batch as f64,
                    y: found.tokens_per_s_per_gpu,
                    words: format!(
                        "{batch} requests per GPU: {:.0} tokens/s per GPU, {:.1} ms per token",
                        found.tokens_per_s_per_gpu, found.tpot_ms
                    ),
                }));
            }
            points
        };
        let series = [
            ("nothing balanced", "s0", "contiguous"),
            ("EPLB", "s1", "eplb"),
            ("recourse", "s2", "recourse"),
        ]
        .map(|(name, class, policy)| Series { name, class, points: of(policy) });
        draw_chart(
            out,
            &series,
            Some((best.batch as f64, best.tokens_per_s_per_gpu)),
            "requests per GPU",
            "output tokens per second and GPU",
        );
        out.push_str("</section>\n");
    }

    fn write_memory(&self, out: &mut String) {
        open_section(
            out,
            "memory",
            "Memory of a GPU",
            "The cache holds the requests of the advised batch at their mean context.",
        );
        let best = self.advice.best();
        let of = self.request.times.gpu().memory as f64 * 1e9;
        let _ = writeln!(out, "<dl class=\"facts\">");
        let memory = &best.memory;
        for (name, bytes) in [
            ("weights outside of experts", memory.weights),
            ("experts", memory.experts),
            ("redundant experts", memory.redundant),
            ("key-value cache", memory.kv_cache),
            ("activations", memory.activations),
            ("framework", memory.framework),
            ("free", (of - memory.total()).max(0.0)),
        ] {
            let _ = writeln!(
                out,
                "<dt>{name}</dt><dd>{} GB ({})</dd>",
                format_fixed(bytes / 1e9, 1),
                format_percent(bytes / of)
            );
        }
        out.push_str("</dl>\n</section>\n");
    }

    fn write_table(&self, out: &mut String) {
        open_section(
            out,
            "table",
            "Deployments on the front",
            "The advised one is marked. Experts are divided by expert or by tensor parallelism.",
        );
        out.push_str("<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Deployments\">\n<table class=\"numbers\">\n<thead><tr>");
        for name in [
            "policy, split",
            "GPUs",
            "experts by",
            "attention tp",
            "pp",
            "redundant",
            "batch",
            "tokens/s/GPU",
            "TPOT ms",
            "TTFT ms",
            "GB",
            "imbalance",
        ] {
            let _ = write!(out, "<th scope=\"col\">{name}</th>");
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        let mut rows = self.advice.search.front.clone();
        if !rows.contains(&self.advice.best) {
            rows.push(self.advice.best);
        }
        rows.sort_unstable();
        for at in rows {
            let found = &self.advice.search.deployments[at];
            let class = if at == self.advice.best { " class=\"after\"" } else { "" };
            let _ = write!(
                out,
                "<tr{class}><th scope=\"row\">{}, {}</th>",
                escape_text(found.choice.policy.name()),
                found.choice.split()
            );
            let cells = [
                found.parallel.gpus().to_string(),
                if found.parallel.is_expert_parallel() { "expert" } else { "tensor" }.to_owned(),
                found.parallel.attention_tp.to_string(),
                found.parallel.pp.to_string(),
                found.choice.redundant.to_string(),
                found.batch.to_string(),
                format_fixed(found.tokens_per_s_per_gpu, 0),
                format_fixed(found.tpot_ms, 1),
                format_fixed(found.prefill.ttft_ms, 0),
                format_fixed(found.memory.total() / 1e9, 0),
                format_fixed(found.imbalance, 2),
            ];
            for cell in cells {
                let _ = write!(out, "<td>{cell}</td>");
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
    }

    fn write_launch(&self, out: &mut String) {
        open_section(out, "launch", "How to start it", "One command or configuration per stack and role.");
        out.push_str("<dl class=\"facts\">\n");
        for command in self.launch {
            let _ = write!(
                out,
                "<dt>{}, {}</dt><dd><code class=\"command\">{}</code>",
                command.stack,
                command.role,
                escape_text(&command.text).to_string().replace('\n', "<br/>")
            );
            for note in &command.notes {
                let _ = write!(out, "<span class=\"small\">{}. </span>", escape_text(note));
            }
            out.push_str("</dd>\n");
        }
        out.push_str("</dl>\n</section>\n");
    }

    fn write_facts(&self, out: &mut String) {
        open_section(
            out,
            "facts",
            "Origin of the figures",
            "Kernels with their median error, and the command.",
        );
        out.push_str("<dl class=\"facts\">\n");
        for source in &self.advice.sources {
            let _ = writeln!(
                out,
                "<dt>{}</dt><dd>{}, {} off</dd>",
                escape_text(&source.part),
                escape_text(&source.kernel),
                format_percent(source.median_error)
            );
        }
        let _ = writeln!(
            out,
            "<dt>search</dt><dd>{} deployments priced, {} too large, {} placements of layers planned</dd>\n<dt>command</dt>\
             <dd><code class=\"command\">{}</code></dd>\n</dl>\n</section>",
            format_count(self.advice.search.priced),
            format_count(self.advice.search.too_large),
            format_count(self.advice.search.planned),
            escape_text(&self.command)
        );
    }
}

fn card(name: &str, value: &str, words: &str) -> String {
    format!(
        "<div><dt>{name}</dt><dd class=\"value\"><b>{}</b></dd><dd class=\"small\">{}</dd></div>\n",
        escape_text(value),
        escape_text(words)
    )
}

fn signed_percent(share: f64) -> String {
    if share.is_finite() { format!("{:+.0}\u{a0}%", 100.0 * share) } else { "–".to_owned() }
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
fn draw_chart(out: &mut String, series: &[Series], mark: Option<(f64, f64)>, across: &str, up: &str) {
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
