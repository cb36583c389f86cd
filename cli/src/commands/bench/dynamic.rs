//! `evenkeel bench dynamic`: copies for each batch, by the solver, by published rules and by HiGHS.

use crate::args::trace::TraceArgs;
use crate::output::{Output, StderrBar, print_json, print_text};
use crate::render::table::render_table;
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use evenkeel::trace::Trace;
use evenkeel_solver::bench::copy_corpus::list_shapes;
use evenkeel_solver::bench::copy_measure::{CopyCorpus, CopyObjective, CopyRow, Defeats};
use evenkeel_solver::bench::copy_rules::CopyRule;
use evenkeel_solver::copies::{CopyEffort, CopyTimes};
use serde_json::{Value, json};

/// Compare copies for each batch with published rules
///
/// Every batch is planned by the solver, and by the rules of UltraEP, MoonEP, LLEP, TopoEP and FasterMoE
/// (`shadow`). Experts have one home each, in blocks. Without TRACE, batches are drawn: those of UltraEP's
/// tests (zipf), LLEP's (one expert), even ones, and TopoEP's 32 ranks with 640 experts.
///
/// Objective `copies` is the fewest copies at the peak of UltraEP's rule, and at least 1.01 of the mean.
/// `peak` is the lowest peak with all slots. `time` is the shortest time of the busiest rank and the longest
/// exposed transfer. Columns `bound` are proved lower bounds. `p50` and `p99` are microseconds of the solver
/// on one core. MoonEP and LLEP take as many slots as they need. The table shows a plan of a rule once; the
/// document has it for every objective.
#[derive(Debug, Args)]
#[command(
    mut_arg("traces", |arg| arg.required(false)),
    after_long_help = "Examples:\n  evenkeel bench dynamic --ranks 8 --seeds 4\n  evenkeel bench dynamic --corpus zipf --ranks \
                       64 --objectives copies --json\n  evenkeel bench dynamic traces/sample-prefill.csv.zst --ranks 8 --slots \
                       1 --defeats"
)]
pub(crate) struct DynamicArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// Ranks of the corpora; the drawn ones have 8, 32 and 64 [default: all]
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    ranks: Vec<usize>,
    /// Dynamic slots per rank; the drawn corpora have 1 and 2 [default: all]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    slots: Vec<u32>,
    /// Keep the drawn corpora whose name contains TEXT, as in zipf, "one expert" or even
    #[arg(long, value_name = "TEXT")]
    corpus: Option<String>,
    /// Drawn batches of every corpus
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// Quantities to minimise: copies, peak, time
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "copies,peak,time")]
    objectives: Vec<ObjectiveName>,
    /// Effort of the solver: fast is for every batch
    #[arg(long, value_name = "fast|thorough", default_value = "fast", hide_short_help = true)]
    effort: EffortName,
    /// Count the batches on which a rule does better than the solver with as many slots
    #[arg(long)]
    defeats: bool,
    /// Add the best plan that HiGHS finds in this many seconds per batch (needs feature `highs`)
    #[arg(long, value_name = "SECONDS")]
    milp: Option<f64>,
    /// Nanoseconds of an expert per token [default: DeepSeek-V3 in FP8 on H100]
    #[arg(long, value_name = "NS", default_value_t = 64, hide_short_help = true, help_heading = "Times")]
    token_ns: u32,
    /// Microseconds that a rank takes to send or receive one copy
    #[arg(long, value_name = "US", default_value_t = 62, hide_short_help = true, help_heading = "Times")]
    copy_us: u32,
    /// Microseconds of other work that hide copies
    #[arg(long, value_name = "US", default_value_t = 0, hide_short_help = true, help_heading = "Times")]
    hidden_us: u32,
    /// Microseconds that each copy adds to the work of the rank that receives it
    #[arg(long, value_name = "US", default_value_t = 0, hide_short_help = true, help_heading = "Times")]
    read_us: u32,
}

/// Argument `copies`, `peak` or `time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ObjectiveName {
    Copies,
    Peak,
    Time,
}

/// Argument `fast` or `thorough`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EffortName {
    Fast,
    Thorough,
}

/// Comparison to run, from options that are valid together.
#[derive(Debug)]
struct DynamicRequest {
    objectives: Vec<CopyObjective>,
    effort: CopyEffort,
    times: CopyTimes,
    milp: Option<f64>,
    defeats: bool,
}

/// Defeats of the solver by a rule on one corpus.
#[derive(Debug)]
struct DefeatRow {
    corpus: usize,
    rule: CopyRule,
    defeats: Defeats,
}

impl DynamicArgs {
    /// Checks the options.
    fn resolve(&self) -> anyhow::Result<DynamicRequest> {
        if self.trace.traces.is_empty() {
            if let Some(option) = TraceArgs::OPTIONS.into_iter().find(|id| self.trace.stated.has(id)) {
                bail!("--{} has no effect without TRACE: the batches are drawn", option.replace('_', "-"));
            }
        } else {
            let has = |id| self.trace.stated.has(id);
            if has("corpus") || has("seeds") {
                let option = if has("corpus") { "--corpus" } else { "--seeds" };
                bail!("{option} has no effect with TRACE: its batches are recorded");
            }
            if self.ranks.is_empty() {
                bail!("--ranks is missing: expected the number of ranks that the experts of TRACE live on");
            }
        }
        if let Some(seconds) = self.milp {
            if !(seconds > 0.0 && seconds <= 3600.0) {
                bail!("--milp {seconds}: expected seconds above 0, at most 3600");
            }
            if !cfg!(feature = "highs") {
                bail!("--milp {seconds}: this build has no HiGHS; expected a build with --features highs");
            }
        }
        let ns = |us: u32| u64::from(us) * 1000;
        let times = CopyTimes {
            token: u64::from(self.token_ns),
            receive: ns(self.copy_us),
            send: ns(self.copy_us),
            hidden: ns(self.hidden_us),
            read: ns(self.read_us),
        };
        let objective = |name: &ObjectiveName| match name {
            ObjectiveName::Copies => CopyObjective::Copies,
            ObjectiveName::Peak => CopyObjective::Peak,
            ObjectiveName::Time => CopyObjective::Time,
        };
        Ok(DynamicRequest {
            objectives: self.objectives.iter().map(objective).collect(),
            effort: match self.effort {
                EffortName::Fast => CopyEffort::FAST,
                EffortName::Thorough => CopyEffort::THOROUGH,
            },
            times,
            milp: self.milp,
            defeats: self.defeats,
        })
    }

    /// Returns the recorded corpora of the trace, or the drawn ones that the options keep.
    fn list_corpora(&self, output: Output) -> anyhow::Result<Vec<CopyCorpus>> {
        if !self.trace.traces.is_empty() {
            let trace = self.trace.read()?;
            output.print_notices(trace.notices());
            let slots = if self.slots.is_empty() { &[2][..] } else { &self.slots };
            let pairs = self.ranks.iter().flat_map(|&ranks| slots.iter().map(move |&slots| (ranks, slots)));
            return pairs
                .map(|(ranks, slots)| record_corpus(&self.trace.display_name(), &trace, ranks, slots))
                .collect();
        }
        let keeps = |name: &str| self.corpus.as_ref().is_none_or(|text| name.contains(text.as_str()));
        // A configuration states the ranks of a cluster, which select no corpus.
        let has = |id| self.trace.stated.has(id);
        let shapes = list_shapes().into_iter().filter(|named| {
            keeps(&named.name)
                && (!has("ranks") || self.ranks.contains(&named.shape.ranks))
                && (!has("slots") || self.slots.contains(&named.slots))
        });
        let corpora: Vec<CopyCorpus> = shapes
            .map(|named| CopyCorpus::draw(named.name, named.shape, named.slots, 0..self.seeds))
            .collect();
        if corpora.is_empty() {
            bail!(
                "no drawn corpus fits --corpus, --ranks and --slots: expected 8, 32 or 64 ranks, 1 or 2 slots, and part \
                 of a name as in 64x256 zipf 2 i^-4, 64x256 one expert 50 % or 64x256 even"
            );
        }
        Ok(corpora)
    }
}

/// Returns the batches of all layers of a trace. Batches without tokens are left out.
fn record_corpus(name: &str, trace: &Trace, ranks: usize, slots: u32) -> anyhow::Result<CopyCorpus> {
    let experts = trace.experts();
    if ranks == 0 || !experts.is_multiple_of(ranks) {
        bail!("--ranks {ranks}: {name} has {experts} experts per layer: expected a divisor of them");
    }
    let mut batches = vec![];
    for step in 0..trace.steps().len() {
        for layer in 0..trace.layers().len() {
            let loads = trace.loads(step, layer);
            if u32::try_from(loads.iter().map(|&load| u128::from(load)).sum::<u128>()).is_err() {
                bail!("{name}, step {}: a batch has more than {} tokens", trace.steps()[step], u32::MAX);
            }
            if loads.iter().any(|&load| load > 0) {
                batches.push(loads.iter().map(|&load| load as u32).collect());
            }
        }
    }
    if batches.is_empty() {
        bail!("{name}: expected a batch with tokens");
    }
    Ok(CopyCorpus::recorded(name.to_owned(), ranks, slots, batches))
}

pub(super) fn run(args: &DynamicArgs, output: Output) -> anyhow::Result<()> {
    let request = args.resolve()?;
    let corpora = args.list_corpora(output)?;
    let bar = StderrBar::for_corpora();
    let total = corpora.len() * request.objectives.len();
    let (mut rows, mut defeats) = (vec![], vec![]);
    for (at, corpus) in corpora.iter().enumerate() {
        let named = || format!("corpus {}", corpus.name);
        for (done, &objective) in request.objectives.iter().enumerate() {
            bar.report_done(at * request.objectives.len() + done, total);
            let own = corpus.compare(objective, request.times, request.effort).with_context(named)?;
            rows.extend(own.into_iter().map(|row| (at, row)));
            if let Some(seconds) = request.milp {
                rows.extend(corpus.measure_milp(objective, request.times, seconds).map(|row| (at, row)));
            }
        }
        if request.defeats {
            for rule in CopyRule::ALL {
                let counted = corpus.count_defeats(rule, request.times).with_context(named)?;
                defeats.push(DefeatRow { corpus: at, rule, defeats: counted });
            }
        }
    }
    drop(bar);
    if output.is_json() {
        let rows: Vec<Value> = rows.iter().map(|(at, row)| row_to_json(&corpora[*at], row)).collect();
        let mut document = json!({ "rows": rows });
        if request.defeats {
            document["defeats"] =
                defeats.iter().map(|row| defeat_to_json(&corpora[row.corpus], row)).collect();
        }
        return print_json(&document);
    }
    print_text(&render_rows(&corpora, &rows))?;
    if request.defeats {
        print_text(&format!("\n{}", render_defeats(&corpora, &defeats)))?;
    }
    Ok(())
}

fn render_rows(corpora: &[CopyCorpus], rows: &[(usize, CopyRow)]) -> String {
    let number =
        |value: f64, digits: usize| if value.is_finite() { format!("{value:.digits$}") } else { "-".into() };
    // Most rules make the same plan for every objective.
    let is_new = |&(number, (at, row)): &(usize, &(usize, CopyRow))| {
        let same = |(other, before): &(usize, CopyRow)| {
            let measures = |row: &CopyRow| (row.copies, row.peak_over_mean);
            row.p50_us.is_nan() && (other, before.solver, measures(before)) == (at, row.solver, measures(row))
        };
        !rows[..number].iter().any(same)
    };
    let rows = rows.iter().enumerate().filter(is_new).map(|(_, (at, row))| {
        let corpus = &corpora[*at];
        vec![
            corpus.name.clone(),
            row.objective.name().to_owned(),
            row.solver.to_owned(),
            corpus.slots.to_string(),
            row.instances.to_string(),
            number(row.copies, 2),
            number(row.bound_copies, 2),
            number(row.peak_over_mean, 4),
            number(row.bound_peak_over_mean, 4),
            number(row.time_us, 0),
            number(row.p50_us, 1),
            number(row.p99_us, 1),
        ]
    });
    let header = [
        "corpus",
        "objective",
        "solver",
        "slots",
        "batches",
        "copies",
        "bound",
        "peak",
        "bound",
        "time us",
        "p50",
        "p99",
    ];
    render_table(&header, rows.collect(), 3)
}

fn render_defeats(corpora: &[CopyCorpus], rows: &[DefeatRow]) -> String {
    let batches: usize = rows.iter().map(|row| corpora[row.corpus].batches.len()).sum();
    let lost = |of: fn(&Defeats) -> usize| rows.iter().map(|row| of(&row.defeats)).sum::<usize>();
    let sum = format!(
        "{batches} comparisons of a batch and a rule: the rule is better by copies in {}, by peak in {}, by time in {}\n",
        lost(|defeats| defeats.copies),
        lost(|defeats| defeats.peak),
        lost(|defeats| defeats.time),
    );
    let lost_one = |row: &&DefeatRow| row.defeats != Defeats::default();
    if !rows.iter().any(|row| lost_one(&row)) {
        return sum;
    }
    let rows = rows.iter().filter(lost_one).map(|row| {
        let corpus = &corpora[row.corpus];
        let Defeats { copies, peak, time, .. } = row.defeats;
        let count = |count: usize| count.to_string();
        vec![
            corpus.name.clone(),
            row.rule.name().to_owned(),
            corpus.slots.to_string(),
            count(corpus.batches.len()),
            count(copies),
            count(peak),
            count(time),
        ]
    });
    let header = ["corpus", "better rule", "slots", "batches", "copies", "peak", "time"];
    sum + &render_table(&header, rows.collect(), 2)
}

fn row_to_json(corpus: &CopyCorpus, row: &CopyRow) -> Value {
    json!({
        "corpus": corpus.name,
        "ranks": corpus.shape.ranks,
        "experts": corpus.shape.items,
        "slots": corpus.slots,
        "objective": row.objective.name(),
        "solver": row.solver,
        "instances": row.instances,
        "copies": row.copies,
        "peak_over_mean": row.peak_over_mean,
        "bound_copies": row.bound_copies,
        "bound_peak_over_mean": row.bound_peak_over_mean,
        "time_us": row.time_us,
        "p50_us": row.p50_us,
        "p99_us": row.p99_us,
    })
}

fn defeat_to_json(corpus: &CopyCorpus, row: &DefeatRow) -> Value {
    json!({
        "corpus": corpus.name,
        "ranks": corpus.shape.ranks,
        "experts": corpus.shape.items,
        "slots": corpus.slots,
        "rule": row.rule.name(),
        "batches": corpus.batches.len(),
        "copies": row.defeats.copies,
        "peak": row.defeats.peak,
        "time": row.defeats.time,
    })
}

#[cfg(test)]
mod tests {
    use super::super::BenchCommand;

    /// Parses a command line of `bench dynamic` and returns the message with which `resolve` refuses it.
    fn refusal(line: &str) -> String {
        let command = crate::parse_line(&format!("bench dynamic {line}"));
        let crate::Command::Bench(BenchCommand::Dynamic(args)) = command else { panic!("{line}") };
        format!("{:#}", args.resolve().unwrap_err())
    }

    #[test]
    fn options_without_effect_are_refused() {
        assert!(refusal("--order shuffled").starts_with("--order has no effect without TRACE"));
        assert!(refusal("t.csv --seeds 4 --ranks 8").starts_with("--seeds has no effect with TRACE"));
        assert!(refusal("t.csv").starts_with("--ranks is missing"));
        assert!(refusal("--milp 0").starts_with("--milp 0: expected seconds"));
    }
}
