//! The parts of Python's `random.Random` that SGLang's static dispatch uses: MT19937 seeded with a small
//! integer, and `sample` and `shuffle` of `CPython` 3.9 to 3.13.

/// Number of words of the generator's state.
const STATE_WORDS: usize = 624;
/// Distance in words of the operand that is mixed into a new word.
const MIX_DISTANCE: usize = 397;
const HIGH_BIT: u32 = 0x8000_0000;

/// Mersenne Twister in the state of `random.Random(seed)`.
#[derive(Debug, Clone)]
pub(super) struct MersenneTwister {
    state: Vec<u32>,
    next: usize,
}

impl MersenneTwister {
    /// Creates the state of `random.Random(seed)`: `init_by_array` with the seed as its only key.
    pub(super) fn new(seed: u32) -> Self {
        let mut state = vec![19_650_218u32; STATE_WORDS];
        for i in 1..STATE_WORDS {
            state[i] = mix_word(state[i - 1]).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        for _ in 0..STATE_WORDS {
            state[i] = (state[i] ^ mix_word(state[i - 1]).wrapping_mul(1_664_525)).wrapping_add(seed);
            i = next_index(&mut state, i);
        }
        for _ in 1..STATE_WORDS {
            state[i] = (state[i] ^ mix_word(state[i - 1]).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i = next_index(&mut state, i);
        }
        state[0] = HIGH_BIT;
        Self { state, next: STATE_WORDS }
    }

    /// Draws 32 uniform bits.
    fn next_word(&mut self) -> u32 {
        if self.next == STATE_WORDS {
            for i in 0..STATE_WORDS {
                let bits = (self.state[i] & HIGH_BIT) | (self.state[(i + 1) % STATE_WORDS] & !HIGH_BIT);
                let odd = if bits & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + MIX_DISTANCE) % STATE_WORDS] ^ (bits >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// Draws as `_randbelow(n)` does. It draws as many bits as `n` has until the number is below `n`. `n` is
    /// 1 to 2^32 - 1.
    fn rand_below(&mut self, n: usize) -> usize {
        let shift = (n as u32).leading_zeros();
        loop {
            let drawn = (self.next_word() >> shift) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// Draws as `sample(items, k)` does, for `k` up to the number of items.
    fn sample(&mut self, items: &[u32], k: usize) -> Vec<u32> {
        // Python switches to a set if the pool would be larger than this limit. For k > 5 the limit grows by
        // 4^p, the least power of 4 that is at least 3k.
        let mut pool_up_to = 21;
        if k > 5 {
            let mut power = 1;
            while power < 3 * k {
                power *= 4;
            }
            pool_up_to += power;
        }
        if items.len() <= pool_up_to {
            let mut pool = items.to_vec();
            return (0..k)
                .map(|i| {
                    let (at, last) = (self.rand_below(pool.len() - i), pool.len() - i - 1);
                    let taken = pool[at];
                    pool[at] = pool[last];
                    taken
                })
                .collect();
        }
        let mut taken: Vec<usize> = Vec::with_capacity(k);
        while taken.len() < k {
            let at = self.rand_below(items.len());
            if !taken.contains(&at) {
                taken.push(at);
            }
        }
        taken.into_iter().map(|at| items[at]).collect()
    }

    /// Draws as SGLang's `_fair_choices(items, k)` does: every item `k / n` times, a sample for the rest, all
    /// shuffled. `items` is not empty.
    pub(super) fn fair_choices(&mut self, items: &[u32], k: usize) -> Vec<u32> {
        let mut choices = items.repeat(k / items.len());
        choices.extend(self.sample(items, k % items.len()));
        for i in (1..choices.len()).rev() {
            let other = self.rand_below(i + 1);
            choices.swap(i, other);
        }
        choices
    }
}

fn mix_word(word: u32) -> u32 {
    word ^ (word >> 30)
}

/// Returns the next index of a seeding round. At the end, the last word also becomes word 0.
fn next_index(state: &mut [u32], i: usize) -> usize {
    if i + 1 < STATE_WORDS {
        return i + 1;
    }
    state[0] = state[STATE_WORDS - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_python() {
        let mut twister = MersenneTwister::new(42);
        let first: Vec<u32> = (0..4).map(|_| twister.next_word()).collect();
        assert_eq!(first, [2_746_317_213, 478_163_327, 107_420_369, 3_184_935_163]);
        let last = (4..=1000).map(|_| twister.next_word()).last();
        assert_eq!(last, Some(2_672_573_305));
    }

    #[test]
    fn samples_and_shuffles_are_those_of_python() {
        // Expected values are those of r = random.Random(42), one call after the other.
        let mut twister = MersenneTwister::new(42);
        let range = |from: u32, to: u32| (from..to).collect::<Vec<_>>();
        assert_eq!(twister.sample(&range(10, 40), 7), [30, 13, 10, 33, 18, 17, 34]);
        assert_eq!(twister.sample(&range(0, 5), 3), [1, 0, 2]);
        assert_eq!(twister.sample(&range(0, 200), 6), [189, 139, 22, 151, 108, 8]);
        // With nine choices of nine items there is no sample, only a shuffle.
        assert_eq!(twister.fair_choices(&range(0, 9), 9), [5, 3, 2, 8, 4, 6, 7, 1, 0]);
        assert_eq!(twister.next_word(), 3_075_280_817);
    }
}
