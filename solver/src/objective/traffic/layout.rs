//! Network for traffic: the part that is the same for all batches.
//!
//! In: the items with several hosts, the node of every rank. Out: edges, and groups of hosts that share a
//! node.
//!
//! Node 0 is the sink. Then come the ranks, one hub per item, and hubs per item and node. The first edges
//! lead from each rank to the sink, the next ones to each place, and the last ones connect hubs.

use crate::objective::cost_flow::{CostEdge, CostFlow};
use crate::objective::graph::PlaceGraph;

/// Groups of hosts.
#[derive(Debug, Clone)]
pub(super) struct TrafficLayout {
    /// Groups, item by item.
    pub(super) groups: Vec<NodeGroup>,
    /// Places of all groups.
    members: Vec<u32>,
}

/// Hosts of one item on one node.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeGroup {
    /// Item, and its index among those with several hosts.
    pub(super) item: u32,
    pub(super) index: u32,
    pub(super) node: u32,
    /// Bounds into the layout's members.
    begin: u32,
    end: u32,
    /// Edge that carries the node's threshold.
    pub(super) hub: HubEdge,
}

/// Edge on which the cost of leaving a node arises.
#[derive(Debug, Clone, Copy)]
pub(super) enum HubEdge {
    /// No edge, because all hosts are on this node.
    None,
    /// Edge of the only host on the node.
    Leaf,
    /// Edge of its own, by number.
    Edge(u32),
}

impl TrafficLayout {
    /// Builds groups and network.
    pub(super) fn new(graph: &PlaceGraph, node_of: &[u32]) -> (TrafficLayout, CostFlow) {
        let ranks = node_of.len();
        let mut hubs = 1 + ranks + graph.items.len();
        let sinks = (1..=ranks as u32).map(|rank| CostEdge { tail: rank, ..CostEdge::default() });
        let leaves = graph.rank_of.iter().map(|&rank| CostEdge { head: 1 + rank, ..CostEdge::default() });
        let mut edges: Vec<CostEdge> = sinks.chain(leaves).collect();
        let (mut groups, mut members) = (Vec::new(), Vec::new());
        for (index, &item) in graph.items.iter().enumerate() {
            let mut places: Vec<u32> = graph.item_places(index).map(|place| place as u32).collect();
            let node_at = |place: u32| node_of[graph.rank_of[place as usize] as usize];
            places.sort_by_key(|&place| node_at(place));
            let one_node = places.iter().all(|&place| node_at(place) == node_at(places[0]));
            for group in places.chunk_by(|&a, &b| node_at(a) == node_at(b)) {
                let mut tail = (1 + ranks + index) as u32;
                let mut hub = if one_node { HubEdge::None } else { HubEdge::Leaf };
                if !one_node && group.len() > 1 {
                    hub = HubEdge::Edge(edges.len() as u32);
                    edges.push(CostEdge { tail, head: hubs as u32, ..CostEdge::default() });
                    tail = hubs as u32;
                    hubs += 1;
                }
                let begin = members.len() as u32;
                members.extend_from_slice(group);
                let end = members.len() as u32;
                for &place in group {
                    edges[ranks + place as usize].tail = tail;
                }
                groups.push(NodeGroup {
                    item,
                    index: index as u32,
                    node: node_at(group[0]),
                    begin,
                    end,
                    hub,
                });
            }
        }
        (TrafficLayout { groups, members }, CostFlow::new(hubs, edges))
    }

    /// Returns the places of a group.
    pub(super) fn group_places(&self, group: &NodeGroup) -> &[u32] {
        &self.members[group.begin as usize..group.end as usize]
    }
}
