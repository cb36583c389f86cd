//! `evenkeel topology`: how well a replica graph holds together.

use super::output::{Output, document, print, table};
use clap::Args;
use evenkeel::place::Topology;
use serde_json::json;

/// Show a replica topology of LPLB and how well its graph is connected.
///
/// Ranks are nodes; two ranks are joined for every expert that both hold. Load can only flow along edges, so what
/// balances drift is a connected graph with high edge-connectivity, a small diameter and no parallel edges.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  evenkeel topology torus:8x4\n  evenkeel topology --ranks 64 ring torus:8x8 designed:2"
)]
pub(crate) struct TopologyArgs {
    /// ring, ring:N, cube, hypercube, torus:MxN, designed:D (needs --ranks), or a .json file: [[rank, ...], ...], one
    /// row per rank
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Ranks of the expert-parallel group [default: one group of the topology, 8 for `ring`]
    #[arg(long, value_name = "R")]
    ranks: Option<usize>,
}

pub(crate) fn run(args: &TopologyArgs, output: Output) -> anyhow::Result<()> {
    let mut topologies = Vec::new();
    for name in &args.names {
        // 0 is a multiple of every group: any topology, without a cluster. A bare ring has 8 ranks then.
        topologies.push(Topology::named(name, args.ranks.unwrap_or(0))?);
    }
    if output.json() {
        let documents: Vec<_> = topologies
            .iter()
            .map(|t| {
                let c = t.connectivity();
                json!({
                    "topology": t.name(),
                    "group": t.group(),
                    "groups": args.ranks.map_or(1, |ranks| ranks / t.group()),
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
        return document(&json!({ "topologies": documents }));
    }
    let rows = topologies.iter().map(|t| {
        let c = t.connectivity();
        vec![
            t.name().to_owned(),
            t.group().to_string(),
            args.ranks.map_or(1, |ranks| ranks / t.group()).to_string(),
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
    print(&table(&header, rows.collect(), 1))?;
    if output.verbose() {
        for t in &topologies {
            for (d, column) in t.columns().iter().enumerate() {
                print(&format!("{} slot {d}: rank i copies from {column:?}\n", t.name()))?;
            }
        }
    }
    Ok(())
}
