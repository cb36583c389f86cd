//! The network that traffic flows through: what stays the same from batch to batch.
//!
//! In: the items with a choice, the node of every rank. Out: edges, and groups of hosts that share a node.
//!
//! Node 0 is the sink, then come the ranks, then one hub per item, then hubs per item and node. The edges are first those
//! from each rank to the sink, then those to each place, then those between hubs.

use crate::objective::cost_flow::{CostFlow, Edge};
use crate::objective::graph::Graph;

/// Groups of hosts.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Item by item.
    pub(super) groups: Vec<Group>,
    /// Of every group, its places.
    members: Vec<u32>,
}

/// The hosts of one item on one node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// The item, and its index among those with a choice.
    pub(super) item: u32,
    pub(super) index: u32,
    pub(super) node: u32,
    /// Bounds into the layout's members.
    begin: u32,
    end: u32,
    /// How the node's threshold is counted.
    pub(super) hub: Hub,
}

/// Where the cost of leaving a node arises.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hub {
    /// Nowhere: all hosts are on this node.
    None,
    /// On the edge of the only host there.
    Leaf,
    /// On an edge of its own.
    Edge(u32),
}

impl Layout {
    /// Builds groups and network.
    pub(super) fn new(graph: &Graph, node_of: &[u32]) -> (Layout, CostFlow) {
        let ranks = node_of.len();
        let mut hubs = 1 + ranks + graph.items.len();
        let sinks = (1..=ranks as u32).map(|rank| Edge { tail: rank, ..Edge::default() });
        let leaves = graph.rank_of.iter().map(|&rank| Edge { head: 1 + rank, ..Edge::default() });
        let mut edges: Vec<Edge> = sinks.chain(leaves).collect();
        let (mut groups, mut members) = (Vec::new(), Vec::new());
        for (index, &item) in graph.items.iter().enumerate() {
            let mut places: Vec<u32> = graph.places(index).map(|place| place as u32).collect();
            let node_at = |place: u32| node_of[graph.rank_of[place as usize] as usize];
            places.sort_by_key(|&place| node_at(place));
            let one_node = places.iter().all(|&place| node_at(place) == node_at(places[0]));
            for group in places.chunk_by(|&a, &b| node_at(a) == node_at(b)) {
                let mut tail = (1 + ranks + index) as u32;
                let mut hub = if one_node { Hub::None } else { Hub::Leaf };
                if !one_node && group.len() > 1 {
                    hub = Hub::Edge(edges.len() as u32);
                    edges.push(Edge { tail, head: hubs as u32, ..Edge::default() });
                    tail = hubs as u32;
                    hubs += 1;
                }
                let begin = members.len() as u32;
                members.extend_from_slice(group);
                let end = members.len() as u32;
                for &place in group {
                    edges[ranks + place as usize].tail = tail;
                }
                groups.push(Group { item, index: index as u32, node: node_at(group[0]), begin, end, hub });
            }
        }
        (Layout { groups, members }, CostFlow::new(hubs, edges))
    }

    /// The places of a group.
    pub(super) fn places(&self, group: &Group) -> &[u32] {
        &self.members[group.begin as usize..group.end as usize]
    }
}
