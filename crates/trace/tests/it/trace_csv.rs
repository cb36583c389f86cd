//! Tests of the long table: round trips, orders, memory, and the errors of malformed files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use crate::trace_support::Folder;
use evenkeel_trace::{ReadOptions, Trace, TraceFormat, convert, read, read_bytes, write};
use proptest::prelude::*;
use std::fmt::Write as _;
use std::io::Write as _;

fn csv(text: &str) -> Result<Trace, String> {
    csv_with(text, &ReadOptions::default())
}

fn csv_with(text: &str, options: &ReadOptions) -> Result<Trace, String> {
    read_bytes(TraceFormat::Csv, text.as_bytes(), options).map_err(|error| error.to_string())
}

fn all_loads(trace: &Trace) -> Vec<u64> {
    (0..trace.steps().len())
        .flat_map(|step| (0..trace.layers().len()).flat_map(move |layer| trace.loads(step, layer)))
        .copied()
        .collect()
}

#[test]
fn columns_by_name_in_any_order() {
    let trace =
        csv("\u{feff}tokens,note,expert,step,layer\r\n5,x,1,0,7\r\n2,y,0,1,3\r\n1,z,1,0,7\r\n").unwrap();
    assert_eq!((trace.experts(), trace.layers(), trace.steps().len()), (2, &[3, 7][..], 2));
    assert_eq!((trace.loads(0, 1), trace.loads(1, 0)), (&[0, 6][..], &[2, 0][..]));
    assert!(trace.notices().iter().any(|notice| notice.contains("columns ignored: note")));
}

#[test]
fn numeric_steps_sort_and_labels_keep_their_order() {
    let trace = csv("step,layer,expert,tokens\n10,0,0,1\n9,0,0,2\n100,0,1,3\n9,0,1,4\n").unwrap();
    assert_eq!(trace.steps(), ["9", "10", "100"]);
    assert_eq!(all_loads(&trace), [2, 4, 1, 0, 0, 3]);
    let trace = csv("step,layer,expert,tokens\nb,0,0,1\na,0,0,2\n3,0,1,3\nb,0,1,4\n").unwrap();
    assert_eq!(trace.steps(), ["b", "a", "3"]);
    let options = ReadOptions::default().step_column(Some("run".into()));
    let trace = csv_with("run,layer,expert,tokens\n7,0,0,1\n2,0,0,2\n", &options).unwrap();
    assert_eq!(trace.steps(), ["7", "2"]);
}

#[test]
fn without_steps_a_file_is_one() {
    let trace = csv("layer,expert,tokens\n0,0,1\n0,1,2\n").unwrap();
    assert_eq!((trace.steps(), trace.loads(0, 0)), (&["input".to_owned()][..], &[1, 2][..]));
}

#[test]
fn packed_files_are_recognised_by_content() {
    let folder = Folder::new();
    let text = b"step,layer,expert,tokens\n0,0,0,1\n0,0,1,2\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text).unwrap();
    let files = [
        folder.file("a", text),
        folder.file("b.dat", &gzip.finish().unwrap()),
        folder.file("c.csv", &zstd::encode_all(&text[..], 1).unwrap()),
    ];
    for file in &files {
        let trace = read(std::slice::from_ref(file), &ReadOptions::default(), &()).unwrap();
        assert_eq!((trace.format(), trace.loads(0, 0)), (TraceFormat::Csv, &[1, 2][..]));
        assert_eq!(trace.files()[0].sha256.len(), 64);
    }
    // The steps of several traces follow each other.
    let trace = read(&files, &ReadOptions::default(), &()).unwrap();
    assert_eq!((trace.steps(), trace.totals(0)), (&["0", "0", "0"].map(String::from)[..], &[3, 6][..]));
}

#[test]
fn long_traces_are_thinned_and_totals_stay_exact() {
    let mut text = String::from("step,layer,expert,tokens\n");
    for step in 0..10_000 {
        for expert in 0..64 {
            writeln!(text, "{step},0,{expert},{}", step + expert).unwrap();
        }
    }
    let options = ReadOptions::default().memory(1 << 20);
    let trace = csv_with(&text, &options).unwrap();
    assert_eq!(trace.totals(0)[1], (0..10_000).map(|step| step + 1).sum::<u64>());
    assert!(trace.steps().len() * 64 * 8 <= 1 << 20, "{}", trace.steps().len());
    assert_eq!(trace.steps()[..3], ["0", "8", "16"]);
    assert_eq!(trace.loads(2, 0)[..3], [16, 17, 18]);
    assert!(
        trace.notices().iter().any(|notice| notice.contains("kept 1 of 8 steps")),
        "{:?}",
        trace.notices()
    );
}

#[test]
fn malformed_files_are_told_where_and_what() {
    let cases = [
        ("", "found an empty file, expected a header line"),
        (
            "layer,expert\n0,0\n",
            "line 1: found columns \"layer,expert\", expected a header with column tokens",
        ),
        ("layer,layer,expert,tokens\n", "found column layer twice"),
        ("layer,expert,tokens\n", "found no rows, expected at least one count"),
        ("layer,expert,tokens\n0,0\n", "line 2: found 2 columns, expected 3 columns, as in the header"),
        ("layer,expert,tokens\n0,0,1\n0,x,1\n", "line 3, column expert: found \"x\", expected an expert id"),
        ("layer,expert,tokens\n0,0,-5\n", "line 2, column tokens: found \"-5\", expected a number of tokens"),
        ("layer,expert,tokens\n0,0,1.5\n", "line 2, column tokens: found \"1.5\""),
        (
            "layer,expert,tokens\n5000,0,1\n",
            "line 2, column layer: found layer 5000, expected a layer id below 4096",
        ),
        (
            "layer,expert,tokens\n0,65536,1\n",
            "line 2, column expert: found expert 65536, expected an expert id below 65536",
        ),
        ("layer,expert,tokens\n0,99999999999,1\n", "line 2, column expert: found expert 99999999999"),
        (
            "layer,expert,tokens\n0,0,18446744073709551615\n0,0,1\n",
            "line 3, column tokens: found more than 2^64 tokens in all",
        ),
        (
            "layer,expert,tokens\n0,0,18446744073709551616\n",
            "line 2, column tokens: found \"18446744073709551616\"",
        ),
    ];
    for (text, expected) in cases {
        let message = csv(text).expect_err(text);
        assert!(message.contains(expected), "{text:?}: {message}");
    }
    let message =
        read_bytes(TraceFormat::Csv, b"step,layer,expert,tokens\n\xff,0,0,1\n", &ReadOptions::default());
    assert!(message.unwrap_err().to_string().contains("line 2, column step"), "label not in UTF-8");
}

#[test]
fn options_that_do_not_fit_are_told_so() {
    let text = "step,layer,expert,tokens\n0,0,0,1\n0,1,5,1\n";
    let with = |options: ReadOptions| csv_with(text, &options).unwrap_err();
    let message = with(ReadOptions::default().experts(Some(4)));
    assert!(
        message.contains("line 3, column expert: found expert 5, expected an expert id below 4"),
        "{message}"
    );
    let message = with(ReadOptions::default().layers(Some("7-9".parse().unwrap())));
    assert!(message.contains("no layer is in --layers 7-9, the trace has layers 0-1"), "{message}");
    let message = with(ReadOptions::default().step_column(Some("run".into())));
    assert!(message.contains("expected a header with column run"), "{message}");
    let message = with(ReadOptions::default().memory(16));
    assert!(message.contains("raise --memory"), "{message}");
    let message = with(ReadOptions::default().experts(Some(0)));
    assert!(message.contains("expected 1 to 65536"), "{message}");
}

#[test]
fn a_row_without_end_is_stopped() {
    let mut text = String::from("layer,expert,tokens\n0,0,\"");
    text.push_str(&"x".repeat(40 << 20));
    assert!(csv(&text).unwrap_err().contains("is a quote or a line end missing"));
}

#[test]
fn hostile_shapes_do_not_take_memory() {
    // The few cells are far apart: 4096 x 65536 counts would be 2 GiB.
    let message = csv("layer,expert,tokens\n4095,65535,1\n0,0,1\n").map(|trace| trace.experts());
    assert_eq!(message, Ok(65536));
    let mut text = String::from("layer,expert,tokens\n");
    for layer in 0..4096 {
        writeln!(text, "{layer},65535,1").unwrap();
    }
    let message = csv(&text).unwrap_err();
    assert!(message.contains("more than the 512 MiB allowed"), "{message}");
}

#[test]
fn unknown_content_is_described() {
    let folder = Folder::new();
    let file = folder.file("notes.txt", b"dear diary, nothing happened\n");
    let message = read(std::slice::from_ref(&file), &ReadOptions::default(), &()).unwrap_err().to_string();
    assert!(message.contains("cannot tell the format: a file that begins with \"dear diary"), "{message}");
    let message = read(&[folder.path()], &ReadOptions::default(), &()).unwrap_err().to_string();
    assert!(message.contains("only notes.txt"), "{message}");
    let message =
        read(&[folder.path().join("none.csv")], &ReadOptions::default(), &()).unwrap_err().to_string();
    assert!(message.contains("none.csv"), "{message}");
}

#[test]
fn conversion_keeps_labels_and_sources() {
    let folder = Folder::new();
    let text = "run,layer,expert,tokens,source\n\"a, b\",0,0,1,0\n\"a, b\",0,1,2,1\nc,0,1,3,0\n";
    let file = folder.file("in.csv", text.as_bytes());
    let options = ReadOptions::default().step_column(Some("run".into()));
    for name in ["out.csv", "out.csv.gz", "out.csv.zst", "out.parquet"] {
        if name.ends_with("parquet") && !cfg!(feature = "parquet") {
            continue;
        }
        let out = folder.path().join(name);
        let done = convert(std::slice::from_ref(&file), &options, &out, &()).unwrap();
        assert_eq!(done.rows, 3);
        let trace = read(std::slice::from_ref(&out), &ReadOptions::default(), &()).unwrap();
        assert_eq!(trace.steps(), ["a, b", "c"]);
        assert_eq!(all_loads(&trace), [1, 2, 0, 3]);
        assert!(!folder.path().join(format!("{name}.partial")).exists());
    }
    let plain = std::fs::read_to_string(folder.path().join("out.csv")).unwrap();
    assert_eq!(plain, text.replace("run,", "step,"));
    let message = convert(&[file], &options, &folder.path().join("out.xlsx"), &()).unwrap_err().to_string();
    assert!(message.contains("ends in .csv"), "{message}");
}

#[test]
fn steps_of_several_traces_stay_apart_when_converted() {
    let folder = Folder::new();
    let file = folder.file("a.csv", b"step,layer,expert,tokens\n0,0,0,1\n1,0,1,2\n");
    let out = folder.path().join("out.csv");
    convert(&[file.clone(), file], &ReadOptions::default(), &out, &()).unwrap();
    let trace = read(&[out], &ReadOptions::default(), &()).unwrap();
    assert_eq!(trace.steps(), ["0", "1", "2", "3"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Checks that a trace is equal after a round trip through every file format.
    #[test]
    fn round_trip(
        (experts, layers, steps, loads) in (1usize..9, 1usize..4, 1usize..6).prop_flat_map(|(e, l, s)| {
            (Just(e), Just(l), Just(s), prop::collection::vec(prop_oneof![Just(0u64), 0..5u64, 0..1u64 << 40], e * l * s))
        }),
        kind in 0usize..4,
    ) {
        let ids: Vec<u32> = (0..layers as u32).map(|layer| 3 + 2 * layer).collect();
        let labels: Vec<String> = (0..steps).map(|step| (step * 7).to_string()).collect();
        let trace = Trace::from_loads(experts, ids, labels, loads.clone()).unwrap();
        let folder = Folder::new();
        let kinds = ["t.csv", "t.csv.gz", "t.csv.zst", if cfg!(feature = "parquet") { "t.parquet" } else { "t.csv" }];
        let out = folder.path().join(kinds[kind]);
        write(&trace, &out).unwrap();
        let again = read(&[out], &ReadOptions::default(), &()).unwrap();
        prop_assert_eq!(all_loads(&again), loads);
        prop_assert_eq!(again.steps(), trace.steps());
        prop_assert_eq!(again.layers(), trace.layers());
        prop_assert_eq!(again.experts(), trace.experts());
    }

    /// Checks that the order of rows does not matter.
    #[test]
    fn shuffled_rows(rows in prop::collection::vec((0u64..20, 0u32..4, 0u32..8, 0u64..100), 1..200), seed in any::<u64>()) {
        let line = |(step, layer, expert, tokens): &(u64, u32, u32, u64)| format!("{step},{layer},{expert},{tokens}\n");
        let header = "step,layer,expert,tokens\n";
        let one = csv(&(header.to_owned() + &rows.iter().map(line).collect::<String>())).unwrap();
        let mut shuffled = rows.clone();
        let mut state = seed | 1;
        for last in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(last, (state >> 33) as usize % (last + 1));
        }
        let other = csv(&(header.to_owned() + &shuffled.iter().map(line).collect::<String>())).unwrap();
        prop_assert_eq!(all_loads(&one), all_loads(&other));
        prop_assert_eq!(one.steps(), other.steps());
        prop_assert_eq!(one.layers(), other.layers());
    }

    /// Checks that any bytes give a trace or an error.
    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), format in 0usize..9) {
        let options = ReadOptions::default().memory(1 << 20);
        let _ = read_bytes(TraceFormat::ALL[format], &bytes, &options);
    }
}
