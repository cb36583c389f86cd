//! Fixed rules by which an expert's tokens are split over its replicas, scenario by scenario.
//!
//! In: an expert, the ranks of its replicas in the order of slots, the position of one replica. Out: the
//! tokens of that replica in every scenario. Rules depend on no other expert, so a replica's part never
//! depends on the places of other experts.
//!
//! The parts are those of the split methods [`SplitMethod::Even`] and [`SplitMethod::Stack`]. Most depend
//! only on the number of replicas and are computed once. SGLang's rules for several nodes also depend on the
//! hosts. For these the expected part counts.

use super::incumbent::RankIndex;
use super::scenarios::ScenarioSet;
use crate::cluster::Cluster;
use crate::split::{ReplicaShares, SplitMethod, StackDispatch, batch_seed};
use std::collections::HashMap;

/// Rule with its computed parts.
#[derive(Debug, Clone)]
pub(crate) struct ShareRule {
    method: SplitMethod,
    ranks: usize,
    ranks_per_node: usize,
    /// Parts of an expert with a number of replicas, `[replicas][padded B]`.
    parts: HashMap<(u32, u16), Vec<f32>>,
    /// Seed of each scenario's random draws, `[B]`. Empty before the first use.
    seeds: Vec<u64>,
}

impl ShareRule {
    /// Creates the rule of a split method. Methods that depend on all experts have no such rule and count as
    /// even.
    pub(crate) fn new(method: SplitMethod, cluster: &Cluster) -> Self {
        let (ranks, ranks_per_node) = (cluster.ranks(), cluster.ranks() / cluster.nodes());
        Self { method, ranks, ranks_per_node, parts: HashMap::new(), seeds: vec![] }
    }

    /// Computes the tokens of the replica at position `at` of `hosts`, in every scenario, `[padded B]`.
    pub(crate) fn replica_part(
        &mut self,
        scenarios: &ScenarioSet,
        expert: u32,
        hosts: &[RankIndex],
        at: usize,
        part: &mut [f32],
    ) {
        let padded = scenarios.padded_len();
        if hosts.len() == 1 {
            part.copy_from_slice(scenarios.expert_loads(expert as usize));
            return;
        }
        if let Some(stack) = self.host_dependent_stack() {
            return self.expected_part(stack, scenarios, expert, (hosts, at), part);
        }
        let key = (expert, hosts.len() as u16);
        if !self.parts.contains_key(&key) {
            let parts = self.parts_by_count(scenarios, expert, hosts.len());
            self.parts.insert(key, parts);
        }
        if let Some(parts) = self.parts.get(&key) {
            part.copy_from_slice(&parts[at * padded..(at + 1) * padded]);
        }
    }

    /// Returns the stack if its rule depends on the hosts of the replicas.
    fn host_dependent_stack(&self) -> Option<StackDispatch> {
        match self.method {
            SplitMethod::Stack(stack @ (StackDispatch::SglangStatic | StackDispatch::SglangRandom))
                if self.ranks_per_node < self.ranks =>
            {
                Some(stack)
            }
            _ => None,
        }
    }

    /// Computes a replica's expected part as a difference: tokens up to this replica minus tokens up to the
    /// previous one.
    fn expected_part(
        &self,
        stack: StackDispatch,
        scenarios: &ScenarioSet,
        expert: u32,
        (hosts, at): (&[RankIndex], usize),
        part: &mut [f32],
    ) {
        let ranks: Vec<usize> = hosts.iter().map(|&host| host as usize).collect();
        let shares = ReplicaShares::new(stack, &ranks, expert as usize, (self.ranks, self.ranks_per_node));
        let weights: Vec<u64> = shares.expected_weights().collect();
        let before: u64 = weights[..at].iter().sum();
        let sum = weights.iter().sum::<u64>().max(1);
        part.fill(0.0);
        for (scenario, part) in part.iter_mut().enumerate().take(scenarios.len()) {
            let tokens = u64::from(scenarios.loads(scenario)[expert as usize]);
            *part = ((tokens * (before + weights[at])) / sum - (tokens * before) / sum) as f32;
        }
    }

    /// Returns the parts of all replicas if only their number counts, `[replicas][padded B]`.
    fn parts_by_count(&mut self, scenarios: &ScenarioSet, expert: u32, replicas: usize) -> Vec<f32> {
        let padded = scenarios.padded_len();
        let shares = match self.method {
            SplitMethod::Stack(stack) => {
                let hosts: Vec<usize> = (0..replicas).collect();
                Some(ReplicaShares::new(stack, &hosts, expert as usize, (self.ranks, self.ranks)))
            }
            _ => None,
        };
        if shares.is_some() && self.seeds.is_empty() {
            let loads = |scenario: usize| scenarios.loads(scenario).iter().map(|&load| u64::from(load));
            let seed = |scenario: usize| batch_seed(&loads(scenario).collect::<Vec<u64>>());
            self.seeds = (0..scenarios.len()).map(seed).collect();
        }
        let mut parts = vec![0.0; replicas * padded];
        let Some(shares) = shares else {
            divide_evenly(scenarios.expert_loads(expert as usize), replicas, &mut parts);
            return parts;
        };
        for scenario in 0..scenarios.len() {
            let tokens = scenarios.loads(scenario)[expert as usize];
            let served = shares.split_tokens(u64::from(tokens), self.seeds[scenario]);
            for (at, tokens) in served.into_iter().enumerate() {
                parts[at * padded + scenario] = tokens as f32;
            }
        }
        parts
    }
}

/// Divides whole tokens, `[padded B]`, over replicas, `[replicas][padded B]`. The first replicas serve the
/// rest.
fn divide_evenly(tokens: &[f32], replicas: usize, parts: &mut [f32]) {
    let count = replicas as f32;
    for (at, part) in parts.chunks_exact_mut(tokens.len().max(1)).enumerate() {
        let at = at as f32;
        for (part, &tokens) in part.iter_mut().zip(tokens) {
            // Tokens are below 2^19, so a quotient that is not whole is never rounded to a whole one.
            let each = round_down(tokens / count);
            *part = if at < tokens - each * count { each + 1.0 } else { each };
        }
    }
}

/// Rounds down to a whole number, for numbers from 0 to 2^22. It needs no library call, so that it
/// vectorises.
fn round_down(x: f32) -> f32 {
    // From 2^23 on, `f32` has only whole numbers.
    const WHOLE: f32 = (1 << 23) as f32;
    let near = (x + WHOLE) - WHOLE;
    if near > x { near - 1.0 } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// States that replicas serve all tokens, and that the first serve one more than the last at most.
        #[test]
        fn replicas_serve_whole_tokens_evenly(tokens in 0u32..=1 << 19, replicas in 1usize..300) {
            let mut parts = vec![0.0; replicas];
            divide_evenly(&[tokens as f32], replicas, &mut parts);
            let (each, rest) = (tokens / replicas as u32, tokens as usize % replicas);
            for (at, &part) in parts.iter().enumerate() {
                prop_assert_eq!(part as u32, each + u32::from(at < rest));
            }
        }
    }
}
