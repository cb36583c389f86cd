//! The expert-parallel group, as given on the command line.

use super::explicit::Explicit;
use clap::Args;
use evenkeel::cluster::Cluster;

#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterArgs {
    // First: those that follow take their values out of what was parsed.
    #[command(flatten)]
    pub(crate) explicit: Explicit,
    /// Ranks (GPUs) of the expert-parallel group
    // Optional to the type: `plan check` does without, and `plan --previous` knows it.
    #[arg(long, value_name = "R", help_heading = "Cluster")]
    pub(crate) ranks: Option<usize>,
    /// Nodes that the ranks sit in
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Cluster")]
    pub(crate) nodes: usize,
    /// Redundant slots in all, not per rank: room for further copies beyond one of each expert [default: one per
    /// rank, or as many as make the slots divide]
    #[arg(long, value_name = "SLOTS", help_heading = "Cluster")]
    pub(crate) redundant: Option<usize>,
    /// Expert groups of the model's routing; EPLB keeps groups within nodes where they divide (DeepSeek-V3: 8)
    #[arg(long, value_name = "G", default_value_t = 1, help_heading = "Cluster")]
    pub(crate) groups: usize,
    /// Let ranks have unequal numbers of slots where they do not divide: some have one less than the others
    ///
    /// `eplb` and `lplb` need equal numbers and refuse.
    #[arg(long, help_heading = "Cluster")]
    pub(crate) uneven: bool,
}

impl ClusterArgs {
    /// The cluster for a model of `experts` logical experts.
    pub(crate) fn cluster(&self, experts: usize) -> anyhow::Result<Cluster> {
        let Some(ranks) = self.ranks else {
            anyhow::bail!("--ranks is missing: expected the number of ranks (GPUs) that share the experts");
        };
        if self.uneven {
            return Ok(Cluster::uneven(ranks, self.nodes, experts, self.redundant.unwrap_or(ranks))?);
        }
        let one_per_rank = ranks - experts.checked_rem(ranks).unwrap_or(0);
        Ok(Cluster::new(ranks, self.nodes, experts, self.redundant.unwrap_or(one_per_rank))?)
    }
}

/// Refuses a stated number of groups that none of the policies plans by.
pub(crate) fn check_groups(stated: bool, groups: usize, policies: &[String]) -> anyhow::Result<()> {
    let grouped = |name: &String| name.trim().starts_with("eplb") || name.trim().starts_with("lplb:");
    if stated && !policies.iter().any(grouped) {
        anyhow::bail!(
            "--groups {groups} has no effect: no policy of {} plans by groups; expected eplb or lplb among them",
            policies.join(", ")
        );
    }
    Ok(())
}

/// The cluster as every document shows it.
pub(crate) fn document(cluster: &Cluster, experts: usize) -> serde_json::Value {
    serde_json::json!({
        "ranks": cluster.ranks(),
        "nodes": cluster.nodes(),
        "slots_per_rank": cluster.slots_per_rank(),
        "slots": cluster.slots(),
        "usable_slots": cluster.usable_slots(),
        "redundant": cluster.usable_slots().saturating_sub(experts),
    })
}
