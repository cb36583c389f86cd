//! Predicted times of exchanges, compared with published ones, with calculations by hand and with each other.
//!
//! `cargo test -p evenkeel-cli --test it -- --nocapture network::` prints the tables of docs/network.md.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::skip_support::skipped;
use evenkeel::cluster::{Cluster, Network};
use evenkeel::model::MoeModel;
use evenkeel::place::{self, Policy};
use evenkeel::split::{Roofline, SplitMethod};
use evenkeel_simulate::network::{
    LayerTime, LinkRows, PredictionInput, RowAggregation, RowBytes, RowTraffic, StepCostModel,
    StepPrediction, predict_steps,
};
use evenkeel_simulate::{SimulationConfig, SimulationResult, simulate};
use evenkeel_trace::{self as trace, Batching, ReadOptions, Trace};
use proptest::prelude::*;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const HIDDEN: u64 = 7168;
/// Bytes of a row in DeepEP's own benchmarks: FP8 with its scales, and BF16.
const FP8: u64 = HIDDEN + HIDDEN / 128 * 4;
const BF16: u64 = 2 * HIDDEN;
const EXPERTS: usize = 256;
const TOP_K: usize = 8;

fn pace(network: &str, one_copy: RowAggregation, bytes: [u64; 2]) -> StepCostModel {
    let model: MoeModel = "deepseek-v3".parse().unwrap();
    assert_eq!((model.experts, model.top_k, model.hidden), (EXPERTS, TOP_K, HIDDEN));
    let expert = Roofline { read: 1_000_000, token: 1_000, tile: 1 };
    StepCostModel::for_model(network.parse().unwrap(), &model, std::sync::Arc::new(expert))
        .one_copy(one_copy)
        .bytes(RowBytes { dispatch: bytes[0], combine: bytes[1], visit: 0, count: 8 })
        .shared(0)
        .layers(1)
}

fn nodes(ranks: usize) -> usize {
    ranks.div_ceil(8)
}

/// Returns the prediction for a trace of counts on the contiguous placement, evenly split.
fn contiguous(trace: &Trace, cluster: Cluster, pace: &StepCostModel) -> StepPrediction {
    let policies: Vec<Box<dyn Policy>> = vec![place::policy("contiguous", 1, &cluster).unwrap()];
    let config = SimulationConfig::first_part(trace, cluster, vec![SplitMethod::Even], 0.5).unwrap();
    let outcome = simulate(trace, &config, &policies, &()).unwrap();
    predict_steps(PredictionInput::Counts(trace), &config, &outcome, pace, &()).unwrap().remove(0)
}

/// Returns two steps of one layer in which all experts have the same load.
fn uniform(experts: usize, load: u64) -> Trace {
    let steps = vec!["0".into(), "1".into()];
    Trace::from_loads(experts, vec![0], steps, vec![load; 2 * experts]).unwrap()
}

fn off(predicted: f64, published: f64) -> f64 {
    predicted / published - 1.0
}

/// Returns the times of a layer with 128 tokens per rank and a row per visit.
fn low_latency(ranks: usize, network: &str) -> LayerTime {
    let cluster = Cluster::new(ranks, nodes(ranks), EXPERTS, 0).unwrap();
    // Each row carries 16 more bytes.
    let pace = pace(network, RowAggregation::Visit, [FP8 + 16, BF16]);
    contiguous(&uniform(EXPERTS, (128 * ranks * TOP_K / EXPERTS) as u64), cluster, &pace).layer
}

/// Source: DeepEP, docs/legacy.md, low-latency kernels on H800, 128 tokens per rank. `ib-ndr` is fitted to
/// dispatch at EP16 and EP256, `nvlink4-h800-ll` to dispatch at EP8. The nine other figures are predicted.
#[test]
fn low_latency_kernels_of_deepep_are_predicted() {
    let published = [
        (8, 77.0, 114.0),
        (16, 118.0, 195.0),
        (32, 155.0, 273.0),
        (64, 173.0, 314.0),
        (128, 192.0, 369.0),
        (256, 194.0, 360.0),
    ];
    println!("EP   dispatch us  published      off   combine us  published      off");
    for (ranks, dispatch, combine) in published {
        let layer = low_latency(ranks, "h800-ll");
        let errors = [off(layer.dispatch, dispatch), off(layer.combine, combine)];
        println!(
            "{ranks:3}  {:11.1}  {dispatch:9}  {:+6.1} %  {:10.1}  {combine:9}  {:+6.1} %",
            layer.dispatch,
            100.0 * errors[0],
            layer.combine,
            100.0 * errors[1]
        );
        let fitted = [8, 16, 256].contains(&ranks);
        assert!(errors[0].abs() < if fitted { 0.01 } else { 0.05 } && errors[1].abs() < 0.11, "{errors:?}");
    }
}

/// Source: UCCL-EP, ep/README.md, low-latency kernels over EFA on p5en. The alpha of `efa-v3` is fitted to
/// dispatch at EP16. In larger groups its messages, one per visit, are the bottleneck, which the preset does
/// not model. docs/network.md states that.
#[test]
fn low_latency_kernels_over_efa_are_predicted_for_small_groups_alone() {
    println!("p5en: EP   dispatch us  published      off   combine us  published      off");
    for (ranks, dispatch, combine) in [(16, 226.0, 293.0), (32, 465.0, 694.0)] {
        let layer = low_latency(ranks, "p5en");
        let errors = [off(layer.dispatch, dispatch), off(layer.combine, combine)];
        println!(
            "{ranks:8}  {:12.1}  {dispatch:9}  {:+6.1} %  {:11.1}  {combine:9}  {:+6.1} %",
            layer.dispatch,
            100.0 * errors[0],
            layer.combine,
            100.0 * errors[1]
        );
        assert!(ranks > 16 || (errors[0].abs() < 0.01 && errors[1].abs() < 0.06), "{errors:?}");
    }
}

/// A generator with a fixed definition, so that tables do not change.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Returns the experts of one token: the `TOP_K` best of the best four groups, one group per node, as
/// DeepEP's benchmark draws them.
fn grouped(dice: &mut Dice, nodes: usize) -> impl Iterator<Item = i32> + use<> {
    let mut groups: Vec<Vec<(f64, usize)>> = vec![Vec::new(); nodes];
    (0..EXPERTS).for_each(|expert| groups[expert * nodes / EXPERTS].push((dice.next(), expert)));
    let best = |group: &Vec<(f64, usize)>| group.iter().map(|score| score.0).fold(0.0, f64::max);
    groups.sort_by(|a, b| best(b).total_cmp(&best(a)));
    let mut scores: Vec<(f64, usize)> = groups.into_iter().take(4).flatten().collect();
    scores.select_nth_unstable_by(TOP_K, |a, b| b.0.total_cmp(&a.0));
    scores.into_iter().take(TOP_K).map(|(_, expert)| expert as i32)
}

/// Returns the traffic of 4096 tokens per rank in one layer, and the mean token's rows: ranks and nodes that
/// serve it, its own included.
fn normal(ranks: usize) -> (RowTraffic, [f64; 2]) {
    const TOKENS: usize = 4096;
    let cluster = Cluster::new(ranks, nodes(ranks), EXPERTS, 0).unwrap();
    let mut traffic = RowTraffic::new(&cluster, RowAggregation::Node);
    let (mut dice, mut served) = (Dice(1), [0usize; 2]);
    for source in 0..ranks {
        let slots: Vec<i32> = (0..TOKENS).flat_map(|_| grouped(&mut dice, nodes(ranks))).collect();
        for token in slots.chunks(TOP_K) {
            for (served, width) in served.iter_mut().zip([EXPERTS / ranks, EXPERTS / nodes(ranks)]) {
                let mut all: Vec<usize> = token.iter().map(|&slot| slot as usize / width).collect();
                all.sort_unstable();
                all.dedup();
                *served += all.len();
            }
        }
        traffic.add_source(&slots, TOP_K, source, EXPERTS / ranks);
    }
    (traffic, served.map(|rows| rows as f64 / (TOKENS * ranks) as f64))
}

fn layer(ranks: usize, network: &str, traffic: &RowTraffic) -> LayerTime {
    let cluster = Cluster::new(ranks, nodes(ranks), EXPERTS, 0).unwrap();
    pace(network, RowAggregation::Node, [FP8, BF16]).layer_time(&cluster, traffic, &[0; EXPERTS], 0.0, false)
}

/// Returns the bandwidth as published: rows times their bytes over time. The rows are those to nodes (on one
/// node, those to ranks), own ones included.
fn logical(us: f64, rows: [f64; 2], ranks: usize, bytes: u64) -> f64 {
    let rows = if ranks <= 8 { rows[0] } else { rows[1] };
    4096.0 * rows * bytes as f64 / us / 1e3
}

/// Source: DeepEP, docs/legacy.md, normal kernels on H800, 4096 tokens per rank. `nvlink4-h800` is fitted to
/// dispatch at EP8. `ib-ndr` comes from the low-latency kernels. The seven other figures are predicted.
/// Second source: UCCL-EP, ep/README.md, the same on MI300X with ConnectX-7. `xgmi` is fitted to dispatch at
/// EP8.
#[test]
fn normal_kernels_are_predicted() {
    let deepep = [(8, 153.0, 158.0), (16, 43.0, 43.0), (32, 58.0, 57.0), (64, 51.0, 50.0)];
    let uccl = [(8, 260.0, 304.0), (16, 74.0, 78.0), (32, 60.0, 60.0), (64, 52.0, 51.0)];
    for (network, published, bound) in [("h800", deepep, 0.13), ("mi300x", uccl, 0.14)] {
        println!("{network}: EP   dispatch GB/s  published      off   combine GB/s  published      off");
        for (ranks, dispatch, combine) in published {
            let (traffic, rows) = normal(ranks);
            let layer = layer(ranks, network, &traffic);
            let rates = [(layer.dispatch, FP8), (layer.combine, BF16)]
                .map(|(us, bytes)| logical(us, rows, ranks, bytes));
            let errors = [off(rates[0], dispatch), off(rates[1], combine)];
            println!(
                "{ranks:10}  {:14.1}  {dispatch:9}  {:+6.1} %  {:13.1}  {combine:9}  {:+6.1} %",
                rates[0],
                100.0 * errors[0],
                rates[1],
                100.0 * errors[1]
            );
            assert!(errors.iter().all(|error| error.abs() < bound), "{network} {ranks}: {errors:?}");
        }
    }
}

/// Source: UCCL-EP, ep/README.md, normal kernels over EFA, microseconds. `efa-v3` is fitted to dispatch at
/// EP32 on p5en. Small groups and p5en's combine are far off, as docs/network.md states. The test asserts all
/// other figures.
#[test]
fn large_groups_over_efa_are_predicted() {
    let p5en = [(16, 1196.0, 6379.0), (32, 2022.0, 4899.0)];
    let p6 = [(16, 1141.0, 1965.0), (32, 2072.0, 3724.0)];
    for (network, published) in [("p5en", p5en), ("p6-b200", p6)] {
        println!("{network}: EP   dispatch us  published      off   combine us  published      off");
        for (ranks, dispatch, combine) in published {
            let layer = layer(ranks, network, &normal(ranks).0);
            let errors = [off(layer.dispatch, dispatch), off(layer.combine, combine)];
            println!(
                "{ranks:10}  {:12.0}  {dispatch:9}  {:+6.1} %  {:11.0}  {combine:9}  {:+6.1} %",
                layer.dispatch,
                100.0 * errors[0],
                layer.combine,
                100.0 * errors[1]
            );
            assert!(ranks < 32 || errors[0].abs() < 0.06, "{network} {errors:?}");
            assert!(ranks < 32 || network == "p5en" || errors[1].abs() < 0.06, "{network} {errors:?}");
        }
    }
}

/// Two nodes of two ranks, one expert each, top-2, and 12 tokens of which each expert serves 6.
#[test]
fn a_layer_by_hand() {
    let network = "h800,node.alpha_us=1,node.gb_s=0.1,cross.alpha_us=10,cross.gb_s=0.01,cross.message_us=2";
    let cluster = Cluster::new(4, 2, 4, 0).unwrap();
    let pace = pace(network, RowAggregation::Visit, [100, 200]).top_k(2).experts(4);
    let layer = contiguous(&uniform(4, 6), cluster, &pace).layer;
    // Each rank has 3 tokens, which send half a visit to every expert: 1.5 rows within the node, 3 to the
    // other node. Within the node: 1 + 150 / 100 us. Between nodes: 10 us + 2 messages of 2 us + 300 bytes at
    // 10 bytes per us.
    assert!((layer.dispatch - 44.0).abs() < 1e-6, "{layer:?}");
    assert!((layer.combine - 74.0).abs() < 1e-6);
    // Reading the weights takes longer than multiplying an expert's 6 tokens.
    assert!((layer.experts - 1.0).abs() < 1e-6);
    assert!((layer.total - 119.0).abs() < 1e-6 && (layer.exposed - 118.0).abs() < 1e-6);
    assert!((layer.balanced - layer.total).abs() < 1e-6);
    // One copy per rank equals one per visit if a rank has one expert. With one per node, a token goes to the
    // other node unless both of its experts are on this one: 5 of 6 tokens, 2.5 rows, and one message.
    let by_node = contiguous(&uniform(4, 6), cluster, &pace.clone().one_copy(RowAggregation::Node));
    assert!((by_node.layer.dispatch - 37.0).abs() < 1e-6, "{:?}", by_node.layer);
    // Two halves alternate: twice the longer of both times.
    let halves = contiguous(&uniform(4, 6), cluster, &pace.overlap(true).other_us(500.0)).layer;
    assert!((halves.total - 2.0 * (250.0 + 1.0)).abs() < 1e-6 && halves.exposed.abs() < 1e-6, "{halves:?}");
}

/// Returns the predictions of every policy and split on a trace of counts.
fn rows(
    trace: &Trace,
    cluster: Cluster,
    pace: &StepCostModel,
) -> (SimulationConfig, SimulationResult, Vec<StepPrediction>) {
    let policies: Vec<Box<dyn Policy>> =
        ["contiguous", "eplb"].map(|name| place::policy(name, 1, &cluster).unwrap()).into();
    let config =
        SimulationConfig::first_part(trace, cluster, vec![SplitMethod::Even, SplitMethod::Exact], 0.5)
            .unwrap();
    let outcome = simulate(trace, &config, &policies, &()).unwrap();
    let rows = predict_steps(PredictionInput::Counts(trace), &config, &outcome, pace, &()).unwrap();
    (config, outcome, rows)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_must_hold_of_every_prediction(
        loads in prop::collection::vec(0u64..200, 2 * 2 * 16),
        nodes in prop::sample::select(vec![1usize, 2, 4, 8]),
        overlap in any::<bool>(),
    ) {
        prop_assume!(loads[32..48].iter().any(|&load| load > 0) && loads[48..].iter().any(|&load| load > 0));
        let trace = Trace::from_loads(16, vec![3, 4], vec!["0".into(), "1".into()], loads).unwrap();
        let cluster = Cluster::new(8, nodes, 16, 8).unwrap();
        let base = pace("h800", RowAggregation::Rank, [1000, 2000]).experts(16).top_k(2).overlap(overlap);
        let (_, _, by_rank) = rows(&trace, cluster, &base);
        for row in &by_rank {
            let time = row.layer;
            prop_assert!(time.total.is_finite() && time.balanced <= time.total * (1.0 + 1e-9));
            prop_assert!((0.0..=1.0).contains(&row.communication_share()) && (-1e-9..1.0).contains(&row.imbalance_share()));
            prop_assert!(nodes > 1 || row.rows.cross == 0.0);
            prop_assert!(nodes < 8 || row.rows.in_node == 0.0);
            let sum = time.communication_us() + time.experts + time.other;
            let adds_up = (time.total - sum).abs() < 1e-6 * sum;
            prop_assert!(adds_up || (overlap && time.total < sum));
        }
        let bytes = RowBytes { dispatch: 5000, combine: 9000, ..base.bytes };
        let (_, _, heavier) = rows(&trace, cluster, &base.clone().bytes(bytes));
        for (heavy, light) in heavier.iter().zip(&by_rank) {
            prop_assert!(heavy.layer.total >= light.layer.total);
            let bits = |rows: LinkRows| (rows.in_node.to_bits(), rows.cross.to_bits());
            prop_assert_eq!(bits(heavy.rows), bits(light.rows));
        }
        let (_, _, by_visit) = rows(&trace, cluster, &base.clone().one_copy(RowAggregation::Visit));
        let (_, _, by_node) = rows(&trace, cluster, &base.one_copy(RowAggregation::Node));
        for ((visit, rank), node) in by_visit.iter().zip(&by_rank).zip(&by_node) {
            // Weights match frequencies up to a few per mille.
            let most = 1.01;
            prop_assert!(rank.rows.in_node <= visit.rows.in_node * most);
            prop_assert!(rank.rows.cross <= visit.rows.cross * most + 1e-9);
            prop_assert!(node.rows.cross <= rank.rows.cross * most + 1e-9, "{:?} {:?}", node.rows, rank.rows);
        }
    }
}

/// The tokens are drawn as the expectation assumes. The counted rows must be the expected ones.
#[test]
fn expected_rows_are_those_counted_where_tokens_are_independent() {
    let (experts, top_k, tokens, steps) = (32, 4, 2048, 4);
    let mut dice = Dice(7);
    // Unequal experts: the best by noise plus a bias.
    let mut ids = Vec::new();
    for _ in 0..tokens * steps {
        let mut scores: Vec<(f64, i32)> =
            (0..experts).map(|e| (-dice.next().ln() / (1.0 + f64::from(e) / 8.0), e)).collect();
        scores.sort_by(|a, b| a.0.total_cmp(&b.0));
        ids.extend(scores[..top_k].iter().map(|&(_, e)| e as u8));
    }
    let dir = crate::trace_support::Folder::new();
    let file = dir.file("ids.npy", &crate::trace_support::npy("|u1", &[tokens * steps, 1, top_k], &ids));
    let options = ReadOptions::default().batching(Batching::Prefill { tokens });
    compared(&[file], &options, &["contiguous", "eplb", "lplb:ring"], 0.03);
}

/// Recorded tokens are not independent. docs/network.md has the table.
#[test]
fn expected_rows_are_near_those_counted_in_recordings() {
    let Some(root) = std::env::var_os("EVENKEEL_REAL_TRACES").map(PathBuf::from) else {
        skipped("no real traces");
        return;
    };
    let prefill = ReadOptions::default().batching(Batching::Prefill { tokens: 512 });
    let decode = ReadOptions::default().batching(Batching::Decode { in_flight: 64 });
    compared(&[root.join("gptoss20b-decode")], &decode, &["contiguous", "eplb"], 0.15);
    compared(&[root.join("deepseek-v2-lite-domains")], &prefill, &["contiguous", "eplb"], 0.15);
}

fn compared(files: &[PathBuf], options: &ReadOptions, policies: &[&str], bound: f64) {
    let tokens = trace::read_tokens(files, options, &()).unwrap();
    let trace = tokens.trace();
    let cluster = Cluster::new(16, 4, trace.experts(), 16).unwrap();
    let policies: Vec<Box<dyn Policy>> =
        policies.iter().map(|name| place::policy(name, 1, &cluster).unwrap()).collect();
    let config = SimulationConfig::first_part(trace, cluster, vec![SplitMethod::Exact], 0.4).unwrap();
    let outcome = simulate(trace, &config, &policies, &()).unwrap();
    println!("{}: rows per rank in node and to others, counted and expected", files[0].display());
    for one_copy in [RowAggregation::Visit, RowAggregation::Rank, RowAggregation::Node] {
        let pace = pace("h800", one_copy, [1000, 2000]).experts(trace.experts()).top_k(tokens.top_k());
        let counted = predict_steps(PredictionInput::Tokens(&tokens), &config, &outcome, &pace, &()).unwrap();
        let expected = predict_steps(PredictionInput::Counts(trace), &config, &outcome, &pace, &()).unwrap();
        for (counted, expected) in counted.iter().zip(&expected) {
            let name = &outcome.planned[counted.planned].policy;
            let (expected, counted) = (expected.rows, counted.rows);
            let errors = [off(expected.in_node, counted.in_node), off(expected.cross, counted.cross)];
            println!(
                "{one_copy:6} {name:12} {:8.2} {:8.2} {:+5.1} %   {:8.2} {:8.2} {:+5.1} %",
                counted.in_node,
                expected.in_node,
                100.0 * errors[0],
                counted.cross,
                expected.cross,
                100.0 * errors[1]
            );
            assert!(errors.iter().all(|error| error.abs() < bound), "{one_copy} {name}: {errors:?}");
        }
    }
}

fn evenkeel(args: &str) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args.split_whitespace()).output().unwrap()
}

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");

#[test]
fn the_command_predicts_and_is_as_it_was_without() {
    let base = format!("simulate {SAMPLE} --layers 0 --ranks 8 --nodes 2 --policies contiguous,eplb --json");
    let document = |args: &str| -> Value {
        let output = evenkeel(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert!(document(&base).get("network").is_none());
    let network =
        "--network p5en,cross.alpha_us=10 --model gpt-oss-20b,h200 --one-copy-per node --extra-layer-us 7";
    let study = base.replace("simulate", "simulate network");
    let d = &document(&format!("{study} {network}"))["network"];
    assert_eq!(
        (&d["rows"], &d["network"]["cross"]["alpha_us"]),
        (&Value::from("expected"), &Value::from(10.0))
    );
    assert_eq!((&d["bytes"]["dispatch"], &d["layers"]), (&Value::from(5760), &Value::from(24)));
    let rows = d["results"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let layer = &row["layer_us"];
        let step = 24.0 * layer["total"].as_f64().unwrap();
        assert!((row["step_us"]["mean"].as_f64().unwrap() / step - 1.0).abs() < 1e-9);
        assert!((layer["other"].as_f64().unwrap() - 7.0).abs() < 1e-9);
        let rate = row["tokens_per_step"].as_f64().unwrap() / step * 1e6;
        assert!((row["tokens_per_s"].as_f64().unwrap() / rate - 1.0).abs() < 1e-9);
    }
}

#[test]
fn what_cannot_be_predicted_is_one_error() {
    let dir = crate::trace_support::Folder::new();
    let bad = dir.file("net.json", br#"{"format":"evenkeel.network/1","name":"x","node":{"alpha_us":1,"gb_s":0},"cross":{"alpha_us":1,"gb_s":1}}"#);
    let bad = bad.display().to_string();
    for (args, part) in [
        ("--network infiniband --model gpt-oss-20b,h100".to_owned(), "nvlink4-h800"),
        ("--network h800".to_owned(), "--model"),
        ("--model gpt-oss-20b,h100 --efficiency 0.5".to_owned(), "--network"),
        ("--model gpt-oss-20b,h100 --extra-layer-us 5".to_owned(), "--network"),
        ("--one-copy-per node".to_owned(), "--network"),
        ("--network h800 --model gpt-oss-20b".to_owned(), "needs the GPU"),
        ("--network h800 --model deepseek-v3,h800".to_owned(), "256 experts"),
        ("--network h800 --model gpt-oss-20b,h800 --efficiency 2".to_owned(), "--efficiency 2"),
        ("--network h800 --model gpt-oss-20b,h800 --row-format int4".to_owned(), "fp8"),
        ("--network h800 --model gpt-oss-20b --expert-time missing.json".to_owned(), "missing.json"),
        ("--network no/such.json --model gpt-oss-20b,h800".to_owned(), "no/such.json"),
        (format!("--network {bad} --model gpt-oss-20b,h800"), "node.gb_s is 0"),
    ] {
        let output =
            evenkeel(&format!("simulate network {SAMPLE} --layers 0 --ranks 8 --policies contiguous {args}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(part), "{args}: {stderr}");
        assert_eq!(stderr.matches("error:").count(), 1, "{stderr}");
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn exchanges_cannot_be_measured_without_mpi() {
    let output = evenkeel("calibrate network");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("--features mpi"), "{stderr}");
}

#[test]
fn a_network_that_was_measured_is_one_that_is_read() {
    let network: Network = "h800".parse().unwrap();
    let text = serde_json::json!({ "format": "evenkeel.network/1", "name": "here", "node": network.node, "cross": network.cross });
    let dir = crate::trace_support::Folder::new();
    let file = dir.file("net.json", text.to_string().as_bytes());
    let args = |network: &str| {
        format!(
            "simulate network {SAMPLE} --layers 0 --ranks 8 --nodes 2 --policies contiguous --json --network {network} --model gpt-oss-20b,h100"
        )
    };
    let rows = |network: &str| -> Value {
        let output = evenkeel(&args(network));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        document["network"]["results"].clone()
    };
    assert_eq!(rows(&file.display().to_string()), rows("h800"));
}
