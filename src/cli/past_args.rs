//! Planning with a past, as asked for on the command line: previous plan, losses, moves and whether they pay.

use super::cluster_args::ClusterArgs;
use super::model_args::{ModelOnGpu, ModelPerhapsOnGpu};
use super::output::{Output, table};
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::cluster::Cluster;
use evenkeel::place::without_ranks;
use evenkeel::plan::{Changed, Horizon, LinkBudget, Plan};
use evenkeel::split::roofline;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Bytes of a mebibyte.
pub(super) const MIB: u64 = 1 << 20;

#[derive(Debug, Clone, Args)]
pub(crate) struct PastArgs {
    /// The plan in force: what can stay stays, and its moves are counted; its cluster is taken from it
    #[arg(long, value_name = "PLAN", help_heading = "Coming from a plan")]
    pub(super) previous: Option<PathBuf>,
    /// Most moves per layer: experts that a rank newly holds
    #[arg(long, value_name = "N", requires = "previous", help_heading = "Coming from a plan")]
    pub(super) max_moves: Option<usize>,
    /// Ranks of the previous plan that are gone: the others keep what they have
    ///
    /// Only what is lost or no longer balanced moves, at most as many copies as were lost unless --max-moves says
    /// otherwise. The ranks that are left are numbered anew, without gaps.
    #[arg(
        long,
        value_name = "RANK,..",
        value_delimiter = ',',
        requires = "previous",
        help_heading = "Coming from a plan"
    )]
    pub(super) without_rank: Vec<usize>,
    /// Move in a layer only if that pays within so many steps; needs --link-gbps and --model
    #[arg(
        long,
        value_name = "STEPS",
        requires_all = ["previous", "link_gbps", "model"],
        conflicts_with = "without_rank",
        help_heading = "Coming from a plan"
    )]
    pub(super) horizon_steps: Option<u64>,
    /// Most MiB of expert weights that any one rank may receive, all layers together; needs --model
    ///
    /// Every layer is planned again with room for 1, 2, 4, .. moves; moves are made where they lower the exact peaks most per
    /// move, as long as every receiver has room.
    #[arg(
        long,
        value_name = "MIB",
        requires_all = ["previous", "model"],
        conflicts_with_all = ["without_rank", "horizon_steps"],
        help_heading = "Coming from a plan"
    )]
    pub(super) link_budget: Option<u64>,
    /// With --horizon-steps: what a rank receives, in gigabits per second
    #[arg(long, value_name = "GBPS", requires = "horizon_steps", help_heading = "Coming from a plan")]
    pub(super) link_gbps: Option<u64>,
    /// Model that is planned for, as in deepseek-v3: what redundancy costs in memory; also its top-k where batches are drawn
    ///
    /// --horizon-steps needs the GPU too, as in deepseek-v3,h100: it says how long tokens take.
    #[arg(long, value_name = "MODEL[,GPU]", help_heading = "Cluster")]
    pub(super) model: Option<ModelPerhapsOnGpu>,
}

impl PastArgs {
    /// The previous plan, if there is one.
    pub(super) fn read(&self) -> anyhow::Result<Option<Plan>> {
        let Some(path) = &self.previous else { return Ok(None) };
        Plan::read(path).map(Some).with_context(|| format!("--previous {}", path.display()))
    }

    /// The cluster to plan for: the previous plan's, or what the loss left of it.
    pub(super) fn cluster(
        &self,
        previous: &Plan,
        given: &ClusterArgs,
        experts: usize,
        output: Output,
    ) -> anyhow::Result<Cluster> {
        if previous.experts != experts {
            bail!("the previous plan has {} experts, the trace {experts}", previous.experts);
        }
        let cluster = if self.without_rank.is_empty() {
            previous.cluster
        } else {
            let left = without_ranks(&previous.cluster, experts, &self.without_rank)?;
            if left.nodes() == 1 && previous.cluster.nodes() > 1 {
                output.note(
                    "the ranks that are left are planned as one node: nodes have no longer equal ranks",
                );
            }
            left
        };
        if given.explicit.has("nodes") && given.nodes != cluster.nodes() {
            bail!("--nodes {}: the previous plan leaves {}", given.nodes, cluster.nodes());
        }
        if given.uneven {
            bail!("--uneven has no effect: the numbers of slots are those of the previous plan");
        }
        let redundant = cluster.usable_slots() - experts;
        let differs =
            [("--ranks", given.ranks, cluster.ranks()), ("--redundant", given.redundant, redundant)];
        for (name, given, known) in differs {
            if given.is_some_and(|given| given != known) {
                bail!("{name} {}: the previous plan leaves {known}", given.unwrap_or_default());
            }
        }
        Ok(cluster)
    }

    /// Where moves have to pay, what they cost.
    pub(super) fn horizon(&self) -> anyhow::Result<Option<Horizon>> {
        let (Some(steps), Some(gbps), Some(on)) = (self.horizon_steps, self.link_gbps, self.model) else {
            return Ok(None);
        };
        horizon(steps, gbps, on.with_gpu("--horizon-steps")?).map(Some)
    }

    /// Where links are limited, what each rank may receive.
    pub(super) fn link_budget(&self) -> anyhow::Result<Option<LinkBudget>> {
        let (Some(mib), Some(on)) = (self.link_budget, self.model) else { return Ok(None) };
        let bytes =
            mib.checked_mul(MIB).with_context(|| format!("--link-budget {mib}: too many bytes to count"))?;
        Ok(Some(LinkBudget { bytes, expert_bytes: on.model.expert_bytes() }))
    }
}

/// What a move costs at so many gigabits per second, and for how long a plan is used.
pub(super) fn horizon(steps: u64, gbps: u64, on: ModelOnGpu) -> anyhow::Result<Horizon> {
    if gbps == 0 {
        bail!("--link-gbps 0: expected at least 1 gigabit per second");
    }
    // 8 bits over 10^9 bits per second: 8000 / gbps picoseconds per byte.
    let copy_ps = on.model.expert_bytes().saturating_mul(8_000) / gbps;
    Ok(Horizon { steps, copy_ps, time: roofline(&on.model, &on.gpu) })
}

/// What changed, in words; with the moves where more was asked for.
pub(super) fn words(plan: &Plan, changes: &[Changed], horizon: Option<&Horizon>, verbose: bool) -> String {
    let moves: usize = changes.iter().map(|changed| changed.moves.len()).sum();
    let homeless: usize = changes.iter().map(|changed| changed.homeless).sum();
    let mut text = format!("{moves} moves in {} layers", changes.len());
    if homeless > 0 {
        text += &format!("; {homeless} of them bring experts back whose last copy was lost");
    }
    text.push('\n');
    let verdicts = || changes.iter().filter_map(|changed| changed.verdict);
    if let Some(horizon) = horizon {
        for (made, what) in [(true, "it pays in"), (false, "it does not pay in")] {
            let these = || verdicts().filter(|v| v.made == made && v.considered > 0);
            let gain: i128 = these().map(|v| i128::from(v.gain_ps)).sum();
            let cost: u128 = these().map(|v| u128::from(v.cost_ps)).sum();
            if these().count() == 0 {
                continue;
            }
            text += &format!(
                "{what} {} layers: {} moves would save {:.3} ms over {} steps for {:.3} ms of copies",
                these().count(),
                these().map(|v| v.considered).sum::<usize>(),
                gain as f64 / 1e9,
                horizon.steps,
                cost as f64 / 1e9,
            );
            if gain == 0 {
                text += " (experts take longer to read than their tokens to multiply: peaks in tokens cost no time)";
            }
            text.push('\n');
        }
        let still = verdicts().filter(|v| v.considered == 0).count();
        if still > 0 {
            text += &format!("nothing to move in {still} layers\n");
        }
    }
    if verbose {
        let rows = plan.layers.iter().zip(changes).flat_map(|(layer, changed)| {
            changed.moves.iter().map(|m| {
                let from = m.from.map_or("lost".into(), |rank| rank.to_string());
                vec![
                    layer.layer.to_string(),
                    m.expert.to_string(),
                    from,
                    m.to.to_string(),
                    m.slot.to_string(),
                ]
            })
        });
        text += &table(&["layer", "expert", "from rank", "to rank", "slot"], rows.collect(), 0);
    }
    text
}

/// The same as a document.
pub(super) fn document(plan: &Plan, changes: &[Changed]) -> Value {
    let layer = |(layer, changed): (&evenkeel::plan::LayerPlan, &Changed)| {
        json!({
            "layer": layer.layer,
            "moves": changed.moves.iter().map(|m| json!({
                "expert": m.expert, "from": m.from, "to": m.to, "slot": m.slot,
            })).collect::<Vec<_>>(),
            "lost_experts": changed.homeless,
            "pays": changed.verdict.map(|v| json!({
                "gain_us": v.gain_ps as f64 / 1e6,
                "cost_us": v.cost_ps as f64 / 1e6,
                "considered": v.considered,
                "made": v.made,
            })),
        })
    };
    json!({
        "total": changes.iter().map(|changed| changed.moves.len()).sum::<usize>(),
        "layers": plan.layers.iter().zip(changes).map(layer).collect::<Vec<_>>(),
    })
}
