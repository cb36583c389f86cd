//! Spot checks of real recordings against numbers computed independently with NumPy. `EVENKEEL_REAL_TRACES`
//! names their folder.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::skip_support::skipped;
use evenkeel_trace::{Batching, ReadOptions, RequestOrder, Trace, TraceFormat, read};
use std::path::PathBuf;

fn real(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("EVENKEEL_REAL_TRACES") else {
        skipped("no real traces");
        return None;
    };
    Some(PathBuf::from(folder).join(name))
}

fn open(path: PathBuf, options: &ReadOptions) -> Trace {
    read(&[path], options, &()).unwrap()
}

#[test]
fn gptoss_prefill() {
    let Some(path) = real("gptoss20b-decode") else { return };
    let trace = open(path, &ReadOptions::default());
    assert_eq!((trace.format(), trace.experts(), trace.layers().len()), (TraceFormat::Npz, 32, 24));
    assert_eq!(trace.steps().len(), 144);
    assert_eq!(
        trace.loads(0, 0),
        [
            42, 180, 83, 68, 46, 63, 93, 60, 31, 118, 39, 252, 38, 70, 78, 17, 71, 55, 27, 33, 67, 39, 88,
            90, 72, 70, 42, 26, 50, 12, 6, 22
        ]
    );
    assert_eq!(trace.loads(143, 23)[..6], [174, 2, 28, 25, 7, 188]);
    assert_eq!(trace.totals(5)[..5], [20675, 6289, 12561, 3311, 7398]);
    assert!(trace.notices().iter().any(|notice| notice.contains("last 216 tokens")), "{:?}", trace.notices());
    assert_eq!(trace.files().len(), 2);
}

#[test]
fn gptoss_decode_conserves_tokens() {
    let Some(path) = real("gptoss20b-decode") else { return };
    for order in [RequestOrder::Recorded, RequestOrder::Shuffled] {
        let options =
            ReadOptions::default().batching(Batching::Decode { in_flight: 64 }).order(order).seed(3);
        let trace = open(path.clone(), &options);
        assert!(trace.steps().len() > 500, "{}", trace.steps().len());
        for step in 0..trace.steps().len() {
            for layer in 0..24 {
                assert_eq!(trace.loads(step, layer).iter().sum::<u64>(), 64 * 4);
            }
        }
    }
    // Every token after the offsets occurs once. The steps at the end are smaller.
    let all = open(path.clone(), &ReadOptions::default().batching(Batching::Decode { in_flight: 220 }));
    assert!(all.notices().iter().any(|notice| notice.contains("steps run short")), "{:?}", all.notices());
    let options = ReadOptions::default().batching(Batching::Decode { in_flight: 221 });
    let message = read(&[path], &options, &()).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("--decode-batch 221, expected 1 to 220"), "{message}");
}

#[test]
fn deepseek_v2_lite_arrays() {
    let Some(path) = real("deepseek-v2-lite-domains") else { return };
    let trace = open(path.clone(), &ReadOptions::default());
    assert_eq!((trace.experts(), trace.layers().len(), trace.steps().len()), (64, 26, 48));
    // Step 16 contains the end of the first array and the start of the second.
    assert_eq!(trace.loads(16, 7)[..10], [16, 32, 15, 54, 53, 26, 77, 107, 54, 51]);
    let options =
        ReadOptions::default().arrays(vec!["law".into()]).batching(Batching::Prefill { tokens: 256 });
    let law = open(path.clone(), &options);
    assert_eq!(law.loads(0, 25)[..8], [3, 13, 17, 57, 5, 16, 18, 8]);
    let options = ReadOptions::default().arrays(vec!["poetry".into()]);
    let message = read(&[path], &options, &()).unwrap_err().to_string();
    assert!(message.contains("no array poetry; the file has intent, law, summary"), "{message}");
}

#[test]
fn deepseek_r1_dumps() {
    let Some(path) = real("deepseek-r1-sglang-dumps") else { return };
    let one = open(path.join("expert_distribution_fp4_1k1k_compressed.pt"), &ReadOptions::default());
    assert_eq!(
        (one.format(), one.experts(), one.layers().len(), one.steps().len()),
        (TraceFormat::SglangPt, 256, 61, 1)
    );
    assert_eq!((0..61).flat_map(|layer| one.totals(layer)).sum::<u64>(), 496_980_192);
    assert_eq!(one.totals(3)[..4], [19855, 38267, 30454, 19212]);
    assert_eq!(one.totals(60)[13], 1_009_306);
    assert_eq!(one.idle_layers(), [0, 1, 2]);
    let zero = open(path.join("expert_distribution_fp8_8k1k_compressed.pt"), &ReadOptions::default());
    assert!(zero.is_empty());
    assert_eq!((zero.steps().len(), zero.idle_layers().len()), (1, 61));
    assert!(zero.notices().iter().any(|notice| notice.contains("no tokens at all")), "{:?}", zero.notices());
    let all = open(path, &ReadOptions::default());
    assert_eq!(all.steps().len(), 6);
    assert_eq!(all.steps()[0], "expert_distribution_fp4_1k1k_compressed");
}

#[test]
fn gemma_counts() {
    let Some(path) = real("gemma4-26b-families") else { return };
    let one = open(path.join("counts.csv"), &ReadOptions::default());
    assert_eq!((one.steps().len(), one.experts(), one.layers().len()), (1, 128, 30));
    let options = ReadOptions::default().step_column(Some("family".into()));
    let trace = open(path, &options);
    assert_eq!(
        trace.steps(),
        ["fixed_mmlu", "heldout_ppl", "performance_512", "representative_conversation"]
    );
    assert_eq!((0..30).flat_map(|layer| trace.loads(1, layer)).sum::<u64>(), 948_000);
    assert_eq!(trace.loads(3, 29)[..3], [487, 74, 76]);
    assert_eq!(trace.files()[0].sha256, "94f3c8609042cbfcb16c93217e8864aa1dd8913cbfef24665fe63ccfa45d80e8");
}
