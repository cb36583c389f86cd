//! The arguments of every command that reads traces.
//!
//! In: the command line. Out: [`TraceArgs`], and from it [`ReadOptions`] and the [`Trace`].

use super::explicit::Explicit;
use super::output::Bar;
use super::unused_options;
use evenkeel::model::Model;
use evenkeel::trace::synth::Resampling;
use evenkeel::trace::{Batching, Format, LayerSet, Order, ReadOptions, TokenTrace, Trace};
use std::path::PathBuf;

/// Batches that are drawn from a trace of totals where nobody said how many.
const DRAWN: usize = 128;

/// Formats of SGLang's recorder, which can also record batches.
const SGLANG: [Format; 3] = [Format::SglangPt, Format::SglangJson, Format::SglangCsv];

/// Which traces to read, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TraceArgs {
    // First: those that follow take their values out of what was parsed.
    #[command(flatten)]
    pub(crate) explicit: Explicit,

    /// Files or folders; several are taken one after the other
    ///
    /// A folder may hold a per-token array with its requests.csv or sequences.csv, one dump per
    /// rank (summed), or several independent dumps (one after the other).
    #[arg(value_name = "TRACE", required = true)]
    pub(crate) traces: Vec<PathBuf>,

    /// Format of the files, where their content shall not decide
    ///
    /// csv, parquet, sglang-pt, sglang-json, sglang-csv, trtllm, vllm-jsonl, npy or npz.
    #[arg(long, help_heading = "Reading")]
    pub(crate) format: Option<Format>,

    /// Layers to use, by their ids in the model: 0,3,6 or 3-60
    #[arg(long, value_name = "LIST", help_heading = "Reading")]
    pub(crate) layers: Option<LayerSet>,

    /// Experts per layer, where the files do not say (default: highest id + 1)
    #[arg(long, value_name = "N", help_heading = "Reading")]
    pub(crate) experts: Option<usize>,

    /// CSV or Parquet column whose values are the steps, in order of appearance (default: step)
    #[arg(long, value_name = "NAME", help_heading = "Reading")]
    pub(crate) step_column: Option<String>,

    /// Arrays of an .npz to take, in this order (default: all, in file order)
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', help_heading = "Reading")]
    pub(crate) arrays: Vec<String>,

    /// Per-token arrays: cut into prefill batches of this many consecutive tokens; also the size of drawn batches
    #[arg(long, value_name = "TOKENS", default_value = "512", help_heading = "Batches")]
    pub(crate) batch_tokens: usize,

    /// Per-token arrays: decode batches, one token each of this many requests in flight; also the size of drawn batches
    ///
    /// Needs the requests table. The first requests start at random offsets (--seed); a finished
    /// request is replaced by the next one; the run ends when none is left.
    #[arg(long, value_name = "REQUESTS", conflicts_with = "batch_tokens", help_heading = "Batches")]
    pub(crate) decode_batch: Option<usize>,

    /// Per-token arrays: take requests as recorded, or shuffled by --seed
    #[arg(long, value_name = "recorded|shuffled", default_value = "recorded", help_heading = "Batches")]
    pub(crate) order: Order,

    /// Seed of everything random
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Batches")]
    pub(crate) seed: u64,

    /// Draw this many batches from the recorded totals, over-dispersed as real ones are [default: 128 where a trace of
    /// counts has a single step, which holds totals; 0: never]
    ///
    /// Every recorded step becomes a kind of request. --batch-tokens or --decode-batch is the size of a batch in
    /// tokens, --top-k the experts that each token draws. Figures on such batches are models, not measurements.
    #[arg(long, value_name = "STEPS", help_heading = "Batches")]
    pub(crate) resample: Option<usize>,

    /// Where batches are drawn: experts that each token draws [default: as --model says, or the known models of the
    /// trace's experts and layers]
    #[arg(long, value_name = "K", help_heading = "Batches")]
    pub(crate) top_k: Option<usize>,

    /// Memory for held steps in MiB; longer traces keep every 2nd, 4th, .. step, totals stay exact
    #[arg(long, value_name = "MIB", default_value = "512", help_heading = "Reading")]
    pub(crate) memory: u64,
}

impl TraceArgs {
    /// Reads the traces as batches to plan on, with a progress bar on a terminal.
    pub(crate) fn read(&self) -> anyhow::Result<Trace> {
        self.read_for(None)
    }

    /// Reads the traces as batches of `model` to plan on. From totals, batches are drawn.
    pub(crate) fn read_for(&self, model: Option<Model>) -> anyhow::Result<Trace> {
        self.read_or_draw(model, Some(DRAWN))
    }

    /// Reads the traces as they are recorded. Batches are drawn where --resample asks for it.
    pub(crate) fn read_recorded(&self) -> anyhow::Result<Trace> {
        self.read_or_draw(None, None)
    }

    fn read_or_draw(&self, model: Option<Model>, from_totals: Option<usize>) -> anyhow::Result<Trace> {
        let bar = Bar::bytes();
        let trace = evenkeel::trace::read(&self.traces, &self.options(), &bar)?;
        drop(bar);
        let implied = from_totals.filter(|_| trace.holds_totals() && !trace.is_empty());
        let steps = self.resample.or(implied).filter(|&steps| steps > 0);
        unused_options::check(self, &trace, steps.is_some())?;
        let Some(steps) = steps else { return Ok(trace) };
        let (top_k, source) = self.top_k(&trace, model)?;
        let resampling = Resampling { steps, top_k, batching: self.options().batching, seed: self.seed };
        let mut drawn = resampling.draw(&trace)?;
        if self.resample.is_none() {
            drawn.note(format!(
                "{} holds totals and no batches, so batches are drawn; --resample 0 keeps the totals as they are",
                self.name()
            ));
        }
        if self.top_k.is_none() {
            drawn.note(format!("top-k {top_k} is that of {source}; --top-k states another"));
        }
        if trace.formats().iter().any(|format| SGLANG.contains(format)) {
            drawn.note(
                "SGLang records real batches with --expert-distribution-recorder-mode per_pass or per_token"
                    .into(),
            );
        }
        Ok(drawn)
    }

    /// Experts that each token draws, and whose figure that is.
    fn top_k(&self, trace: &Trace, model: Option<Model>) -> anyhow::Result<(usize, String)> {
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
                    self.name()
                );
            }
            return Ok((model.top_k, format!("--model {model}")));
        }
        match self.known_model(trace, |model| model.top_k) {
            Some(model) => Ok((model.top_k, format!("{} ({})", model.name, model.shape()))),
            None => anyhow::bail!(
                "{} holds totals of {experts} experts x {layers} MoE layers, no shape with one known top-k: expected \
                 --top-k K, the experts that each token visits, so that batches can be drawn (--resample 0 draws none)",
                self.name()
            ),
        }
    }

    /// The first known model that the trace can be of, if all such models agree on `figure`. With --layers, the trace may hold
    /// some of the model's layers only.
    pub(crate) fn known_model<T: PartialEq>(
        &self,
        trace: &Trace,
        figure: impl Fn(&Model) -> T,
    ) -> Option<Model> {
        let layers = trace.layers().len() - trace.idle_layers().len();
        let most = if self.layers.is_some() { usize::MAX } else { layers };
        Model::of_shape(trace.experts(), layers..=most, figure)
    }

    /// The traces in a message.
    pub(crate) fn name(&self) -> String {
        match self.traces.as_slice() {
            [] => "the trace".into(),
            [only] => only.display().to_string(),
            [first, rest @ ..] => format!("{} and {} more", first.display(), rest.len()),
        }
    }

    /// Reads per-token arrays, keeping the ids of every token.
    pub(crate) fn read_tokens(&self) -> anyhow::Result<TokenTrace> {
        if self.resample.is_some_and(|steps| steps > 0) {
            anyhow::bail!("--locality: resampled batches have no tokens; expected a per-token array");
        }
        let bar = Bar::bytes();
        let tokens = evenkeel::trace::read_tokens(&self.traces, &self.options(), &bar)?;
        unused_options::check(self, tokens.trace(), false)?;
        Ok(tokens)
    }

    /// How the batches of the trace that was read came about, in words.
    pub(crate) fn batches(&self, trace: &Trace) -> String {
        let recorded = || self.options().batches_in_words(trace.format());
        trace.resampling().map_or_else(recorded, ToString::to_string)
    }

    /// What the readers take.
    pub(crate) fn options(&self) -> ReadOptions {
        ReadOptions {
            format: self.format,
            step_column: self.step_column.clone(),
            experts: self.experts,
            layers: self.layers.clone(),
            arrays: self.arrays.clone(),
            batching: match self.decode_batch {
                Some(in_flight) => Batching::Decode { in_flight },
                None => Batching::Prefill { tokens: self.batch_tokens },
            },
            order: self.order,
            seed: self.seed,
            memory: self.memory.saturating_mul(1 << 20),
        }
    }
}
