//! Arguments of every command that reads traces.
//!
//! In: the command line. Out: [`TraceArgs`], and from it [`ReadOptions`] and the [`Trace`].

use crate::args::stated::StatedOptions;
use crate::args::unused_options;
use crate::output::StderrBar;
use evenkeel::model::MoeModel;
use evenkeel_trace::synth::Resampling;
use evenkeel_trace::{Batching, LayerSet, ReadOptions, RequestOrder, TokenTrace, Trace, TraceFormat};
use std::path::PathBuf;

/// Default number of batches that are drawn from a trace of totals.
const DEFAULT_DRAWN_BATCHES: usize = 128;

/// Formats of SGLang's recorder, which can also record batches.
const SGLANG_FORMATS: [TraceFormat; 3] =
    [TraceFormat::SglangPt, TraceFormat::SglangJson, TraceFormat::SglangCsv];

/// Traces to read, and the options of reading.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TraceArgs {
    // This field is first because the fields after it take their values out of the parsed arguments.
    #[command(flatten)]
    pub(crate) stated: StatedOptions,

    /// Trace files or folders; several are read one after the other
    ///
    /// A folder may hold a per-token array with its requests.csv or sequences.csv, or one dump per rank
    /// (summed). It may also hold parts of one table (part-0.parquet, rank0.csv, step=7/data.csv: added up),
    /// or independent dumps (one after the other). Subfolders are read after their folder. A pipe is read
    /// once: <(zcat trace.gz), /dev/stdin.
    #[arg(value_name = "TRACE", required = true)]
    pub(crate) traces: Vec<PathBuf>,

    /// Format of the files, instead of detection by content
    ///
    /// csv, parquet, sglang-pt, sglang-json, sglang-csv, trtllm, vllm-jsonl, npy, npz or npy-counts.
    /// npy-counts reads an .npy or .npz of counts, [layers, experts] or [steps, layers, experts]. Without it,
    /// arrays hold expert ids.
    #[arg(long, hide_short_help = true, help_heading = "Reading")]
    pub(crate) format: Option<TraceFormat>,

    /// Layers to use, by their ids in the model: 0,3,6 or 3-60
    #[arg(long, value_name = "LIST", hide_short_help = true, help_heading = "Reading")]
    pub(crate) layers: Option<LayerSet>,

    /// Experts per layer, where the files do not say [default: highest id + 1]
    ///
    /// In per-token arrays, ids of N or above that repeat in a row are padding.
    #[arg(long, value_name = "N", hide_short_help = true, help_heading = "Reading")]
    pub(crate) experts: Option<usize>,

    /// CSV or Parquet column whose values are the steps, in order of appearance [default: step]
    #[arg(long, value_name = "NAME", hide_short_help = true, help_heading = "Reading")]
    pub(crate) step_column: Option<String>,

    /// Arrays of an .npz to read, in this order [default: all that hold ids, in file order]
    #[arg(
        long,
        value_name = "NAME,..",
        value_delimiter = ',',
        hide_short_help = true,
        help_heading = "Reading"
    )]
    pub(crate) arrays: Vec<String>,

    /// Tokens of a prefill batch that is cut from a per-token array, or drawn
    #[arg(
        long,
        value_name = "TOKENS",
        default_value = "512",
        hide_short_help = true,
        help_heading = "Batches"
    )]
    pub(crate) batch_tokens: usize,

    /// Requests of a decode batch, one token each, that is cut from a per-token array, or drawn
    ///
    /// Per-token arrays need the requests table. The first requests start at random offsets (--seed). The
    /// next request replaces a finished one. The run ends when none is left. With more than half of the
    /// requests in flight, the last steps run short.
    #[arg(
        long,
        value_name = "REQUESTS",
        conflicts_with = "batch_tokens",
        hide_short_help = true,
        help_heading = "Batches"
    )]
    pub(crate) decode_batch: Option<usize>,

    /// Order of the requests of a per-token array: recorded, or shuffled by --seed
    #[arg(
        long,
        value_name = "recorded|shuffled",
        default_value = "recorded",
        hide_short_help = true,
        help_heading = "Batches"
    )]
    pub(crate) order: RequestOrder,

    /// Seed of all random choices
    #[arg(long, value_name = "N", default_value = "0", hide_short_help = true, help_heading = "Batches")]
    pub(crate) seed: u64,

    /// Batches to draw from the recorded totals, as over-dispersed as real ones [default: 128 for a trace of
    /// counts with a single step, which holds totals; 0: none]
    ///
    /// Every recorded step becomes a kind of request. --batch-tokens or --decode-batch sets the tokens of a
    /// batch, --top-k the experts per token. Figures on such batches are models, not measurements.
    #[arg(long, value_name = "STEPS", hide_short_help = true, help_heading = "Batches")]
    pub(crate) resample: Option<usize>,

    /// Experts per token of drawn batches [default: that of --model, or of the known models with the trace's
    /// experts and layers]
    #[arg(long, value_name = "K", hide_short_help = true, help_heading = "Batches")]
    pub(crate) top_k: Option<usize>,

    /// Memory for steps in MiB; a longer trace keeps every 2nd, 4th, .. step, and its totals stay exact
    #[arg(long, value_name = "MIB", default_value = "512", hide_short_help = true, help_heading = "Reading")]
    pub(crate) memory: u64,
}

impl TraceArgs {
    /// Ids of all options. Without a trace, none has an effect.
    pub(crate) const OPTIONS: [&str; 12] = [
        "format",
        "layers",
        "experts",
        "step_column",
        "arrays",
        "batch_tokens",
        "decode_batch",
        "order",
        "seed",
        "resample",
        "top_k",
        "memory",
    ];

    /// Reads the traces as batches to plan on, with a progress bar on a terminal.
    pub(crate) fn read(&self) -> anyhow::Result<Trace> {
        self.read_for_model(None)
    }

    /// Reads the traces as batches of `model` to plan on. From totals, batches are drawn.
    pub(crate) fn read_for_model(&self, model: Option<MoeModel>) -> anyhow::Result<Trace> {
        self.read_or_draw(model, Some(DEFAULT_DRAWN_BATCHES))
    }

    /// Reads the traces as they are recorded. Batches are drawn only if --resample is stated.
    pub(crate) fn read_recorded(&self) -> anyhow::Result<Trace> {
        self.read_or_draw(None, None)
    }

    /// Reads the traces as batches of `model`. Batches are also drawn from steps that are sums over many
    /// batches, as in several dumps.
    pub(crate) fn read_small_batches(&self, model: MoeModel) -> anyhow::Result<Trace> {
        let is_sum = |trace: &Trace| evenkeel_advise::holds_sums(trace, model.top_k);
        self.read_or_draw_if(Some(model), Some(evenkeel_advise::DRAWN_BATCHES), is_sum)
    }

    fn read_or_draw(&self, model: Option<MoeModel>, from_totals: Option<usize>) -> anyhow::Result<Trace> {
        self.read_or_draw_if(model, from_totals, |_| false)
    }

    fn read_or_draw_if(
        &self,
        model: Option<MoeModel>,
        from_totals: Option<usize>,
        is_sum: impl Fn(&Trace) -> bool,
    ) -> anyhow::Result<Trace> {
        let bar = StderrBar::for_reading();
        let trace = evenkeel_trace::read(&self.traces, &self.read_options(), &bar)?;
        drop(bar);
        let implied = from_totals.filter(|_| (trace.holds_totals() || is_sum(&trace)) && !trace.is_empty());
        let steps = self.resample.or(implied).filter(|&steps| steps > 0);
        unused_options::check_used(self, &trace, steps.is_some())?;
        let Some(steps) = steps else { return Ok(trace) };
        let (top_k, source) = self.resolve_top_k(&trace, model)?;
        let resampling = Resampling { steps, top_k, batching: self.read_options().batching, seed: self.seed };
        let mut drawn = evenkeel_trace::synth::draw_batches(&resampling, &trace)?;
        if self.resample.is_none() {
            drawn.add_notice(format!(
                "{} holds totals and no batches, so batches are drawn; --resample 0 keeps the totals as they are",
                self.display_name()
            ));
        }
        if self.top_k.is_none() {
            drawn.add_notice(format!("top-k {top_k} is that of {source}; --top-k states another"));
        }
        if trace.formats().iter().any(|format| SGLANG_FORMATS.contains(format)) {
            drawn.add_notice(
                "SGLang records real batches with --expert-distribution-recorder-mode per_pass or per_token"
                    .into(),
            );
        }
        Ok(drawn)
    }

    /// Returns the number of experts that each token draws, and the source of that number.
    fn resolve_top_k(&self, trace: &Trace, model: Option<MoeModel>) -> anyhow::Result<(usize, String)> {
        let (experts, layers) = (trace.experts(), trace.layers().len() - trace.idle_layers().len());
        if let Some(top_k) = self.top_k {
            return Ok((top_k, "--top-k".into()));
        }
        if let Some(model) = model {
            if model.experts != experts {
                anyhow::bail!(
                    "--model {model} has {} experts per layer, {} has {experts}: expected --top-k K, the experts that \
                     each token visits",
                    model.experts,
                    self.display_name()
                );
            }
            return Ok((model.top_k, format!("--model {model}")));
        }
        match self.known_model(trace, |model| model.top_k) {
            Some(model) => Ok((model.top_k, format!("{} ({})", model.name, model.shape_text()))),
            None => anyhow::bail!(
                "{} holds totals of {experts} experts x {layers} MoE layers, no shape with one known top-k: expected \
                 --top-k K, the experts that each token visits, so that batches can be drawn (--resample 0 draws none)",
                self.display_name()
            ),
        }
    }

    /// Returns the first known model that fits the trace, if all fitting models agree on `figure`. With
    /// --layers, the trace may hold only some of the model's layers.
    pub(crate) fn known_model<T: PartialEq>(
        &self,
        trace: &Trace,
        figure: impl Fn(&MoeModel) -> T,
    ) -> Option<MoeModel> {
        let layers = trace.layers().len() - trace.idle_layers().len();
        let most = if self.layers.is_some() { usize::MAX } else { layers };
        MoeModel::find_by_shape(trace.experts(), layers..=most, figure)
    }

    /// Returns the name of the traces in messages.
    pub(crate) fn display_name(&self) -> String {
        match self.traces.as_slice() {
            [] => "the trace".into(),
            [only] => only.display().to_string(),
            [first, rest @ ..] => format!("{} and {} more", first.display(), rest.len()),
        }
    }

    /// Reads per-token arrays, keeping the ids of every token.
    pub(crate) fn read_tokens(&self) -> anyhow::Result<TokenTrace> {
        let bar = StderrBar::for_reading();
        let tokens = evenkeel_trace::read_tokens(&self.traces, &self.read_options(), &bar)?;
        unused_options::check_used(self, tokens.trace(), false)?;
        Ok(tokens)
    }

    /// Returns a description of the origin of the batches.
    pub(crate) fn describe_batches(&self, trace: &Trace) -> String {
        let recorded = || self.read_options().describe_batches(trace.format());
        trace.resampling().map_or_else(recorded, ToString::to_string)
    }

    /// Returns the options of the readers.
    pub(crate) fn read_options(&self) -> ReadOptions {
        ReadOptions::default()
            .format(self.format)
            .step_column(self.step_column.clone())
            .experts(self.experts)
            .layers(self.layers.clone())
            .arrays(self.arrays.clone())
            .batching(match self.decode_batch {
                Some(in_flight) => Batching::Decode { in_flight },
                None => Batching::Prefill { tokens: self.batch_tokens },
            })
            .order(self.order)
            .seed(self.seed)
            .memory(self.memory.saturating_mul(1 << 20))
    }
}

/// Returns the real ids of the layers that route tokens, ascending.
pub(crate) fn busy_layer_ids(trace: &Trace) -> Vec<u32> {
    let idle = trace.idle_layers();
    let busy = (0..trace.layers().len()).filter(|layer| !idle.contains(layer));
    busy.map(|layer| trace.layers()[layer]).collect()
}
