//! Minimum-cost flow with convex, piecewise linear costs on edges, in whole tokens.
//!
//! In: edges, each with bounds on its flow and up to two thresholds beyond which a token costs more; per node the
//! tokens that enter or leave there. Out: the cheapest flow, and a potential per node that proves it.
//!
//! **Method.** Primal-dual (Ford and Fulkerson 1962; Edmonds and Karp 1972 for the potentials): among the arcs of
//! reduced cost zero, a maximum flow by levels and blocking flows; then distances by reduced cost (Dijkstra) raise the
//! potentials, so that at least one more node with a demand is in reach. As many rounds as there are different path
//! costs, which are few here; each moves load in bulk.
//!
//! **Why it is cheapest.** Reduced costs of residual arcs never become negative, so no cycle could lower the cost.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NEVER: u32 = u32::MAX;
const FAR: i64 = i64::MAX;

/// An edge from `tail` to `head`. Its flow lies between `low` and `high`; every token costs `step[i]` more from the
/// threshold `from[i]` on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Edge {
    pub(super) tail: u32,
    pub(super) head: u32,
    pub(super) flow: u64,
    pub(super) low: u64,
    pub(super) high: u64,
    /// Ascending; `u64::MAX` for none.
    pub(super) from: [u64; 2],
    pub(super) step: [i64; 2],
}

impl Edge {
    /// What one more token costs, and how many can go at that price.
    fn ahead(&self) -> (i64, u64) {
        let mut cost = 0;
        let mut until = self.high;
        for (&from, &step) in self.from.iter().zip(&self.step) {
            if self.flow >= from {
                cost += step;
            } else {
                until = until.min(from);
            }
        }
        (cost, until - self.flow)
    }

    /// What one token less costs (nothing or a gain), and how many can go back at that price.
    fn back(&self) -> (i64, u64) {
        let mut cost = 0;
        let mut until = self.low;
        for (&from, &step) in self.from.iter().zip(&self.step) {
            if self.flow > from {
                cost -= step;
                until = until.max(from);
            }
        }
        (cost, self.flow - until)
    }
}

/// A network. The arcs of a node are its edges, in either direction: an edge's number twice, plus one where the node is
/// its head.
#[derive(Debug, Clone, Default)]
pub(super) struct CostFlow {
    pub(super) edges: Vec<Edge>,
    /// Tokens that wait at a node, and tokens that a node still wants; never both.
    pub(super) supply: Vec<u64>,
    pub(super) demand: Vec<u64>,
    /// For every residual arc `u → v`: `cost + potential[u] − potential[v] ≥ 0`.
    pub(super) potential: Vec<i64>,
    bounds: Vec<u32>,
    arcs: Vec<u32>,
    level: Vec<u32>,
    arc: Vec<u32>,
    queue: Vec<u32>,
    path: Vec<u32>,
    distance: Vec<i64>,
    heap: BinaryHeap<Reverse<(i64, u32)>>,
}

impl CostFlow {
    /// A network of these edges, all memory allocated.
    pub(super) fn new(nodes: usize, edges: Vec<Edge>) -> CostFlow {
        let mut bounds = vec![0u32; nodes + 1];
        for edge in &edges {
            bounds[edge.tail as usize + 1] += 1;
            bounds[edge.head as usize + 1] += 1;
        }
        for node in 0..nodes {
            bounds[node + 1] += bounds[node];
        }
        let mut next = bounds.clone();
        let mut arcs = vec![0; 2 * edges.len()];
        for (edge, number) in edges.iter().zip(0u32..) {
            for (node, arc) in [(edge.tail, 2 * number), (edge.head, 2 * number + 1)] {
                arcs[next[node as usize] as usize] = arc;
                next[node as usize] += 1;
            }
        }
        CostFlow {
            supply: vec![0; nodes],
            demand: vec![0; nodes],
            potential: vec![0; nodes],
            level: vec![NEVER; nodes],
            arc: vec![0; nodes],
            queue: Vec::with_capacity(nodes),
            path: Vec::with_capacity(nodes),
            distance: vec![FAR; nodes],
            heap: BinaryHeap::with_capacity(arcs.len() + nodes),
            edges,
            bounds,
            arcs,
        }
    }

    /// Sends every supply to demands as cheaply as can be. The potentials must be valid for the flow there is. False
    /// if some supply can reach no demand.
    pub(super) fn solve(&mut self) -> bool {
        loop {
            while self.search() {
                self.block();
            }
            if self.supply.iter().all(|&supply| supply == 0) {
                return true;
            }
            if !self.raise() {
                return false;
            }
        }
    }

    fn node_arcs(&self, node: u32) -> std::ops::Range<usize> {
        self.bounds[node as usize] as usize..self.bounds[node as usize + 1] as usize
    }

    /// Where an arc leads, at what reduced cost, and for how many tokens.
    fn residual(&self, node: u32, arc: u32) -> (u32, i64, u64) {
        let edge = &self.edges[(arc / 2) as usize];
        let (to, (cost, spare)) =
            if arc.is_multiple_of(2) { (edge.head, edge.ahead()) } else { (edge.tail, edge.back()) };
        (to, cost + self.potential[node as usize] - self.potential[to as usize], spare)
    }

    /// Levels from all supplies along arcs of reduced cost zero; whether a demand is in reach.
    fn search(&mut self) -> bool {
        self.queue.clear();
        for (node, (&supply, level)) in self.supply.iter().zip(&mut self.level).enumerate() {
            *level = if supply > 0 { 0 } else { NEVER };
            if supply > 0 {
                self.queue.push(node as u32);
            }
        }
        let mut found = false;
        let mut done = 0;
        while let Some(&node) = self.queue.get(done) {
            done += 1;
            for index in self.node_arcs(node) {
                let (to, cost, spare) = self.residual(node, self.arcs[index]);
                if cost == 0 && spare > 0 && self.level[to as usize] == NEVER {
                    self.level[to as usize] = self.level[node as usize] + 1;
                    self.queue.push(to);
                    found |= self.demand[to as usize] > 0;
                }
            }
        }
        found
    }

    /// A blocking flow along the levels.
    fn block(&mut self) {
        for node in 0..self.arc.len() as u32 {
            self.arc[node as usize] = self.bounds[node as usize];
        }
        for index in 0..self.queue.len() {
            let source = self.queue[index];
            if self.level[source as usize] > 0 {
                break;
            }
            while self.supply[source as usize] > 0 && self.walk(source) {}
        }
    }

    /// Sends tokens along one path to a demand; false if there is none.
    fn walk(&mut self, source: u32) -> bool {
        self.path.clear();
        let mut node = source;
        let mut most = self.supply[source as usize];
        while self.demand[node as usize] == 0 {
            let next = self.arc[node as usize];
            if next == self.bounds[node as usize + 1] {
                let Some(arc) = self.path.pop() else { return false };
                node = self.from(arc);
                self.arc[node as usize] += 1;
                continue;
            }
            let arc = self.arcs[next as usize];
            let (to, cost, spare) = self.residual(node, arc);
            if cost == 0 && spare > 0 && self.level[to as usize] == self.level[node as usize] + 1 {
                self.path.push(arc);
                node = to;
            } else {
                self.arc[node as usize] += 1;
            }
        }
        most = most.min(self.demand[node as usize]);
        for &arc in &self.path {
            let edge = &self.edges[(arc / 2) as usize];
            most = most.min(if arc.is_multiple_of(2) { edge.ahead().1 } else { edge.back().1 });
        }
        for &arc in &self.path {
            let edge = &mut self.edges[(arc / 2) as usize];
            if arc.is_multiple_of(2) { edge.flow += most } else { edge.flow -= most }
        }
        self.supply[source as usize] -= most;
        self.demand[node as usize] -= most;
        true
    }

    /// The node an arc leaves.
    fn from(&self, arc: u32) -> u32 {
        let edge = &self.edges[(arc / 2) as usize];
        if arc.is_multiple_of(2) { edge.tail } else { edge.head }
    }

    /// Raises the potentials by the distances from the supplies, as far as the nearest demand; false if there is none.
    fn raise(&mut self) -> bool {
        self.heap.clear();
        for (distance, &supply) in self.distance.iter_mut().zip(&self.supply) {
            *distance = if supply > 0 { 0 } else { FAR };
        }
        // What the last search reached lies at distance zero.
        for index in 0..self.queue.len() {
            let node = self.queue[index];
            self.distance[node as usize] = 0;
            self.heap.push(Reverse((0, node)));
        }
        let mut nearest = None;
        while let Some(Reverse((distance, node))) = self.heap.pop() {
            if distance > self.distance[node as usize] {
                continue;
            }
            if self.demand[node as usize] > 0 {
                nearest = Some(distance);
                break;
            }
            for index in self.node_arcs(node) {
                let (to, cost, spare) = self.residual(node, self.arcs[index]);
                if spare > 0 && distance + cost < self.distance[to as usize] {
                    self.distance[to as usize] = distance + cost;
                    self.heap.push(Reverse((distance + cost, to)));
                }
            }
        }
        let Some(nearest) = nearest else { return false };
        for (potential, &distance) in self.potential.iter_mut().zip(&self.distance) {
            *potential += distance.min(nearest);
        }
        true
    }
}
