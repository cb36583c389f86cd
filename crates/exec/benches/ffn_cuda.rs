//! Experts on a GPU: our own grouped products and cuBLAS' beside one dense product of cuBLAS, and whole layers as recorded graphs.
//!
//! ```text
//! cargo bench --bench ffn_cuda            all of it
//! cargo bench --bench ffn_cuda -- ffn     experts alone
//! cargo bench --bench ffn_cuda -- layer   whole layers, the table of bindings/python/benches/layer.py
//! ```
//!
//! Times are of CUDA events, the median of several after a few that do not count. Says so where there is no GPU.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark may unwrap")]
#![allow(clippy::print_stdout, reason = "it prints what the docs quote")]

#[cfg(feature = "cuda")]
fn main() {
    if let Err(error) = evenkeel::cuda::probe() {
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
    use evenkeel::exec::activations::Activations;
    use evenkeel::exec::cuda::{Cuda, Experts, Options, Path};
    use evenkeel::exec::router::Router;
    use evenkeel::exec::weights::{Dtype, RandomWeights};
    use evenkeel::exec::{Aggregate, ExecConfig};
    use evenkeel::model::Model;
    use evenkeel::place::Contiguous;

    const MODELS: [&str; 2] = ["mixtral-8x7b", "qwen3-30b-a3b"];
    const TOKENS: [usize; 3] = [512, 4096, 16384];
    const ROUNDS: usize = 30;
    const WARM: usize = 5;

    fn median(times: &[f64]) -> f64 {
        let mut counted = times[WARM.min(times.len() - 1)..].to_vec();
        counted.sort_by(f64::total_cmp);
        counted[counted.len() / 2]
    }

    fn model(name: &str) -> (Model, RandomWeights) {
        let model: Model = name.parse().unwrap();
        (model, RandomWeights { model, width: model.experts, dtype: Dtype::Bf16, seed: 1 })
    }

    /// Rates of all experts of a layer with as many tokens each.
    pub(super) fn experts() {
        println!(
            "{:<14} {:>6} {:>18} {:>9} {:>8} {:>9}",
            "experts of", "tokens", "products", "ms", "TFLOP/s", "of dense"
        );
        for name in MODELS {
            let (model, weights) = model(name);
            for tokens in TOKENS {
                let rows = tokens * model.top_k;
                let experts = Experts::new(0, &model, &weights, [model.experts, 4, rows]).unwrap();
                let sizes: Vec<usize> = (0..model.experts)
                    .map(|e| rows * (e + 1) / model.experts - rows * e / model.experts)
                    .collect();
                let operations = (model.token_operations() * rows as u64) as f64;
                let rate = |ms: f64| operations / ms / 1e9;
                // As many multiplications as up and gate together have, in one product.
                let wide = [rows, 2 * model.intermediate as usize, model.hidden as usize];
                let ms = median(&experts.dense(wide, ROUNDS + WARM).unwrap());
                let dense = 2.0 * wide.iter().map(|&n| n as f64).product::<f64>() / ms / 1e9;
                println!(
                    "{name:<14} {tokens:>6} {:>18} {ms:>9.3} {dense:>8.1} {:>8.1}%",
                    "dense cuBLAS", 100.0
                );
                let show = |what: &str, path, tile| {
                    let ms = median(&experts.time(path, 0, &sizes, tile, ROUNDS + WARM).unwrap());
                    let share = rate(ms) / dense * 100.0;
                    println!("{name:<14} {tokens:>6} {what:>18} {ms:>9.3} {:>8.1} {share:>8.1}%", rate(ms));
                };
                show("cuBLAS grouped", Path::Cublas, None);
                show("own", Path::Own, None);
                show("own, 16 rows", Path::Own, Some(0));
                show("own, 64 rows", Path::Own, Some(1));
                show("own, 128 rows", Path::Own, Some(2));
            }
        }
    }

    /// Whole layers on one rank: norm, router, dispatch, experts, combine, residual.
    pub(super) fn layers() {
        println!("{:<14} {:>6} {:>9} {:>12}", "layer of", "tokens", "ms", "tokens/s");
        for name in MODELS {
            let (model, weights) = model(name);
            let cluster = Cluster::new(1, 1, model.experts, 0).unwrap();
            let config = ExecConfig {
                model,
                cluster,
                router: Router::of(&model),
                capacity: None,
                method: None,
                then: None,
                aggregate: Aggregate::None,
                dtype: Dtype::Bf16,
                seed: 1,
            };
            let placement = Contiguous::placement(model.experts, &cluster).unwrap();
            let mut cuda = Cuda::new(config, Options::default(), &weights, vec![placement]).unwrap();
            for tokens in TOKENS {
                let x =
                    [Activations { skew: 0.0, ..Activations::new(model.hidden as usize, 1) }
                        .of(0, 0, tokens)];
                let recorded = cuda.record(0, &[tokens], true).unwrap();
                cuda.launch(&recorded, &x).unwrap();
                let ms = median(&cuda.time(&recorded, ROUNDS + WARM).unwrap());
                println!("{name:<14} {tokens:>6} {ms:>9.3} {:>12.0}", tokens as f64 / ms * 1e3);
            }
        }
    }
}
