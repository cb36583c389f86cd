//! Compares experts on a GPU, by this project's grouped products and by those of cuBLAS, with one dense
//! product of cuBLAS. Also times whole layers as recorded graphs.
//!
//! ```text
//! cargo bench -p evenkeel-exec --features cuda --bench ffn_cuda            all of it
//! cargo bench -p evenkeel-exec --features cuda --bench ffn_cuda -- ffn     experts alone
//! cargo bench -p evenkeel-exec --features cuda --bench ffn_cuda -- layer   whole layers
//! ```
//!
//! The last one prints the table of bindings/python/benches/layer.py. Times are measured by CUDA events: the
//! median of several runs after a few warm-up runs. Prints a notice without a GPU.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark may unwrap")]
#![allow(clippy::print_stdout, reason = "it prints what the docs quote")]

#[cfg(feature = "cuda")]
fn main() {
    if let Err(error) = evenkeel_cuda::probe_devices() {
        println!("no CUDA device: {error}");
        return;
    }
    let which = std::env::args().nth(1).filter(|name| !name.starts_with('-'));
    let wanted = |name: &str| which.as_deref().is_none_or(|which| which == name);
    if wanted("ffn") {
        cuda::experts();
    }
    if wanted("layer") {
        cuda::layers();
    }
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("built without the feature `cuda`");
}

#[cfg(feature = "cuda")]
mod cuda {
    use evenkeel::cluster::Cluster;
    use evenkeel::model::MoeModel;
    use evenkeel::place::Contiguous;
    use evenkeel_exec::activations::ActivationGenerator;
    use evenkeel_exec::cuda::{Cuda, CudaOptions, ExpertTimer, GemmPath};
    use evenkeel_exec::router::Router;
    use evenkeel_exec::weights::{Dtype, RandomWeights};
    use evenkeel_exec::{Aggregate, ExecConfig};

    const MODELS: [&str; 2] = ["mixtral-8x7b", "qwen3-30b-a3b"];
    const TOKENS: [usize; 3] = [512, 4096, 16384];
    const ROUNDS: usize = 30;
    const WARM: usize = 5;

    fn median(times: &[f64]) -> f64 {
        let mut counted = times[WARM.min(times.len() - 1)..].to_vec();
        counted.sort_by(f64::total_cmp);
        counted[counted.len() / 2]
    }

    fn model(name: &str) -> (MoeModel, RandomWeights) {
        let model: MoeModel = name.parse().unwrap();
        (model, RandomWeights { model, width: model.experts, dtype: Dtype::Bf16, seed: 1 })
    }

    /// Measures the rates of all experts of a layer with equally many tokens each.
    pub(super) fn experts() {
        println!(
            "{:<14} {:>6} {:>18} {:>9} {:>8} {:>9}",
            "experts of", "tokens", "products", "ms", "TFLOP/s", "of dense"
        );
        for name in MODELS {
            let (model, weights) = model(name);
            for tokens in TOKENS {
                let rows = tokens * model.top_k;
                let experts = ExpertTimer::new(0, &model, &weights, [model.experts, 4, rows]).unwrap();
                let sizes: Vec<usize> = (0..model.experts)
                    .map(|e| rows * (e + 1) / model.experts - rows * e / model.experts)
                    .collect();
                let operations = (model.token_operations() * rows as u64) as f64;
                let rate = |ms: f64| operations / ms / 1e9;
                // One product with as many multiplications as up and gate together.
                let wide = [rows, 2 * model.intermediate as usize, model.hidden as usize];
                let ms = median(&experts.time_gemm(wide, ROUNDS + WARM).unwrap());
                let dense = 2.0 * wide.iter().map(|&n| n as f64).product::<f64>() / ms / 1e9;
                println!(
                    "{name:<14} {tokens:>6} {:>18} {ms:>9.3} {dense:>8.1} {:>8.1}%",
                    "dense cuBLAS", 100.0
                );
                let show = |what: &str, path, tile| {
                    let ms = median(&experts.time_experts(path, 0, &sizes, tile, ROUNDS + WARM).unwrap());
                    let share = rate(ms) / dense * 100.0;
                    println!("{name:<14} {tokens:>6} {what:>18} {ms:>9.3} {:>8.1} {share:>8.1}%", rate(ms));
                };
                show("cuBLAS grouped", GemmPath::Cublas, None);
                show("own", GemmPath::Own, None);
                show("own, 16 rows", GemmPath::Own, Some(0));
                show("own, 64 rows", GemmPath::Own, Some(1));
                show("own, 128 rows", GemmPath::Own, Some(2));
            }
        }
    }

    /// Times whole layers on one rank: norm, router, dispatch, experts, combine, residual.
    pub(super) fn layers() {
        println!("{:<14} {:>6} {:>9} {:>12}", "layer of", "tokens", "ms", "tokens/s");
        for name in MODELS {
            let (model, weights) = model(name);
            let cluster = Cluster::new(1, 1, model.experts, 0).unwrap();
            let config = ExecConfig {
                model,
                cluster,
                router: Router::for_model(&model),
                capacity: None,
                method: None,
                tie_break: None,
                aggregate: Aggregate::None,
                dynamic: None,
                dtype: Dtype::Bf16,
                seed: 1,
            };
            let placement = Contiguous::placement(model.experts, &cluster).unwrap();
            let mut cuda = Cuda::new(config, CudaOptions::default(), &weights, vec![placement]).unwrap();
            for tokens in TOKENS {
                let x =
                    [ActivationGenerator { skew: 0.0, ..ActivationGenerator::new(model.hidden as usize, 1) }
                        .token_vectors(0, 0, tokens)];
                let recorded = cuda.record_layer(0, &[tokens], true).unwrap();
                cuda.launch_recorded(&recorded, &x).unwrap();
                let ms = median(&cuda.time_recorded(&recorded, ROUNDS + WARM).unwrap());
                println!("{name:<14} {tokens:>6} {ms:>9.3} {:>12.0}", tokens as f64 / ms * 1e3);
            }
        }
    }
}
