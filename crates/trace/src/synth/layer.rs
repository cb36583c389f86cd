//! One layer of a synthetic trace: conversion of portions of requests to counts.
//!
//! Input is a [`SynthSpec`], a random stream of the layer's own, and the [`RequestPortion`]s of each step.
//! Output is counts per expert. The weights of a request are kept. A step multiplies them by the drift and
//! draws from the cumulative sums. Repeated experts are drawn again.

use super::SynthSpec;
use super::requests::{RequestPortion, TopicChange};
use evenkeel::rng::SeededRng;

/// The limit of logits. Larger ones change no result noticeably.
pub(super) const MAX_LOGIT: f64 = 40.0;
/// The number of repeated draws after which the sums are recomputed without the drawn experts.
const MAX_REPEATED_DRAWS: usize = 4;

/// The state of a layer.
pub(super) struct SynthLayer {
    rng: SeededRng,
    top_k: usize,
    dispersion: f64,
    correlation: f64,
    drift: f64,
    drift_persistence: f64,
    rank: usize,
    /// The logits before any request, `[kind][expert]`.
    kinds: Vec<Vec<f64>>,
    /// The factors of the latent vector, `[expert][rank]`.
    factors: Vec<f64>,
    /// The AR(1) state, `[expert]`; `drift_factor` has its factors on the weights.
    drift_state: Vec<f64>,
    drift_factor: Vec<f64>,
    /// The preferences of each request in flight.
    preferences: Vec<RequestPreferences>,
    counts: Vec<u64>,
    // Buffers of a step.
    fresh: Vec<f64>,
    sums: Vec<f64>,
    guide: Vec<usize>,
    rest: Vec<f64>,
    drawn: Vec<usize>,
}

/// The preferences of one request.
#[derive(Debug, Clone, Default)]
struct RequestPreferences {
    /// The draws of this request, `[expert]`.
    own: Vec<f64>,
    /// The weights, `[expert]`.
    weights: Vec<f64>,
}

impl SynthLayer {
    pub(super) fn new(spec: &SynthSpec, mut dice: SeededRng) -> Self {
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

    /// Returns a layer with the stated logits of kinds, `[kind][expert]`.
    pub(super) fn with_kinds(spec: &SynthSpec, kinds: Vec<Vec<f64>>, mut rng: SeededRng) -> Self {
        let experts = spec.experts;
        let mut factors = vec![0.0; experts * spec.rank];
        rng.fill_normal(&mut factors);
        let mut drift_state = vec![0.0; experts];
        rng.fill_normal(&mut drift_state);
        Self {
            rng,
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
            preferences: Vec::new(),
            counts: vec![0; experts],
            fresh: vec![0.0; experts],
            sums: vec![0.0; experts],
            guide: Vec::new(),
            rest: vec![0.0; experts],
            drawn: Vec::with_capacity(spec.top_k),
        }
    }

    /// Returns the layer with factors of equal length for all experts, so that their logits vary alike.
    pub(super) fn with_equal_factors(mut self) -> Self {
        for factors in self.factors.chunks_mut(self.rank) {
            let square: f64 = factors.iter().map(|factor| factor * factor).sum();
            let scale = (self.rank as f64 / square).sqrt();
            factors.iter_mut().filter(|_| scale.is_finite()).for_each(|factor| *factor *= scale);
        }
        self
    }

    /// Returns the counts of the last step, `[expert]`.
    pub(super) fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Draws one step.
    pub(super) fn draw_step(&mut self, portions: &[RequestPortion]) {
        self.advance_drift();
        self.counts.fill(0);
        for portion in portions {
            if let Some(news) = &portion.change {
                self.update_preferences(portion.place, news);
            }
            let mut sum = 0.0;
            let weights = &self.preferences[portion.place].weights;
            for ((slot, weight), factor) in self.sums.iter_mut().zip(weights).zip(&self.drift_factor) {
                sum += weight * factor;
                *slot = sum;
            }
            self.guide.clear();
            if portion.tokens * self.top_k >= self.sums.len() {
                fill_guide(&self.sums, &mut self.guide);
            }
            for _ in 0..portion.tokens {
                self.draw_token();
            }
        }
    }

    fn advance_drift(&mut self) {
        if self.drift == 0.0 {
            return;
        }
        let keep = self.drift_persistence;
        let renew = (1.0 - keep * keep).sqrt();
        self.rng.fill_normal(&mut self.fresh);
        for ((state, fresh), factor) in
            self.drift_state.iter_mut().zip(&self.fresh).zip(&mut self.drift_factor)
        {
            *state = keep * *state + renew * fresh;
            *factor = (self.drift * *state).clamp(-MAX_LOGIT, MAX_LOGIT).exp();
        }
    }

    fn update_preferences(&mut self, place: usize, news: &TopicChange) {
        if self.preferences.len() <= place {
            self.preferences.resize(place + 1, RequestPreferences::default());
        }
        let experts = self.counts.len();
        let taste = &mut self.preferences[place];
        taste.own.resize(experts, 0.0);
        taste.weights.resize(experts, 0.0);
        self.rng.fill_normal(&mut self.fresh);
        let renew = (1.0 - news.persistence * news.persistence).sqrt();
        let common = (self.correlation / self.rank as f64).sqrt();
        let alone = (1.0 - self.correlation).sqrt();
        for expert in 0..experts {
            let own = &mut taste.own[expert];
            *own = news.persistence * *own + renew * self.fresh[expert];
            let factors = &self.factors[expert * self.rank..(expert + 1) * self.rank];
            let shared: f64 = factors.iter().zip(&news.latent).map(|(factor, latent)| factor * latent).sum();
            let logit = self.kinds[news.kind][expert] + self.dispersion * (common * shared + alone * *own);
            taste.weights[expert] = logit.clamp(-MAX_LOGIT, MAX_LOGIT).exp();
        }
    }

    /// Draws one token: `top_k` distinct experts.
    fn draw_token(&mut self) {
        self.drawn.clear();
        let mut repeats = 0;
        while self.drawn.len() < self.top_k {
            if repeats == MAX_REPEATED_DRAWS {
                self.draw_remaining();
                break;
            }
            let expert = sample_index(&self.sums, &self.guide, self.rng.draw_uniform());
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

    /// Draws the remaining experts of a token from sums without the drawn experts.
    fn draw_remaining(&mut self) {
        while self.drawn.len() < self.top_k {
            let (mut sum, mut before) = (0.0, 0.0);
            for (expert, &upto) in self.sums.iter().enumerate() {
                if !self.drawn.contains(&expert) {
                    // The width is never quite zero: an expert must stay drawable when all others are drawn.
                    sum += (upto - before).max(f64::MIN_POSITIVE);
                }
                before = upto;
                self.rest[expert] = sum;
            }
            let mut expert = sample_index(&self.rest, &[], self.rng.draw_uniform());
            // Rounding may select an expert of width zero. Then take the next free one.
            while self.drawn.contains(&expert) {
                expert = (expert + 1) % self.counts.len();
            }
            self.drawn.push(expert);
        }
    }
}

/// Fills a table with the first entry of cumulative sums above each of equally spaced shares of the total
/// (Chen and Asau, AIIE Transactions 6, 1974). Their number is a power of two, so that looking up is exact.
fn fill_guide(sums: &[f64], guide: &mut Vec<usize>) {
    let (total, count) = (sums.last().copied().unwrap_or(0.0), sums.len().next_power_of_two());
    let mut entry = 0;
    guide.extend((0..count).map(|at| {
        let share = at as f64 / count as f64;
        while entry + 1 < sums.len() && sums[entry] <= share * total {
            entry += 1;
        }
        entry
    }));
}

/// Returns the first entry of cumulative sums above a share of the total. It is the same with a guide and
/// without.
fn sample_index(sums: &[f64], guide: &[usize], share: f64) -> usize {
    let total = sums.last().copied().unwrap_or(0.0);
    if let Some(&first) = guide.get((share * guide.len() as f64) as usize) {
        let mut entry = first;
        while entry + 1 < sums.len() && sums[entry] <= share * total {
            entry += 1;
        }
        return entry;
    }
    sums.partition_point(|&sum| sum <= share * total).min(sums.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guide_changes_no_sample() {
        let mut dice = SeededRng::new(3, 0);
        for experts in [1, 2, 5, 64, 100] {
            let mut sum = 0.0;
            let sums: Vec<f64> = (0..experts)
                .map(|at| {
                    sum += if at % 7 == 3 { 0.0 } else { dice.draw_uniform().powi(4) };
                    sum
                })
                .collect();
            let mut guide = vec![];
            fill_guide(&sums, &mut guide);
            for at in 0..=1000 {
                let share = if at % 2 == 0 { f64::from(at) / 1024.0 } else { dice.draw_uniform() };
                assert_eq!(sample_index(&sums, &guide, share), sample_index(&sums, &[], share));
            }
        }
    }
}
