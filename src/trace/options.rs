//! Options of reading a trace: format, layers, batching, order, memory.
//!
//! In: strings of the command line, or values of a caller. Out: [`ReadOptions`], plain data.

use super::TraceError;
use std::fmt;
use std::str::FromStr;

/// Supported file formats, with the names that `--format` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TraceFormat {
    /// `csv`: long table `step,layer,expert,tokens[,source]`, plain, gzip or zstd. The separator may be a
    /// comma, a semicolon or a tab.
    Csv,
    /// `parquet`: the same columns.
    Parquet,
    /// `sglang-pt`: dump of SGLang's expert distribution recorder, `torch.save`.
    SglangPt,
    /// `sglang-json`: `{"logical_count": [[..]..]}`.
    SglangJson,
    /// `sglang-csv`: older SGLang dump of one rank, `layer_id,expert_id,count`.
    SglangCsv,
    /// `trtllm`: folder of `meta_info.json` and `rank{R}.safetensors`.
    TrtLlm,
    /// `vllm-jsonl`: one `eplb_load_stats` record per line.
    VllmJsonl,
    /// `npy`: per-token expert ids `[tokens, layers, top_k]`, or `[tokens, layers]`.
    Npy,
    /// `npz`: one or several arrays as in `npy`.
    Npz,
    /// `npy-counts`: an `.npy` or `.npz` array of counts `[steps, layers, experts]` or `[layers, experts]`.
    NpyCounts,
}

impl TraceFormat {
    /// All formats, in the order of `--help`.
    pub const ALL: [Self; 10] = [
        Self::Csv,
        Self::Parquet,
        Self::SglangPt,
        Self::SglangJson,
        Self::SglangCsv,
        Self::TrtLlm,
        Self::VllmJsonl,
        Self::Npy,
        Self::Npz,
        Self::NpyCounts,
    ];

    /// Returns the name that `--format` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::SglangPt => "sglang-pt",
            Self::SglangJson => "sglang-json",
            Self::SglangCsv => "sglang-csv",
            Self::TrtLlm => "trtllm",
            Self::VllmJsonl => "vllm-jsonl",
            Self::Npy => "npy",
            Self::Npz => "npz",
            Self::NpyCounts => "npy-counts",
        }
    }

    /// Returns true if files of this format hold the experts of every token, to be cut into batches. Other
    /// formats hold counts.
    pub fn holds_tokens(self) -> bool {
        matches!(self, Self::Npy | Self::Npz)
    }
}

impl fmt::Display for TraceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for TraceFormat {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|format| format.name()).collect();
            TraceError::Options(format!("unknown format \"{text}\", expected one of {}", names.join(", ")))
        })
    }
}

/// Order in which requests or sequences of per-token arrays are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequestOrder {
    /// Order of the file.
    #[default]
    Recorded,
    /// Random order that depends on the seed.
    Shuffled,
}

impl fmt::Display for RequestOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Recorded => "recorded",
            Self::Shuffled => "shuffled",
        })
    }
}

impl FromStr for RequestOrder {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        match text {
            "recorded" => Ok(Self::Recorded),
            "shuffled" => Ok(Self::Shuffled),
            _ => Err(TraceError::Options(format!("unknown order \"{text}\", expected recorded or shuffled"))),
        }
    }
}

/// Rule by which per-token arrays are cut into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batching {
    /// Batches of consecutive tokens. An incomplete last batch is dropped.
    Prefill {
        /// Tokens of a batch.
        tokens: usize,
    },
    /// Batches with one token of each request in flight.
    Decode {
        /// Requests in flight, `B`.
        in_flight: usize,
    },
}

impl Default for Batching {
    fn default() -> Self {
        Self::Prefill { tokens: 512 }
    }
}

/// Set of layer ids such as `0,3,6` or `3-60`, or a mix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSet {
    /// Inclusive ranges in the order of the text.
    ranges: Vec<(u32, u32)>,
}

impl LayerSet {
    /// Returns the text of the first range that contains none of these layers.
    pub fn first_unmatched(&self, layers: &[u32]) -> Option<String> {
        let parts = self.ranges.iter().map(|&range| Self { ranges: vec![range] });
        parts
            .into_iter()
            .find(|part| !layers.iter().any(|&layer| part.contains(layer)))
            .map(|p| p.to_string())
    }

    /// Returns the highest layer of the set.
    pub fn last(&self) -> Option<u32> {
        self.ranges.iter().map(|&(_, last)| last).max()
    }

    /// Returns true if the set contains this layer.
    pub fn contains(&self, layer: u32) -> bool {
        self.ranges.iter().any(|&(first, last)| (first..=last).contains(&layer))
    }
}

impl fmt::Display for LayerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.ranges.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for LayerSet {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let wrong = |part: &str| {
            TraceError::Options(format!("layers \"{part}\" not understood, expected ids like 0,3,6 or 3-60"))
        };
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let part = part.trim();
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.trim().parse().map_err(|_| wrong(part))?;
            let last: u32 = last.trim().parse().map_err(|_| wrong(part))?;
            if first > last {
                return Err(wrong(part));
            }
            ranges.push((first, last));
        }
        Ok(Self { ranges })
    }
}

/// Options of reading a trace. [`ReadOptions::default`] has those of a file that explains itself.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReadOptions {
    /// Format. `None` detects it from the content.
    pub format: Option<TraceFormat>,
    /// Column whose values become steps, in order of appearance. Default: `step`, if the file has it.
    pub step_column: Option<String>,
    /// Number of experts per layer. Ids at or above it are errors. Default: the file's declaration, else
    /// highest id + 1.
    pub experts: Option<usize>,
    /// Layers to read. The others are skipped.
    pub layers: Option<LayerSet>,
    /// Arrays of an npz to read, in this order. Default: all arrays of a fitting shape, in file order.
    pub arrays: Vec<String>,
    /// Rule by which per-token arrays become batches.
    pub batching: Batching,
    /// Order in which requests of per-token arrays are read.
    pub order: RequestOrder,
    /// Seed of the order and of the start offsets of decode batches.
    pub seed: u64,
    /// Bytes available for held steps, or for a held per-token array.
    pub memory: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            format: None,
            step_column: None,
            experts: None,
            layers: None,
            arrays: Vec::new(),
            batching: Batching::default(),
            order: RequestOrder::default(),
            seed: 0,
            memory: 512 << 20,
        }
    }
}

impl ReadOptions {
    /// Sets [`Self::format`](#structfield.format).
    #[must_use]
    pub fn format(mut self, format: impl Into<Option<TraceFormat>>) -> Self {
        self.format = format.into();
        self
    }

    /// Sets [`Self::step_column`](#structfield.step_column).
    #[must_use]
    pub fn step_column(mut self, step_column: impl Into<Option<String>>) -> Self {
        self.step_column = step_column.into();
        self
    }

    /// Sets [`Self::experts`](#structfield.experts).
    #[must_use]
    pub fn experts(mut self, experts: impl Into<Option<usize>>) -> Self {
        self.experts = experts.into();
        self
    }

    /// Sets [`Self::layers`](#structfield.layers).
    #[must_use]
    pub fn layers(mut self, layers: impl Into<Option<LayerSet>>) -> Self {
        self.layers = layers.into();
        self
    }

    /// Sets [`Self::arrays`](#structfield.arrays).
    #[must_use]
    pub fn arrays(mut self, arrays: Vec<String>) -> Self {
        self.arrays = arrays;
        self
    }

    /// Sets [`Self::batching`](#structfield.batching).
    #[must_use]
    pub fn batching(mut self, batching: Batching) -> Self {
        self.batching = batching;
        self
    }

    /// Sets [`Self::order`](#structfield.order).
    #[must_use]
    pub fn order(mut self, order: RequestOrder) -> Self {
        self.order = order;
        self
    }

    /// Sets [`Self::seed`](#structfield.seed).
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets [`Self::memory`](#structfield.memory).
    #[must_use]
    pub fn memory(mut self, memory: u64) -> Self {
        self.memory = memory;
        self
    }

    /// Describes the origin of the batches of a trace of this format.
    pub fn describe_batches(&self, format: TraceFormat) -> String {
        let order = match self.order {
            RequestOrder::Recorded => "recorded order".to_owned(),
            RequestOrder::Shuffled => format!("shuffled by seed {}", self.seed),
        };
        match (format, self.batching) {
            (TraceFormat::Npy | TraceFormat::Npz, Batching::Prefill { tokens }) => {
                format!("prefill batches of {tokens} tokens, {order}")
            }
            (TraceFormat::Npy | TraceFormat::Npz, Batching::Decode { in_flight }) => {
                format!("decode batches of {in_flight} requests, {order}, starts by seed {}", self.seed)
            }
            _ => "one batch per recorded step".into(),
        }
    }
}

/// Receiver of a reader's progress. The command line draws a bar from it.
pub trait ReadProgress {
    /// Reports that `done` of `total` bytes of all files are read.
    fn report_bytes(&self, done: u64, total: u64);
}

impl ReadProgress for () {
    fn report_bytes(&self, _done: u64, _total: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_sets_mix_ids_and_ranges() {
        let set: LayerSet = "0, 3-5,9".parse().unwrap();
        let inside: Vec<u32> = (0..12).filter(|&layer| set.contains(layer)).collect();
        assert_eq!(inside, [0, 3, 4, 5, 9]);
        assert_eq!(set.to_string(), "0,3-5,9");
        assert_eq!(
            (set.first_unmatched(&[0, 4, 9]), set.first_unmatched(&[0, 9])),
            (None, Some("3-5".into()))
        );
        for wrong in ["", "a", "5-3", "1,,2", "-1", "1-"] {
            let message = wrong.parse::<LayerSet>().unwrap_err().to_string();
            assert!(message.contains("expected ids like"), "{message}");
        }
    }

    #[test]
    fn format_names_round_trip() {
        for format in TraceFormat::ALL {
            assert_eq!(format.to_string().parse::<TraceFormat>().unwrap(), format);
        }
        assert!("tsv".parse::<TraceFormat>().unwrap_err().to_string().contains("vllm-jsonl"));
    }
}
