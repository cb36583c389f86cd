//! Random numbers that never change between versions.
//!
//! In: a seed and a stream number. Out: bounded integers, uniform and normal reals, and shuffles. All derive
//! from ChaCha8 by rules in this file, so that no library update changes a trace.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Random number generator with a seed.
#[derive(Debug, Clone)]
pub struct SeededRng {
    rng: ChaCha8Rng,
}

impl SeededRng {
    /// Creates a generator. The streams of one seed are independent of each other.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { rng }
    }

    /// Draws a uniform integer in `0..n` (0 for `n` = 0) without bias, by Lemire's multiply and reject.
    pub fn draw_below(&mut self, n: u64) -> u64 {
        loop {
            let wide = u128::from(self.rng.next_u64()) * u128::from(n);
            let low = wide as u64;
            if low >= n || low >= n.wrapping_neg().checked_rem(n).unwrap_or(0) {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Draws a uniform real in the open interval (0, 1), with 53 bits.
    pub fn draw_uniform(&mut self) -> f64 {
        ((self.rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Draws an exponential number with mean 1 in units of 2^-16, in integers alone. It is -ln of a uniform
    /// number. The binary logarithm is interpolated linearly between powers of two.
    pub fn draw_exponential(&mut self) -> u64 {
        let bits = self.rng.next_u64() | 1;
        let zeros = u64::from(bits.leading_zeros());
        let after = (bits << zeros << 1) >> 48;
        // ln 2 = 45426 / 65536.
        ((((zeros + 1) << 16) - after) * 45_426) >> 16
    }

    /// Draws a standard normal. It consumes two uniform numbers.
    pub fn draw_normal(&mut self) -> f64 {
        self.draw_normal_pair().0
    }

    /// Draws two independent standard normals by the method of Box and Muller.
    fn draw_normal_pair(&mut self) -> (f64, f64) {
        let radius = (-2.0 * self.draw_uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * self.draw_uniform();
        (radius * angle.cos(), radius * angle.sin())
    }

    /// Fills `out` with standard normals.
    pub fn fill_normal(&mut self, out: &mut [f64]) {
        for pair in out.chunks_mut(2) {
            let (first, second) = self.draw_normal_pair();
            pair[0] = first;
            if let Some(slot) = pair.get_mut(1) {
                *slot = second;
            }
        }
    }

    /// Shuffles by the method of Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.draw_below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SeededRng;

    #[test]
    fn draws_are_uniform_and_repeatable() {
        let mut dice = SeededRng::new(7, 0);
        let mut seen = [0u32; 5];
        for _ in 0..50_000 {
            seen[dice.draw_below(5) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (9_600..10_400).contains(&count)), "{seen:?}");
        assert_eq!(SeededRng::new(7, 1).draw_below(1 << 40), SeededRng::new(7, 1).draw_below(1 << 40));
        assert_ne!(SeededRng::new(7, 1).draw_below(1 << 40), SeededRng::new(7, 2).draw_below(1 << 40));
        assert_eq!(SeededRng::new(0, 0).draw_below(0), 0);
    }

    #[test]
    fn normals_have_unit_variance() {
        let mut draws = vec![0.0; 100_001];
        SeededRng::new(1, 0).fill_normal(&mut draws);
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let square = draws.iter().map(|x| x * x).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{mean} {square}");
    }
}
