//! Reports: one self-contained HTML file that shows the results of a simulation.
//!
//! Input is a [`SimulationPage`], which borrows a [`Trace`], a [`Cluster`] and the [`SimulationResult`] of
//! their simulation. Output is one HTML document. It fetches nothing and runs no script, and its own content
//! security policy forbids both. The same input gives the same bytes, because no clock and no hash order is
//! involved.
//!
//! The figures are inline SVG from a small writer of our own. It combines three properties that plotting
//! crates lack in combination:
//!
//! - Colours are CSS variables, so that one file looks right in light, dark and print.
//! - Positions are percentages and type is in pixels, so that a figure fills a desktop or a phone without
//!   smaller letters.
//! - Every figure has a text for readers who cannot see it.
//!
//! Each figure is one file of this module.
//!
//! All figures compare two rows. **Before** is the first policy with the `even` split, or else the first row.
//! **After** is the row with the lowest mean imbalance.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod advice;
mod batch_sizes;
mod calibration;
mod distribution;
mod experts;
mod headline;
mod heatmap;
mod html;
mod layers;
mod line_chart;
mod moves;
mod provenance;
mod run;
mod svg;
mod table;

use evenkeel::cluster::Cluster;
use evenkeel::model::MoeModel;
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use evenkeel_simulate::{BatchSizeRow, ReplayRow, SimulationResult, SimulationRow, Verdict};
use html::escape_text;
use std::fmt::Write as _;

pub use advice::AdvicePage;
pub use calibration::FitPage;
pub use run::RunPage;

/// The content of a report.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SimulationPage<'a> {
    /// The title of the report, as a browser tab shows it.
    pub title: String,
    /// The command line that produced it.
    pub command: String,
    /// The simulated trace.
    pub trace: &'a Trace,
    /// The simulated cluster.
    pub cluster: &'a Cluster,
    /// The result of the simulation.
    pub outcome: &'a SimulationResult,
    /// The results of re-planning along the trace; empty without a replay.
    pub replayed: &'a [ReplayRow],
    /// The answer in time, if times are known.
    pub verdict: Option<&'a Verdict>,
    /// Times with copies before every batch, by batch size; empty without dynamic slots.
    pub batch_sizes: &'a [BatchSizeRow],
}

const STYLE: &str = include_str!("style.css");

/// The content security policy. It forbids scripts and network access.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

impl<'a> SimulationPage<'a> {
    /// Creates the content of a report without title, command line, replay and verdict.
    pub fn new(trace: &'a Trace, cluster: &'a Cluster, outcome: &'a SimulationResult) -> Self {
        Self {
            title: String::new(),
            command: String::new(),
            trace,
            cluster,
            outcome,
            replayed: &[],
            verdict: None,
            batch_sizes: &[],
        }
    }

    /// Sets [`Self::title`](#structfield.title).
    #[must_use]
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// Sets [`Self::command`](#structfield.command).
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }

    /// Sets [`Self::replayed`](#structfield.replayed).
    #[must_use]
    pub fn replayed(mut self, replayed: &'a [ReplayRow]) -> Self {
        self.replayed = replayed;
        self
    }

    /// Sets [`Self::verdict`](#structfield.verdict).
    #[must_use]
    pub fn verdict(mut self, verdict: Option<&'a Verdict>) -> Self {
        self.verdict = verdict;
        self
    }

    /// Sets [`Self::batch_sizes`](#structfield.batch_sizes).
    #[must_use]
    pub fn batch_sizes(mut self, batch_sizes: &'a [BatchSizeRow]) -> Self {
        self.batch_sizes = batch_sizes;
        self
    }

    /// Returns the report as one HTML document.
    pub fn to_html(&self) -> String {
        self.render_document(None)
    }

    /// Returns the same report, with the memory that redundant slots cost in this model.
    pub fn to_html_for(&self, model: &MoeModel) -> String {
        self.render_document(Some(model))
    }

    fn render_document(&self, model: Option<&MoeModel>) -> String {
        wrap_document(&self.title, |out| {
            match RowComparison::from_result(self.outcome) {
                Some(comparison) => {
                    headline::write(out, self, &comparison, model);
                    table::write(out, self.outcome, &comparison);
                    distribution::write(out, self.outcome, &comparison);
                    heatmap::write(out, self, &comparison);
                    moves::write(out, self);
                    batch_sizes::write(out, self);
                    layers::write(out, self, &comparison);
                    experts::write(out, self, &comparison);
                }
                None => headline::write_empty(out, self),
            }
            provenance::write(out, self);
        })
    }
}

/// Returns a whole document around the output of `body`.
fn wrap_document(title: &str, body: impl FnOnce(&mut String)) -> String {
    let mut out = String::with_capacity(1 << 16);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\"/>\n\
         <meta name=\"generator\" content=\"evenkeel {}\"/>\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        env!("CARGO_PKG_VERSION"),
        escape_text(title),
    );
    body(&mut out);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// The two rows that the pictures compare.
#[derive(Clone, Copy)]
struct RowComparison<'a> {
    outcome: &'a SimulationResult,
    before_at: usize,
    after_at: usize,
}

impl<'a> RowComparison<'a> {
    /// Returns the comparison, or `None` if no batch was judged.
    fn from_result(outcome: &'a SimulationResult) -> Option<Self> {
        let rows = &outcome.rows;
        if outcome.batches == 0 || rows.is_empty() {
            return None;
        }
        let before_at =
            rows.iter().position(|r| r.planned == 0 && r.method == SplitMethod::Even).unwrap_or(0);
        // Among equally good rows, prefer one with a proof, then fewer moves, then the first.
        let moves = |row: &SimulationRow| outcome.planned.get(row.planned).map_or(0, |p| p.moves);
        let after_at = (0..rows.len()).min_by(|&a, &b| {
            let (a, b) = (&rows[a], &rows[b]);
            (a.imbalance.mean.total_cmp(&b.imbalance.mean))
                .then((a.method != SplitMethod::Exact).cmp(&(b.method != SplitMethod::Exact)))
                .then(moves(a).cmp(&moves(b)))
        })?;
        let better = rows[after_at].imbalance.mean < rows[before_at].imbalance.mean;
        Some(Self { outcome, before_at, after_at: if better { after_at } else { before_at } })
    }

    fn before_row(&self) -> &'a SimulationRow {
        &self.outcome.rows[self.before_at]
    }

    fn after_row(&self) -> &'a SimulationRow {
        &self.outcome.rows[self.after_at]
    }

    /// Returns the best row with the first judged split that needs no plan: the even one, or a stack's rule.
    fn own_rule(&self) -> Option<&'a SimulationRow> {
        let own = |row: &&SimulationRow| matches!(row.method, SplitMethod::Even | SplitMethod::Stack(_));
        let first = self.outcome.rows.iter().find(own)?.method;
        // Hindsight is no policy that could run in practice.
        let real = |row: &&SimulationRow| !policy_name(self.outcome, row).starts_with("hindsight");
        let rows = self.outcome.rows.iter().filter(|row| row.method == first).filter(real);
        rows.min_by(|a, b| a.imbalance.mean.total_cmp(&b.imbalance.mean))
    }

    /// Returns whether a row is better than the one before.
    fn has_difference(&self) -> bool {
        self.before_at != self.after_at
    }

    /// Returns the CSS class of a row: `before`, `after` or none.
    fn css_class(&self, row: usize) -> &'static str {
        match row {
            _ if row == self.after_at && self.has_difference() => "after",
            _ if row == self.before_at => "before",
            _ => "",
        }
    }
}

/// Returns the name of a row's policy.
fn policy_name<'a>(outcome: &'a SimulationResult, row: &SimulationRow) -> &'a str {
    outcome.planned.get(row.planned).map_or("", |p| p.policy.as_str())
}

/// Returns "policy, split" of a row, escaped.
fn row_label(outcome: &SimulationResult, row: &SimulationRow) -> String {
    format!("{}, {}", escape_text(policy_name(outcome, row)), row.method)
}

/// Opens a section with its heading and its one-sentence explanation (HTML).
fn open_section(out: &mut String, id: &str, heading: &str, explanation: &str) {
    let _ = write!(
        out,
        "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{heading}</h2>\n<p class=\"say\">{explanation}</p>\n"
    );
}
