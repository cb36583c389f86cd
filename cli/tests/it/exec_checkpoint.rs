//! Weights in the naming schemes of published checkpoints, written here and read back. Also broken files.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::exec_support::small;
use evenkeel::model::MoeModel;
use evenkeel_exec::checkpoint::{Checkpoint, TensorNaming};
use evenkeel_exec::router::Router;
use evenkeel_exec::weights::{Dtype, ExpertWeights, Matrix, RandomWeights, WeightSource};
use safetensors::tensor::{Dtype as Stored, TensorView, serialize_to_file};
use std::fs;
use std::path::Path;

/// Tensor to write.
struct Out(String, Stored, Vec<usize>, Vec<u8>);

fn f32s(name: String, shape: &[usize], numbers: &[f32]) -> Out {
    Out(name, Stored::F32, shape.to_vec(), numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
}

fn matrix(name: String, shape: [usize; 2], matrix: &Matrix) -> Out {
    let numbers = matrix.to_f32();
    if matrix.dtype() == Dtype::F32 {
        return f32s(name, &shape, &numbers);
    }
    // A bf16 is the upper half of the `f32` with the same value.
    let half = |x: &f32| ((x.to_bits() >> 16) as u16).to_le_bytes();
    Out(name, Stored::BF16, shape.to_vec(), numbers.iter().flat_map(half).collect())
}

fn write(path: &Path, tensors: &[Out]) {
    let views = tensors.iter().map(|Out(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

fn three(names: [String; 3], expert: &ExpertWeights, hidden: usize) -> [Out; 3] {
    let inner = expert.up.len() / hidden;
    let [gate, up, down] = names;
    [
        matrix(gate, [inner, hidden], expert.gate.as_ref().unwrap()),
        matrix(up, [inner, hidden], &expert.up),
        matrix(down, [hidden, inner], &expert.down),
    ]
}

/// Writes a checkpoint of two MoE layers, ids 1 and 2, over two files, in the naming of Mixtral or of Qwen
/// and DeepSeek.
fn publish(folder: &Path, model: MoeModel, weights: &RandomWeights, mixtral: bool) {
    let hidden = model.hidden as usize;
    for layer in 0..2 {
        let of = |rest: String| format!("model.layers.{}.{rest}", layer + 1);
        let mut out = vec![f32s(
            of("post_attention_layernorm.weight".into()),
            &[hidden],
            &weights.norm_weights(layer).unwrap(),
        )];
        let router = if mixtral { "block_sparse_moe.gate" } else { "mlp.gate" };
        let gate = weights.router_weights(layer).unwrap();
        out.push(matrix(of(format!("{router}.weight")), [model.experts, hidden], &gate.weight));
        if model.name == "deepseek-v3" {
            let bias: Vec<f32> = (0..model.experts).map(|e| e as f32 / 8.0).collect();
            out.push(f32s(of("mlp.gate.e_score_correction_bias".into()), &[model.experts], &bias));
        }
        for e in 0..model.experts {
            let names = if mixtral {
                ["w1", "w3", "w2"].map(|m| of(format!("block_sparse_moe.experts.{e}.{m}.weight")))
            } else {
                ["gate_proj", "up_proj", "down_proj"].map(|m| of(format!("mlp.experts.{e}.{m}.weight")))
            };
            out.extend(three(names, &weights.expert_weights(layer, e).unwrap(), hidden));
        }
        if let Some(shared) = weights.shared_weights(layer).unwrap() {
            let names =
                ["gate_proj", "up_proj", "down_proj"].map(|m| of(format!("mlp.shared_experts.{m}.weight")));
            out.extend(three(names, &shared, hidden));
        }
        write(&folder.join(format!("model-0000{layer}.safetensors")), &out);
    }
}

fn random(model: MoeModel, dtype: Dtype) -> RandomWeights {
    RandomWeights { model, width: model.experts, dtype, seed: 5 }
}

#[test]
fn published_names_are_read_back() {
    for (name, mixtral) in [
        ("mixtral-8x7b", true),
        ("qwen3-30b-a3b", false),
        ("deepseek-v2-lite", false),
        ("deepseek-v3", false),
    ] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let folder = tempfile::tempdir().unwrap();
            let model = small(name, 4, 2);
            let written = random(model, dtype);
            publish(folder.path(), model, &written, mixtral);
            let read = Checkpoint::open(folder.path(), model, dtype).unwrap();
            assert_eq!(read.layer_ids(), [1, 2]);
            assert_eq!(read.naming(), if mixtral { TensorNaming::Mixtral } else { TensorNaming::Qwen });
            for layer in 0..2 {
                for e in 0..4 {
                    assert_eq!(
                        read.expert_weights(layer, e).unwrap(),
                        written.expert_weights(layer, e).unwrap(),
                        "{name}"
                    );
                }
                assert_eq!(read.norm_weights(layer).unwrap(), written.norm_weights(layer).unwrap());
                assert_eq!(read.shared_weights(layer).unwrap(), written.shared_weights(layer).unwrap());
                let gate = read.router_weights(layer).unwrap();
                assert_eq!(gate.bias, written.router_weights(layer).unwrap().bias);
                let selection: &[f64] = if name == "deepseek-v3" { &[0.0, 0.125, 0.25, 0.375] } else { &[] };
                assert_eq!(gate.selection, selection);
                if dtype == Dtype::F32 {
                    assert_eq!(gate.weight, written.router_weights(layer).unwrap().weight);
                }
            }
            assert!(
                read.expert_weights(2, 0)
                    .unwrap_err()
                    .to_string()
                    .contains("the checkpoint has 2 layers with experts")
            );
            assert!(read.expert_weights(0, 4).is_err());
        }
    }
}

/// Writes gpt-oss, in four bits as published, or in plain numbers as converted by others.
fn gpt_oss(folder: &Path, plain: bool) -> (MoeModel, Vec<ExpertWeights>) {
    let model = MoeModel { hidden: 64, intermediate: 32, ..small("gpt-oss-20b", 3, 2) };
    let of = |rest: &str| format!("model.layers.0.{rest}");
    // Four bits hold every number exactly, under a scale of 2 or a half per block.
    let sizes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    let bits = |tensor: usize, at: usize| ((at * 7 + at / 5 + tensor * 3) % 16) as u8;
    let scale = |at: usize| if (at / 32).is_multiple_of(2) { 2.0 } else { 0.5 };
    let value = |tensor: usize, at: usize| sizes[usize::from(bits(tensor, at))] * scale(at);
    let mut out = vec![
        f32s(of("post_attention_layernorm.weight"), &[64], &[1.0; 64]),
        f32s(of("mlp.router.weight"), &[3, 64], &[0.25; 192]),
        f32s(of("mlp.router.bias"), &[3], &[0.5, 0.0, -0.5]),
        f32s(of("mlp.experts.gate_up_proj_bias"), &[3, 64], &(0..192).map(|i| i as f32).collect::<Vec<_>>()),
        f32s(of("mlp.experts.down_proj_bias"), &[3, 64], &(0..192).map(|i| -(i as f32)).collect::<Vec<_>>()),
    ];
    for (tensor, (name, rows, columns)) in
        [("gate_up_proj", 64, 64), ("down_proj", 64, 32)].into_iter().enumerate()
    {
        let name = of(&format!("mlp.experts.{name}"));
        let all = 3 * rows * columns;
        if plain {
            let turned = |at: usize| {
                let (expert, c, r) = (at / (rows * columns), at / rows % columns, at % rows);
                value(tensor, (expert * rows + r) * columns + c)
            };
            out.push(f32s(name, &[3, columns, rows], &(0..all).map(turned).collect::<Vec<_>>()));
            continue;
        }
        let blocks = (0..all / 2).map(|b| bits(tensor, 2 * b) | bits(tensor, 2 * b + 1) << 4).collect();
        let scales = (0..all / 32).map(|b| if b % 2 == 0 { 128 } else { 126 }).collect();
        out.push(Out(format!("{name}_blocks"), Stored::U8, vec![3, rows, columns / 32, 16], blocks));
        out.push(Out(format!("{name}_scales"), Stored::U8, vec![3, rows, columns / 32], scales));
    }
    write(&folder.join("model.safetensors"), &out);
    let expert = |e: usize| {
        let rows = |which: usize| {
            let at = move |i: usize, h: usize| (e * 64 + 2 * i + which) * 64 + h;
            (0..32).flat_map(move |i| (0..64).map(move |h| at(i, h))).map(|at| value(0, at)).collect()
        };
        let bias = |which: usize| (0..32).map(|i| (e * 64 + 2 * i + which) as f32).collect();
        ExpertWeights {
            gate: Some(Matrix::new(Dtype::F32, rows(0))),
            up: Matrix::new(Dtype::F32, rows(1)),
            down: Matrix::new(Dtype::F32, (0..64 * 32).map(|at| value(1, e * 64 * 32 + at)).collect()),
            biases: Some(evenkeel_exec::weights::Biases {
                gate: bias(0),
                up: bias(1),
                down: (0..64).map(|h| -((e * 64 + h) as f32)).collect(),
            }),
        }
    };
    (model, (0..3).map(expert).collect())
}

#[test]
fn gpt_oss_is_unpacked_and_taken_apart() {
    for plain in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (model, experts) = gpt_oss(folder.path(), plain);
        let read = Checkpoint::open(folder.path(), model, Dtype::F32).unwrap();
        assert_eq!(read.naming(), TensorNaming::GptOss);
        for (e, expected) in experts.iter().enumerate() {
            assert_eq!(read.expert_weights(0, e).unwrap(), *expected, "expert {e}, plain {plain}");
        }
        let gate = read.router_weights(0).unwrap();
        assert_eq!((gate.bias.as_slice(), gate.selection.len()), (&[0.5, 0.0, -0.5][..], 0));
        assert_eq!(Router::for_model(&model), Router::TopkSoftmax);
    }
}

#[test]
#[allow(clippy::float_cmp, reason = "these are exact")]
fn fp8_comes_with_its_scales() {
    let folder = tempfile::tempdir().unwrap();
    let model = MoeModel { hidden: 130, intermediate: 3, shared: 0, ..small("deepseek-v3", 1, 1) };
    let of = |rest: &str| format!("model.layers.7.mlp.{rest}");
    let mut out = vec![f32s(of("gate.weight"), &[1, 130], &[0.0; 130])];
    for (m, shape) in [("gate_proj", [3, 130]), ("up_proj", [3, 130]), ("down_proj", [130, 3])] {
        // 0x38 is 1, 0xc0 is -2.
        let bytes = (0..390).map(|i| if i % 2 == 0 { 0x38 } else { 0xc0 }).collect();
        out.push(Out(of(&format!("experts.0.{m}.weight")), Stored::F8_E4M3, shape.to_vec(), bytes));
        let scales = shape.map(|n: usize| n.div_ceil(128));
        out.push(f32s(of(&format!("experts.0.{m}.weight_scale_inv")), &scales, &[0.5, 4.0]));
    }
    write(&folder.path().join("model.safetensors"), &out);
    let expert = Checkpoint::open(folder.path(), model, Dtype::F32).unwrap().expert_weights(0, 0).unwrap();
    let (up, down) = (expert.up.to_f32(), expert.down.to_f32());
    assert_eq!([up[0], up[1], up[127], up[128], up[129], up[130]], [0.5, -1.0, -1.0, 4.0, -8.0, 0.5]);
    assert_eq!([down[0], down[127 * 3], down[128 * 3], down[129 * 3 + 2]], [0.5, -1.0, 4.0, -8.0]);
    // Numbers and scale are finite, their product is not.
    out[2].3 = f32::MAX.to_le_bytes().repeat(2);
    write(&folder.path().join("model.safetensors"), &out);
    let infinite =
        Checkpoint::open(folder.path(), model, Dtype::F32).unwrap().expert_weights(0, 0).unwrap_err();
    assert!(infinite.to_string().contains("not finite"), "{infinite}");
}

#[test]
fn broken_files_are_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = small("qwen3-30b-a3b", 4, 2);
    let open = |model| Checkpoint::open(folder.path(), model, Dtype::Bf16);
    let message = |model| open(model).unwrap_err().to_string();
    assert!(message(model).contains("no .safetensors file"));
    assert!(
        Checkpoint::open(&folder.path().join("none"), model, Dtype::F32)
            .unwrap_err()
            .to_string()
            .contains("none")
    );

    write(&path, &[f32s("model.layers.0.mlp.gate.weight".into(), &[4, 64], &[0.0; 256])]);
    let whole = fs::read(&path).unwrap();
    // A cut at any place, or a change of any byte of the header, gives an error or a checkpoint, never a
    // panic.
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(message(model).contains("model.safetensors"), "cut at {cut}");
    }
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for other in [0, b'"', b'9', 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = other;
            fs::write(&path, &bytes).unwrap();
            if let Ok(open) = open(model) {
                let _ = (
                    open.router_weights(0),
                    open.expert_weights(0, 1),
                    open.norm_weights(0),
                    open.shared_weights(0),
                );
            }
        }
    }
    let huge = format!(r#"{{"a":{{"dtype":"F32","shape":[{},16],"data_offsets":[0,64]}}}}"#, u64::MAX / 4);
    let mut bytes = (huge.len() as u64).to_le_bytes().to_vec();
    bytes.extend(huge.as_bytes());
    bytes.extend([0; 64]);
    fs::write(&path, bytes).unwrap();
    assert!(message(model).contains("not a whole safetensors file"));

    fs::write(&path, &whole).unwrap();
    assert!(
        open(model)
            .unwrap()
            .expert_weights(0, 0)
            .unwrap_err()
            .to_string()
            .contains("no tensor model.layers.0.mlp.experts.0")
    );
    let wider = MoeModel { hidden: 128, ..model };
    let shape = open(wider).unwrap().router_weights(0).unwrap_err().to_string();
    assert!(shape.contains("[4, 64]") && shape.contains("[4, 128]"), "{shape}");
    fs::copy(&path, folder.path().join("again.safetensors")).unwrap();
    assert!(message(model).contains("as well"));
    fs::remove_file(folder.path().join("again.safetensors")).unwrap();
    write(&path, &[f32s("model.layers.0.mlp.gate.weight".into(), &[4, 64], &[f32::NAN; 256])]);
    assert!(open(model).unwrap().router_weights(0).unwrap_err().to_string().contains("not finite"));
    write(&path, &[f32s("something.weight".into(), &[1], &[0.0])]);
    assert!(message(model).contains("no layer with a router"));
}

#[test]
fn a_run_takes_them() {
    let folder = tempfile::tempdir().unwrap();
    let model = small("qwen3-30b-a3b", 4, 2);
    publish(folder.path(), model, &random(model, Dtype::Bf16), false);
    let run = |layers: &str| {
        let args = "run --model qwen3-30b-a3b --hidden 64 --intermediate 48 --experts 4 --experts-per-token 2 --ranks 2 \
                    --steps 2 --check --json --num-layers";
        let args = args.split_whitespace().chain([layers, "--weights", folder.path().to_str().unwrap()]);
        std::process::Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
    };
    let good = run("2");
    let document: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(document["check"]["ok"], true);
    let bad = run("3");
    let message = String::from_utf8(bad.stderr).unwrap();
    assert!(
        bad.status.code() == Some(1) && message.contains("the checkpoint has 2 layers with experts"),
        "{message}"
    );
}
