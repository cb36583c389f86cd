//! From scores to choices: the `k` best of every token, room permitting.

use super::{Capacity, Overflow, RouterLoss, Routing};

/// Whether a token makes its second choice, given its weights.
pub(super) type Keep<'a> = &'a mut dyn FnMut(&[f64]) -> bool;

/// Scores of all tokens of one source, and then the choices made by them.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) experts: usize,
    pub(super) top_k: usize,
    tokens: usize,
    /// By what experts are selected, `[token][E]`; minus infinity for those that may not be.
    select: Vec<f64>,
    /// What an expert's weight is made from, `[token][E]`.
    gates: Vec<f64>,
}

impl Chosen {
    pub(super) fn new(experts: usize, top_k: usize, tokens: usize) -> Self {
        let room = || Vec::with_capacity(tokens * experts);
        Self { experts, top_k, tokens, select: room(), gates: room() }
    }

    /// One more token: an iterator over `(select, gate)` of its experts.
    pub(super) fn push(&mut self, scores: impl Iterator<Item = (f64, f64)>) {
        for (select, gate) in scores {
            self.select.push(select);
            self.gates.push(gate);
        }
    }

    /// The selection scores of a token.
    pub(super) fn scores(&self, token: usize) -> &[f64] {
        &self.select[token * self.experts..][..self.experts]
    }

    /// The `k` best of every token, best first, `[token][k]`.
    pub(super) fn best(&self) -> Vec<usize> {
        (0..self.tokens).flat_map(|token| best_of(self.scores(token), self.top_k)).collect()
    }

    /// Fills the experts and weighs the choices.
    ///
    /// Room is given to all tokens' first choices in the order of the tokens, then to all second ones, and so on. Where
    /// overflow drops, the others' weights stay as if it had not (Switch, GShard: what is dropped passes by the residual);
    /// where it goes to the next choice, weights are those of the experts really visited. `keep` may refuse a token's
    /// second choice, given its weights.
    pub(super) fn settle(
        self,
        capacity: Option<Capacity>,
        normalise: impl Fn(&mut [f64]),
        mut keep: Option<Keep<'_>>,
        loss: RouterLoss,
    ) -> Routing {
        let k = self.top_k;
        let mut ids: Vec<i32> = self.best().into_iter().map(|expert| expert as i32).collect();
        let mut weights = vec![0f64; ids.len()];
        self.weigh(&ids, &mut weights, &normalise);
        if let Some(keep) = &mut keep {
            for (ids, weights) in ids.chunks_exact_mut(k).zip(weights.chunks_exact(k)) {
                if !keep(weights) {
                    ids[1] = -1;
                }
            }
        }
        let mut dropped = 0;
        if let Some(capacity) = capacity {
            let mut room = vec![capacity.of(self.tokens, k, self.experts); self.experts];
            for choice in 0..k {
                for token in 0..self.tokens {
                    let of_token = &mut ids[token * k..][..k];
                    if of_token[choice] < 0 {
                        continue;
                    }
                    let scores = self.scores(token);
                    let taken = match capacity.overflow {
                        Overflow::Drop => Some(of_token[choice] as usize).filter(|&e| room[e] > 0),
                        Overflow::Next => next(scores, of_token, choice, &room),
                    };
                    of_token[choice] = taken.map_or(-1, |expert| expert as i32);
                    match taken {
                        Some(expert) => room[expert] -= 1,
                        None => dropped += 1,
                    }
                }
            }
            if capacity.overflow == Overflow::Next {
                self.weigh(&ids, &mut weights, &normalise);
            }
        }
        let weights =
            ids.iter().zip(weights).map(|(&id, weight)| if id < 0 { 0.0 } else { weight as f32 }).collect();
        Routing { top_k: k, ids, weights, dropped, loss }
    }

    /// Weights of the choices, `[token][k]`; those of none are 0 and count for nothing.
    fn weigh(&self, ids: &[i32], weights: &mut [f64], normalise: &impl Fn(&mut [f64])) {
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

/// The best expert with room that the token has not chosen yet, beginning with the choice at hand.
fn next(scores: &[f64], of_token: &[i32], choice: usize, room: &[u64]) -> Option<usize> {
    let wanted = of_token[choice] as usize;
    if room[wanted] > 0 {
        return Some(wanted);
    }
    let free = |e: usize| room[e] > 0 && scores[e] > f64::NEG_INFINITY && !of_token.contains(&(e as i32));
    (0..scores.len()).filter(|&e| free(e)).reduce(|best, e| if scores[e] > scores[best] { e } else { best })
}

/// Indices of the `k` highest scores, highest first, the lowest index of equals first.
pub(super) fn best_of(scores: &[f64], k: usize) -> Vec<usize> {
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
