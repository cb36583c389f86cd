//! The arguments of every command that reads traces.
//!
//! In: the command line. Out: [`TraceArgs`], and from it [`ReadOptions`] and the [`Trace`].

use super::output::Bar;
use evenkeel::trace::{Batching, Format, LayerSet, Order, ReadOptions, TokenTrace, Trace, synth};
use std::path::PathBuf;

/// Which traces to read, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TraceArgs {
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

    /// Per-token arrays: cut into prefill batches of this many consecutive tokens
    #[arg(long, value_name = "TOKENS", default_value = "512", help_heading = "Batches")]
    pub(crate) batch_tokens: usize,

    /// Per-token arrays: decode batches, one token each of this many requests in flight
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

    /// Traces that hold totals only: draw this many batches from them, over-dispersed as real ones are
    ///
    /// Every recorded step becomes a kind of request. --batch-tokens or --decode-batch is the size of a batch in
    /// tokens, --top-k the experts that each token draws. Figures on such batches are models, not measurements.
    #[arg(long, value_name = "STEPS", requires = "top_k", help_heading = "Batches")]
    pub(crate) resample: Option<usize>,

    /// With --resample: experts that each token draws
    #[arg(long, value_name = "K", requires = "resample", help_heading = "Batches")]
    pub(crate) top_k: Option<usize>,

    /// Memory for held steps in MiB; longer traces keep every 2nd, 4th, .. step, totals stay exact
    #[arg(long, value_name = "MIB", default_value = "512", help_heading = "Reading")]
    pub(crate) memory: u64,
}

impl TraceArgs {
    /// Reads the traces, with a progress bar on a terminal, and resamples them where asked to.
    pub(crate) fn read(&self) -> anyhow::Result<Trace> {
        let bar = Bar::bytes();
        let trace = evenkeel::trace::read(&self.traces, &self.options(), &bar)?;
        drop(bar);
        let (Some(steps), Some(top_k)) = (self.resample, self.top_k) else { return Ok(trace) };
        let batching = self.options().batching;
        let like = match batching {
            Batching::Prefill { .. } => "deepseek-v2-lite-prefill",
            Batching::Decode { .. } => "gptoss20b-decode",
        };
        let spec =
            synth::SynthSpec { steps, top_k, batching, seed: self.seed, ..synth::SynthSpec::like(like)? };
        Ok(synth::resample(&trace, &spec)?)
    }

    /// Whether batches are drawn from totals, which have no tokens.
    pub(crate) fn resamples(&self) -> bool {
        self.resample.is_some()
    }

    /// Reads per-token arrays, keeping the ids of every token.
    pub(crate) fn read_tokens(&self) -> anyhow::Result<TokenTrace> {
        if self.resample.is_some() {
            anyhow::bail!("--locality: resampled batches have no tokens; expected a per-token array");
        }
        let bar = Bar::bytes();
        Ok(evenkeel::trace::read_tokens(&self.traces, &self.options(), &bar)?)
    }

    /// How the batches of the trace that was read came about, in words.
    pub(crate) fn batches(&self, trace: &Trace) -> String {
        match (self.resample, self.options().batching) {
            (Some(_), Batching::Prefill { tokens }) => {
                format!("resampled batches of {tokens} tokens, seed {}", self.seed)
            }
            (Some(_), Batching::Decode { in_flight }) => {
                format!("resampled decode batches of {in_flight} requests, seed {}", self.seed)
            }
            (None, _) => self.options().batches_in_words(trace.format()),
        }
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
