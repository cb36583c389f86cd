//! How a fixed rule shares an expert's tokens between its replicas, scenario by scenario.
//!
//! In: an expert, the ranks of its replicas in the order of slots, the position of one. Out: the tokens of that replica in
//! every scenario. Rules see no other expert, so a replica's part never depends on where other experts are.
//!
//! The parts are those of the split methods [`Method::Even`] and [`Method::Stack`]. Most follow from the number of replicas and
//! are worked out once. SGLang's rules for several nodes also see which ranks hold the replicas; of these the expected part counts.

use super::scenarios::Scenarios;
use super::seating::Rank;
use crate::cluster::Cluster;
use crate::split::{Method, ReplicaShares, StackDispatch, batch_seed};
use std::collections::HashMap;

/// A rule, with what it has worked out so far.
#[derive(Debug, Clone)]
pub(crate) struct ShareRule {
    method: Method,
    ranks: usize,
    ranks_per_node: usize,
    /// The parts of an expert with a number of replicas, `[replicas][padded B]`.
    parts: HashMap<(u32, u16), Vec<f32>>,
    /// The seed of each scenario's chance, `[B]`; empty before the first.
    seeds: Vec<u64>,
}

impl ShareRule {
    /// The rule of a split method. Methods that look at all experts have none and count as even.
    pub(crate) fn new(method: Method, cluster: &Cluster) -> Self {
        let (ranks, ranks_per_node) = (cluster.ranks(), cluster.ranks() / cluster.nodes());
        Self { method, ranks, ranks_per_node, parts: HashMap::new(), seeds: vec![] }
    }

    /// The tokens of the replica at position `at` of `hosts`, in every scenario, `[padded B]`.
    pub(crate) fn part(
        &mut self,
        scenarios: &Scenarios,
        expert: u32,
        hosts: &[Rank],
        at: usize,
        part: &mut [f32],
    ) {
        let padded = scenarios.padded();
        if hosts.len() == 1 {
            part.copy_from_slice(scenarios.row(expert as usize));
            return;
        }
        if let Some(stack) = self.by_host() {
            return self.expected(stack, scenarios, expert, (hosts, at), part);
        }
        let key = (expert, hosts.len() as u16);
        if !self.parts.contains_key(&key) {
            let parts = self.by_number(scenarios, expert, hosts.len());
            self.parts.insert(key, parts);
        }
        if let Some(parts) = self.parts.get(&key) {
            part.copy_from_slice(&parts[at * padded..(at + 1) * padded]);
        }
    }

    /// The stack whose rule sees which ranks hold the replicas.
    fn by_host(&self) -> Option<StackDispatch> {
        match self.method {
            Method::Stack(stack @ (StackDispatch::SglangStatic | StackDispatch::SglangRandom))
                if self.ranks_per_node < self.ranks =>
            {
                Some(stack)
            }
            _ => None,
        }
    }

    /// A replica's expected part: of the tokens up to this replica, those up to the one before are taken away.
    fn expected(
        &self,
        stack: StackDispatch,
        scenarios: &Scenarios,
        expert: u32,
        (hosts, at): (&[Rank], usize),
        part: &mut [f32],
    ) {
        let ranks: Vec<usize> = hosts.iter().map(|&host| host as usize).collect();
        let shares = ReplicaShares::new(stack, &ranks, expert as usize, (self.ranks, self.ranks_per_node));
        let weights: Vec<u64> = shares.expected().collect();
        let before: u64 = weights[..at].iter().sum();
        let sum = weights.iter().sum::<u64>().max(1);
        part.fill(0.0);
        for (scenario, part) in part.iter_mut().enumerate().take(scenarios.len()) {
            let tokens = u64::from(scenarios.loads(scenario)[expert as usize]);
            *part = ((tokens * (before + weights[at])) / sum - (tokens * before) / sum) as f32;
        }
    }

    /// The parts of all replicas where only their number counts, `[replicas][padded B]`.
    fn by_number(&mut self, scenarios: &Scenarios, expert: u32, replicas: usize) -> Vec<f32> {
        let padded = scenarios.padded();
        let shares = match self.method {
            Method::Stack(stack) => {
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
        for scenario in 0..scenarios.len() {
            let tokens = scenarios.loads(scenario)[expert as usize];
            let served: Vec<u64> = if let Some(shares) = &shares {
                shares.serve(u64::from(tokens), self.seeds[scenario])
            } else {
                let (each, more) = (tokens / replicas as u32, tokens as usize % replicas);
                (0..replicas).map(|at| u64::from(each) + u64::from(at < more)).collect()
            };
            for (at, tokens) in served.into_iter().enumerate() {
                parts[at * padded + scenario] = tokens as f32;
            }
        }
        parts
    }
}
