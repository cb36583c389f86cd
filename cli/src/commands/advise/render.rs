//! Text of an advice.

use crate::render::table::render_table;
use evenkeel_advise::{Advice, AdviceRequest, DEPLOYMENT_COLUMNS, LaunchCommand, StepTime};

/// Highest number of deployments of the Pareto front that a table shows.
const MAX_ROWS: usize = 12;

/// Thins a list to a number of rows at equal distances, and keeps the marked ones.
fn thin(list: Vec<usize>, keep: &[usize]) -> Vec<usize> {
    let stride = list.len().div_ceil(MAX_ROWS).max(1);
    let kept = |(at, index): &(usize, usize)| at.is_multiple_of(stride) || keep.contains(index);
    list.into_iter().enumerate().filter(kept).map(|(_, index)| index).collect()
}

fn mark(advice: &Advice, index: usize) -> &'static str {
    match index {
        _ if index == advice.best => "advised",
        _ if Some(index) == advice.nothing => "nothing",
        _ => "",
    }
}

pub(super) fn to_text(
    advice: &Advice,
    request: &AdviceRequest<'_>,
    launch: &[LaunchCommand],
    framework: &str,
    all: bool,
) -> String {
    let mut text = format!("{}\n\n", advice.sentences.join("\n"));
    let mut rows = advice.listed(all);
    if !all {
        let marked: Vec<usize> = [Some(advice.best), advice.nothing].into_iter().flatten().collect();
        rows = thin(rows, &marked);
    }
    let cells = |&index: &usize| {
        let own = [mark(advice, index).to_owned()];
        own.into_iter().chain(advice.search.deployments[index].cells()).collect()
    };
    let header: Vec<&str> = std::iter::once("").chain(DEPLOYMENT_COLUMNS).collect();
    text.push_str(&render_table(&header, rows.iter().map(cells).collect(), 3));
    text.push_str(&format!(
        "{} deployments priced, {} too large for memory. Batch is requests per GPU, GB the memory of a decoding GPU.\n\n",
        advice.search.priced, advice.search.too_large
    ));
    text.push_str(&compared_text(advice));
    text.push_str(&sources_text(advice));
    for command in launch.iter().filter(|command| command.stack == framework) {
        text.push_str(&format!("\n{} ({}):\n{}\n", command.stack, command.role, command.text));
        for note in &command.notes {
            text.push_str(&format!("  note: {note}\n"));
        }
    }
    if request.is_mixed() {
        return text;
    }
    let prefill = &advice.best().prefill;
    text.push_str(&format!(
        "\nPrefill instances: {} GPUs, {} tokens per GPU and pass, {:.0} tokens/s per GPU.\n",
        prefill.parallel.gpus(),
        prefill.tokens,
        prefill.tokens_per_s_per_gpu
    ));
    text
}

fn compared_text(advice: &Advice) -> String {
    let cells = |row: &evenkeel_advise::ComparedPolicy| {
        let mut cells = vec![row.name.clone(), row.redundant.to_string()];
        let parts = row.decode.parts().map(|(_, ms)| ms);
        cells.extend(parts.into_iter().chain([row.decode.total_ms()]).map(|ms| format!("{ms:.2}")));
        cells.push(format!("{:.0}", row.tokens_per_s_per_gpu));
        cells
    };
    let mut header = vec!["a decode step, ms", "redundant"];
    header.extend(StepTime::default().parts().map(|(name, _)| name));
    header.extend(["total", "tokens/s/GPU"]);
    render_table(&header, advice.compared.iter().map(cells).collect(), 1)
}

fn sources_text(advice: &Advice) -> String {
    let line = |source: &evenkeel_advise::TimeSource| {
        format!("  {}: {} ({:.0} % off)\n", source.part, source.kernel, 100.0 * source.median_error)
    };
    format!("\nTimes:\n{}", advice.sources.iter().map(line).collect::<String>())
}
