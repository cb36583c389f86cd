//! Turns scores into choices: the `k` best experts of every token, subject to capacity.

use super::{Capacity, Overflow, RouterLoss, Routing};

/// A function that decides from a token's weights whether it makes its second choice.
pub(super) type KeepSecond<'a> = &'a mut dyn FnMut(&[f64]) -> bool;

/// The scores of all tokens of one source, from which choices are made.
#[derive(Debug)]
pub(super) struct ExpertScores {
    pub(super) experts: usize,
    pub(super) top_k: usize,
    tokens: usize,
    /// Scores that select experts, `[token][E]`; minus infinity for excluded experts.
    select: Vec<f64>,
    /// Gates from which the weights are computed, `[token][E]`.
    gates: Vec<f64>,
}

impl ExpertScores {
    pub(super) fn new(experts: usize, top_k: usize, tokens: usize) -> Self {
        let room = || Vec::with_capacity(tokens * experts);
        Self { experts, top_k, tokens, select: room(), gates: room() }
    }

    /// Adds a token with the `(select, gate)` pairs of its experts.
    pub(super) fn push(&mut self, scores: impl Iterator<Item = (f64, f64)>) {
        for (select, gate) in scores {
            self.select.push(select);
            self.gates.push(gate);
        }
    }

    /// Returns the selection scores of a token.
    pub(super) fn selection_scores(&self, token: usize) -> &[f64] {
        &self.select[token * self.experts..][..self.experts]
    }

    /// Returns the `k` best experts of every token, best first, `[token][k]`.
    pub(super) fn best_experts(&self) -> Vec<usize> {
        (0..self.tokens).flat_map(|token| top_indices(self.selection_scores(token), self.top_k)).collect()
    }

    /// Applies the capacity and computes the weights of the choices.
    ///
    /// Capacity goes to all tokens' first choices in the order of the tokens, then to all second ones, and so
    /// on. With [`Overflow::Drop`] the weights of the other choices do not change (Switch, GShard: the
    /// residual carries the dropped part). With [`Overflow::Next`] the weights are those of the experts
    /// actually visited. `keep` may refuse a token's second choice, given its weights.
    pub(super) fn apply_capacity(
        self,
        capacity: Option<Capacity>,
        normalise: impl Fn(&mut [f64]),
        mut keep: Option<KeepSecond<'_>>,
        loss: RouterLoss,
    ) -> Routing {
        let k = self.top_k;
        let mut ids: Vec<i32> = self.best_experts().into_iter().map(|expert| expert as i32).collect();
        let mut weights = vec![0f64; ids.len()];
        self.compute_weights(&ids, &mut weights, &normalise);
        if let Some(keep) = &mut keep {
            for (ids, weights) in ids.chunks_exact_mut(k).zip(weights.chunks_exact(k)) {
                if !keep(weights) {
                    ids[1] = -1;
                }
            }
        }
        let mut dropped = 0;
        if let Some(capacity) = capacity {
            let mut room = vec![capacity.tokens_per_expert(self.tokens, k, self.experts); self.experts];
            for choice in 0..k {
                for token in 0..self.tokens {
                    let of_token = &mut ids[token * k..][..k];
                    if of_token[choice] < 0 {
                        continue;
                    }
                    let scores = self.selection_scores(token);
                    let taken = match capacity.overflow {
                        Overflow::Drop => Some(of_token[choice] as usize).filter(|&e| room[e] > 0),
                        Overflow::Next => next_choice(scores, of_token, choice, &room),
                    };
                    of_token[choice] = taken.map_or(-1, |expert| expert as i32);
                    match taken {
                        Some(expert) => room[expert] -= 1,
                        None => dropped += 1,
                    }
                }
            }
            if capacity.overflow == Overflow::Next {
                self.compute_weights(&ids, &mut weights, &normalise);
            }
        }
        let weights =
            ids.iter().zip(weights).map(|(&id, weight)| if id < 0 { 0.0 } else { weight as f32 }).collect();
        Routing { top_k: k, ids, weights, dropped, loss }
    }

    /// Computes the weights of the choices, `[token][k]`. Missing choices have weight 0 and do not enter the
    /// normalisation.
    fn compute_weights(&self, ids: &[i32], weights: &mut [f64], normalise: &impl Fn(&mut [f64])) {
        let mut gates = Vec::with_capacity(self.top_k);
        for (token, (ids, weights)) in
            ids.chunks_exact(self.top_k).zip(weights.chunks_exact_mut(self.top_k)).enumerate()
        {
            gates.clear();
            let row = &self.gates[token * self.experts..][..self.experts];
            gates.extend(ids.iter().filter_map(|&id| row.get(usize::try_from(id).ok()?)));
            normalise(&mut gates);
            let mut next = gates.iter();
            for (&id, weight) in ids.iter().zip(weights) {
                *weight = if id < 0 { 0.0 } else { next.next().copied().unwrap_or(0.0) };
            }
        }
    }
}

/// Returns the current choice if its expert has room. Otherwise returns the best expert with room that the
/// token has not chosen yet.
fn next_choice(scores: &[f64], of_token: &[i32], choice: usize, room: &[u64]) -> Option<usize> {
    let wanted = of_token[choice] as usize;
    if room[wanted] > 0 {
        return Some(wanted);
    }
    let free = |e: usize| room[e] > 0 && scores[e] > f64::NEG_INFINITY && !of_token.contains(&(e as i32));
    (0..scores.len()).filter(|&e| free(e)).reduce(|best, e| if scores[e] > scores[best] { e } else { best })
}

/// Returns the indices of the `k` highest scores, highest first; at ties the lowest index first.
pub(super) fn top_indices(scores: &[f64], k: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(k + 1);
    for (at, &score) in scores.iter().enumerate() {
        if best.len() == k && best.last().is_some_and(|&last| score <= scores[last]) {
            continue;
        }
        let place = best.partition_point(|&other| scores[other] >= score);
        best.insert(place, at);
        best.truncate(k);
    }
    best
}
