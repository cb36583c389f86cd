//! One layer of a synthetic trace: turns portions of requests into counts.
//!
//! In: a [`SynthSpec`], a random stream of the layer's own, [`Portion`]s step by step. Out:
//! counts per expert. Weights of a request are kept ready; a step multiplies them by the drift
//! and draws from the cumulated sums, repeated experts being drawn again.

use super::SynthSpec;
use super::requests::{News, Portion};
use crate::trace::dice::Dice;

/// Logits beyond this make no difference to anybody.
const LIMIT: f64 = 40.0;
/// Repeated draws before the sums are made anew without the experts drawn.
const PATIENCE: usize = 4;

/// A layer's state.
pub(super) struct Layer {
    dice: Dice,
    top_k: usize,
    dispersion: f64,
    correlation: f64,
    drift: f64,
    drift_persistence: f64,
    rank: usize,
    /// `[kind][expert]`: logits before any request.
    kinds: Vec<Vec<f64>>,
    /// `[expert][rank]`
    factors: Vec<f64>,
    /// AR(1) state and its factors on the weights, `[expert]`.
    drift_state: Vec<f64>,
    drift_factor: Vec<f64>,
    /// Per request in flight.
    places: Vec<Taste>,
    counts: Vec<u64>,
    // Scratch.
    fresh: Vec<f64>,
    sums: Vec<f64>,
    rest: Vec<f64>,
    drawn: Vec<usize>,
}

/// What one request likes.
#[derive(Debug, Clone, Default)]
struct Taste {
    /// Draws of its own, `[expert]`.
    own: Vec<f64>,
    /// Weights, `[expert]`.
    weights: Vec<f64>,
}

impl Layer {
    pub(super) fn new(spec: &SynthSpec, mut dice: Dice) -> Self {
        let experts = spec.experts;
        let mut base = vec![0.0; experts];
        dice.fill_normal(&mut base);
        for logit in &mut base {
            *logit = spec.skew * logit.signum() * logit.abs().powf(spec.tail);
        }
        let mut draws = vec![0.0; experts];
        let kinds = (0..spec.kinds)
            .map(|_| {
                dice.fill_normal(&mut draws);
                base.iter().zip(&draws).map(|(base, draw)| base + spec.kinds_spread * draw).collect()
            })
            .collect();
        Self::with_kinds(spec, kinds, dice)
    }

    /// A layer whose kinds' logits, `[kind][expert]`, are given.
    pub(super) fn with_kinds(spec: &SynthSpec, kinds: Vec<Vec<f64>>, mut dice: Dice) -> Self {
        let experts = spec.experts;
        let mut factors = vec![0.0; experts * spec.rank];
        dice.fill_normal(&mut factors);
        let mut drift_state = vec![0.0; experts];
        dice.fill_normal(&mut drift_state);
        Self {
            dice,
            top_k: spec.top_k,
            dispersion: spec.dispersion,
            correlation: spec.correlation,
            drift: spec.drift,
            drift_persistence: spec.drift_persistence,
            rank: spec.rank,
            kinds,
            factors,
            drift_state,
            drift_factor: vec![1.0; experts],
            places: Vec::new(),
            counts: vec![0; experts],
            fresh: vec![0.0; experts],
            sums: vec![0.0; experts],
            rest: vec![0.0; experts],
            drawn: Vec::with_capacity(spec.top_k),
        }
    }

    /// Counts of the last step, `[expert]`.
    pub(super) fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Draws one step.
    pub(super) fn step(&mut self, portions: &[Portion]) {
        self.move_on();
        self.counts.fill(0);
        for portion in portions {
            if let Some(news) = &portion.news {
                self.learn(portion.place, news);
            }
            let mut sum = 0.0;
            let weights = &self.places[portion.place].weights;
            for ((slot, weight), factor) in self.sums.iter_mut().zip(weights).zip(&self.drift_factor) {
                sum += weight * factor;
                *slot = sum;
            }
            for _ in 0..portion.tokens {
                self.draw();
            }
        }
    }

    fn move_on(&mut self) {
        if self.drift == 0.0 {
            return;
        }
        let keep = self.drift_persistence;
        let renew = (1.0 - keep * keep).sqrt();
        self.dice.fill_normal(&mut self.fresh);
        for ((state, fresh), factor) in
            self.drift_state.iter_mut().zip(&self.fresh).zip(&mut self.drift_factor)
        {
            *state = keep * *state + renew * fresh;
            *factor = (self.drift * *state).clamp(-LIMIT, LIMIT).exp();
        }
    }

    fn learn(&mut self, place: usize, news: &News) {
        if self.places.len() <= place {
            self.places.resize(place + 1, Taste::default());
        }
        let experts = self.counts.len();
        let taste = &mut self.places[place];
        taste.own.resize(experts, 0.0);
        taste.weights.resize(experts, 0.0);
        self.dice.fill_normal(&mut self.fresh);
        let renew = (1.0 - news.keep * news.keep).sqrt();
        let common = (self.correlation / self.rank as f64).sqrt();
        let alone = (1.0 - self.correlation).sqrt();
        for expert in 0..experts {
            let own = &mut taste.own[expert];
            *own = news.keep * *own + renew * self.fresh[expert];
            let factors = &self.factors[expert * self.rank..(expert + 1) * self.rank];
            let shared: f64 = factors.iter().zip(&news.latent).map(|(factor, latent)| factor * latent).sum();
            let logit = self.kinds[news.kind][expert] + self.dispersion * (common * shared + alone * *own);
            taste.weights[expert] = logit.clamp(-LIMIT, LIMIT).exp();
        }
    }

    /// One token: `top_k` distinct experts.
    fn draw(&mut self) {
        self.drawn.clear();
        let mut repeats = 0;
        while self.drawn.len() < self.top_k {
            if repeats == PATIENCE {
                self.draw_rest();
                break;
            }
            let expert = pick(&self.sums, self.dice.unit());
            if self.drawn.contains(&expert) {
                repeats += 1;
            } else {
                self.drawn.push(expert);
            }
        }
        for &expert in &self.drawn {
            self.counts[expert] += 1;
        }
    }

    /// The remaining experts of a token, from sums without those drawn.
    fn draw_rest(&mut self) {
        while self.drawn.len() < self.top_k {
            let (mut sum, mut before) = (0.0, 0.0);
            for (expert, &upto) in self.sums.iter().enumerate() {
                if !self.drawn.contains(&expert) {
                    // Never quite zero: an expert must stay drawable when all others are drawn.
                    sum += (upto - before).max(f64::MIN_POSITIVE);
                }
                before = upto;
                self.rest[expert] = sum;
            }
            let mut expert = pick(&self.rest, self.dice.unit());
            // Rounding may land on an expert of width zero: take the next that is free.
            while self.drawn.contains(&expert) {
                expert = (expert + 1) % self.counts.len();
            }
            self.drawn.push(expert);
        }
    }
}

/// The first entry of cumulated sums above a share of the total.
fn pick(sums: &[f64], share: f64) -> usize {
    let total = sums.last().copied().unwrap_or(0.0);
    sums.partition_point(|&sum| sum <= share * total).min(sums.len() - 1)
}
