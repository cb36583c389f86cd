//! How a trace is to be read: format, layers, batching, order, memory.
//!
//! In: strings of the command line or values set by a caller. Out: [`ReadOptions`], plain data.

use super::TraceError;
use std::fmt;
use std::str::FromStr;

/// The file formats understood, by the names `--format` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// `csv`: long table `step,layer,expert,tokens[,source]`, plain, gzip or zstd.
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
    /// `npy`: per-token expert ids `[tokens, layers, top_k]`.
    Npy,
    /// `npz`: one or several such arrays.
    Npz,
}

impl Format {
    /// Every format, in the order `--help` lists them.
    pub const ALL: [Self; 9] = [
        Self::Csv,
        Self::Parquet,
        Self::SglangPt,
        Self::SglangJson,
        Self::SglangCsv,
        Self::TrtLlm,
        Self::VllmJsonl,
        Self::Npy,
        Self::Npz,
    ];

    /// The name `--format` takes.
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
        }
    }

    /// Whether files of this format hold the experts of every token, to be cut into batches; all others hold counts.
    pub fn holds_tokens(self) -> bool {
        matches!(self, Self::Npy | Self::Npz)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|format| format.name()).collect();
            TraceError::Options(format!("unknown format \"{text}\", expected one of {}", names.join(", ")))
        })
    }
}

/// In which order requests or sequences of per-token arrays are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As the file has them.
    #[default]
    Recorded,
    /// Permuted by the seed.
    Shuffled,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Recorded => "recorded",
            Self::Shuffled => "shuffled",
        })
    }
}

impl FromStr for Order {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        match text {
            "recorded" => Ok(Self::Recorded),
            "shuffled" => Ok(Self::Shuffled),
            _ => Err(TraceError::Options(format!("unknown order \"{text}\", expected recorded or shuffled"))),
        }
    }
}

/// How per-token arrays are cut into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batching {
    /// Consecutive tokens; an incomplete last batch is dropped.
    Prefill {
        /// Tokens of a batch.
        tokens: usize,
    },
    /// One token each of requests in flight.
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

/// A set of layer ids such as `0,3,6` or `3-60` or a mix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSet {
    /// Inclusive ranges, as written.
    ranges: Vec<(u32, u32)>,
}

impl LayerSet {
    /// The first part of the set that holds none of these layers, as it was written.
    pub fn unmatched(&self, layers: &[u32]) -> Option<String> {
        let parts = self.ranges.iter().map(|&range| Self { ranges: vec![range] });
        parts
            .into_iter()
            .find(|part| !layers.iter().any(|&layer| part.contains(layer)))
            .map(|p| p.to_string())
    }

    /// Is this layer in the set?
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

/// How a trace is to be read. `..ReadOptions::default()` fills what one does not care about.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Format, where content shall not decide.
    pub format: Option<Format>,
    /// Column whose values become steps, in order of appearance. Default: `step`, where there is one.
    pub step_column: Option<String>,
    /// Experts per layer; ids at or above it are errors. Default: as the file declares, else highest id + 1.
    pub experts: Option<usize>,
    /// Layers to read; the rest is skipped.
    pub layers: Option<LayerSet>,
    /// Arrays of an npz to take, in this order. Default: all, in file order.
    pub arrays: Vec<String>,
    /// How per-token arrays become batches.
    pub batching: Batching,
    /// In which order requests of per-token arrays are taken.
    pub order: Order,
    /// Seed of the order and of decode start offsets.
    pub seed: u64,
    /// Bytes that held steps, or a held per-token array, may take.
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
            order: Order::default(),
            seed: 0,
            memory: 512 << 20,
        }
    }
}

impl ReadOptions {
    /// How batches of a trace of this format come about, in words.
    pub fn batches_in_words(&self, format: Format) -> String {
        let order = match self.order {
            Order::Recorded => "recorded order".to_owned(),
            Order::Shuffled => format!("shuffled by seed {}", self.seed),
        };
        match (format, self.batching) {
            (Format::Npy | Format::Npz, Batching::Prefill { tokens }) => {
                format!("prefill batches of {tokens} tokens, {order}")
            }
            (Format::Npy | Format::Npz, Batching::Decode { in_flight }) => {
                format!("decode batches of {in_flight} requests, {order}, starts by seed {}", self.seed)
            }
            _ => "one batch per recorded step".into(),
        }
    }
}

/// Told how far a reader is; the command line draws a bar from it.
pub trait Progress {
    /// `done` of `total` bytes of all files are read.
    fn bytes(&self, done: u64, total: u64);
}

impl Progress for () {
    fn bytes(&self, _done: u64, _total: u64) {}
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
        assert_eq!((set.unmatched(&[0, 4, 9]), set.unmatched(&[0, 9])), (None, Some("3-5".into())));
        for wrong in ["", "a", "5-3", "1,,2", "-1", "1-"] {
            let message = wrong.parse::<LayerSet>().unwrap_err().to_string();
            assert!(message.contains("expected ids like"), "{message}");
        }
    }

    #[test]
    fn format_names_round_trip() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
        }
        assert!("tsv".parse::<Format>().unwrap_err().to_string().contains("vllm-jsonl"));
    }
}
