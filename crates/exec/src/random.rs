//! Random numbers as a pure function of their purpose.
//!
//! Input: a seed and a path (layer, expert, token ..). Output: a [`RandomStream`]. Any rank, thread or run
//! can generate the same numbers for itself, in any order, because no generator is shared. The mixing is
//! SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix_bits(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The random numbers of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomStream(u64);

impl RandomStream {
    /// Creates the stream of `path` under `seed`. Different paths have different numbers.
    pub fn new(seed: u64, path: &[u64]) -> Self {
        Self(path.iter().fold(mix_bits(seed.wrapping_add(GOLDEN_GAMMA)), |state, &part| {
            mix_bits(state.rotate_left(23) ^ mix_bits(part.wrapping_add(GOLDEN_GAMMA)))
        }))
    }

    /// Returns the next 64 bits.
    pub fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        mix_bits(self.0)
    }

    /// Returns a uniform number in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.next_bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a normal number with mean 0 and variance 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Returns `len` uniform numbers with mean 0 and standard deviation `deviation`. It is fast enough for
    /// whole weights.
    pub fn uniform_weights(&mut self, len: usize, deviation: f32) -> Vec<f32> {
        let scale = deviation * 12f32.sqrt();
        let one = |bits: u32| ((bits >> 8) as f32 / (1u32 << 24) as f32 - 0.5) * scale;
        let mut numbers = Vec::with_capacity(len + 1);
        while numbers.len() < len {
            let bits = self.next_bits();
            numbers.extend([one(bits as u32), one((bits >> 32) as u32)]);
        }
        numbers.truncate(len);
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_their_own_numbers_of_the_right_size() {
        let stream = |path: &[u64]| RandomStream::new(7, path).uniform_weights(20_000, 0.5);
        assert_eq!(stream(&[1, 2]), stream(&[1, 2]));
        assert_ne!(stream(&[1, 2]), stream(&[2, 1]));
        let numbers = stream(&[3]);
        let mean = |f: &dyn Fn(f32) -> f32| numbers.iter().map(|&x| f(x)).sum::<f32>() / 20_000.0;
        assert!(mean(&|x| x).abs() < 0.02 && (mean(&|x| x * x) - 0.25).abs() < 0.01);
        let mut stream = RandomStream::new(7, &[4]);
        let square = (0..20_000).map(|_| stream.normal().powi(2)).sum::<f64>() / 20_000.0;
        assert!((square - 1.0).abs() < 0.05, "{square}");
    }
}
