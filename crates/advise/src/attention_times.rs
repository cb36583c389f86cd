//! Times of attention: grouped or latent, by a kernel of its own or as a block with its projections.
//!
//! In: an [`Attention`] and the work of a pass. Out: microseconds of one layer on a GPU.

use crate::model::{Attention, ModelSpec};
use crate::step::{Phase, StepWork};
use crate::times::{LAUNCH_US, StepTimes, whole};
use evenkeel::model::Precision;
use evenkeel_cost::operations::{
    AttentionWork, MlaBmmWork, MlaWork, OperationEntry, OperationKind, OperationWork,
};

/// Measured operations of a model's attention. The first of two is that of decoding, the second that of
/// prefill.
#[derive(Debug, Clone, Default)]
pub(crate) struct AttentionEntries {
    kernel: [Option<OperationEntry>; 2],
    /// Attention with its projections, of DeepSeek-V3's widths.
    block: [Option<OperationEntry>; 2],
    /// Products with the halves of the up-projection.
    latent: Option<OperationEntry>,
}

impl AttentionEntries {
    /// Finds the operations of a model. `kv_bytes` is the size of a number in the cache.
    pub(crate) fn find(times: &StepTimes, model: &ModelSpec, kv_bytes: f64) -> Self {
        let cache: &[&str] = if kv_bytes < 1.5 { &["fp8"] } else { &["bfloat16", "float16"] };
        let prefill: &[&str] =
            if kv_bytes < 1.5 { &["bfloat16_kv_fp8", "fp8", "bfloat16"] } else { &["bfloat16", "float16"] };
        let kernel = |decode, of_prefill| [times.find(decode, cache), times.find(of_prefill, prefill)];
        match model.attention {
            Attention::Grouped { heads, kv_heads, head_dim, .. } => {
                let work = AttentionWork { batch: 1, context: 1, heads, kv_heads, head_dim, window: None };
                let decode = OperationKind::DecodeAttention(work.grouping());
                Self { kernel: kernel(decode, OperationKind::PrefillAttention), ..Self::default() }
            }
            Attention::Latent { query_rank, .. } => {
                // Blocks were measured with the widths of DeepSeek-V3, which Kimi-K2 has too.
                let has_block = query_rank == 1_536 && model.moe.hidden == 7_168;
                let formats: &[&str] = match (model.moe.precision, kv_bytes < 1.5) {
                    _ if !has_block => &[],
                    (Precision::Fp8, true) => &["fp8_block_kv_fp8", "fp8_block"],
                    (Precision::Fp8, false) => &["fp8_block"],
                    (_, true) => &["bfloat16_kv_fp8", "bfloat16"],
                    _ => &["bfloat16"],
                };
                Self {
                    kernel: kernel(OperationKind::MlaDecode, OperationKind::MlaPrefill),
                    block: [OperationKind::MlaBlockDecode, OperationKind::MlaBlockPrefill]
                        .map(|kind| times.find(kind, formats)),
                    latent: times.find(OperationKind::MlaBmm, &["bfloat16", "fp8"]),
                }
            }
        }
    }

    /// Returns the operation that gives the time of a phase.
    pub(crate) fn entry(&self, is_prefill: bool) -> Option<&OperationEntry> {
        let at = usize::from(is_prefill);
        self.block[at].as_ref().or(self.kernel[at].as_ref())
    }
}

impl StepTimes {
    /// Returns true if the attention's time includes its projections.
    pub(crate) fn has_attention_block(&self, work: &StepWork) -> bool {
        self.attention.block[usize::from(work.phase.is_prefill())].is_some()
    }

    /// Returns the time of the attention kernel of one layer on a GPU that holds `1 / tp` of the heads.
    /// `tokens` are those of its attention group.
    pub(crate) fn attention_us(&self, attention: &Attention, tp: u64, work: &StepWork, tokens: f64) -> f64 {
        match work.phase {
            Phase::Decode { context } => {
                // Drafts of a request share its cache.
                let requests = (tokens / work.tokens_per_request.max(1.0)).max(1.0);
                self.decode_us(attention, tp, requests, context, work.kv_bytes)
            }
            Phase::Prefill { prompt } => {
                let prompts = tokens / prompt.max(1) as f64;
                let once = |prompts: f64| self.prefill_us(attention, tp, prompts, prompt, work.kv_bytes);
                // A part of a prompt is that part of the work.
                if prompts >= 1.0 { once(prompts) } else { once(1.0) * prompts }
            }
        }
    }

    fn decode_us(&self, attention: &Attention, tp: u64, requests: f64, context: u64, kv_bytes: f64) -> f64 {
        match *attention {
            Attention::Grouped { heads, kv_heads, head_dim, window } => {
                let of_window = |tokens: Option<u64>| {
                    let work = AttentionWork {
                        batch: whole(requests),
                        context,
                        heads: heads.div_ceil(tp),
                        kv_heads: kv_heads.div_ceil(tp),
                        head_dim,
                        window: tokens,
                    };
                    let found = self.time(self.attention.kernel[0].as_ref(), &OperationWork::Attention(work));
                    found.unwrap_or_else(|| {
                        let kept = tokens.map_or(context, |tokens| tokens.min(context)) as f64;
                        let bytes = requests * kept * (2 * work.kv_heads * head_dim) as f64 * kv_bytes;
                        2.0 * LAUNCH_US + bytes / self.bytes_per_us()
                    })
                };
                mean_over_windows(window.map(|window| (window.tokens, window.layer_percent)), of_window)
            }
            Attention::Latent { heads, kv_rank, rope, .. } => {
                let heads = heads.div_ceil(tp);
                let work = MlaWork { batch: whole(requests), context, heads };
                let measured = self.attention.entry(false);
                self.time(measured, &OperationWork::Mla(work)).unwrap_or_else(|| {
                    let read =
                        requests * context as f64 * (kv_rank + rope) as f64 * kv_bytes / self.bytes_per_us();
                    let operations = 2.0 * requests * context as f64 * (heads * (2 * kv_rank + rope)) as f64;
                    2.0 * LAUNCH_US + read.max(operations / self.operations_per_us(2.0))
                })
            }
        }
    }

    fn prefill_us(&self, attention: &Attention, tp: u64, prompts: f64, prompt: u64, kv_bytes: f64) -> f64 {
        let length = prompt as f64;
        let by_data_sheet = |operations: f64, bytes: f64| {
            let arithmetic = operations / self.operations_per_us(2.0);
            2.0 * LAUNCH_US + arithmetic.max(bytes / self.bytes_per_us())
        };
        match *attention {
            Attention::Grouped { heads, kv_heads, head_dim, window } => {
                let of_window = |tokens: Option<u64>| {
                    let work = AttentionWork {
                        batch: whole(prompts),
                        context: prompt,
                        heads: heads.div_ceil(tp),
                        kv_heads: kv_heads.div_ceil(tp),
                        head_dim,
                        window: tokens,
                    };
                    self.time(self.attention.kernel[1].as_ref(), &OperationWork::Attention(work))
                        .unwrap_or_else(|| {
                            let width =
                                tokens.map_or(length / 2.0, |tokens| (tokens as f64).min(length / 2.0));
                            let pairs = prompts * length * width;
                            let bytes = prompts * length * (2 * kv_heads * head_dim) as f64 * kv_bytes;
                            by_data_sheet(4.0 * pairs * (work.heads * head_dim) as f64, bytes)
                        })
                };
                mean_over_windows(window.map(|window| (window.tokens, window.layer_percent)), of_window)
            }
            Attention::Latent { heads, key_dim, rope, value_dim, .. } => {
                let heads = heads.div_ceil(tp);
                let work = MlaWork { batch: whole(prompts), context: prompt, heads };
                let measured = self.attention.entry(true);
                self.time(measured, &OperationWork::Mla(work)).unwrap_or_else(|| {
                    let pairs = prompts * length * length / 2.0;
                    by_data_sheet(2.0 * pairs * (heads * (key_dim + rope + value_dim)) as f64, 0.0)
                })
            }
        }
    }

    /// Returns the time of the two batched products with which latent attention decodes: the query and the
    /// result through the halves of the up-projection.
    pub(crate) fn latent_products_us(&self, heads: u64, tokens: f64) -> f64 {
        let work = MlaBmmWork { tokens: whole(tokens), heads };
        let one =
            self.time(self.attention.latent.as_ref(), &OperationWork::MlaBmm(work)).unwrap_or_else(|| {
                let weights = heads as f64 * 65_536.0 * 2.0;
                LAUNCH_US + (weights + heads as f64 * 1_280.0 * tokens) / self.bytes_per_us()
            });
        2.0 * one
    }
}

/// Returns the mean over layers with and without a window.
fn mean_over_windows(window: Option<(u64, u64)>, time: impl Fn(Option<u64>) -> f64) -> f64 {
    match window {
        None => time(None),
        Some((tokens, percent)) => {
            let share = percent as f64 / 100.0;
            share * time(Some(tokens)) + (1.0 - share) * time(None)
        }
    }
}
