//! The training losses of a routing, as statistics.

use super::softmax::softmax;
use super::top_k::ExpertScores;

/// The two common router losses of one batch on one source.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RouterLoss {
    /// Load-balancing loss, `E * sum_e f_e * P_e`, with `f_e` the share of choices of expert `e` (before
    /// capacity) and `P_e` its mean softmax probability. It is 1 for a uniform routing (Switch Transformer,
    /// arXiv:2101.03961, equation 4).
    pub balance: f64,
    /// Z-loss: the mean of `logsumexp(logits)^2` (ST-MoE, arXiv:2202.08906, equation 5).
    pub z: f64,
}

impl RouterLoss {
    /// Computes the losses of logits `[token][width]`. The first `E` logits of each token belong to the
    /// experts.
    pub(super) fn from_logits(logits: &[f32], width: usize, experts: usize, chosen: &ExpertScores) -> Self {
        let tokens = logits.len() / width;
        if tokens == 0 {
            return Self::default();
        }
        let (mut share, mut mean, mut z) = (vec![0f64; experts], vec![0f64; experts], 0f64);
        let best = chosen.best_experts();
        best.iter().for_each(|&expert| share[expert] += 1.0 / best.len() as f64);
        for row in logits.chunks_exact(width) {
            let mut p: Vec<f64> = row[..experts].iter().map(|&x| f64::from(x)).collect();
            let highest = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            z += (highest + p.iter().map(|x| (x - highest).exp()).sum::<f64>().ln()).powi(2);
            softmax(&mut p);
            mean.iter_mut().zip(p).for_each(|(mean, p)| *mean += p / tokens as f64);
        }
        let product: f64 = share.iter().zip(mean).map(|(f, p)| f * p).sum();
        Self { balance: experts as f64 * product, z: z / tokens as f64 }
    }
}
