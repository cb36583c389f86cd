//! Files of an advised deployment: plans, and placements in the formats of serving stacks.

use crate::output::{Output, StderrBar, write_file};
use evenkeel::cluster::Cluster;
use evenkeel::export::{self, Dialect};
use evenkeel::place;
use evenkeel::plan::{BatchProvenance, PlanRequest};
use evenkeel_advise::{
    Advice, AdviceRequest, BalanceChoice, BalancePolicy, LaunchCommand, Parallelism, PlacementFiles,
    launch_commands,
};
use std::path::Path;

/// Placement files of an advice.
#[derive(Debug, Default)]
pub(super) struct WrittenFiles {
    placements: PlacementFiles,
}

/// Stacks that read a placement at their start, and the names of their files.
const DIALECTS: [(Dialect, &str); 2] = [(Dialect::Sglang, "sglang.json"), (Dialect::TrtLlm, "trtllm.yaml")];

/// Plans all layers of both phases and writes the files into a folder.
pub(super) fn write(
    folder: &Path,
    advice: &Advice,
    request: &AdviceRequest<'_>,
    output: Output,
) -> anyhow::Result<WrittenFiles> {
    let best = advice.best();
    let mut written = WrittenFiles::default();
    let mut roles = vec![("decode", &best.parallel, &best.choice)];
    if !request.is_mixed() {
        roles.push(("prefill", &best.prefill.parallel, &best.prefill.choice));
    }
    for (role, parallel, choice) in roles {
        if choice.policy == BalancePolicy::Nothing {
            continue;
        }
        let plan = plan(parallel, choice, request)?;
        let path = folder.join(format!("{role}.plan.json"));
        write_file(&path, &plan.to_json()?)?;
        output.print_note(&format!("plan of {role} written to {}", path.display()));
        for (dialect, name) in DIALECTS {
            let path = folder.join(format!("{role}.{name}"));
            write_file(&path, &export::write(&plan, dialect)?)?;
            written.placements.add(role, dialect.name(), path.display().to_string());
        }
    }
    Ok(written)
}

/// Plans all layers of the trace for a role.
fn plan(
    parallel: &Parallelism,
    choice: &BalanceChoice,
    request: &AdviceRequest<'_>,
) -> anyhow::Result<evenkeel::plan::Plan> {
    let ranks = parallel.ranks as usize;
    let nodes = parallel.nodes(request.times.linked()) as usize;
    let cluster = Cluster::new(ranks, nodes, request.trace.experts(), choice.redundant as usize)?;
    let name = place::policy_name_for_split(choice.policy.name(), choice.split());
    let policy = place::policy(&name, 1, &cluster)?;
    let origin = BatchProvenance::default().seed(request.seed).split(choice.split());
    let bar = StderrBar::for_layers();
    let made = PlanRequest::new(request.trace, cluster, policy.as_ref()).provenance(origin).run(&bar)?;
    drop(bar);
    Ok(made.plan)
}

impl WrittenFiles {
    /// Returns the commands that start the deployment with the files.
    pub(super) fn launch_commands(
        &self,
        model: &str,
        advice: &Advice,
        request: &AdviceRequest<'_>,
    ) -> Vec<LaunchCommand> {
        launch_commands(model, advice.best(), request.workload.serving, &self.placements)
    }
}
