//! The cluster in documents.

use evenkeel::cluster::Cluster;
use serde_json::{Value, json};

/// Returns the cluster in the form of all documents.
pub(crate) fn cluster_to_json(cluster: &Cluster, experts: usize) -> Value {
    json!({
        "ranks": cluster.ranks(),
        "nodes": cluster.nodes(),
        "slots_per_rank": cluster.slots_per_rank(),
        "slots": cluster.slots(),
        "usable_slots": cluster.usable_slots(),
        "redundant": cluster.usable_slots().saturating_sub(experts),
    })
}
