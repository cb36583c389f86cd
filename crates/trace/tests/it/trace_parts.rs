//! Tests of tables in several files, of nested folders, and of misleading tables.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use crate::trace_support::{Folder, npy};
use evenkeel_trace::{Batching, ReadOptions, Trace, TraceFormat, read, read_bytes};
use std::path::PathBuf;

/// Writes files below a folder, and creates their folders.
fn files(folder: &Folder, files: &[(&str, &str)]) -> PathBuf {
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder.path()
}

fn open(paths: &[PathBuf]) -> Result<Trace, String> {
    read(paths, &ReadOptions::default(), &()).map_err(|error| error.to_string())
}

fn folder(list: &[(&str, &str)]) -> Result<Trace, String> {
    let folder = Folder::new();
    open(&[files(&folder, list)])
}

fn csv(text: &str) -> Result<Trace, String> {
    read_bytes(TraceFormat::Csv, text.as_bytes(), &ReadOptions::default()).map_err(|error| error.to_string())
}

fn loads(trace: &Trace) -> Vec<u64> {
    let steps = 0..trace.steps().len();
    steps
        .flat_map(|step| (0..trace.layers().len()).flat_map(move |layer| trace.loads(step, layer).to_vec()))
        .collect()
}

#[track_caller]
fn says(trace: &Trace, text: &str) {
    assert!(trace.notices().iter().any(|notice| notice.contains(text)), "{text}: {:?}", trace.notices());
}

const HEADER: &str = "step,layer,expert,tokens\n";

fn table(rows: &str) -> String {
    format!("{HEADER}{}", rows.replace(' ', "\n")) + "\n"
}

#[test]
fn parts_and_ranks_add_up() {
    let (first, second) = (table("0,0,0,1 0,0,1,2 1,0,0,3"), table("1,0,1,4 0,0,0,10"));
    for names in [
        ["part-00000-ab.csv", "part-00001-cd.csv"],
        ["x_rank0.csv", "x_rank1.csv"],
        ["00000000.csv", "00000001.csv"],
    ] {
        let trace = folder(&[(names[0], &first), (names[1], &second), ("_SUCCESS", "")]).unwrap();
        assert_eq!((trace.steps().len(), loads(&trace)), (2, vec![11, 2, 3, 4]), "{names:?}");
        says(&trace, "of one table, added up");
    }
    // Ranks without a step column form one step.
    let (first, second) = ("layer,expert,tokens\n0,0,1\n", "layer,expert,tokens\n0,0,5\n0,1,1\n");
    let trace = folder(&[("rank0.csv", first), ("rank1.csv", second)]).unwrap();
    assert_eq!(loads(&trace), [6, 1]);
    let message = folder(&[("rank0.csv", first), ("rank2.csv", second)]).unwrap_err();
    assert!(message.contains("no dump of rank 1"), "{message}");
    let message = folder(&[("part-0.csv", first), ("part-1.csv", &table("0,0,0,1"))]).unwrap_err();
    assert!(message.contains("found a step column, expected none, as in"), "{message}");
    // Files with other names are separate runs, and a notice states this.
    let trace = folder(&[("a.csv", &table("0,0,0,1")), ("b.csv", &table("0,0,0,2"))]).unwrap();
    assert_eq!((trace.steps(), loads(&trace)), (&["0", "0"].map(String::from)[..], vec![1, 2]));
    says(&trace, "a.csv, b.csv: separate runs");
    // A file that is listed twice is no part of itself.
    let here = Folder::new();
    let path = here.file("part-0.csv", table("0,0,0,1").as_bytes());
    assert_eq!(open(&[path.clone(), path]).unwrap().steps().len(), 2);
}

#[test]
fn folders_hold_columns() {
    let rows = "expert,tokens\n0,1\n1,2\n";
    let trace = folder(&[
        ("layer=3/step=10/a.csv", rows),
        ("layer=3/step=9/b.csv", rows),
        ("layer=5/step=9/part-0.csv", rows),
    ])
    .unwrap();
    assert_eq!((trace.steps(), trace.layers()), (&["9", "10"].map(String::from)[..], &[3, 5][..]));
    assert_eq!(loads(&trace), [1, 2, 1, 2, 1, 2, 0, 0]);
    let rows = table("0,0,0,1");
    let trace = folder(&[("model=a/x.csv", &rows), ("model=b/x.csv", &rows)]).unwrap();
    assert_eq!(trace.steps().len(), 2);
    says(&trace, "folders model=a; model=b: separate runs");
    let message = folder(&[("layer=x/a.csv", "step,expert,tokens\n0,0,1\n")]).unwrap_err();
    assert!(message.contains("folder \"layer=x\": found \"x\", expected a layer id"), "{message}");
    // Plain folders are read one after the other. A notice lists those without a trace.
    let trace = folder(&[("b/x.csv", &rows), ("a/x.csv", &rows), ("notes/README", "hello")]).unwrap();
    assert_eq!(trace.steps().len(), 2);
    says(&trace, "notes: no trace, only README");
    let message = folder(&[("notes/README", "hello"), ("more/README", "hello")]).unwrap_err();
    assert!(message.contains("cannot tell the format"), "{message}");
}

#[test]
fn layers_of_other_widths_are_refused() {
    let text = table("0,3,0,5 0,3,1,0 0,3,2,1 0,3,3,1 0,4,0,2 0,4,1,3");
    let message = csv(&text).unwrap_err();
    assert!(message.contains("layer 4: found 2 experts, a row for each in every step"), "{message}");
    assert!(message.contains("--layers") && message.contains("--experts 4"), "{message}");
    let stated = ReadOptions::default().experts(Some(4));
    assert_eq!(
        loads(&read_bytes(TraceFormat::Csv, text.as_bytes(), &stated).unwrap()),
        [5, 0, 1, 1, 2, 3, 0, 0]
    );
    let one = ReadOptions::default().layers(Some("4".parse().unwrap()));
    assert_eq!(read_bytes(TraceFormat::Csv, text.as_bytes(), &one).unwrap().experts(), 2);
    // Zeros were left out: an expert without a row is idle.
    let trace = csv(&table("0,3,0,5 0,3,2,1 0,3,3,1 0,4,0,2 0,4,2,3")).unwrap();
    assert_eq!(trace.experts(), 4);
    says(&trace, "layers 4 have no rows of the highest experts");
    let maps = r#"{"record_type":"eplb_load_stats","version":1,"step":0,"expert_load":[[1,2],[3,4]],"p2l_map":[[0,1],[0,0]]}"#;
    let message =
        read_bytes(TraceFormat::VllmJsonl, maps.as_bytes(), &ReadOptions::default()).unwrap_err().to_string();
    assert!(message.contains("1 logical experts in layer 1 of p2l_map, 2 in others"), "{message}");
}

#[test]
fn tables_that_repeat_or_end_early_are_noticed() {
    let trace = csv(&table("0,0,0,1 0,0,1,2 0,0,0,1")).unwrap();
    says(&trace, "1 rows name a step, layer and expert that have tokens already");
    let trace = csv(&table("0,0,0,1 0,0,1,2 1,0,0,1 1,0,1,2 2,0,0,1")).unwrap();
    says(&trace, "the last step has 1 rows, each before it 2");
    let trace = csv("layer,expert,tokens\n0,0,12").unwrap();
    says(&trace, "the last line has no line end");
    let trace = csv("step,layer,expert,tokens\n7.0,0,0,1\n8.0,0,0,2\n").unwrap();
    assert_eq!(trace.steps(), ["7", "8"]);
    let message = csv("step,layer,expert,tokens\n,0,0,1\n").unwrap_err();
    assert!(message.contains("line 2, column step: found \"\""), "{message}");
    // A quote in a comment must not hide rows.
    let message = csv("layer,expert,tokens\n#,\"x\n0,0,1\n0,0,2\n\n").unwrap_err();
    assert!(message.contains("line 2: found 2 columns"), "{message}");
}

#[test]
fn runs_and_models_in_one_file() {
    let load = |step: u64, more: &str| {
        format!(
            "{{\"record_type\":\"eplb_load_stats\",\"version\":1,\"step\":{step},\"expert_load\":[[1.0,2]],\"p2l_map\":[[0,1]]{more}}}\n"
        )
    };
    let start = "{\"record_type\":\"bench_run_start\"}\n";
    let of = |lines: &[String]| {
        read_bytes(TraceFormat::VllmJsonl, lines.concat().as_bytes(), &ReadOptions::default())
            .map_err(|error| error.to_string())
    };
    let (one, two, three) = (load(1, ""), load(2, ""), load(3, ""));
    for (lines, steps) in [
        (vec![one.clone(), two.clone(), three.clone()], 3),
        (vec![three.clone(), one.clone(), two.clone()], 3),
        (vec![one.clone(), two.clone(), one.clone(), two.clone()], 4),
        (vec![one.clone(), two.clone(), start.into(), two.clone(), three.clone()], 4),
        (vec![one.clone(), start.into(), two.clone()], 2),
    ] {
        let trace = of(&lines).unwrap();
        assert_eq!((trace.steps().len(), trace.totals(0)[1]), (steps, 2 * steps as u64), "{lines:?}");
    }
    for (lines, expected) in [
        (vec![one.clone(), one.clone()], "line 2: found step 1 again, expected each step once"),
        (vec![one.clone(), two.clone(), three.clone(), two.clone()], "line 4: found step 2 again"),
        (vec![load(1, ",\"model\":\"a\""), load(2, ",\"model\":\"b\"")], "line 2: found model"),
        (
            vec![one.clone(), two.replace("[1.0,2]", "[1,2],[1,2]").replace("[[0,1]]", "[[0,1],[0,1]]")],
            "found 2 layers",
        ),
        (vec![one.replace("1.0", "1.5")], "found the number 1.5, expected a whole number from 0"),
    ] {
        let message = of(&lines).expect_err(expected);
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn padding_of_arrays() {
    let of = |descr: &str, shape: &[usize], data: &[u8], experts: Option<usize>| {
        let options =
            ReadOptions::default().experts(experts).batching(Batching::Prefill { tokens: shape[0] });
        read_bytes(TraceFormat::Npy, &npy(descr, shape, data), &options).map_err(|error| error.to_string())
    };
    // All ids of 8 bits are in use, so padding needs 16 bits.
    let mut all: Vec<u8> = (0..=255).collect();
    all.extend([7, 7]);
    let trace = of("|u1", &[129, 1, 2], &all, None).unwrap();
    assert_eq!((trace.experts(), trace.totals(0)), (256, &[1; 256][..]));
    says(&trace, "1 rows that repeat id 7 are padding");
    // The filler is no other id. It fills whole rows, or parts of rows.
    for data in [&[0, 1, 2, 9, 9, 9], &[0, 1, 2, 3, 9, 9]] {
        let trace = of("|u1", &[2, 1, 3], data, None).unwrap();
        assert!(trace.experts() <= 4 && trace.totals(0).iter().sum::<u64>() <= 4);
    }
    for (shape, data, experts, expected) in [
        (
            &[3, 1, 2][..],
            &[0, 1, 2, 2, 3, 3][..],
            None,
            "token 2, layer 0: found expert 3 more than once in a row of 2",
        ),
        (
            &[2, 1, 3],
            &[0, 1, 2, 1, 1, 2],
            None,
            "token 1, layer 0: found expert 1 more than once in a row of 3",
        ),
        (
            &[3, 1, 2],
            &[0, 1, 1, 2, 2, 2],
            None,
            "--experts 2 if it is padding, --experts 3 if it is an expert too",
        ),
        (&[2, 1, 1], &[3, 255], None, "found id 255 in 8 bits, the next highest is 3, expected --experts 4"),
        (&[2, 2, 4], &[9, 1, 2, 3, 3, 2, 1, 9, 8, 1, 2, 4, 4, 2, 1, 8], None, "as in counts"),
    ] {
        let message = of("|u1", shape, data, experts).expect_err(expected);
        assert!(message.contains(expected), "{expected}: {message}");
    }
    assert_eq!(of("|u1", &[2, 1, 1], &[3, 255], Some(4)).unwrap().totals(0), [0, 0, 0, 1]);
    assert_eq!(of("|u1", &[2, 1, 1], &[3, 255], Some(256)).unwrap().totals(0)[255], 1);
    // The two-dimensional top-k ids of one layer are no top-1 ids of several layers.
    let rows: Vec<u8> = (0..64u8).flat_map(|token| [token % 8, 8 + token % 5, 13 + token % 3, 16]).collect();
    let message = of("|u1", &[64, 4], &rows, None).unwrap_err();
    assert!(message.contains("the shape [tokens, 1, 4]"), "{message}");
    let mut two = npy("|u1", &[1, 1, 2], &[0, 1]);
    two.extend(npy("|u1", &[1, 1, 2], &[0, 1]));
    let message = read_bytes(TraceFormat::Npy, &two, &ReadOptions::default()).unwrap_err().to_string();
    assert!(message.contains("more bytes after the array"), "{message}");
}
