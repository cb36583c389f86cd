//! One or several expert-parallel clusters, from the command line.
//!
//! In: lists of ranks and of redundant slots. Out: [`ClusterGrid`], one cluster per valid combination, and
//! the reasons for the omitted ones.

use crate::args::cluster::{ClusterSpec, require_ranks};
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::cluster::Cluster;

#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterGridArgs {
    /// Ranks (GPUs) of the expert-parallel group; as in 8 or 8,16,32
    #[arg(long, value_name = "R,..", value_delimiter = ',', help_heading = "Cluster")]
    pub(crate) ranks: Vec<usize>,
    /// Nodes that hold the ranks
    #[arg(long, value_name = "N", default_value_t = 1, hide_short_help = true, help_heading = "Cluster")]
    nodes: usize,
    /// Redundant slots of all ranks together, as in 0,32,64
    ///
    /// The default is one per rank, or as many as make the slots divide.
    /// A redundant slot holds one replica of an expert in addition to its first instance.
    #[arg(long, value_name = "SLOTS,..", value_delimiter = ',', help_heading = "Cluster")]
    pub(crate) redundant: Vec<usize>,
    /// Expert groups of the model's routing (DeepSeek-V3: 8)
    ///
    /// EPLB and LPLB keep a group within a node where the groups divide by the nodes.
    #[arg(long, value_name = "G", default_value_t = 1, hide_short_help = true, help_heading = "Cluster")]
    groups: usize,
    /// Let some ranks have one slot less than the others where the slots do not divide
    ///
    /// The policies `eplb` and `lplb` need equal numbers of slots and refuse.
    #[arg(long, hide_short_help = true, help_heading = "Cluster")]
    uneven: bool,
}

/// Combinations of ranks and redundant slots, for a model whose number of experts is not known yet.
#[derive(Debug, Clone)]
pub(crate) struct ClusterGridSpec {
    pub(crate) specs: Vec<ClusterSpec>,
    pub(crate) groups: usize,
}

/// Clusters to compare.
#[derive(Debug)]
pub(crate) struct ClusterGrid {
    /// Valid combinations, at least one.
    pub(crate) clusters: Vec<Cluster>,
    /// Reasons for the omitted combinations, one sentence each.
    pub(crate) omitted: Vec<String>,
}

impl ClusterGridArgs {
    /// Checks the options and combines the lists.
    pub(crate) fn resolve(&self) -> anyhow::Result<ClusterGridSpec> {
        require_ranks(self.ranks.first())?;
        let redundant: Vec<Option<usize>> = match self.redundant.as_slice() {
            [] => vec![None],
            list => list.iter().copied().map(Some).collect(),
        };
        let &Self { nodes, groups, uneven, .. } = self;
        let specs = self.ranks.iter().flat_map(|&ranks| {
            redundant.iter().map(move |&redundant| ClusterSpec { ranks, nodes, redundant, groups, uneven })
        });
        Ok(ClusterGridSpec { specs: specs.collect(), groups })
    }
}

impl ClusterGridSpec {
    /// Returns whether there is more than one combination.
    pub(crate) fn is_grid(&self) -> bool {
        self.specs.len() > 1
    }

    /// Returns the combinations that divide, for a model of `experts` logical experts.
    pub(crate) fn for_experts(&self, experts: usize) -> anyhow::Result<ClusterGrid> {
        let (mut clusters, mut omitted) = (Vec::new(), Vec::new());
        for spec in &self.specs {
            match spec.for_experts(experts) {
                Ok(cluster) if clusters.contains(&cluster) => {}
                Ok(cluster) => clusters.push(cluster),
                Err(error) if !self.is_grid() => return Err(error),
                Err(error) => {
                    let redundant =
                        spec.redundant.map_or(String::new(), |slots| format!(" and {slots} redundant slots"));
                    omitted.push(format!("{} ranks{redundant} left out: {error:#}", spec.ranks));
                }
            }
        }
        if clusters.is_empty() {
            let first = omitted.into_iter().next().context("no shape")?;
            bail!("no combination of --ranks and --redundant is left; {first}");
        }
        Ok(ClusterGrid { clusters, omitted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_ranks_are_refused_and_lists_are_combined() {
        let args =
            ClusterGridArgs { ranks: Vec::new(), nodes: 1, redundant: Vec::new(), groups: 1, uneven: false };
        assert!(args.resolve().unwrap_err().to_string().starts_with("--ranks is missing"));
        let spec = ClusterGridArgs { ranks: vec![4, 8], redundant: vec![0, 8], ..args }.resolve().unwrap();
        let pairs: Vec<_> = spec.specs.iter().map(|spec| (spec.ranks, spec.redundant)).collect();
        assert_eq!(pairs, [(4, Some(0)), (4, Some(8)), (8, Some(0)), (8, Some(8))]);
        assert!(spec.is_grid());
    }
}
