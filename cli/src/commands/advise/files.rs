//! Files of an advised deployment: plans, and placements in the formats of serving stacks.

use crate::output::{Output, StderrBar, write_file};
use evenkeel::export::{self, Dialect};
use evenkeel_advise::{Advice, AdviceRequest, PlacementFiles, Role};
use std::path::Path;

/// Stacks that read a placement at their start, and the names of their files.
const DIALECTS: [(Dialect, &str); 2] = [(Dialect::Sglang, "sglang.json"), (Dialect::TrtLlm, "trtllm.yaml")];

/// Plans all layers for every role and writes the files into a folder. Returns the files of the stacks.
pub(super) fn write_files(
    folder: &Path,
    advice: &Advice,
    request: &AdviceRequest<'_>,
    output: Output,
) -> anyhow::Result<PlacementFiles> {
    let mut files = PlacementFiles::default();
    for role in [Role::Prefill, Role::Decode] {
        let bar = StderrBar::for_layers();
        let plan = advice.plan(request, role, &bar)?;
        drop(bar);
        let Some(plan) = plan else { continue };
        let path = folder.join(format!("{}.plan.json", role.name()));
        write_file(&path, &plan.to_json()?)?;
        output.print_note(&format!("plan of {} written to {}", role.name(), path.display()));
        for (dialect, name) in DIALECTS {
            let path = folder.join(format!("{}.{name}", role.name()));
            write_file(&path, &export::write(&plan, dialect)?)?;
            files.add(role.name(), dialect.name(), path.display().to_string());
        }
    }
    Ok(files)
}
