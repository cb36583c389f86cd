//! Batches on which methods that copy items for each batch are compared.
//!
//! In: a [`CopyShape`] and a seed. Out: one load per item. Every item has one home: rank `r` owns the items
//! `r * items / ranks` and on. The loads are a pure function of shape and seed, by splitmix64.
//!
//! **Laws.** [`CopyLaw::RankZipf`] is the load generator of UltraEP's tests (`tests/utils.py` of
//! Dots-Infra/UltraEP): rank weights `1 / (r + 1)^a`, item weights `1 / (i + 1)^b` inside a rank, and `a`
//! bisected until the busiest rank has the target ratio to the mean. The bisection uses approximate
//! inclusion probabilities. Every token visits `top_k` different items, drawn by weight.
//! [`CopyLaw::OneItem`] is LLEP's: a share of all visits goes to one item, and the rest is even.
//! [`CopyLaw::Even`] needs no copy.

use super::corpus::CorpusRng;

/// Shape of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CopyShape {
    /// Number of ranks.
    pub ranks: usize,
    /// Number of items, a multiple of the ranks.
    pub items: usize,
    /// Items that every token visits.
    pub top_k: usize,
    /// Tokens of every rank.
    pub tokens_per_rank: usize,
    /// Distribution of the loads.
    pub law: CopyLaw,
}

/// Shape of a drawn corpus with its name and the dynamic slots of every rank.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedShape {
    /// Name, as in `64x256 zipf 2 i^-4`.
    pub name: String,
    /// Shape of the batches.
    pub shape: CopyShape,
    /// Dynamic slots of every rank.
    pub slots: u32,
}

/// Returns the shapes of all drawn corpora: UltraEP's generator, LLEP's injections, and TopoEP's 32 x 640.
pub fn list_shapes() -> Vec<NamedShape> {
    let mut found = vec![];
    for (ranks, items, slots) in [
        (8, 256, 1),
        (8, 128, 1),
        (8, 256, 2),
        (32, 256, 1),
        (32, 256, 2),
        (64, 256, 1),
        (64, 256, 2),
        (32, 640, 2),
    ] {
        let mut add = |law_name: String, law| {
            let shape = CopyShape { ranks, items, top_k: 8, tokens_per_rank: 8192, law };
            found.push(NamedShape { name: format!("{ranks}x{items} {law_name}"), shape, slots });
        };
        for inside in [4.0, 1.0] {
            for target in [1.5, 2.0, 3.0] {
                add(format!("zipf {target} i^-{inside}"), CopyLaw::RankZipf { target, inside });
            }
        }
        if slots == 2 {
            add("even".to_owned(), CopyLaw::Even);
            for percent in [30, 50, 80, 95] {
                let share = f64::from(percent) / 100.0;
                add(format!("one expert {percent} %"), CopyLaw::OneItem { share });
            }
        }
    }
    found
}

/// Distribution of the loads over items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CopyLaw {
    /// Zipf over ranks and inside each rank.
    RankZipf {
        /// Expected load of the busiest rank, relative to the mean.
        target: f64,
        /// Exponent inside a rank.
        inside: f64,
    },
    /// One item gets a share of all visits.
    OneItem {
        /// The share.
        share: f64,
    },
    /// All items have equal loads.
    Even,
}

impl CopyShape {
    /// Draws the loads of one batch, `[items]`.
    pub fn draw_loads(&self, seed: u64) -> Vec<u32> {
        let mut dice = CorpusRng::new(0xc0b1_0000 ^ seed.wrapping_mul(0x9e37_79b9));
        match self.law {
            CopyLaw::RankZipf { target, inside } => {
                let weights = self.zipf_weights(self.bisect_exponent(target, inside), inside);
                self.draw_visits(&weights, &mut dice)
            }
            CopyLaw::OneItem { share } => {
                let visits = self.ranks * self.tokens_per_rank * self.top_k;
                let hot = (share * visits as f64) as usize;
                let mut loads = vec![0u32; self.items];
                let item = dice.draw_below(self.items);
                loads[item] = hot as u32;
                for _ in hot..visits {
                    loads[dice.draw_below(self.items)] += 1;
                }
                loads
            }
            CopyLaw::Even => {
                let visits = self.ranks * self.tokens_per_rank * self.top_k;
                vec![(visits / self.items.max(1)) as u32; self.items]
            }
        }
    }

    /// Returns the home of every item.
    pub(super) fn list_homes(&self) -> Vec<[u32; 1]> {
        let own = (self.items / self.ranks).max(1);
        (0..self.items).map(|item| [(item / own) as u32]).collect()
    }

    fn zipf_weights(&self, outside: f64, inside: f64) -> Vec<f64> {
        let own = (self.items / self.ranks).max(1);
        let power = |place: usize, exponent: f64| ((place + 1) as f64).powf(-exponent);
        let weights: Vec<f64> =
            (0..self.items).map(|item| power(item / own, outside) * power(item % own, inside)).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    fn bisect_exponent(&self, target: f64, inside: f64) -> f64 {
        let own = (self.items / self.ranks).max(1);
        let (mut low, mut high) = (0.0, 8.0);
        for _ in 0..32 {
            let middle = f64::midpoint(low, high);
            let chances = inclusion_chances(&self.zipf_weights(middle, inside), self.top_k);
            let ranks: Vec<f64> = chances.chunks(own).map(|own| own.iter().sum()).collect();
            let most = ranks.iter().copied().fold(0.0, f64::max);
            if most * (ranks.len() as f64) < target * ranks.iter().sum::<f64>() {
                low = middle;
            } else {
                high = middle;
            }
        }
        high
    }

    /// Counts the visits of all tokens. Each token draws by weight until it has `top_k` different items.
    fn draw_visits(&self, weights: &[f64], dice: &mut CorpusRng) -> Vec<u32> {
        let mut sums = Vec::with_capacity(weights.len());
        let mut sum = 0.0;
        for weight in weights {
            sum += weight;
            sums.push(sum);
        }
        // The guide gives the first candidate for each of many equal parts of the sum.
        let parts = 4096;
        let guide: Vec<usize> = (0..=parts)
            .map(|part| sums.partition_point(|&upper| upper < sum * part as f64 / parts as f64))
            .collect();
        let (mut loads, mut last) = (vec![0u32; self.items], vec![usize::MAX; self.items]);
        for token in 0..self.ranks * self.tokens_per_rank {
            let mut visited = 0;
            while visited < self.top_k.min(self.items) {
                let draw = dice.draw_uniform() * sum;
                let part = (draw / sum * parts as f64) as usize;
                let mut item = guide[part.min(parts)];
                while item + 1 < sums.len() && sums[item] < draw {
                    item += 1;
                }
                let item = item.min(self.items - 1);
                if last[item] != token {
                    last[item] = token;
                    loads[item] += 1;
                    visited += 1;
                }
            }
        }
        loads
    }
}

/// Returns approximate chances that a token visits each item, when it visits `count` different ones.
fn inclusion_chances(weights: &[f64], count: usize) -> Vec<f64> {
    let visits = |rate: f64| weights.iter().map(move |weight| 1.0 - (-rate * weight).exp());
    if count >= weights.len() {
        return vec![1.0; weights.len()];
    }
    let (mut low, mut high) = (0.0, 1.0);
    while visits(high).sum::<f64>() < count as f64 {
        high *= 2.0;
    }
    for _ in 0..48 {
        let middle = f64::midpoint(low, high);
        if visits(middle).sum::<f64>() < count as f64 {
            low = middle;
        } else {
            high = middle;
        }
    }
    visits(high).collect()
}
