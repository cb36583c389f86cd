//! Pictures: one self-contained HTML file that shows what a simulation found.
//!
//! In: a [`Page`], which borrows a [`Trace`], a [`Cluster`] and the [`Outcome`] of simulating them. Out: one HTML
//! document. It fetches nothing, runs no script, and forbids itself both in its own content security policy. The
//! same input gives the same bytes: there is no clock and no hash order in here.
//!
//! The figures are inline SVG written by a small writer of our own, for three reasons that plotting crates do not
//! serve together: colours are CSS variables, so that one file looks right in light, dark and print; positions are
//! percentages and type is in pixels, so that a figure fills a desktop or a phone without its letters shrinking;
//! and every figure carries its own words for those who cannot see it. Each figure is one file of this module.
//!
//! What is compared throughout: **before**, the first policy with the `even` split (the first row where there is
//! none), and **after**, the row with the lowest mean imbalance.

mod distribution;
mod experts;
mod facts;
mod fit;
mod headline;
mod heatmap;
mod layers;
mod moves;
mod run;
mod svg;
mod table;
mod text;

use crate::cluster::Cluster;
use crate::model::Model;
use crate::simulate::{Outcome, Replayed, Row};
use crate::split::Method;
use crate::trace::Trace;
use std::fmt::Write as _;
use text::esc;

pub use fit::FitPage;
pub use run::RunPage;

/// Everything that a report shows.
#[derive(Debug, Clone)]
pub struct Page<'a> {
    /// Name of the report, as the reader will find it in a browser tab.
    pub title: String,
    /// The command line that made it.
    pub command: String,
    /// The trace that was simulated.
    pub trace: &'a Trace,
    /// The group that it was simulated on.
    pub cluster: &'a Cluster,
    /// What came out.
    pub outcome: &'a Outcome,
    /// Where planning was replayed along the trace: what came of it; else empty.
    pub replayed: &'a [Replayed],
}

const STYLE: &str = include_str!("style.css");

/// No script, no network: the file itself says so to the browser.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

impl Page<'_> {
    /// The report as one HTML document.
    pub fn html(&self) -> String {
        self.document(None)
    }

    /// The same, with the memory that redundant slots cost in this model.
    pub fn html_for(&self, model: &Model) -> String {
        self.document(Some(model))
    }

    fn document(&self, model: Option<&Model>) -> String {
        frame(&self.title, |out| {
            match Comparison::of(self.outcome) {
                Some(comparison) => {
                    headline::write(out, self, &comparison, model);
                    table::write(out, self.outcome, &comparison);
                    distribution::write(out, self.outcome, &comparison);
                    heatmap::write(out, self, &comparison);
                    moves::write(out, self);
                    layers::write(out, self, &comparison);
                    experts::write(out, self, &comparison);
                }
                None => headline::nothing(out, self),
            }
            facts::write(out, self);
        })
    }
}

/// A whole document around what `body` writes.
fn frame(title: &str, body: impl FnOnce(&mut String)) -> String {
    let mut out = String::with_capacity(1 << 16);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\"/>\n\
         <meta name=\"generator\" content=\"evenkeel {}\"/>\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        env!("CARGO_PKG_VERSION"),
        esc(title),
    );
    body(&mut out);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// The two rows that the pictures compare.
#[derive(Clone, Copy)]
struct Comparison<'a> {
    outcome: &'a Outcome,
    before_at: usize,
    after_at: usize,
}

impl<'a> Comparison<'a> {
    /// None where no batch was judged.
    fn of(outcome: &'a Outcome) -> Option<Self> {
        let rows = &outcome.rows;
        if outcome.batches == 0 || rows.is_empty() {
            return None;
        }
        let before_at = rows.iter().position(|r| r.planned == 0 && r.method == Method::Even).unwrap_or(0);
        // Of equally good rows the one with a proof is shown, then the one that moves less, then the first.
        let moves = |row: &Row| outcome.planned.get(row.planned).map_or(0, |p| p.moves);
        let after_at = (0..rows.len()).min_by(|&a, &b| {
            let (a, b) = (&rows[a], &rows[b]);
            (a.imbalance.mean.total_cmp(&b.imbalance.mean))
                .then((a.method != Method::Exact).cmp(&(b.method != Method::Exact)))
                .then(moves(a).cmp(&moves(b)))
        })?;
        let better = rows[after_at].imbalance.mean < rows[before_at].imbalance.mean;
        Some(Self { outcome, before_at, after_at: if better { after_at } else { before_at } })
    }

    fn before(&self) -> &'a Row {
        &self.outcome.rows[self.before_at]
    }

    fn after(&self) -> &'a Row {
        &self.outcome.rows[self.after_at]
    }

    /// The best row under the first judged split that nothing plans: the even one, or a stack's rule.
    fn own_rule(&self) -> Option<&'a Row> {
        let own = |row: &&Row| matches!(row.method, Method::Even | Method::Stack(_));
        let first = self.outcome.rows.iter().find(own)?.method;
        // Hindsight is no policy that anybody can run.
        let real = |row: &&Row| !policy_of(self.outcome, row).starts_with("hindsight");
        let rows = self.outcome.rows.iter().filter(|row| row.method == first).filter(real);
        rows.min_by(|a, b| a.imbalance.mean.total_cmp(&b.imbalance.mean))
    }

    /// Whether there is a better row than the one to compare with.
    fn differs(&self) -> bool {
        self.before_at != self.after_at
    }

    /// CSS class of a row: `before`, `after` or none.
    fn class(&self, row: usize) -> &'static str {
        match row {
            _ if row == self.after_at && self.differs() => "after",
            _ if row == self.before_at => "before",
            _ => "",
        }
    }
}

/// The policy's name of a row.
fn policy_of<'a>(outcome: &'a Outcome, row: &Row) -> &'a str {
    outcome.planned.get(row.planned).map_or("", |p| p.policy.as_str())
}

/// "policy, split" of a row, escaped.
fn name_of(outcome: &Outcome, row: &Row) -> String {
    format!("{}, {}", esc(policy_of(outcome, row)), row.method)
}

/// Opens a section with its heading and its one-sentence explanation (HTML).
fn section(out: &mut String, id: &str, heading: &str, explanation: &str) {
    let _ = write!(
        out,
        "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{heading}</h2>\n<p class=\"say\">{explanation}</p>\n"
    );
}
