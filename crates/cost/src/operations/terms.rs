//! Terms that several operations share.

use crate::rank_kernel::CacheState;

/// Expands to the fitted parameters of a struct, with their names, as mutable references.
macro_rules! parameters_mut {
    ($self:ident; $($name:ident),+ $(,)?) => {
        vec![$((stringify!($name), &mut $self.$name)),+]
    };
}
pub(super) use parameters_mut;

/// Name and place of a fitted parameter.
pub(crate) type ParameterMut<'a> = (&'static str, &'a mut f64);

/// Returns microseconds for bytes at a rate in decimal gigabytes per second.
pub(super) fn gigabyte_us(bytes: f64, gb_s: f64) -> f64 {
    bytes / (gb_s * 1e3)
}

/// Returns microseconds for bytes, or operations, at a rate of 10^12 per second.
pub(super) fn tera_us(amount: f64, tera_s: f64) -> f64 {
    amount / (tera_s * 1e6)
}

/// Returns a smooth maximum of times: the norm of order `p`.
pub(super) fn norm<const N: usize>(times: [f64; N], p: f64) -> f64 {
    let largest = times.into_iter().fold(0.0, f64::max);
    if largest <= 0.0 {
        return 0.0;
    }
    // Scaled by the largest, no power overflows.
    largest * times.into_iter().map(|time| (time / largest).powf(p)).sum::<f64>().powf(1.0 / p)
}

/// Returns the share of bytes that come from memory, from 0 to 1. `set_bytes` is the size of the data that a
/// repeated measurement touches between two uses.
pub(super) fn miss_share(set_bytes: f64, l2_mb: f64, cache: CacheState) -> f64 {
    match cache {
        CacheState::Cold => 1.0,
        CacheState::Warm if set_bytes <= 0.0 => 0.0,
        CacheState::Warm => 1.0 / (1.0 + (l2_mb * 1e6 / set_bytes).powi(4)),
    }
}

/// Returns microseconds to read bytes of which a share misses the L2 cache. The cache is `l2_ratio` times as
/// fast as memory.
pub(super) fn read_us(bytes: f64, tb_s: f64, miss: f64, l2_ratio: f64) -> f64 {
    tera_us(bytes, tb_s) * (miss + (1.0 - miss) / l2_ratio)
}

/// Returns the probability that a token with `top_k` different experts of `experts`, drawn evenly, visits a
/// set of `set` experts.
pub(crate) fn hit_probability(experts: f64, set: f64, top_k: u64) -> f64 {
    let missed = (0..top_k).map(|drawn| {
        let left = experts - drawn as f64;
        if left <= 0.0 { 0.0 } else { ((left - set) / left).max(0.0) }
    });
    1.0 - missed.product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_by_hand() {
        // Two of four experts: a pair of experts is missed with probability 1/6.
        assert!((hit_probability(4.0, 2.0, 2) - 5.0 / 6.0).abs() < 1e-12);
        assert!((hit_probability(8.0, 8.0, 1) - 1.0).abs() < 1e-12);
        assert!((hit_probability(8.0, 0.0, 3) - 0.0).abs() < 1e-12);
        // More draws than experts visit everything.
        assert!((hit_probability(2.0, 1.0, 4) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn norms_and_rates_by_hand() {
        assert!((norm([3.0, 4.0], 2.0) - 5.0).abs() < 1e-12);
        assert!((norm([0.0, 0.0], 2.0) - 0.0).abs() < 1e-12);
        assert!((norm([1e200, 1e200], 4.0) / 1e200 - 2f64.powf(0.25)).abs() < 1e-12);
        assert!((gigabyte_us(3e6, 300.0) - 10.0).abs() < 1e-12 && (tera_us(6e6, 3.0) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_cold_cache_misses_everything() {
        assert!((miss_share(1.0, 50.0, CacheState::Cold) - 1.0).abs() < 1e-12);
        assert!((miss_share(50e6, 50.0, CacheState::Warm) - 0.5).abs() < 1e-12);
        assert!((read_us(8e6, 4.0, 0.5, 2.0) - 1.5).abs() < 1e-12);
    }
}
