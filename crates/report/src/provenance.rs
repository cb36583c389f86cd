//! The origin of the figures: the trace and its notices, the cluster, the command, the version.

use super::html::{escape_text, format_count, format_quantity};
use super::{SimulationPage, open_section};
use std::fmt::Write as _;

/// The most files and notices that are listed individually.
const MAX_LISTED_ITEMS: usize = 24;

/// Writes the section and the foot of the page.
pub(super) fn write(out: &mut String, page: &SimulationPage<'_>) {
    let (trace, cluster, outcome) = (page.trace, page.cluster, page.outcome);
    open_section(
        out,
        "facts",
        "Origin of the figures",
        "The input, the judged batches, the cluster, and the command that repeats this report.",
    );
    out.push_str("<dl class=\"facts\">\n");
    let idle = trace.layers().len().saturating_sub(outcome.layers.len());
    let mut read = format!(
        "{} of {} with {} experts",
        format_quantity(trace.steps().len(), "step", "steps"),
        format_quantity(trace.layers().len(), "layer", "layers"),
        format_count(trace.experts())
    );
    if idle > 0 {
        let _ = write!(read, "; {} without tokens left out", format_quantity(idle, "layer", "layers"));
    }
    write_fact(out, "trace", &read);
    if !trace.files().is_empty() {
        write_fact(out, if trace.files().len() == 1 { "file" } else { "files" }, &file_list(page));
    }
    let mut judged = format!("{} of one layer each", format_quantity(outcome.batches, "batch", "batches"));
    if outcome.empty_batches > 0 {
        let _ = write!(judged, "; {} without tokens left out", format_count(outcome.empty_batches));
    }
    write_fact(out, "judged on", &judged);
    write_fact(
        out,
        "cluster",
        &format!(
            "{} in {}, {} each: {} slots for {} experts, {} redundant",
            format_quantity(cluster.ranks(), "rank", "ranks"),
            format_quantity(cluster.nodes(), "node", "nodes"),
            format_quantity(cluster.slots_per_rank(), "slot", "slots"),
            format_count(cluster.slots()),
            format_count(trace.experts()),
            format_count(cluster.slots().saturating_sub(trace.experts()))
        ),
    );
    if !trace.notices().is_empty() {
        let notices: Vec<String> =
            trace.notices().iter().map(|notice| escape_text(notice).to_string()).collect();
        write_fact(out, "notices", &bullet_list(&notices, "notices"));
    }
    write_fact(out, "command", &format!("<code class=\"command\">{}</code>", escape_text(&page.command)));
    out.push_str("</dl>\n</section>\n");
    write_footer(out);
}

/// Writes the foot of every page.
pub(super) fn write_footer(out: &mut String) {
    let _ = writeln!(
        out,
        "<footer><p class=\"small\">evenkeel {}. This file is complete in itself: it loads nothing and runs no \
         script.</p></footer>",
        env!("CARGO_PKG_VERSION")
    );
}

/// Returns file names with the beginnings of their digests. Whole paths may be confidential.
fn file_list(page: &SimulationPage<'_>) -> String {
    let one = |file: &evenkeel::trace::SourceFile| {
        let name = file.path.file_name().map_or_else(|| "(no name)".into(), |name| name.to_string_lossy());
        let digest: String = file.sha256.chars().take(16).collect();
        format!(
            "{} <code title=\"SHA-256 {}\">{}</code>",
            escape_text(&name),
            escape_text(&file.sha256),
            escape_text(&digest)
        )
    };
    bullet_list(&page.trace.files().iter().map(one).collect::<Vec<_>>(), "files")
}

fn bullet_list(items: &[String], what: &str) -> String {
    if let [single] = items {
        return single.clone();
    }
    let mut text = String::from("<ul>");
    for item in items.iter().take(MAX_LISTED_ITEMS) {
        let _ = write!(text, "<li>{item}</li>");
    }
    if items.len() > MAX_LISTED_ITEMS {
        let _ = write!(text, "<li>and {} more {what}</li>", format_count(items.len() - MAX_LISTED_ITEMS));
    }
    text.push_str("</ul>");
    text
}

fn write_fact(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "<dt>{name}</dt><dd>{value}</dd>");
}
