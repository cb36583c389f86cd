//! Random numbers that stay the same for good.
//!
//! In: a seed and a stream number. Out: bounded integers, uniform and normal reals, shuffles,
//! all from ChaCha8 by rules written here, so that no library update changes a trace.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A seeded generator.
#[derive(Debug, Clone)]
pub(crate) struct Dice {
    rng: ChaCha8Rng,
}

impl Dice {
    /// Streams of one seed are independent of each other.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { rng }
    }

    /// Uniform in `0..n` (0 for `n` = 0), without bias: Lemire's multiply and reject.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        loop {
            let wide = u128::from(self.rng.next_u64()) * u128::from(n);
            let low = wide as u64;
            if low >= n || low >= n.wrapping_neg().checked_rem(n).unwrap_or(0) {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Uniform in the open interval (0, 1), 53 bits.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Exponential with mean 1 in units of 2^-16, in integers alone: -ln of a uniform number, its binary logarithm taken
    /// linearly between powers of two.
    pub(crate) fn exponential(&mut self) -> u64 {
        let bits = self.rng.next_u64() | 1;
        let zeros = u64::from(bits.leading_zeros());
        let after = (bits << zeros << 1) >> 48;
        // ln 2 = 45426 / 65536.
        ((((zeros + 1) << 16) - after) * 45_426) >> 16
    }

    /// Two independent standard normals, by Box and Muller.
    pub(crate) fn normals(&mut self) -> (f64, f64) {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        let angle = std::f64::consts::TAU * self.unit();
        (radius * angle.cos(), radius * angle.sin())
    }

    /// Fills with standard normals.
    pub(crate) fn fill_normal(&mut self, out: &mut [f64]) {
        for pair in out.chunks_mut(2) {
            let (first, second) = self.normals();
            pair[0] = first;
            if let Some(slot) = pair.get_mut(1) {
                *slot = second;
            }
        }
    }

    /// Fisher and Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn draws_are_uniform_and_repeatable() {
        let mut dice = Dice::new(7, 0);
        let mut seen = [0u32; 5];
        for _ in 0..50_000 {
            seen[dice.below(5) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (9_600..10_400).contains(&count)), "{seen:?}");
        assert_eq!(Dice::new(7, 1).below(1 << 40), Dice::new(7, 1).below(1 << 40));
        assert_ne!(Dice::new(7, 1).below(1 << 40), Dice::new(7, 2).below(1 << 40));
        assert_eq!(Dice::new(0, 0).below(0), 0);
    }

    #[test]
    fn normals_have_unit_variance() {
        let mut draws = vec![0.0; 100_001];
        Dice::new(1, 0).fill_normal(&mut draws);
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let square = draws.iter().map(|x| x * x).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{mean} {square}");
    }
}
