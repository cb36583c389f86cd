//! Random numbers as a pure function of what they are for.
//!
//! In: a seed and a path (layer, expert, token ..). Out: a [`Stream`]. Any rank, any thread and any run can make the same
//! numbers for itself, in any order: no generator is shared. The mixing is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The numbers that belong to one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(u64);

impl Stream {
    /// The stream of `path` under `seed`; other paths have other numbers.
    pub fn new(seed: u64, path: &[u64]) -> Self {
        Self(path.iter().fold(mix(seed.wrapping_add(STEP)), |state, &part| {
            mix(state.rotate_left(23) ^ mix(part.wrapping_add(STEP)))
        }))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal, mean 0 and variance 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// `len` uniform numbers with mean 0 and standard deviation `deviation`: cheap enough for whole weights.
    pub fn weights(&mut self, len: usize, deviation: f32) -> Vec<f32> {
        let scale = deviation * 12f32.sqrt();
        let one = |bits: u32| ((bits >> 8) as f32 / (1u32 << 24) as f32 - 0.5) * scale;
        let mut numbers = Vec::with_capacity(len + 1);
        while numbers.len() < len {
            let bits = self.bits();
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
        let stream = |path: &[u64]| Stream::new(7, path).weights(20_000, 0.5);
        assert_eq!(stream(&[1, 2]), stream(&[1, 2]));
        assert_ne!(stream(&[1, 2]), stream(&[2, 1]));
        let numbers = stream(&[3]);
        let mean = |f: &dyn Fn(f32) -> f32| numbers.iter().map(|&x| f(x)).sum::<f32>() / 20_000.0;
        assert!(mean(&|x| x).abs() < 0.02 && (mean(&|x| x * x) - 0.25).abs() < 0.01);
        let mut stream = Stream::new(7, &[4]);
        let square = (0..20_000).map(|_| stream.normal().powi(2)).sum::<f64>() / 20_000.0;
        assert!((square - 1.0).abs() < 0.05, "{square}");
    }
}
