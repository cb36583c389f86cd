//! `evenkeel plan topology`: judges the connectivity of replica graphs.

use crate::output::{Output, print_json, print_text};
use crate::render::table::render_table;
use clap::Args;
use evenkeel::place::Topology;
use serde_json::json;

/// Show replica topologies of LPLB, and the connectivity of their graphs
///
/// Ranks are the nodes of the graph. Every expert that two ranks hold is an edge between them. Load can only
/// flow along edges. Drift needs a connected graph with high edge-connectivity, a small diameter and no
/// parallel edges.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel plan topology torus:8x4\n  evenkeel plan topology --ranks 64 ring torus:8x8 \
                       designed:2"
)]
pub(crate) struct TopologyArgs {
    /// ring, ring:N, cube, hypercube, torus:MxN, designed:D (needs --ranks), or a .json file
    ///
    /// The file holds [[rank, ...], ...], one row per rank.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Ranks of the expert-parallel group [default: one group of the topology, 8 for `ring`]
    #[arg(long, value_name = "R")]
    ranks: Option<usize>,
}

pub(super) fn run(args: &TopologyArgs, output: Output) -> anyhow::Result<()> {
    let mut topologies = Vec::new();
    for name in &args.names {
        // 0 is a multiple of every group: it accepts any topology without a cluster. A plain ring then has 8
        // ranks.
        topologies.push(Topology::from_name(name, args.ranks.unwrap_or(0))?);
    }
    if output.is_json() {
        let documents: Vec<_> = topologies
            .iter()
            .map(|t| {
                let c = t.connectivity();
                json!({
                    "topology": t.name(),
                    "group": t.group_size(),
                    "groups": args.ranks.map_or(1, |ranks| ranks / t.group_size()),
                    "redundant_per_rank": t.slots(),
                    "connected": c.components == 1,
                    "components": c.components,
                    "edge_connectivity": c.edge_connectivity,
                    "diameter": c.diameter,
                    "parallel_edges": c.parallel_edges,
                    "columns": t.columns(),
                })
            })
            .collect();
        return print_json(&json!({ "topologies": documents }));
    }
    let rows = topologies.iter().map(|t| {
        let c = t.connectivity();
        vec![
            t.name().to_owned(),
            t.group_size().to_string(),
            args.ranks.map_or(1, |ranks| ranks / t.group_size()).to_string(),
            t.slots().to_string(),
            if c.components == 1 { "yes".into() } else { format!("no, {} parts", c.components) },
            c.edge_connectivity.to_string(),
            c.diameter.map_or("-".into(), |d| d.to_string()),
            c.parallel_edges.to_string(),
        ]
    });
    let header = [
        "topology",
        "ranks",
        "groups",
        "slots/rank",
        "connected",
        "edge-connectivity",
        "diameter",
        "parallel edges",
    ];
    print_text(&render_table(&header, rows.collect(), 1))?;
    if output.is_verbose() {
        for t in &topologies {
            for (d, column) in t.columns().iter().enumerate() {
                print_text(&format!("{} slot {d}: rank i copies from {column:?}\n", t.name()))?;
            }
        }
    }
    Ok(())
}
