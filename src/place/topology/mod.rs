//! Replica topologies: the rank whose experts each redundant slot replicates.
//!
//! In: a name (`ring`, `cube`, ...) or a JSON file. Out: LPLB's redundant-to-original table and its graph.
//! The nodes of the graph are ranks, and an edge joins every pair of ranks that shares an expert. Source:
//! deepseek-ai/LPLB, the topologies of its README and tests.

mod searched;
use petgraph::algo::{connected_components, dijkstra};
use petgraph::graph::{NodeIndex, UnGraph};
use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use thiserror::Error;

/// Highest number of redundant slots per rank of a designed graph.
const MAX_DESIGNED_SLOTS: usize = 16;

/// LPLB's redundant-to-original table for one group of ranks.
///
/// `columns[d][i]` is the rank whose `d`-th heaviest expert has a replica on rank `i`, within groups of
/// [`Topology::group_size`] consecutive ranks. Every column is a permutation without fixed points, so each
/// such expert is shared by exactly two ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    name: String,
    columns: Vec<Vec<u32>>,
}

/// Connectivity of the replica graph of a [`Topology`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GraphConnectivity {
    /// Number of connected parts. Load cannot flow between them.
    pub components: usize,
    /// Lowest number of shared experts whose loss disconnects the graph. 0 if it is not connected.
    pub edge_connectivity: usize,
    /// Longest shortest path in shared experts. `None` if the graph is not connected.
    pub diameter: Option<usize>,
    /// Number of further shared experts of pairs of ranks, beyond the first of each pair.
    pub parallel_edges: usize,
}

/// Reasons for which a topology is not available.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// The name is no known topology.
    #[error(
        "unknown topology `{0}`: expected ring, ring:N, cube, hypercube, torus:MxN, designed:D or a .json file"
    )]
    Unknown(String),
    /// The group does not divide the ranks.
    #[error("topology {name} joins groups of {group} ranks, which do not divide {ranks} ranks")]
    Group {
        /// Name of the topology.
        name: String,
        /// Number of ranks of its group.
        group: usize,
        /// Ranks of the cluster.
        ranks: usize,
    },
    /// A column is no permutation, or replicates a rank's expert on the same rank.
    #[error("topology {name}, column {column}: {reason}")]
    Column {
        /// Name of the topology.
        name: String,
        /// Index of the column, from 0.
        column: usize,
        /// Fault of the column.
        reason: String,
    },
    /// The file is no readable table.
    #[error("topology file {}: {reason}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Fault, and the expected content.
        reason: String,
    },
}

impl Topology {
    /// Finds a topology by name, for a cluster of `ranks`.
    ///
    /// - `ring`: LPLB's ring of 8 if 8 divides the ranks, else one ring of all ranks. `ring:N` joins rings of
    ///   `N`.
    /// - `cube` (8 ranks, 2 columns), `hypercube` (16 ranks, 2 columns): LPLB's own tables.
    /// - `torus:MxN`: `M * N` ranks, 2 columns.
    /// - `designed:D`: one group of all ranks with `D` columns, found by a search for short distances. Its
    ///   edge-connectivity is `2 D`. It needs a cluster of at least 2 ranks.
    /// - A path that ends in `.json`: `[[rank of column 0, rank of column 1, ...], ...]`, one row per rank of
    ///   the group, as LPLB's `redundant_to_original`.
    ///
    /// # Errors
    /// Fails if the name is unknown, if the table is malformed, or if its group does not divide the ranks.
    pub fn from_name(name: &str, ranks: usize) -> Result<Self, TopologyError> {
        let unknown = || TopologyError::Unknown(name.to_owned());
        let columns = match name {
            "ring" => ring_columns(if ranks.is_multiple_of(8) { 8 } else { ranks }),
            "cube" => vec![vec![3, 0, 1, 2, 7, 4, 5, 6], vec![6, 7, 4, 5, 0, 1, 2, 3]],
            "hypercube" => vec![
                vec![3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14],
                vec![12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            ],
            _ => {
                if let Some(length) = name.strip_prefix("ring:") {
                    let group = length.parse().map_err(|_| unknown())?;
                    if group > crate::cluster::MAX_RANKS {
                        return Err(TopologyError::Group { name: name.to_owned(), group, ranks });
                    }
                    ring_columns(group)
                } else if let Some(slots) = name.strip_prefix("designed:") {
                    let slots: usize = slots.parse().map_err(|_| unknown())?;
                    if !(1..=MAX_DESIGNED_SLOTS).contains(&slots) || ranks < 2 {
                        let reason = format!(
                            "expected 1 to {MAX_DESIGNED_SLOTS} slots per rank on 2 ranks or more, not {ranks}"
                        );
                        return Err(TopologyError::Column { name: name.to_owned(), column: 0, reason });
                    }
                    searched::search_columns(ranks, slots)
                } else if let Some(shape) = name.strip_prefix("torus:") {
                    let (m, n) = shape.split_once('x').ok_or_else(unknown)?;
                    let (m, n): (u32, u32) =
                        (m.parse().map_err(|_| unknown())?, n.parse().map_err(|_| unknown())?);
                    if m.saturating_mul(n) as usize > crate::cluster::MAX_RANKS {
                        return Err(TopologyError::Group {
                            name: name.to_owned(),
                            group: m.saturating_mul(n) as usize,
                            ranks,
                        });
                    }
                    torus_columns(m, n)
                } else if std::path::Path::new(name).extension().is_some_and(|e| e == "json") {
                    read_columns(name)?
                } else {
                    return Err(unknown());
                }
            }
        };
        let topology = Self::new(name.to_owned(), columns)?;
        if !ranks.is_multiple_of(topology.group_size()) {
            return Err(TopologyError::Group { name: name.to_owned(), group: topology.group_size(), ranks });
        }
        Ok(topology)
    }

    /// Checks a table of columns, each `[group]`.
    ///
    /// # Errors
    /// Returns [`TopologyError::Column`] if a column is no permutation or has a fixed point.
    pub fn new(name: String, columns: Vec<Vec<u32>>) -> Result<Self, TopologyError> {
        let fail = |column, reason: String| TopologyError::Column { name: name.clone(), column, reason };
        let group = columns.first().map_or(0, Vec::len);
        if group == 0 {
            return Err(fail(0, "expected at least one column of at least one rank".into()));
        }
        for (d, column) in columns.iter().enumerate() {
            if column.len() != group {
                return Err(fail(d, format!("has {} ranks, column 0 has {group}", column.len())));
            }
            let mut seen = vec![false; group];
            for (rank, &source) in column.iter().enumerate() {
                match seen.get_mut(source as usize) {
                    None => {
                        return Err(fail(
                            d,
                            format!("rank {rank} copies from rank {source} of only {group}"),
                        ));
                    }
                    Some(true) => {
                        return Err(fail(
                            d,
                            format!("rank {source} is copied twice: expected a permutation"),
                        ));
                    }
                    Some(_) if source as usize == rank => {
                        return Err(fail(d, format!("rank {rank} copies its own expert")));
                    }
                    Some(free) => *free = true,
                }
            }
        }
        Ok(Self { name, columns })
    }

    /// Returns the name by which the topology was found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of ranks that one table joins, `G`.
    pub fn group_size(&self) -> usize {
        self.columns[0].len()
    }

    /// Returns the number of redundant slots per rank in the table, `D`.
    pub fn slots(&self) -> usize {
        self.columns.len()
    }

    /// Returns the columns. `columns()[d][i]` is the source rank, within the group, of slot `d` of rank `i`.
    pub fn columns(&self) -> &[Vec<u32>] {
        &self.columns
    }

    /// Returns the replica graph of one group. An edge joins two ranks for each expert that they share.
    fn replica_graph(&self) -> UnGraph<u32, ()> {
        let mut graph = UnGraph::new_undirected();
        let ranks: Vec<NodeIndex> = (0..self.group_size() as u32).map(|r| graph.add_node(r)).collect();
        for column in &self.columns {
            for (rank, &source) in column.iter().enumerate() {
                graph.add_edge(ranks[source as usize], ranks[rank], ());
            }
        }
        graph
    }

    /// Measures the replica graph of one group.
    pub fn connectivity(&self) -> GraphConnectivity {
        let graph = self.replica_graph();
        let components = connected_components(&graph);
        let pairs: BTreeSet<(NodeIndex, NodeIndex)> = graph
            .edge_indices()
            .filter_map(|e| graph.edge_endpoints(e))
            .map(|(a, b)| (a.min(b), a.max(b)))
            .collect();
        let eccentricity = |from| dijkstra(&graph, from, None, |_| 1usize).into_values().max().unwrap_or(0);
        let first = NodeIndex::new(0);
        GraphConnectivity {
            components,
            edge_connectivity: graph
                .node_indices()
                .skip(1)
                .map(|to| edge_disjoint_paths(&graph, first, to))
                .min()
                .unwrap_or(0),
            diameter: (components == 1).then(|| graph.node_indices().map(eccentricity).max().unwrap_or(0)),
            parallel_edges: graph.edge_count() - pairs.len(),
        }
    }
}

fn ring_columns(length: usize) -> Vec<Vec<u32>> {
    vec![(0..length).map(|rank| ((rank + 1) % length) as u32).collect()]
}

fn torus_columns(m: u32, n: u32) -> Vec<Vec<u32>> {
    let ranks = || (0..m).flat_map(|i| (0..n).map(move |j| (i, j)));
    vec![
        ranks().map(|(i, j)| (i + 1) % m * n + j).collect(),
        ranks().map(|(i, j)| i * n + (j + 1) % n).collect(),
    ]
}

fn read_columns(name: &str) -> Result<Vec<Vec<u32>>, TopologyError> {
    let path = PathBuf::from(name);
    let fail = |reason: String| TopologyError::File { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|e| fail(e.to_string()))?;
    let rows: Vec<Vec<u32>> = serde_json::from_str(&text)
        .map_err(|e| fail(format!("{e}; expected [[rank, ...], ...], one row per rank of the group")))?;
    let slots = rows.first().map_or(0, Vec::len);
    if let Some(rank) = rows.iter().position(|row| row.len() != slots) {
        return Err(fail(format!("row {rank} has {} entries, row 0 has {slots}", rows[rank].len())));
    }
    Ok((0..slots).map(|d| rows.iter().map(|row| row[d]).collect()).collect())
}

/// Returns the number of edge-disjoint paths between two nodes (Menger), by unit augmentations along
/// breadth-first paths.
fn edge_disjoint_paths(graph: &UnGraph<u32, ()>, from: NodeIndex, to: NodeIndex) -> usize {
    // flow[e] is -1, 0 or 1, from the edge's first end to its second.
    let mut flow = vec![0i8; graph.edge_count()];
    let mut paths = 0;
    loop {
        let mut reached_by = vec![None; graph.node_count()];
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            for edge in graph.edges(at) {
                use petgraph::visit::EdgeRef;
                let forward = graph.edge_endpoints(edge.id()).is_some_and(|(a, _)| a == at);
                let next = edge.target();
                let open = if forward { flow[edge.id().index()] < 1 } else { flow[edge.id().index()] > -1 };
                if open && next != from && reached_by[next.index()].is_none() {
                    reached_by[next.index()] = Some((at, edge.id(), forward));
                    queue.push_back(next);
                }
            }
        }
        let mut at = to;
        if reached_by[to.index()].is_none() {
            return paths;
        }
        while let Some((before, edge, forward)) = reached_by[at.index()] {
            flow[edge.index()] += if forward { 1 } else { -1 };
            at = before;
        }
        paths += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str, ranks: usize) -> (usize, usize, Option<usize>, usize) {
        let c = Topology::from_name(name, ranks).unwrap().connectivity();
        (c.components, c.edge_connectivity, c.diameter, c.parallel_edges)
    }

    #[test]
    fn known_graphs() {
        assert_eq!(measured("ring", 8), (1, 2, Some(4), 0));
        assert_eq!(measured("ring", 6), (1, 2, Some(3), 0));
        assert_eq!(measured("ring:4", 16), (1, 2, Some(2), 0));
        assert_eq!(measured("ring:2", 16), (1, 2, Some(1), 1));
        assert_eq!(measured("torus:8x4", 32), (1, 4, Some(6), 0));
        assert_eq!(measured("hypercube", 16), (1, 4, Some(4), 0), "it is the torus 4x4");
        assert_eq!(measured("cube", 32), (1, 4, Some(2), 0));
    }

    #[test]
    fn two_disjoint_rings_are_not_connected() {
        let split = Topology::new("split".into(), vec![vec![1, 0, 3, 2]]).unwrap();
        let c = split.connectivity();
        assert_eq!((c.components, c.edge_connectivity, c.diameter, c.parallel_edges), (2, 0, None, 2));
    }

    #[test]
    fn columns_must_be_permutations_without_fixed_points() {
        let refused =
            |column: &[u32]| Topology::new("t".into(), vec![column.to_vec()]).unwrap_err().to_string();
        assert!(refused(&[1, 1, 0]).contains("rank 1 is copied twice"));
        assert!(refused(&[1, 0, 2]).contains("rank 2 copies its own expert"));
        assert!(refused(&[1, 3, 0]).contains("rank 3 of only 3"));
        assert!(refused(&[]).contains("at least one"));
        assert!(Topology::from_name("ring:1", 8).is_err());
        assert!(Topology::from_name("torus:1x8", 8).is_err());
        assert!(Topology::from_name("ring:0", 8).is_err());
        assert!(Topology::from_name("torus:99999x99999", 8).is_err());
        assert!(Topology::from_name("moebius", 8).unwrap_err().to_string().contains("expected ring"));
        assert!(Topology::from_name("cube", 12).unwrap_err().to_string().contains("groups of 8"));
    }
}
