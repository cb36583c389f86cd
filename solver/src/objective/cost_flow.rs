//! Minimum-cost flow with convex, piecewise linear costs on edges, in whole tokens.
//!
//! In: edges, each with bounds on its flow and up to two thresholds beyond which a token costs more. For each
//! node, the tokens that enter or leave there. Out: the cheapest flow, and a potential per node that proves
//! it.
//!
//! **Method.** Primal-dual (Ford and Fulkerson 1962; Edmonds and Karp 1972 for the potentials). Among the
//! arcs of reduced cost zero, it finds a maximum flow by levels and blocking flows. Then distances by reduced
//! cost (Dijkstra) raise the potentials, so that at least one more node with a demand is in reach. There are
//! as many rounds as different path costs, which are few here. Each round moves load in bulk.
//!
//! **Proof.** Reduced costs of residual arcs never become negative, so no cycle could lower the cost.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const UNREACHED: u32 = u32::MAX;
const INFINITE_DISTANCE: i64 = i64::MAX;

/// Edge from `tail` to `head`. Its flow lies between `low` and `high`. Every token costs `step[i]` more from
/// the threshold `from[i]` on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CostEdge {
    pub(super) tail: u32,
    pub(super) head: u32,
    pub(super) flow: u64,
    pub(super) low: u64,
    pub(super) high: u64,
    /// Thresholds, ascending, with `u64::MAX` for none.
    pub(super) from: [u64; 2],
    pub(super) step: [i64; 2],
}

impl CostEdge {
    /// Returns the cost of one more token, and the number of tokens at that price.
    fn next_token_cost(&self) -> (i64, u64) {
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

    /// Returns the cost of one token less (zero or a gain), and the number of tokens at that price.
    fn last_token_cost(&self) -> (i64, u64) {
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

/// Network. The arcs of a node are its edges in either direction. An arc is twice an edge's number, plus one
/// if the node is its head.
#[derive(Debug, Clone, Default)]
pub(super) struct CostFlow {
    pub(super) edges: Vec<CostEdge>,
    /// Tokens that wait at a node, and tokens that a node still needs. A node never has both.
    pub(super) supply: Vec<u64>,
    pub(super) demand: Vec<u64>,
    /// Potentials. For every residual arc `u → v`: `cost + potential[u] − potential[v] ≥ 0`.
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
    /// Creates a network of these edges, with all memory allocated.
    pub(super) fn new(nodes: usize, edges: Vec<CostEdge>) -> CostFlow {
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
            level: vec![UNREACHED; nodes],
            arc: vec![0; nodes],
            queue: Vec::with_capacity(nodes),
            path: Vec::with_capacity(nodes),
            distance: vec![INFINITE_DISTANCE; nodes],
            heap: BinaryHeap::with_capacity(arcs.len() + nodes),
            edges,
            bounds,
            arcs,
        }
    }

    /// Sends every supply to demands at the lowest cost. The potentials must be valid for the present flow.
    /// Returns false if some supply can reach no demand.
    pub(super) fn solve(&mut self) -> bool {
        loop {
            while self.search_levels() {
                self.send_blocking_flow();
            }
            if self.supply.iter().all(|&supply| supply == 0) {
                return true;
            }
            if !self.raise_potentials() {
                return false;
            }
        }
    }

    fn node_arcs(&self, node: u32) -> std::ops::Range<usize> {
        self.bounds[node as usize] as usize..self.bounds[node as usize + 1] as usize
    }

    /// Returns the node to which an arc leads, its reduced cost, and its spare tokens.
    fn residual_arc(&self, node: u32, arc: u32) -> (u32, i64, u64) {
        let edge = &self.edges[(arc / 2) as usize];
        let (to, (cost, spare)) = if arc.is_multiple_of(2) {
            (edge.head, edge.next_token_cost())
        } else {
            (edge.tail, edge.last_token_cost())
        };
        (to, cost + self.potential[node as usize] - self.potential[to as usize], spare)
    }

    /// Computes levels from all supplies along arcs of reduced cost zero. Returns true if a demand is in
    /// reach.
    fn search_levels(&mut self) -> bool {
        self.queue.clear();
        for (node, (&supply, level)) in self.supply.iter().zip(&mut self.level).enumerate() {
            *level = if supply > 0 { 0 } else { UNREACHED };
            if supply > 0 {
                self.queue.push(node as u32);
            }
        }
        let mut found = false;
        let mut done = 0;
        while let Some(&node) = self.queue.get(done) {
            done += 1;
            for index in self.node_arcs(node) {
                let (to, cost, spare) = self.residual_arc(node, self.arcs[index]);
                if cost == 0 && spare > 0 && self.level[to as usize] == UNREACHED {
                    self.level[to as usize] = self.level[node as usize] + 1;
                    self.queue.push(to);
                    found |= self.demand[to as usize] > 0;
                }
            }
        }
        found
    }

    /// Sends a blocking flow along the levels.
    fn send_blocking_flow(&mut self) {
        for node in 0..self.arc.len() as u32 {
            self.arc[node as usize] = self.bounds[node as usize];
        }
        for index in 0..self.queue.len() {
            let source = self.queue[index];
            if self.level[source as usize] > 0 {
                break;
            }
            while self.supply[source as usize] > 0 && self.send_along_path(source) {}
        }
    }

    /// Sends tokens along one path to a demand. Returns false if there is none.
    fn send_along_path(&mut self, source: u32) -> bool {
        self.path.clear();
        let mut node = source;
        let mut most = self.supply[source as usize];
        while self.demand[node as usize] == 0 {
            let next = self.arc[node as usize];
            if next == self.bounds[node as usize + 1] {
                let Some(arc) = self.path.pop() else { return false };
                node = self.arc_tail(arc);
                self.arc[node as usize] += 1;
                continue;
            }
            let arc = self.arcs[next as usize];
            let (to, cost, spare) = self.residual_arc(node, arc);
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
            most = most.min(if arc.is_multiple_of(2) {
                edge.next_token_cost().1
            } else {
                edge.last_token_cost().1
            });
        }
        for &arc in &self.path {
            let edge = &mut self.edges[(arc / 2) as usize];
            if arc.is_multiple_of(2) { edge.flow += most } else { edge.flow -= most }
        }
        self.supply[source as usize] -= most;
        self.demand[node as usize] -= most;
        true
    }

    /// Returns the node that an arc leaves.
    fn arc_tail(&self, arc: u32) -> u32 {
        let edge = &self.edges[(arc / 2) as usize];
        if arc.is_multiple_of(2) { edge.tail } else { edge.head }
    }

    /// Raises the potentials by the distances from the supplies, as far as the nearest demand. Returns false
    /// if there is none.
    fn raise_potentials(&mut self) -> bool {
        self.heap.clear();
        for (distance, &supply) in self.distance.iter_mut().zip(&self.supply) {
            *distance = if supply > 0 { 0 } else { INFINITE_DISTANCE };
        }
        // Nodes that the last search reached lie at distance zero.
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
                let (to, cost, spare) = self.residual_arc(node, self.arcs[index]);
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
