//! Tests of foreign formats, with files written byte by byte: accepted content, refused content, and
//! messages.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use crate::trace_support::{
    Folder, Py, Tensor, dict, i32s, i64s, npy, pt, pt_raw, records, safetensors, stat, zip,
};
use evenkeel_trace::{Batching, ReadOptions, RequestOrder, Trace, TraceFormat, read, read_bytes};
use proptest::prelude::*;
use std::path::PathBuf;

fn bytes(format: TraceFormat, bytes: &[u8]) -> Result<Trace, String> {
    read_bytes(format, bytes, &ReadOptions::default()).map_err(|error| error.to_string())
}

fn folder(path: PathBuf) -> Result<Trace, String> {
    read(&[path], &ReadOptions::default(), &()).map_err(|error| error.to_string())
}

fn has_notice(trace: &Trace, text: &str) -> bool {
    trace.notices().iter().any(|notice| notice.contains(text))
}

// ---- SGLang ----

#[test]
fn stat_dumps_drop_unused_ring_rows() {
    // Three steps of 2 layers (the first dense) x 3 experts; the second step is unused.
    let trace = bytes(
        TraceFormat::SglangPt,
        &stat(&[3, 2, 3], &[0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 5, 6]),
    )
    .unwrap();
    assert_eq!(trace.steps(), ["0", "2"]);
    assert_eq!(trace.loads(1, 1), [4, 5, 6]);
    assert_eq!(trace.idle_layers(), [0]);
    assert!(has_notice(&trace, "1 of 3 recorded steps are all zero"));
    assert!(has_notice(&trace, "no tokens in layers 0: dense or unused"));
    let flat = bytes(TraceFormat::SglangPt, &stat(&[2, 3], &[1, 2, 3, 4, 5, 6])).unwrap();
    assert_eq!((flat.steps().len(), flat.totals(1)), (1, &[4, 5, 6][..]));
    let zero = bytes(TraceFormat::SglangPt, &stat(&[2, 1, 3], &[0; 6])).unwrap();
    assert!(zero.is_empty() && has_notice(&zero, "no tokens at all"));
}

#[test]
fn tensors_may_be_views() {
    // The view is transposed and has an offset: element [l][e] is at 1 + l + 2 e.
    let view =
        Tensor { length: 7, offset: 1, strides: vec![1, 2], ..Tensor::plain("IntStorage", "0", &[2, 3]) };
    let root = dict(vec![("logical_count", Py::Tensor(view))]);
    let trace = bytes(TraceFormat::SglangPt, &pt(&root, &[("0", i32s(&[9, 1, 2, 3, 4, 5, 6]))])).unwrap();
    assert_eq!((trace.totals(0), trace.totals(1)), (&[1, 3, 5][..], &[2, 4, 6][..]));
}

#[test]
fn dumps_of_ranks_are_mapped_and_summed() {
    let place = Folder::new();
    let one = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 2];
    place.file("expert_distribution_recorder_17.5_0.pt", &records(0, &one));
    place.file("expert_distribution_recorder_17.5_1.pt", &records(1, &one));
    let trace = folder(place.path()).unwrap();
    assert_eq!((trace.steps(), trace.experts()), (&["10", "11"].map(String::from)[..], 3));
    // Slots 0..4 hold experts 0 1 2 0 in layer 0 and 2 1 0 1 in layer 1.
    assert_eq!((trace.loads(0, 0), trace.loads(0, 1)), (&[10, 4, 6][..], &[14, 28, 10][..]));
    assert_eq!((trace.loads(1, 0), trace.loads(1, 1)), (&[2, 0, 0][..], &[0, 4, 0][..]));
    assert!(has_notice(&trace, "2 ranks added up"));

    place.file("expert_distribution_recorder_17.5_3.pt", &records(3, &one));
    let message = folder(place.path()).unwrap_err();
    assert!(message.contains("no dump of rank 2, expected one for each of ranks 0 to 3"), "{message}");
    place.file("expert_distribution_recorder_17.5_2.pt", &records(1, &one));
    let message = folder(place.path()).unwrap_err();
    assert!(message.contains("rank 1 again"), "{message}");
}

#[test]
fn independent_dumps_follow_each_other_by_name() {
    let place = Folder::new();
    place.file("b.pt", &stat(&[1, 2], &[3, 4]));
    place.file("a.pt", &stat(&[1, 2], &[1, 2]));
    let trace = folder(place.path()).unwrap();
    assert_eq!((trace.steps(), trace.loads(1, 0)), (&["a", "b"].map(String::from)[..], &[3, 4][..]));
}

#[test]
fn pickles_are_never_run() {
    let cases: [(&[u8], &str); 9] = [
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "refused to run pickle global os.system at byte 2"),
        (
            b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
            "refused to run pickle global builtins.eval at byte 18",
        ),
        (b"\x80\x02)\x81.", "refused to run pickle instruction NEWOBJ at byte 3"),
        (b"\x80\x02}b.", "refused to run pickle instruction BUILD at byte 3"),
        (b"\x80\x02(ios\nsystem\n.", "refused to run pickle instruction INST at byte 3"),
        (b"\x80\x01}.", "found protocol 1, expected a pickle protocol from 2 to 5"),
        (b"\x80\x02}", "found the end of the pickle"),
        (b"\x80\x02h\x05.", "found memo 5, expected the number of an earlier memo"),
        (b"\x80\x02N.", "found None, expected a dictionary with key logical_count"),
    ];
    for (pickle, expected) in cases {
        let message = bytes(TraceFormat::SglangPt, &pt_raw(pickle, &[])).expect_err(expected);
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let deep: Vec<u8> = [b"\x80\x02".to_vec(), vec![b'('; 20_000_000], b".".to_vec()].concat();
    let message = bytes(TraceFormat::SglangPt, &pt_raw(&deep, &[])).unwrap_err();
    assert!(message.contains("more marks"), "{message}");
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let with = |tensor: Tensor, data: Vec<u8>| {
        let root = dict(vec![("logical_count", Py::Tensor(tensor))]);
        bytes(TraceFormat::SglangPt, &pt(&root, &[("0", data)])).unwrap_err()
    };
    let plain = || Tensor::plain("LongStorage", "0", &[2, 3]);
    for (tensor, data, expected) in [
        (plain(), i64s(&[1, 2]), "found 16 bytes in member data/0, expected 48 bytes"),
        (
            Tensor { offset: 1, ..plain() },
            i64s(&[0; 6]),
            "expected a view within the 6 elements of its storage",
        ),
        (
            Tensor { strides: vec![1 << 62, 1], ..plain() },
            i64s(&[0; 6]),
            "expected a view within the 6 elements",
        ),
        (
            Tensor { shape: vec![1 << 40, 1 << 40], ..plain() },
            i64s(&[0; 6]),
            "expected a shape that the storage can fill",
        ),
        (Tensor { length: 1 << 40, shape: vec![1 << 20, 1 << 20], ..plain() }, vec![], "raise --memory"),
        (Tensor { key: "9".into(), ..plain() }, i64s(&[0; 6]), "member \"dump/data/9\""),
        (Tensor { storage: "BFloat16Storage", ..plain() }, vec![0; 12], "found torch.bfloat16"),
        (
            Tensor { storage: "DoubleStorage", ..plain() },
            i64s(&[4_602_678_819_172_646_912; 6]),
            "found a fraction",
        ),
        (plain(), i64s(&[-1, 0, 0, 0, 0, 0]), "found -1, expected counts from 0"),
        (
            Tensor { shape: vec![6], strides: vec![1], ..plain() },
            i64s(&[0; 6]),
            "found shape [6], expected [layers, experts]",
        ),
        (Tensor { shape: vec![0, 3], ..plain() }, i64s(&[0; 6]), "found shape [0, 3]"),
    ] {
        let message = with(tensor, data);
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn json_counts() {
    let trace = bytes(
        TraceFormat::SglangJson,
        br#"{"note": [1, {}], "logical_count": [[[1, 2.0], [3, 4]], [[5, 6], [7, 8]]]}"#,
    );
    let trace = trace.unwrap();
    assert_eq!((trace.steps().len(), trace.loads(1, 0)), (2, &[5, 6][..]));
    for (text, expected) in [
        ("", "EOF while parsing"),
        ("[]", "expected an object with key logical_count"),
        ("{}", "no key logical_count"),
        (r#"{"logical_count": 5}"#, "a number, not a list"),
        (r#"{"logical_count": [[1, 2], [3]]}"#, "a list of 1 at depth 2 of logical_count, and others of 2"),
        (r#"{"logical_count": [[1, [2]]]}"#, "numbers at different depths"),
        (r#"{"logical_count": [[[[1]]]]}"#, "more than 3 dimensions"),
        (r#"{"logical_count": [[-1]]}"#, "expected a count from 0"),
        (r#"{"logical_count": [["1"]]}"#, "expected a count from 0"),
        (r#"{"logical_count": [[]]}"#, "found shape"),
        (r#"{"logical_count": [[1]]} x"#, "trailing characters"),
    ] {
        let message = bytes(TraceFormat::SglangJson, text.as_bytes()).expect_err(text);
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn older_csv_of_ranks() {
    let place = Folder::new();
    place.file("expert_distribution_rank0_timestamp5.csv", b"layer_id,expert_id,count\n0,0,1\n0,1,2\n");
    place.file("expert_distribution_rank1_timestamp5.csv", b"layer_id,expert_id,count\n0,0,10\n0,2,20\n");
    let trace = folder(place.path()).unwrap();
    assert_eq!(
        (trace.format(), trace.steps().len(), trace.totals(0)),
        (TraceFormat::SglangCsv, 1, &[11, 2, 20][..])
    );
    place.file("expert_distribution_rank4_timestamp5.csv", b"layer_id,expert_id,count\n0,0,1\n");
    assert!(folder(place.path()).unwrap_err().contains("no dump of rank 2"));
    let message = bytes(TraceFormat::SglangCsv, b"layer_id,expert_id,count\n0,zero,1\n").unwrap_err();
    assert!(message.contains("line 2, column expert_id: found \"zero\""), "{message}");
}

// ---- TensorRT-LLM and vLLM ----

#[test]
fn tensorrt_llm_folder() {
    let place = Folder::new();
    place.file("rank0.safetensors", &safetensors(&[("2_3", vec![1, 2, 3]), ("10_3", vec![4, 5, 6])]));
    assert!(folder(place.path()).unwrap_err().contains("no meta_info.json"));
    place.file("meta_info.json", br#"{"num_experts": 3, "num_experts_per_token": 2}"#);
    place.file("rank1.safetensors", &safetensors(&[("2_3", vec![10, 0, 0]), ("10_4", vec![0, 0, 1])]));
    let trace = folder(place.path()).unwrap();
    assert_eq!((trace.format(), trace.steps()), (TraceFormat::TrtLlm, &["2", "10"].map(String::from)[..]));
    assert_eq!(
        (trace.layers(), trace.loads(0, 0), trace.loads(1, 1)),
        (&[3, 4][..], &[11, 2, 3][..], &[0, 0, 1][..])
    );
    place.file("rank3.safetensors", &safetensors(&[("2_3", vec![1, 1, 1])]));
    assert!(folder(place.path()).unwrap_err().contains("no dump of rank 2"));
    for (tensors, expected) in [
        (safetensors(&[("layer3", vec![1])]), "tensors named {iteration}_{layer}"),
        (safetensors(&[("1_2", vec![-1])]), "found -1, expected counts from 0"),
        (safetensors(&[("1_9999", vec![1])]), "layer 9999"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), "expected a safetensors file"),
    ] {
        let message = bytes(TraceFormat::TrtLlm, &tensors).expect_err(expected);
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn vllm_records() {
    let line = |step: u64| {
        format!(
            r#"{{"record_type":"eplb_load_stats","version":1,"step":{step},"num_ranks":2,"expert_load":[[1,2,3],[4,5,6]],"p2l_map":[[0,1,0],[1,0,1]]}}"#
        )
    };
    let text = format!("{}\n{{\"record_type\":\"eplb_initial_mapping\"}}\n\n{}\n", line(5), line(7));
    let trace = bytes(TraceFormat::VllmJsonl, text.as_bytes()).unwrap();
    assert_eq!(
        (trace.steps(), trace.loads(1, 0), trace.loads(1, 1)),
        (&["5", "7"].map(String::from)[..], &[4, 2][..], &[5, 10][..])
    );
    assert!(has_notice(&trace, "skipped 1 records of types other than"));
    for (text, expected) in [
        ("not json", "line 1: found expected"),
        (r#"{"record_type":"eplb_load_stats","version":2}"#, "found version 2, expected version 1"),
        (r#"{"record_type":"eplb_load_stats","version":1,"step":1}"#, "missing field `expert_load`"),
        (
            r#"{"record_type":"eplb_load_stats","version":1,"step":1,"expert_load":[[1,2]],"p2l_map":[[0]]}"#,
            "2 loads and 1 map entries in layer 0",
        ),
        (
            r#"{"record_type":"eplb_load_stats","version":1,"step":1,"expert_load":[[1,2]],"p2l_map":[[0,-1]]}"#,
            "2 tokens on slot 1 of layer 0, mapped to -1",
        ),
    ] {
        let message = bytes(TraceFormat::VllmJsonl, text.as_bytes()).expect_err(text);
        assert!(message.contains(expected), "{text}: {message}");
    }
}

// ---- per-token arrays ----

/// Returns ten tokens with one layer and top-1: token t goes to expert t.
fn ten() -> Vec<u8> {
    npy("|u1", &[10, 1, 1], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
}

#[test]
fn prefill_batches_are_consecutive_tokens() {
    let options = ReadOptions::default().batching(Batching::Prefill { tokens: 4 });
    let trace = read_bytes(TraceFormat::Npy, &ten(), &options).unwrap();
    assert_eq!((trace.steps().len(), trace.experts()), (2, 10));
    assert_eq!(trace.loads(1, 0), [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]);
    assert!(has_notice(&trace, "the last 2 tokens, an incomplete batch, are dropped"));
    assert!(has_notice(&trace, "inferred from the highest id"));
    let options = ReadOptions::default().batching(Batching::Prefill { tokens: 11 });
    let message = read_bytes(TraceFormat::Npy, &ten(), &options).unwrap_err().to_string();
    assert!(message.contains("--batch-tokens 11, expected 1 to 10, the tokens of array input"), "{message}");
}

#[test]
fn decode_batches_take_one_token_per_request() {
    let place = Folder::new();
    place.file("a.npy", &ten());
    place.file("requests.csv", b"start,tokens,kind\n0,2,x\n2,3,x\n5,1,y\n6,4,y\n");
    let decode = |in_flight, order, seed| {
        let options = ReadOptions::default()
            .batching(Batching::Decode { in_flight })
            .order(order)
            .seed(seed)
            .experts(Some(10));
        read(&[place.path()], &options, &()).map_err(|error| error.to_string())
    };
    // One cursor passes through all requests from its offset: every later token once, in order.
    let trace = decode(1, RequestOrder::Recorded, 0).unwrap();
    let order: Vec<usize> = (0..trace.steps().len())
        .map(|step| trace.loads(step, 0).iter().position(|&n| n == 1).unwrap())
        .collect();
    assert_eq!(order, (order[0]..10).collect::<Vec<_>>());
    assert!(order[0] < 2);
    let trace = decode(2, RequestOrder::Recorded, 0).unwrap();
    assert!((0..trace.steps().len()).all(|step| trace.loads(step, 0).iter().sum::<u64>() == 2));
    // The same seed gives the same order, and some other seed another one.
    let loads =
        |trace: &Trace| (0..trace.steps().len()).map(|s| trace.loads(s, 0).to_vec()).collect::<Vec<_>>();
    let first = loads(&decode(1, RequestOrder::Shuffled, 1).unwrap());
    assert_eq!(first, loads(&decode(1, RequestOrder::Shuffled, 1).unwrap()));
    assert!((2..20).any(|seed| loads(&decode(1, RequestOrder::Shuffled, seed).unwrap()) != first));
    // With more than half of the requests in flight, every token after the offsets occurs once. The steps
    // shrink.
    for in_flight in [3, 4] {
        let trace = decode(in_flight, RequestOrder::Recorded, 0).unwrap();
        let sizes: Vec<u64> = (0..trace.steps().len()).map(|s| trace.loads(s, 0).iter().sum()).collect();
        assert!(sizes[0] == in_flight as u64 && sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
        assert!(trace.totals(0).iter().all(|&tokens| tokens <= 1) && trace.totals(0)[9] == 1);
        let short = sizes.iter().any(|&size| size < in_flight as u64);
        assert_eq!(has_notice(&trace, "steps run short"), short, "{:?}", trace.notices());
    }
    let message = decode(5, RequestOrder::Recorded, 0).unwrap_err();
    assert!(message.contains("--decode-batch 5, expected 1 to 4, the number of requests"), "{message}");
}

#[test]
fn finished_requests_are_replaced_by_the_next() {
    let place = Folder::new();
    let ids: Vec<u8> = (0..30).collect();
    let spans = [(0, 7), (7, 4), (11, 5), (16, 3), (19, 6), (25, 5)];
    let table: Vec<String> = spans.iter().map(|(start, tokens)| format!("{start},{tokens}")).collect();
    let files = [
        place.file("a.npy", &npy("|u1", &[30, 1, 1], &ids)),
        place.file("b.csv", format!("start,tokens\n{}\n", table.join("\n")).as_bytes()),
    ];
    for seed in 0..20 {
        let batching = Batching::Decode { in_flight: 3 };
        let options = ReadOptions::default().batching(batching).seed(seed).experts(Some(30));
        let trace = read(&files, &options, &()).unwrap();
        let tokens =
            |step: usize| (0..30).filter(|&token| trace.loads(step, 0)[token] == 1).collect::<Vec<_>>();
        // The seed determines the offsets; the rules determine the rest.
        let mut cursors: Vec<(usize, usize)> =
            tokens(0).iter().map(|&at| (spans.iter().rposition(|span| span.0 <= at).unwrap(), at)).collect();
        assert_eq!(cursors.iter().map(|cursor| cursor.0).collect::<Vec<_>>(), [0, 1, 2]);
        let (mut next, mut step) = (3, 0);
        'run: loop {
            let mut expected: Vec<usize> = cursors.iter().map(|cursor| cursor.1).collect();
            expected.sort_unstable();
            assert_eq!(tokens(step), expected, "seed {seed}, step {step}");
            step += 1;
            for cursor in &mut cursors {
                cursor.1 += 1;
                if cursor.1 == spans[cursor.0].0 + spans[cursor.0].1 {
                    if next == spans.len() {
                        break 'run;
                    }
                    *cursor = (next, spans[next].0);
                    next += 1;
                }
            }
        }
        assert_eq!(trace.steps().len(), step, "seed {seed}");
    }
}

#[test]
fn arrays_named_one_by_one_are_traces_of_their_own() {
    let place = Folder::new();
    let files = [place.file("a.npy", &ten()), place.file("b.npy", &ten())];
    let options = ReadOptions::default().batching(Batching::Prefill { tokens: 6 });
    let trace = read(&files, &options, &()).unwrap();
    assert_eq!((trace.steps(), trace.files().len()), (&["0", "0"].map(String::from)[..], 2));
    let trace = read(&[place.path()], &options, &()).unwrap();
    assert_eq!(trace.steps().len(), 3);
}

#[test]
fn requests_are_needed_where_they_are() {
    for options in [
        ReadOptions::default().order(RequestOrder::Shuffled).batching(Batching::Prefill { tokens: 2 }),
        ReadOptions::default().batching(Batching::Decode { in_flight: 1 }),
    ] {
        let message = read_bytes(TraceFormat::Npy, &ten(), &options).unwrap_err().to_string();
        assert!(message.contains("needs a requests CSV (columns start, tokens)"), "{message}");
    }
}

#[test]
fn several_arrays_and_their_sequences() {
    let place = Folder::new();
    let other = npy("|u1", &[4, 1, 1], &[3, 3, 2, 2]);
    place.file("ids.npz", &zip(&[("one.npy", &ten()), ("two.npy", &other)], true));
    place.file("sequences.csv", b"name,start,tokens\none,0,5\ntwo,0,4\none,5,5\n");
    let take = |arrays: &[&str]| {
        let options = ReadOptions::default()
            .arrays(arrays.iter().map(ToString::to_string).collect())
            .batching(Batching::Prefill { tokens: 4 });
        read(&[place.path()], &options, &()).map_err(|error| error.to_string())
    };
    let trace = take(&[]).unwrap();
    assert_eq!((trace.format(), trace.steps().len()), (TraceFormat::Npz, 3));
    // Arrays keep the order of the file, each with its sequences in the order of the table.
    assert_eq!(trace.loads(2, 0), [0, 0, 0, 2, 0, 0, 0, 0, 1, 1]);
    let trace = take(&["two", "one"]).unwrap();
    assert_eq!(trace.loads(0, 0)[..4], [0, 0, 2, 2]);
    let trace = take(&["two"]).unwrap();
    assert_eq!((trace.steps().len(), trace.experts()), (1, 4));
    assert!(take(&["three"]).unwrap_err().contains("no array three; the file has one, two"));
    place.file("sequences.csv", b"name,start,tokens\nsix,0,5\n");
    assert!(
        take(&[])
            .unwrap_err()
            .contains("column name: found \"six\", expected the name of an array: one, two")
    );
    place.file("sequences.csv", b"start,tokens\n0,5\n");
    assert!(take(&[]).unwrap_err().contains("a first column that names the array"));
    place.file("sequences.csv", b"name,start,tokens\none,6,5\n");
    assert!(
        take(&[])
            .unwrap_err()
            .contains("line 2: found start 6 and tokens 5, expected a span within the 10 tokens")
    );
}

#[test]
fn padding_is_no_expert() {
    let options = ReadOptions::default().batching(Batching::Prefill { tokens: 2 });
    let wide: Vec<u8> = [1u16, 65535, 0, 1].iter().flat_map(|id| id.to_le_bytes()).collect();
    for array in [
        npy("<i4", &[2, 1, 2], &i32s(&[1, -1, 0, 1])),
        npy("<i8", &[2, 1, 2], &i64s(&[1, -1, 0, 1])),
        npy("<u2", &[2, 1, 2], &wide),
        npy("|i1", &[2, 1, 2], &[1, 0xff, 0, 1]),
    ] {
        let trace = read_bytes(TraceFormat::Npy, &array, &options).unwrap();
        assert_eq!(trace.loads(0, 0), [1, 2]);
    }
}

#[test]
fn malformed_arrays() {
    let fortran = String::from_utf8_lossy(&npy("|u1", &[1, 1, 1], b"")).replace("False", "True ");
    let mut fortran_bytes = npy("|u1", &[1, 1, 1], b"");
    let tail = fortran.find('{').unwrap();
    let end = fortran_bytes.len();
    let at = end - (fortran.chars().count() - fortran[..tail].chars().count());
    fortran_bytes.splice(at.., fortran[tail..].bytes());
    for (array, expected) in [
        (b"\x93NUMPY\x01\x00".to_vec(), "found the end of the data"),
        (b"\x93NUMPY\x09\x00\x00\x00".to_vec(), "a version from 1 to 3"),
        (npy("<f4", &[1, 1, 1], &[0; 4]), "element type \"<f4\", expected little-endian integers"),
        (npy(">u2", &[1, 1, 1], &[0; 2]), "element type \">u2\""),
        (npy("|u1", &[4], &[0; 4]), "found shape [4], expected ids [tokens, layers, top-k]"),
        (npy("|u1", &[4, 0, 1], &[]), "found shape [4, 0, 1]"),
        (npy("|u1", &[9, 1, 1], &[0; 4]), "found the end of the data, expected 9 bytes"),
        (npy("|u1", &[1 << 60, 16, 1], &[0; 4]), "raise --memory"),
        (npy("<i4", &[1, 1, 2], &i32s(&[5, 70_000])), "token 0, layer 0: found expert 70000"),
        (fortran_bytes, "found fortran_order: True"),
    ] {
        let message = bytes(TraceFormat::Npy, &array).expect_err(expected);
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let options = ReadOptions::default().experts(Some(8));
    let message = read_bytes(TraceFormat::Npy, &ten(), &options).unwrap_err().to_string();
    assert!(message.contains("token 8, layer 0: found expert 8, expected an expert id below 8"), "{message}");
    let message = bytes(TraceFormat::Npz, &zip(&[("readme.txt", b"hi")], false)).unwrap_err();
    assert!(message.contains("found no arrays, expected at least one array of expert ids"), "{message}");
}

#[test]
fn truncated_files_are_errors() {
    let whole = [
        (TraceFormat::SglangPt, stat(&[2, 3], &[1, 2, 3, 4, 5, 6])),
        (TraceFormat::Npy, ten()),
        (TraceFormat::Npz, zip(&[("one.npy", &ten())], true)),
        (TraceFormat::TrtLlm, safetensors(&[("0_0", vec![1, 2])])),
        (TraceFormat::SglangJson, br#"{"logical_count": [[1, 2]]}"#.to_vec()),
    ];
    for (format, file) in whole {
        let options = ReadOptions::default().batching(Batching::Prefill { tokens: 1 });
        read_bytes(format, &file, &options).unwrap();
        for length in 0..file.len() {
            assert!(read_bytes(format, &file[..length], &options).is_err(), "{format} cut to {length}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Checks that a dump, JSON or safetensors reads back as written.
    #[test]
    fn counts_round_trip((layers, experts, counts) in (1usize..5, 1usize..9).prop_flat_map(|(l, e)| {
        (Just(l), Just(e), prop::collection::vec(0i64..1 << 40, l * e))
    })) {
        let shape = [layers as u64, experts as u64];
        let rows: Vec<&[i64]> = counts.chunks(experts).collect();
        let names: Vec<String> = (0..layers).map(|layer| format!("0_{layer}")).collect();
        let tensors: Vec<(&str, Vec<i64>)> =
            names.iter().zip(&rows).map(|(name, row)| (name.as_str(), row.to_vec())).collect();
        let json = format!("{{\"logical_count\": {rows:?}}}");
        for (format, file) in [
            (TraceFormat::SglangPt, stat(&shape, &counts)),
            (TraceFormat::SglangJson, json.into_bytes()),
            (TraceFormat::TrtLlm, safetensors(&tensors)),
        ] {
            let trace = bytes(format, &file).unwrap();
            prop_assert_eq!((trace.layers().len(), trace.experts()), (layers, experts));
            for (layer, row) in rows.iter().enumerate() {
                let row: Vec<u64> = row.iter().map(|&count| count as u64).collect();
                prop_assert_eq!(trace.loads(0, layer), &row[..]);
            }
        }
    }

    /// Checks that a damaged file gives a trace or an error.
    #[test]
    fn damage_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let one = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 2];
        for (format, mut file) in [
            (TraceFormat::SglangPt, records(0, &one)),
            (TraceFormat::Npy, ten()),
            (TraceFormat::Npz, zip(&[("one.npy", &ten())], true)),
            (TraceFormat::TrtLlm, safetensors(&[("0_0", vec![1, 2])])),
        ] {
            let at = at.index(file.len());
            file[at] = byte;
            let _ = bytes(format, &file);
        }
    }
}
