//! Where the figures come from: the trace, what had to be said about it, the cluster, the command, the version.

use super::text::{count, counted, esc};
use super::{Page, section};
use std::fmt::Write as _;

/// Most files and notices that are listed one by one.
const LISTED: usize = 24;

/// The section and the foot of the page.
pub(super) fn write(out: &mut String, page: &Page<'_>) {
    let (trace, cluster, outcome) = (page.trace, page.cluster, page.outcome);
    section(
        out,
        "facts",
        "Where this comes from",
        "What was read, what it was judged on, and how to do it again.",
    );
    out.push_str("<dl class=\"facts\">\n");
    let idle = trace.layers().len().saturating_sub(outcome.layers.len());
    let mut read = format!(
        "{} of {} with {} experts",
        counted(trace.steps().len(), "step", "steps"),
        counted(trace.layers().len(), "layer", "layers"),
        count(trace.experts())
    );
    if idle > 0 {
        let _ = write!(read, "; {} without tokens left out", counted(idle, "layer", "layers"));
    }
    fact(out, "trace", &read);
    if !trace.files().is_empty() {
        fact(out, if trace.files().len() == 1 { "file" } else { "files" }, &files(page));
    }
    let mut judged = format!("{} of one layer each", counted(outcome.batches, "batch", "batches"));
    if outcome.empty_batches > 0 {
        let _ = write!(judged, "; {} without tokens left out", count(outcome.empty_batches));
    }
    fact(out, "judged on", &judged);
    fact(
        out,
        "cluster",
        &format!(
            "{} in {}, {} each: {} slots for {} experts, {} redundant",
            counted(cluster.ranks(), "rank", "ranks"),
            counted(cluster.nodes(), "node", "nodes"),
            counted(cluster.slots_per_rank(), "slot", "slots"),
            count(cluster.slots()),
            count(trace.experts()),
            count(cluster.slots().saturating_sub(trace.experts()))
        ),
    );
    if !trace.notices().is_empty() {
        let notices: Vec<String> = trace.notices().iter().map(|notice| esc(notice).to_string()).collect();
        fact(out, "notices", &list(&notices, "notices"));
    }
    fact(out, "command", &format!("<code class=\"command\">{}</code>", esc(&page.command)));
    out.push_str("</dl>\n</section>\n");
    foot(out);
}

/// The foot of every page.
pub(super) fn foot(out: &mut String) {
    let _ = writeln!(
        out,
        "<footer><p class=\"small\">evenkeel {}. This file is complete in itself: it loads nothing and runs no \
         script.</p></footer>",
        env!("CARGO_PKG_VERSION")
    );
}

/// Names with the beginnings of their digests; whole paths are nobody else's business.
fn files(page: &Page<'_>) -> String {
    let one = |file: &crate::trace::SourceFile| {
        let name = file.path.file_name().map_or_else(|| "(no name)".into(), |name| name.to_string_lossy());
        let digest: String = file.sha256.chars().take(16).collect();
        format!("{} <code title=\"SHA-256 {}\">{}</code>", esc(&name), esc(&file.sha256), esc(&digest))
    };
    list(&page.trace.files().iter().map(one).collect::<Vec<_>>(), "files")
}

fn list(items: &[String], what: &str) -> String {
    if let [single] = items {
        return single.clone();
    }
    let mut text = String::from("<ul>");
    for item in items.iter().take(LISTED) {
        let _ = write!(text, "<li>{item}</li>");
    }
    if items.len() > LISTED {
        let _ = write!(text, "<li>and {} more {what}</li>", count(items.len() - LISTED));
    }
    text.push_str("</ul>");
    text
}

fn fact(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "<dt>{name}</dt><dd>{value}</dd>");
}
