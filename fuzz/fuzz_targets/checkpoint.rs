//! Any bytes as a checkpoint in each naming scheme: weights or one error, never a panic.
//!
//! The first byte selects the form. The other bytes are a file, or they change types, shapes and numbers of a
//! complete file in some naming scheme.
#![no_main]
use evenkeel_exec::ExecError;
use evenkeel_exec::checkpoint::Checkpoint;
use evenkeel_exec::weights::{Dtype, WeightSource};
use evenkeel::model::MoeModel;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// Types of a file, with bits per number.
const DTYPES: [(&str, usize); 12] = [
    ("F32", 32),
    ("BF16", 16),
    ("F16", 16),
    ("F8_E4M3", 8),
    ("U8", 8),
    ("F64", 64),
    ("I64", 64),
    ("I8", 8),
    ("BOOL", 8),
    ("F8_E5M2", 8),
    ("F4", 4),
    ("U16", 16),
];

/// Returns tensors of one layer: the name after `model.layers.1.`, the shape, and the usual type.
fn tensors(naming: u8) -> Vec<(String, Vec<usize>, usize)> {
    let mut all = vec![("post_attention_layernorm.weight".to_owned(), vec![32], 0)];
    let router =
        ["block_sparse_moe.gate", "mlp.gate", "mlp.gate", "mlp.router", "mlp.router"][usize::from(naming)];
    all.push((format!("{router}.weight"), vec![2, 32], 1));
    let mut three = |name: String, matrices: [&str; 3], fp8: bool| {
        for (matrix, shape) in matrices.iter().zip([[64, 32], [64, 32], [32, 64]]) {
            all.push((format!("{name}.{matrix}.weight"), shape.to_vec(), if fp8 { 3 } else { 1 }));
            if fp8 {
                all.push((format!("{name}.{matrix}.weight_scale_inv"), vec![1, 1], 0));
            }
        }
    };
    let projections = ["gate_proj", "up_proj", "down_proj"];
    match naming {
        0 => (0..2).for_each(|e| three(format!("block_sparse_moe.experts.{e}"), ["w1", "w3", "w2"], false)),
        1 | 2 => {
            (0..2).for_each(|e| three(format!("mlp.experts.{e}"), projections, naming == 2));
            three("mlp.shared_experts".into(), projections, naming == 2);
            all.push(("mlp.gate.e_score_correction_bias".into(), vec![2], 0));
        }
        _ => {
            all.push(("mlp.router.bias".into(), vec![2], 1));
            for (name, rows, columns) in [("gate_up_proj", 128, 32), ("down_proj", 32, 64)] {
                if naming == 3 {
                    all.push((format!("mlp.experts.{name}"), vec![2, columns, rows], 1));
                } else {
                    all.push((format!("mlp.experts.{name}_blocks"), vec![2, rows, columns / 32, 16], 4));
                    all.push((format!("mlp.experts.{name}_scales"), vec![2, rows, columns / 32], 4));
                }
                all.push((format!("mlp.experts.{name}_bias"), vec![2, rows], 1));
            }
        }
    }
    all
}

/// Returns a file in a naming scheme. Two bytes change each tensor, the rest are its numbers.
fn changed(naming: u8, bytes: &[u8]) -> Vec<u8> {
    let (mut header, mut body) = (Vec::new(), Vec::new());
    let mut at = bytes.iter().copied();
    for (name, mut shape, usual) in tensors(naming) {
        let (dtype, how) = (usize::from(at.next().unwrap_or(0)), at.next().unwrap_or(0));
        let (dtype, bits) = DTYPES[(usual + dtype) % DTYPES.len()];
        let which = usize::from(how >> 4) % shape.len();
        match how & 15 {
            10 => continue,
            11 => shape.reverse(),
            12 => shape[which] += 1,
            13 => shape[which] = 0,
            14 => shape.push(1),
            15 => shape[which] /= 2,
            _ => {}
        }
        let from = body.len();
        body.resize(from + (shape.iter().product::<usize>() * bits).div_ceil(8), 0);
        // An offset may be wrong.
        let to = body.len() + usize::from(how == 0x99);
        header.push(format!(
            r#""model.layers.1.{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#
        ));
    }
    let numbers = &bytes[bytes.len() - at.len()..];
    if !numbers.is_empty() {
        body.iter_mut().zip(numbers.iter().cycle()).for_each(|(byte, &number)| *byte = number);
    }
    let header = format!("{{{}}}", header.join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &body].concat()
}

fn one_line<T>(answer: Result<T, ExecError>) -> Option<T> {
    answer.map_err(|error| assert!(!error.to_string().contains('\n'), "{error}")).ok()
}

static FOLDER: LazyLock<std::path::PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("evenkeel-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let file = if first & 0x80 == 0 { rest.to_vec() } else { changed(first % 5, rest) };
    std::fs::write(FOLDER.join("model.safetensors"), file).unwrap();
    let named: MoeModel = "deepseek-v3".parse().unwrap();
    let model = MoeModel { hidden: 32, intermediate: 64, experts: 2, top_k: 1, shared: 1, ..named };
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let Some(checkpoint) = one_line(Checkpoint::open(&FOLDER, model, dtype)) else { continue };
        // The loops go one layer and one expert beyond the existing ones.
        for layer in 0..=checkpoint.layer_ids().len().min(3) {
            one_line(checkpoint.norm_weights(layer));
            one_line(checkpoint.router_weights(layer));
            one_line(checkpoint.shared_weights(layer));
            for expert in 0..=2 {
                if let Some(expert) = one_line(checkpoint.expert_weights(layer, expert)) {
                    assert_eq!((expert.up.len(), expert.down.len()), (64 * 32, 64 * 32));
                    let numbers = [expert.up.to_f32(), expert.down.to_f32()].concat();
                    // A number beyond bf16's largest becomes infinite if it is stored in bf16.
                    assert!(dtype == Dtype::Bf16 || numbers.iter().all(|x| x.is_finite()));
                }
            }
        }
    }
});
