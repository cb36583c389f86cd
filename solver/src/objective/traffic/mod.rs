//! Traffic: among the best splits, one that serves tokens where they are.
//!
//! In: a problem whose ranks are also the sources of tokens, the node of every rank, and counts `[source][item]`. Out: a
//! [`Split`] of least peak ([`Keep::Peak`]) or with a decreasingly minimal load vector ([`Keep::Vector`]); among these one
//! with the fewest tokens served off their source's node, and among those one with the fewest served off their source's
//! rank. Exact for any hosts, speeds, base loads and nodes.
//!
//! **The cost of quotas.** Serving a token on its own rank costs nothing, on its own node a little, elsewhere much: a
//! tree, on which taking the nearest first is an optimal transport. So quotas `q` of item `e` cost, whatever the shares,
//! `Σ_nodes (Q_en − N_en)⁺` tokens off their node and `Σ_ranks (q_er − n_er)⁺` off their rank, where `n_er` tokens come
//! from rank `r` and `N_en`, `Q_en` are sums over node `n`.
//!
//! **Method.** A minimum-cost flow, item → (item, node) → rank → sink, whose edges cost nothing up to a threshold and one
//! unit beyond (`cost_flow`). It starts with every token on its own rank where that is a host, which no exchange can
//! improve, and sends away what is too much. The edge from a rank to the sink is bounded by what [`Keep`] allows: the room
//! at the least peak; or the room at the rank's [`Level`] and at most one token less, with every item kept to its hosts of
//! lowest level, which describes all decreasingly minimal splits and no other (Frank and Murota 2022: a face within a box).
//! A token off its node costs `4R + 1` units ([`node_cost`]), one off its rank 1. A residual cycle passes a rank once at
//! most and so changes the count of tokens off their rank by less than that: the sum orders cycles as the pair does.
//!
//! **Proof.** A price per rank, for which no exchange within any one item gains: [`verify_traffic`](super::verify_traffic).

mod layout;

use layout::{Hub, Layout};

use super::balance::{Workspace, balance_into};
use super::cost_flow::CostFlow;
use super::level::Level;
use crate::{Count, Error, Problem, Split, solve_into};

/// Which splits traffic may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All of least peak.
    Peak,
    /// All with a decreasingly minimal load vector.
    Vector,
}

/// A split of least traffic, and the proof.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrafficSplit {
    /// The split, with the certificate of its peak.
    pub split: Split,
    /// Tokens served on another node than their source's.
    pub off_node: u64,
    /// Tokens served on another rank than their source's, those on other nodes included.
    pub off_rank: u64,
    /// The price of one token's room on every rank, in units of one token off its rank; see [`node_cost`].
    pub prices: Vec<i64>,
    /// The level that every rank's load may reach, for [`Keep::Vector`]; else empty.
    pub levels: Vec<Level>,
}

/// What a token off its node costs, in units of one off its rank: more than all others on a cycle together.
pub fn node_cost(ranks: usize) -> i64 {
    i64::try_from(ranks).unwrap_or(i64::MAX / 8) * 4 + 1
}

/// Splits of least traffic for one problem and one arrangement of its ranks in nodes, batch after batch.
#[derive(Debug, Clone)]
pub struct Traffic {
    problem: Problem,
    /// Of every rank, its node, renumbered from 0.
    node_of: Vec<u32>,
    network: CostFlow,
    layout: Layout,
    balance: Workspace,
    /// Tokens per item; per node and item, `[node][item]`.
    loads: Vec<u64>,
    node_counts: Vec<u64>,
}

impl Traffic {
    /// Builds the network. `nodes` holds the node of every rank, in any numbering.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one node per rank.
    pub fn new(problem: Problem, nodes: &[u32]) -> Result<Traffic, Error> {
        let ranks = problem.hosts().ranks();
        if nodes.len() != ranks {
            return Err(Error::Length { what: "nodes", expected: ranks, got: nodes.len() });
        }
        let mut names = nodes.to_vec();
        names.sort_unstable();
        names.dedup();
        let node_of: Vec<u32> =
            nodes.iter().map(|node| names.partition_point(|name| name < node) as u32).collect();
        let mut balance = Workspace::default();
        balance.graph.fit(problem.hosts());
        let (layout, network) = Layout::new(&balance.graph, &node_of);
        let (loads, node_counts) =
            (vec![0; problem.hosts().items()], vec![0; names.len() * problem.hosts().items()]);
        Ok(Traffic { problem, node_of, network, layout, balance, loads, node_counts })
    }

    /// The problem.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Splits one batch. `counts` is `[source][item]`, row after row, one source per rank.
    ///
    /// # Errors
    /// [`Error::Length`] unless there are `ranks × items` counts; [`Error::Overflow`] as [`solve`](crate::solve).
    pub fn solve(&mut self, counts: &[u64], keep: Keep) -> Result<TrafficSplit, Error> {
        let mut answer = TrafficSplit::default();
        self.solve_into(counts, keep, &mut answer)?;
        Ok(answer)
    }

    /// As [`solve`](Self::solve), into memory that is kept from call to call: nothing is allocated after the first.
    ///
    /// # Errors
    /// As [`solve`](Self::solve).
    pub fn solve_into(&mut self, counts: &[u64], keep: Keep, answer: &mut TrafficSplit) -> Result<(), Error> {
        self.gather(counts)?;
        let TrafficSplit { split, levels, prices, .. } = answer;
        levels.clear();
        match keep {
            Keep::Peak => {
                solve_into(&self.problem, &self.loads, &mut self.balance.exact, split)?;
                let Workspace { graph, flow, .. } = &mut self.balance;
                flow.fit(graph, self.node_of.len());
                flow.read(graph, &split.quotas, &split.rank_loads);
            }
            Keep::Vector => {
                balance_into(&self.problem, &self.loads, &mut self.balance, split)?;
                levels.extend_from_slice(self.balance.levels());
            }
        }
        self.bound_ranks(split, levels);
        self.start(counts, levels);
        let done = self.network.solve();
        debug_assert!(done, "the split that is there is a flow within these bounds");
        self.finish(split, prices);
        (answer.off_node, answer.off_rank) = self.costs(counts, &answer.split);
        Ok(())
    }

    /// Sums the counts per item, and per node and item.
    fn gather(&mut self, counts: &[u64]) -> Result<(), Error> {
        let items = self.loads.len();
        let expected = self.node_of.len() * items;
        if counts.len() != expected {
            return Err(Error::Length { what: "counts", expected, got: counts.len() });
        }
        // If all of them add up within 64 bits, so do all partial sums.
        Count::sum(counts, 0).ok_or(Error::Overflow)?;
        self.loads.fill(0);
        self.node_counts.fill(0);
        if items == 0 {
            return Ok(());
        }
        for (row, &node) in counts.chunks_exact(items).zip(&self.node_of) {
            let sums = &mut self.node_counts[node as usize * items..][..items];
            for (sum, &count) in sums.iter_mut().zip(row) {
                *sum += count;
            }
        }
        for sums in self.node_counts.chunks_exact(items) {
            for (load, &sum) in self.loads.iter_mut().zip(sums) {
                *load += sum;
            }
        }
        Ok(())
    }

    /// Bounds every rank's edge to the sink; what it carries without a choice is left out.
    fn bound_ranks(&mut self, split: &Split, levels: &[Level]) {
        let Workspace { graph, flow, .. } = &self.balance;
        for (rank, edge) in self.network.edges[..self.node_of.len()].iter_mut().enumerate() {
            let speed = self.problem.speeds()[rank];
            let shared: u64 = graph.seats(rank).iter().map(|&(place, _)| flow.quota[place as usize]).sum();
            let fixed = split.rank_loads[rank] - shared;
            let (low, high) = match levels.get(rank) {
                Some(level) => (level.room_below(speed), level.room(speed)),
                None => (0, split.peak.room(speed)),
            };
            edge.low = low.saturating_sub(fixed);
            edge.high = high - fixed;
        }
    }

    /// Serves every token on its own rank where that is allowed, and sets thresholds, supplies and demands.
    fn start(&mut self, counts: &[u64], levels: &[Level]) {
        let (ranks, items) = (self.node_of.len(), self.loads.len());
        let CostFlow { edges, supply, demand, potential, .. } = &mut self.network;
        let graph = &self.balance.graph;
        potential.fill(0);
        supply.fill(0);
        demand.fill(0);
        for (index, &item) in graph.items.iter().enumerate() {
            supply[1 + ranks + index] = self.loads[item as usize];
        }
        for group in &self.layout.groups {
            let item = group.item as usize;
            let places = graph.places(group.index as usize);
            let level_at = |place: usize| levels.get(graph.rank_of[place] as usize);
            let lowest = places.filter_map(level_at).min();
            let of_node = self.node_counts[group.node as usize * items + item];
            let mut here = 0;
            for &place in self.layout.places(group) {
                let edge = &mut edges[ranks + place as usize];
                let rank = graph.rank_of[place as usize] as usize;
                let own = counts[rank * items + item];
                let open = level_at(place as usize) == lowest;
                edge.high = if open { u64::MAX } else { 0 };
                edge.flow = if open { own } else { 0 };
                edge.from = [own, u64::MAX];
                edge.step = [1, 0];
                if matches!(group.hub, Hub::Leaf) {
                    edge.from[1] = of_node;
                    edge.step[1] = node_cost(ranks);
                }
                here += edge.flow;
                // The ranks' inflow, for now.
                demand[1 + rank] += edge.flow;
            }
            supply[1 + ranks + group.index as usize] -= here;
            if let Hub::Edge(number) = group.hub {
                let edge = &mut edges[number as usize];
                (edge.flow, edge.high) = (here, u64::MAX);
                (edge.from, edge.step) = ([of_node, u64::MAX], [node_cost(ranks), 0]);
            }
        }
        let mut arrived = 0;
        for rank in 0..ranks {
            let inflow = demand[1 + rank];
            let edge = &mut edges[rank];
            edge.flow = inflow.clamp(edge.low, edge.high);
            supply[1 + rank] = inflow.saturating_sub(edge.flow);
            demand[1 + rank] = edge.flow.saturating_sub(inflow);
            arrived += edge.flow;
        }
        let all: u64 = graph.items.iter().map(|&item| self.loads[item as usize]).sum();
        supply[0] = arrived.saturating_sub(all);
        demand[0] = all.saturating_sub(arrived);
    }

    /// Reads quotas, rank loads and prices off the flow.
    fn finish(&mut self, split: &mut Split, prices: &mut Vec<i64>) {
        let ranks = self.node_of.len();
        let Workspace { graph, flow, .. } = &mut self.balance;
        prices.clear();
        for rank in 0..ranks {
            let edge = &self.network.edges[rank];
            let shared: u64 = graph.seats(rank).iter().map(|&(place, _)| flow.quota[place as usize]).sum();
            flow.load[rank] = flow.load[rank] - shared + edge.flow;
            let price = self.network.potential[0] - self.network.potential[1 + rank];
            // Where nothing with a choice is served, a higher price is as good.
            prices.push(if edge.high == 0 { price.max(0) } else { price });
        }
        for (quota, edge) in flow.quota.iter_mut().zip(&self.network.edges[ranks..]) {
            *quota = edge.flow;
        }
        flow.write(graph, &mut split.quotas, &mut split.rank_loads);
        split.peak = super::balance::busiest(&self.problem, &split.rank_loads);
    }

    /// Tokens off their source's node, and off their source's rank.
    fn costs(&self, counts: &[u64], split: &Split) -> (u64, u64) {
        let hosts = self.problem.hosts();
        let items = self.loads.len();
        let (mut off_node, mut off_rank) = (0, 0);
        for (item, &load) in self.loads.iter().enumerate() {
            if let [only] = *hosts.of(item) {
                off_node += load - self.node_counts[self.node_of[only as usize] as usize * items + item];
                off_rank += load - counts[only as usize * items + item];
            }
        }
        for group in &self.layout.groups {
            let mut here = 0;
            for &place in self.layout.places(group) {
                let rank = self.balance.graph.rank_of[place as usize] as usize;
                let quota = split.quotas[self.balance.graph.pair_of[place as usize] as usize];
                off_rank += quota.saturating_sub(counts[rank * items + group.item as usize]);
                here += quota;
            }
            let of_node = self.node_counts[group.node as usize * items + group.item as usize];
            off_node += here.saturating_sub(of_node);
        }
        (off_node, off_rank)
    }
}
