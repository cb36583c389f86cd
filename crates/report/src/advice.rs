//! The report of an advice: the answer, the Pareto front, the parts of a step, and the effect of the batch.

use super::html::{escape_text, format_count, format_fixed, format_percent};
use super::line_chart::{Point, Series, draw_line_chart};
use super::svg::SvgWriter;
use super::{open_section, wrap_document};
use evenkeel_advise::{Advice, AdviceRequest, DEPLOYMENT_COLUMNS, Deployment, LaunchCommand, StepTime};
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

/// Height of a bar and its distance to the next one, pixels.
const BAR: f64 = 26.0;
const ROW: f64 = 52.0;

/// Classes of the parts of a step, in the order of [`StepTime::parts`].
const PART_CLASSES: [&str; 7] = ["s3", "s5", "s2", "s0", "s1", "s4", "s6"];

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
        draw_line_chart(
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
        for ((name, _), class) in StepTime::default().parts().into_iter().zip(PART_CLASSES) {
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
            for ((name, ms), class) in row.decode.parts().into_iter().zip(PART_CLASSES) {
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
        draw_line_chart(
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
        let [policy, split, names @ ..] = DEPLOYMENT_COLUMNS;
        let _ = write!(out, "<th scope=\"col\">{policy}, {split}</th>");
        for name in names {
            let _ = write!(out, "<th scope=\"col\">{name}</th>");
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        let mut rows = self.advice.search.front.clone();
        if !rows.contains(&self.advice.best) {
            rows.push(self.advice.best);
        }
        rows.sort_unstable();
        for at in rows {
            let [policy, split, cells @ ..] = self.advice.search.deployments[at].cells();
            let class = if at == self.advice.best { " class=\"after\"" } else { "" };
            let _ = write!(
                out,
                "<tr{class}><th scope=\"row\">{}, {}</th>",
                escape_text(&policy),
                escape_text(&split)
            );
            for cell in cells {
                let _ = write!(out, "<td>{}</td>", escape_text(&cell));
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
