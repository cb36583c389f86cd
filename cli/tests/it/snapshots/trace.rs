//! `evenkeel trace`: inspection, conversion, synthesis.

use super::program::Sandbox;
use super::{compare_document, compare_file, token_ids};

#[test]
fn inspections() {
    let sandbox = Sandbox::new();
    token_ids::write(&sandbox);
    for (name, args) in [
        ("prefill", "traces/sample-prefill.csv.zst"),
        ("decode", "traces/sample-decode.csv.zst"),
        ("two-runs", "traces/sample-prefill.csv.zst traces/sample-prefill.csv.zst --layers 1,7"),
        ("few-steps", "traces/sample-decode.csv.zst --memory 1"),
        ("tokens", "[folder]/ids --batch-tokens 100"),
        ("decode-batches", "[folder]/ids --decode-batch 12 --order shuffled --seed 1"),
        ("resampled", "traces/sample-decode.csv.zst --layers 0-1 --resample 10 --decode-batch 64 --top-k 4"),
    ] {
        compare_document(&format!("trace-inspect-{name}"), &sandbox, &format!("trace inspect {args}"));
    }
}

/// Rewrites a trace as CSV. Compressed files are read back, since their bytes depend on the version of the
/// compressor.
#[test]
fn conversions() {
    let sandbox = Sandbox::new();
    token_ids::write(&sandbox);
    for (name, args) in [
        ("prefill", "traces/sample-prefill.csv.zst --layers 1-4"),
        ("tokens", "[folder]/ids --batch-tokens 64"),
    ] {
        let csv = format!("trace convert {args} -o [folder]/{name}.csv");
        compare_document(&format!("trace-convert-{name}"), &sandbox, &csv);
        let text = sandbox.text(&format!("{name}.csv"));
        compare_file(&format!("trace-convert-{name}-file"), &text);
        for packed in ["csv.gz", "csv.zst", "parquet"] {
            sandbox.run(&format!("trace convert [folder]/{name}.csv -o [folder]/packed.{packed}"));
            sandbox.run(&format!("trace convert [folder]/packed.{packed} -o [folder]/again.csv"));
            assert!(sandbox.text("again.csv") == text, "{name}, {packed}: the rows differ");
        }
    }
}

#[test]
fn syntheses() {
    let sandbox = Sandbox::new();
    for (name, args) in [
        ("decode", "--like gptoss20b-decode --layers 2 --steps 40 --seed 7"),
        ("prefill", "--like deepseek-v2-lite-prefill --layers 3 --first-layer 1 --steps 12"),
        ("plain", "--experts 16 --top-k 2 --layers 2 --steps 10 --batch-tokens 256 --kinds 3 --drift 0.5"),
    ] {
        let args = format!("trace synth {args} -o [folder]/{name}.csv");
        compare_document(&format!("trace-synth-{name}"), &sandbox, &args);
        compare_file(&format!("trace-synth-{name}-file"), &sandbox.text(&format!("{name}.csv")));
    }
}
