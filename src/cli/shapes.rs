//! One or several expert-parallel groups, as given on the command line.
//!
//! In: lists of ranks and of redundant slots. Out: [`Shapes`], one cluster per combination, and what was left out.

use super::cluster_args::ClusterArgs;
use super::explicit::Explicit;
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::cluster::Cluster;

#[derive(Debug, Clone, Args)]
pub(crate) struct ShapeArgs {
    /// Ranks (GPUs) of the expert-parallel group; several are compared in one table, as in 8,16,32
    #[arg(long, value_name = "R,..", value_delimiter = ',', help_heading = "Cluster")]
    ranks: Vec<usize>,
    /// Nodes that the ranks sit in
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Cluster")]
    nodes: usize,
    /// Redundant slots in all, not per rank: room for further copies beyond one of each expert; several are compared in one
    /// table, as in 0,32,64 [default: one per rank, or as many as make the slots divide]
    #[arg(long, value_name = "SLOTS,..", value_delimiter = ',', help_heading = "Cluster")]
    redundant: Vec<usize>,
    /// Expert groups of the model's routing; EPLB keeps groups within nodes where they divide (DeepSeek-V3: 8)
    #[arg(long, value_name = "G", default_value_t = 1, help_heading = "Cluster")]
    pub(super) groups: usize,
    /// Let ranks have unequal numbers of slots where they do not divide: some have one less than the others
    ///
    /// `eplb` and `lplb` need equal numbers and refuse.
    #[arg(long, help_heading = "Cluster")]
    uneven: bool,
}

/// The clusters to compare.
#[derive(Debug)]
pub(super) struct Shapes {
    /// At least one.
    pub(super) clusters: Vec<Cluster>,
    /// Why the other combinations are not among them, one sentence each.
    pub(super) left_out: Vec<String>,
}

impl ShapeArgs {
    /// Returns whether more than one combination is asked for.
    pub(super) fn several(&self) -> bool {
        self.ranks.len().max(1) * self.redundant.len().max(1) > 1
    }

    /// Returns the combinations that divide, for a model of `experts` logical experts.
    pub(super) fn shapes(&self, experts: usize) -> anyhow::Result<Shapes> {
        let redundant: Vec<Option<usize>> = match self.redundant.as_slice() {
            [] => vec![None],
            list => list.iter().copied().map(Some).collect(),
        };
        let ranks: Vec<Option<usize>> = match self.ranks.as_slice() {
            [] => vec![None],
            list => list.iter().copied().map(Some).collect(),
        };
        let (mut clusters, mut left_out) = (Vec::new(), Vec::new());
        for &ranks in &ranks {
            for &redundant in &redundant {
                let args = ClusterArgs {
                    explicit: Explicit::default(),
                    ranks,
                    nodes: self.nodes,
                    redundant,
                    groups: self.groups,
                    uneven: self.uneven,
                };
                match args.cluster(experts) {
                    Ok(cluster) if clusters.contains(&cluster) => {}
                    Ok(cluster) => clusters.push(cluster),
                    Err(error) if ranks.is_none() || !self.several() => return Err(error),
                    Err(error) => {
                        let redundant =
                            redundant.map_or(String::new(), |slots| format!(" and {slots} redundant slots"));
                        let ranks = ranks.unwrap_or_default();
                        left_out.push(format!("{ranks} ranks{redundant} left out: {error:#}"));
                    }
                }
            }
        }
        if clusters.is_empty() {
            let first = left_out.into_iter().next().context("no shape")?;
            bail!("no combination of --ranks and --redundant is left; {first}");
        }
        Ok(Shapes { clusters, left_out })
    }
}
