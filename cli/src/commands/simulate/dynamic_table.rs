//! Results of `evenkeel simulate dynamic`, as a table and as a document.

use super::comparison::Comparison;
use super::dynamic::TimesWithSource;
use crate::args::dynamic_slots::{AimName, MemoryName};
use crate::render::table::render_table;
use evenkeel::model::MoeModel;
use evenkeel::split::SlotMemory;
use evenkeel_simulate::DynamicRow;
use serde_json::{Value, json};

/// Row of the study.
pub(super) struct StudyRow {
    pub(super) per_rank: usize,
    pub(super) memory: MemoryName,
    pub(super) row: DynamicRow,
}

/// Results of the study.
pub(super) struct DynamicResults {
    pub(super) rows: Vec<StudyRow>,
    pub(super) times: Option<TimesWithSource>,
    pub(super) model: Option<MoeModel>,
    /// The loads on which copies were chosen.
    pub(super) foresight: String,
    pub(super) aim: AimName,
    /// Tokens of an expert that take as long as a copy.
    pub(super) break_even: Option<u64>,
}

impl StudyRow {
    /// Returns the bytes of the dynamic slots on each rank.
    fn bytes(&self, model: &MoeModel) -> u64 {
        let layer = model.expert_bytes().saturating_mul(self.per_rank as u64);
        match self.memory.0 {
            SlotMemory::Shared => layer,
            SlotMemory::Kept => layer.saturating_mul(model.layers as u64),
        }
    }
}

impl DynamicResults {
    /// Returns the table: a row without dynamic slots for every policy, then the rows with them.
    pub(super) fn to_text(&self, comparison: &Comparison<'_>) -> String {
        let mut header = vec![
            "policy",
            "memory",
            "slots",
            "mean",
            "p95",
            "excess",
            "copies",
            "copies p95",
            "bound",
            "sent",
            "us",
        ];
        if self.model.is_some() {
            header.push("GB/rank");
        }
        if self.times.is_some() {
            header.extend(["experts us", "exposed us", "saved", "if better"]);
        }
        let policy = |study: &StudyRow| comparison.outcome.planned[study.row.planned].policy.clone();
        let first = self.rows.iter().take(comparison.outcome.planned.len());
        let fixed = first.map(|study| self.static_cells(policy(study), &study.row));
        let dynamic = self.rows.iter().map(|study| self.dynamic_cells(policy(study), study));
        let table = render_table(&header, fixed.chain(dynamic).collect(), 2);
        let heading = format!("Copies before each batch, chosen on {}; aim {}\n", self.foresight, self.aim);
        heading + &table + &self.describe_times()
    }

    fn static_cells(&self, policy: String, row: &DynamicRow) -> Vec<String> {
        let (imbalance, excess) = (row.static_imbalance, row.static_excess);
        let mut cells = vec![policy, "none".into(), "0".into()];
        cells.extend([format!("{:.3}", imbalance.mean), format!("{:.3}", imbalance.p95)]);
        cells.push(format!("{:.4}", excess.mean));
        cells.extend(["0.00", "0", "0.00", "0.00", ""].map(str::to_owned));
        cells.extend(self.model.map(|_| "0.000".to_owned()));
        if let Some(times) = &row.times {
            cells.extend([us_per_batch(times.static_ps, row), "0.0".into()]);
            cells.extend([String::new(), String::new()]);
        }
        cells
    }

    fn dynamic_cells(&self, policy: String, study: &StudyRow) -> Vec<String> {
        let row = &study.row;
        let mut cells = vec![policy, study.memory.to_string(), study.per_rank.to_string()];
        cells.extend([format!("{:.3}", row.imbalance.mean), format!("{:.3}", row.imbalance.p95)]);
        cells.extend([format!("{:.4}", row.excess.mean), format!("{:.2}", row.copies.mean)]);
        cells.extend([format!("{:.0}", row.copies.p95), format!("{:.2}", row.least_copies.mean)]);
        cells.extend([format!("{:.2}", row.sent.mean), format!("{:.1}", row.split_us.p50)]);
        cells.extend(self.model.map(|model| format!("{:.3}", study.bytes(&model) as f64 / 1e9)));
        if let Some(times) = &row.times {
            let share =
                |ps: u64| format!("{:.1}%", 100.0 * (1.0 - ps as f64 / times.static_ps.max(1) as f64));
            cells.extend([us_per_batch(times.experts_ps, row), us_per_batch(times.exposed_ps, row)]);
            cells.extend([share(times.experts_ps.saturating_add(times.exposed_ps)), share(times.better_ps)]);
        }
        cells
    }

    /// Returns the sources of the times, if times are known.
    fn describe_times(&self) -> String {
        let Some(timed) = &self.times else { return String::new() };
        let break_even = self.break_even.map_or_else(String::new, |tokens| {
            format!("A copy takes as long as {tokens} tokens of an expert, beyond reading its weights.\n")
        });
        let hidden = match timed.times.hidden_ps {
            u64::MAX => "all of them hidden".to_owned(),
            hidden => format!("{:.0} us of them hidden per batch", hidden as f64 / 1e6),
        };
        break_even
            + &format!(
                "Times of one layer of {} on {}: experts by {}, {:.1} us per copy of {:.1} MB and {:.1} us per batch \
                 with copies over {}, {hidden}.\n",
                timed.on.model,
                timed.on.gpu,
                timed.source,
                timed.times.copy_ps as f64 / 1e6,
                timed.bytes as f64 / 1e6,
                timed.times.start_ps as f64 / 1e6,
                timed.network,
            )
    }

    pub(super) fn to_json(&self, comparison: &Comparison<'_>) -> Value {
        let row = |study: &StudyRow| {
            let row = &study.row;
            let us = |ps: u64| ps as f64 / 1e6 / row.batches.max(1) as f64;
            json!({
                "policy": comparison.outcome.planned[row.planned].policy,
                "memory": study.memory.to_string(),
                "slots": study.per_rank,
                "static_imbalance": row.static_imbalance,
                "static_excess": row.static_excess,
                "imbalance": row.imbalance,
                "excess": row.excess,
                "copies": row.copies,
                "least_copies": row.least_copies,
                "sent": row.sent,
                "split_us": { "p50": row.split_us.p50, "p99": row.split_us.p99 },
                "bytes_per_rank": self.model.as_ref().map(|model| study.bytes(model)),
                "times": row.times.map(|times| json!({
                    "static_us": us(times.static_ps),
                    "experts_us": us(times.experts_ps),
                    "exposed_us": us(times.exposed_ps),
                    "better_us": us(times.better_ps),
                })),
            })
        };
        json!({
            "chosen_on": self.foresight,
            "aim": self.aim.to_string(),
            "model": self.model.map(|model| model.to_string()),
            "break_even_tokens": self.break_even,
            "copy_us": self.times.as_ref().map(|timed| timed.times.copy_ps as f64 / 1e6),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// Returns microseconds per batch of a layer.
fn us_per_batch(ps: u64, row: &DynamicRow) -> String {
    format!("{:.1}", ps as f64 / 1e6 / row.batches.max(1) as f64)
}
