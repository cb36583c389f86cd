//! Seed corpora of the fuzz targets, written where `EVENKEEL_FUZZ_CORPUS` says.
#![allow(clippy::unwrap_used, reason = "tests")]

mod trace_support;

use trace_support::{Py, Tensor, dict, i32s, npy, pickle, records, safetensors, stat, zip};

#[test]
fn write_seed_corpora() {
    let Some(corpus) = std::env::var_os("EVENKEEL_FUZZ_CORPUS") else {
        println!("skipped: EVENKEEL_FUZZ_CORPUS is not set");
        return;
    };
    let corpus = std::path::PathBuf::from(corpus);
    let write = |target: &str, seeds: &[&[u8]]| {
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (at, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed{at}")), seed).unwrap();
        }
    };
    let counts = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 2];
    let pass = dict(vec![
        ("forward_pass_id", Py::Int(3)),
        ("rank", Py::Int(0)),
        ("global_physical_count", Py::Tensor(Tensor::plain("LongStorage", "0", &[2, 4]))),
    ]);
    let passes = dict(vec![
        ("records", Py::List(vec![pass])),
        ("last_physical_to_logical_map", Py::List(vec![Py::List((0..4).map(Py::Int).collect()); 2])),
    ]);
    let whole = dict(vec![
        ("rank", Py::Int(0)),
        ("logical_count", Py::Tensor(Tensor::plain("LongStorage", "0", &[2, 2, 4]))),
        ("average_utilization_rate_over_window", Py::None),
    ]);
    write(
        "pickle",
        &[&pickle(&passes), &pickle(&whole), b"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s."],
    );
    let array = npy("|u1", &[6, 2, 1], &[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]);
    let wide = npy("<i4", &[3, 1, 2], &i32s(&[1, -1, 0, 1, 2, 3]));
    write("npy", &[&array, &wide]);
    write(
        "zip",
        &[
            &stat(&[2, 3], &[1, 2, 3, 4, 5, 6]),
            &records(0, &counts),
            &zip(&[("one.npy", &array)], true),
            &zip(&[("one.npy", &array), ("two.npy", &array)], false),
        ],
    );
    write("safetensors", &[&safetensors(&[("0_0", vec![1, 2]), ("1_0", vec![3, 4])])]);
    // As they are, in each naming; and bytes of a file.
    let file = [&[0][..], &safetensors(&[("model.layers.0.mlp.gate.weight", vec![1, 2])])].concat();
    write("checkpoint", &[&[0x80], &[0x81], &[0x82], &[0x83], &[0x84], &file]);
    write("forward", &[&[3, 7, 0, 63, 47, 1, 1, 0, 0, 30, 2, 30, 1], &[2; 24], &[159; 24]]);
    write(
        "json",
        &[
            br#"{"logical_count": [[1, 2], [3, 4]]}"#,
            br#"{"x": null, "logical_count": [[[1.0, 2]], [[0, 4]]]}"#,
        ],
    );
    write(
        "jsonl",
        &[br#"{"record_type":"eplb_load_stats","version":1,"step":5,"expert_load":[[1,2]],"p2l_map":[[0,1]]}
{"record_type":"eplb_initial_mapping"}
"#],
    );
    write(
        "csv",
        &[
            b"step,layer,expert,tokens,source\n0,0,0,1,0\n0,0,1,2,1\n1,3,0,5,0\n",
            b"tokens,expert,layer\r\n\"1\",2,3\r\n",
            b"layer_id,expert_id,count\n0,0,1\n",
        ],
    );
    #[cfg(feature = "serve")]
    {
        use evenkeel::serve::{Loads, Phase, Step, binary};
        let step = |id: u64| Step { id, counts: [0, 1, 127, 128, 300, u32::MAX].into() };
        let loads =
            Loads { phase: Phase::Decode, layers: vec![3, 9], experts: 3, steps: vec![step(5), step(6)] };
        let json = serde_json::to_vec(&loads.to_body()).unwrap();
        write("loads", &[&binary::encode(&loads), &json]);
    }
    #[cfg(feature = "parquet")]
    {
        let folder = trace_support::Folder::new();
        let labels = ["0", "a", "2"].map(String::from).to_vec();
        let trace = evenkeel::trace::Trace::from_loads(3, vec![0, 2], labels, (0..18).collect()).unwrap();
        let out = folder.path().join("t.parquet");
        evenkeel::trace::write(&trace, &out).unwrap();
        write("parquet", &[&std::fs::read(out).unwrap()]);
    }
}
