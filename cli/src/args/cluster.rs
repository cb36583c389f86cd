//! The expert-parallel cluster, from the command line.

use clap::Args;
use evenkeel::cluster::Cluster;

#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterArgs {
    /// Ranks (GPUs) of the expert-parallel group
    // The type is optional because subcommands of a default command need no ranks.
    #[arg(long, value_name = "R", help_heading = "Cluster")]
    ranks: Option<usize>,
    /// Nodes that hold the ranks
    #[arg(long, value_name = "N", default_value_t = 1, hide_short_help = true, help_heading = "Cluster")]
    nodes: usize,
    /// Redundant slots of all ranks together [default: one per rank]
    ///
    /// The default is larger if one per rank does not make the slots divide.
    /// A redundant slot holds one replica of an expert in addition to its first instance.
    #[arg(long, value_name = "SLOTS", help_heading = "Cluster")]
    redundant: Option<usize>,
    /// Expert groups of the model's routing (DeepSeek-V3: 8)
    ///
    /// EPLB and LPLB keep a group within a node where the groups divide by the nodes.
    #[arg(long, value_name = "G", default_value_t = 1, hide_short_help = true, help_heading = "Cluster")]
    pub(crate) groups: usize,
    /// Let some ranks have one slot less than the others where the slots do not divide
    ///
    /// The policies `eplb` and `lplb` need equal numbers of slots and refuse.
    #[arg(long, hide_short_help = true, help_heading = "Cluster")]
    uneven: bool,
}

/// A cluster for a model whose number of experts is not known yet.
#[derive(Debug, Clone)]
pub(crate) struct ClusterSpec {
    pub(crate) ranks: usize,
    pub(crate) nodes: usize,
    pub(crate) redundant: Option<usize>,
    pub(crate) groups: usize,
    pub(crate) uneven: bool,
}

impl ClusterArgs {
    /// Checks the options.
    pub(crate) fn resolve(&self) -> anyhow::Result<ClusterSpec> {
        Ok(ClusterSpec {
            ranks: require_ranks(self.ranks)?,
            nodes: self.nodes,
            redundant: self.redundant,
            groups: self.groups,
            uneven: self.uneven,
        })
    }
}

/// Returns the number of ranks, or an error if it is not stated.
pub(crate) fn require_ranks<T>(ranks: Option<T>) -> anyhow::Result<T> {
    ranks.ok_or_else(|| {
        anyhow::anyhow!("--ranks is missing: expected the number of ranks (GPUs) that share the experts")
    })
}

impl ClusterSpec {
    /// Returns the cluster for a model of `experts` logical experts.
    pub(crate) fn for_experts(&self, experts: usize) -> anyhow::Result<Cluster> {
        let Self { ranks, nodes, redundant, .. } = *self;
        if self.uneven {
            return Ok(Cluster::with_uneven_slots(ranks, nodes, experts, redundant.unwrap_or(ranks))?);
        }
        let one_per_rank = ranks - experts.checked_rem(ranks).unwrap_or(0);
        Ok(Cluster::new(ranks, nodes, experts, redundant.unwrap_or(one_per_rank))?)
    }
}

/// Refuses a stated number of groups if no policy uses groups.
pub(crate) fn check_groups(is_stated: bool, groups: usize, policies: &[String]) -> anyhow::Result<()> {
    let is_grouped = |name: &String| name.trim().starts_with("eplb") || name.trim().starts_with("lplb:");
    if is_stated && !policies.iter().any(is_grouped) {
        anyhow::bail!(
            "--groups {groups} has no effect: no policy of {} plans by groups; expected eplb or lplb among them",
            policies.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_ranks_are_refused() {
        let args = ClusterArgs { ranks: None, nodes: 1, redundant: None, groups: 1, uneven: false };
        assert!(args.resolve().unwrap_err().to_string().starts_with("--ranks is missing"));
        assert_eq!(ClusterArgs { ranks: Some(8), ..args }.resolve().unwrap().ranks, 8);
    }

    #[test]
    fn groups_without_a_policy_that_uses_them_are_refused() {
        let [eplb, recourse] = ["eplb", "recourse"].map(|name| vec![name.to_owned()]);
        assert!(
            check_groups(true, 8, &recourse).unwrap_err().to_string().starts_with("--groups 8 has no effect")
        );
        assert!(check_groups(true, 8, &eplb).is_ok());
        assert!(check_groups(false, 1, &recourse).is_ok());
    }
}
