//! Traffic: among the best splits, one that serves tokens near their source.
//!
//! In: a problem whose ranks are also the sources of tokens, the node of every rank, and counts
//! `[source][item]`. Out: a [`RankSplit`] of lowest peak ([`PrimaryObjective::Peak`]) or with a decreasingly
//! minimal load vector ([`PrimaryObjective::Vector`]). Among these it serves the fewest tokens off their
//! source's node, and then the fewest off their source's rank. The method is exact for any hosts, speeds,
//! base loads and nodes.
//!
//! **Cost of quotas.** To serve a token on its own rank costs nothing, on its own node a little, elsewhere
//! much. These costs form a tree, on which the nearest-first assignment is an optimal transport. So quotas
//! `q` of item `e` have a cost that does not depend on the shares. They cause `Σ_nodes (Q_en − N_en)⁺` tokens
//! off their node and `Σ_ranks (q_er − n_er)⁺` off their rank. Here `n_er` tokens start on rank `r`, and
//! `N_en`, `Q_en` are sums over node `n`.
//!
//! **Method.** A minimum-cost flow goes item → (item, node) → rank → sink. Its edges cost nothing up to a
//! threshold, and one unit beyond (`cost_flow`). It starts with every token on its own rank if that is a
//! host, which no exchange can improve, and sends the surplus away. [`PrimaryObjective`] bounds the edge from
//! a rank to the sink. For the peak, the bound is the room at the lowest peak. For the vector, the bounds are
//! the room at the rank's [`Level`] and one token less. Every item then keeps to its hosts of lowest level.
//! This describes exactly the decreasingly minimal splits (Frank and Murota 2022: a face within a box).
//!
//! A token off its node costs `4R + 1` units ([`node_cost`]), one off its rank 1. A residual cycle passes a
//! rank at most once, and so changes the count of tokens off their rank by less than that. The sum therefore
//! orders cycles as the pair does.
//!
//! **Proof.** There is a price per rank for which no exchange within any one item gains:
//! [`verify_traffic`](super::verify_traffic).

mod layout;

use layout::{HubEdge, TrafficLayout};

use super::balance::{BalanceWorkspace, balance_into};
use super::cost_flow::CostFlow;
use super::load_levels::Level;
use crate::{Count, Problem, RankSplit, SolverError, solve_into};

/// Splits among which traffic may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrimaryObjective {
    /// All splits of lowest peak.
    Peak,
    /// All splits with a decreasingly minimal load vector.
    Vector,
}

/// Split of least traffic, with its proof.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TrafficSplit {
    /// Split with the certificate of its peak.
    pub split: RankSplit,
    /// Tokens served on another node than their source's.
    pub off_node: u64,
    /// Tokens served on another rank than their source's, those on other nodes included.
    pub off_rank: u64,
    /// Price of one token's room on every rank, in units of one token off its rank; see [`node_cost`].
    pub prices: Vec<i64>,
    /// Level that every rank's load may reach, for [`PrimaryObjective::Vector`]. Otherwise empty.
    pub levels: Vec<Level>,
}

/// Returns the cost of a token off its node, in units of one off its rank. It exceeds all other costs on a
/// cycle together.
pub fn node_cost(ranks: usize) -> i64 {
    i64::try_from(ranks).unwrap_or(i64::MAX / 8) * 4 + 1
}

/// Splitter of least traffic for one problem, one arrangement of its ranks in nodes, and successive batches.
#[derive(Debug, Clone)]
pub struct TrafficSplitter {
    problem: Problem,
    /// Node of every rank, renumbered from 0.
    node_of: Vec<u32>,
    network: CostFlow,
    layout: TrafficLayout,
    balance: BalanceWorkspace,
    /// Tokens per item; per node and item, `[node][item]`.
    loads: Vec<u64>,
    node_counts: Vec<u64>,
}

impl TrafficSplitter {
    /// Builds the network. `nodes` holds the node of every rank, in any numbering.
    ///
    /// # Errors
    /// Returns [`SolverError::Length`] unless there is one node per rank.
    pub fn new(problem: Problem, nodes: &[u32]) -> Result<TrafficSplitter, SolverError> {
        let ranks = problem.hosts().ranks();
        if nodes.len() != ranks {
            return Err(SolverError::Length { what: "nodes", expected: ranks, got: nodes.len() });
        }
        let mut names = nodes.to_vec();
        names.sort_unstable();
        names.dedup();
        let node_of: Vec<u32> =
            nodes.iter().map(|node| names.partition_point(|name| name < node) as u32).collect();
        let mut balance = BalanceWorkspace::default();
        balance.graph.build_for(problem.hosts());
        let (layout, network) = TrafficLayout::new(&balance.graph, &node_of);
        let (loads, node_counts) =
            (vec![0; problem.hosts().items()], vec![0; names.len() * problem.hosts().items()]);
        Ok(TrafficSplitter { problem, node_of, network, layout, balance, loads, node_counts })
    }

    /// Returns the problem.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Splits one batch. `counts` is `[source][item]`, row after row, one source per rank.
    ///
    /// # Errors
    /// Returns [`SolverError::Length`] unless there are `ranks × items` counts, and [`SolverError::Overflow`]
    /// as
    /// [`solve`](crate::solve) does.
    pub fn solve(&mut self, counts: &[u64], keep: PrimaryObjective) -> Result<TrafficSplit, SolverError> {
        let mut answer = TrafficSplit::default();
        self.solve_into(counts, keep, &mut answer)?;
        Ok(answer)
    }

    /// Splits as [`solve`](Self::solve) does, into memory that is reused from call to call. It allocates
    /// nothing after the first call.
    ///
    /// # Errors
    /// Fails as [`solve`](Self::solve) does.
    pub fn solve_into(
        &mut self,
        counts: &[u64],
        keep: PrimaryObjective,
        answer: &mut TrafficSplit,
    ) -> Result<(), SolverError> {
        self.sum_counts(counts)?;
        let TrafficSplit { split, levels, prices, .. } = answer;
        levels.clear();
        match keep {
            PrimaryObjective::Peak => {
                solve_into(&self.problem, &self.loads, &mut self.balance.exact, split)?;
                let BalanceWorkspace { graph, flow, .. } = &mut self.balance;
                flow.resize_for(graph, self.node_of.len());
                flow.read(graph, &split.quotas, &split.rank_loads);
            }
            PrimaryObjective::Vector => {
                balance_into(&self.problem, &self.loads, &mut self.balance, split)?;
                levels.extend_from_slice(self.balance.levels());
            }
        }
        self.bound_ranks(split, levels);
        self.set_initial_flow(counts, levels);
        let done = self.network.solve();
        debug_assert!(done, "the current split is a flow within these bounds");
        self.read_flow(split, prices);
        (answer.off_node, answer.off_rank) = self.traffic_totals(counts, &answer.split);
        Ok(())
    }

    /// Sums the counts per item, and per node and item.
    fn sum_counts(&mut self, counts: &[u64]) -> Result<(), SolverError> {
        let items = self.loads.len();
        let expected = self.node_of.len() * items;
        if counts.len() != expected {
            return Err(SolverError::Length { what: "counts", expected, got: counts.len() });
        }
        // If all counts add up within 64 bits, so do all partial sums.
        Count::checked_sum(counts, 0).ok_or(SolverError::Overflow)?;
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

    /// Bounds every rank's edge to the sink. The rank's fixed load is left out.
    fn bound_ranks(&mut self, split: &RankSplit, levels: &[Level]) {
        let BalanceWorkspace { graph, flow, .. } = &self.balance;
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

    /// Serves every token on its own rank if that is allowed, and sets thresholds, supplies and demands.
    fn set_initial_flow(&mut self, counts: &[u64], levels: &[Level]) {
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
            let places = graph.item_places(group.index as usize);
            let level_at = |place: usize| levels.get(graph.rank_of[place] as usize);
            let lowest = places.filter_map(level_at).min();
            let of_node = self.node_counts[group.node as usize * items + item];
            let mut here = 0;
            for &place in self.layout.group_places(group) {
                let edge = &mut edges[ranks + place as usize];
                let rank = graph.rank_of[place as usize] as usize;
                let own = counts[rank * items + item];
                let open = level_at(place as usize) == lowest;
                edge.high = if open { u64::MAX } else { 0 };
                edge.flow = if open { own } else { 0 };
                edge.from = [own, u64::MAX];
                edge.step = [1, 0];
                if matches!(group.hub, HubEdge::Leaf) {
                    edge.from[1] = of_node;
                    edge.step[1] = node_cost(ranks);
                }
                here += edge.flow;
                // At this point `demand` holds the inflow of the ranks.
                demand[1 + rank] += edge.flow;
            }
            supply[1 + ranks + group.index as usize] -= here;
            if let HubEdge::Edge(number) = group.hub {
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
    fn read_flow(&mut self, split: &mut RankSplit, prices: &mut Vec<i64>) {
        let ranks = self.node_of.len();
        let BalanceWorkspace { graph, flow, .. } = &mut self.balance;
        prices.clear();
        for rank in 0..ranks {
            let edge = &self.network.edges[rank];
            let shared: u64 = graph.seats(rank).iter().map(|&(place, _)| flow.quota[place as usize]).sum();
            flow.load[rank] = flow.load[rank] - shared + edge.flow;
            let price = self.network.potential[0] - self.network.potential[1 + rank];
            // If a rank serves no item with several hosts, a higher price is equally valid.
            prices.push(if edge.high == 0 { price.max(0) } else { price });
        }
        for (quota, edge) in flow.quota.iter_mut().zip(&self.network.edges[ranks..]) {
            *quota = edge.flow;
        }
        flow.write(graph, &mut split.quotas, &mut split.rank_loads);
        split.peak = super::balance::busiest_ratio(&self.problem, &split.rank_loads);
    }

    /// Returns the tokens off their source's node, and off their source's rank.
    fn traffic_totals(&self, counts: &[u64], split: &RankSplit) -> (u64, u64) {
        let hosts = self.problem.hosts();
        let items = self.loads.len();
        let (mut off_node, mut off_rank) = (0, 0);
        for (item, &load) in self.loads.iter().enumerate() {
            if let [only] = *hosts.ranks_of(item) {
                off_node += load - self.node_counts[self.node_of[only as usize] as usize * items + item];
                off_rank += load - counts[only as usize * items + item];
            }
        }
        for group in &self.layout.groups {
            let mut here = 0;
            for &place in self.layout.group_places(group) {
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
