//! Re-planning along a trace, as asked for on the command line, and its table.

use super::model_args::ModelPerhapsOnGpu;
use super::output::{Bar, table};
use super::past_args::horizon;
use clap::Args;
use evenkeel::forecast::Window;
use evenkeel::place::Policy;
use evenkeel::simulate::{Config, Pace, Replay, Replayed, on_front, replay};
use evenkeel::trace::Trace;
use serde_json::{Value, json};
use std::str::FromStr;

#[derive(Debug, Clone, Args)]
pub(crate) struct ReplanArgs {
    /// Also replay planning again every K judged steps, with its moves
    ///
    /// Beside it: planned once (`never`) and planned on the very batches that it serves (`oracle`). A move is an expert
    /// that a rank newly holds; ranks and slots are renamed so that what can stay stays.
    #[arg(long, value_name = "K", help_heading = "Planning again")]
    replan_every: Option<usize>,
    /// With --replan-every: plan on the last W steps, or on as many as would have foreseen the latest ones best
    #[arg(
        long,
        value_name = "W|auto",
        default_value = "auto",
        requires = "replan_every",
        help_heading = "Planning again"
    )]
    window: Length,
    /// With --replan-every: plan on all steps, counting half as much every H steps into the past
    #[arg(
        long,
        value_name = "H",
        requires = "replan_every",
        conflicts_with = "window",
        help_heading = "Planning again"
    )]
    decay: Option<usize>,
    /// With --replan-every: also with at most so many moves per layer and re-planning; several give a curve
    #[arg(
        long,
        value_name = "N,..",
        value_delimiter = ',',
        requires = "replan_every",
        help_heading = "Planning again"
    )]
    max_moves: Vec<usize>,
    /// With --replan-every: also move only where the time saved until the next plan exceeds the time of the copies; this is what a
    /// rank receives, in gigabits per second
    #[arg(
        long,
        value_name = "GBPS",
        requires_all = ["replan_every", "model"],
        help_heading = "Planning again"
    )]
    link_gbps: Option<u64>,
    /// Model that runs, as in deepseek-v3: what redundancy costs in memory; also its top-k where batches are drawn
    ///
    /// --link-gbps, and --network without --expert-time, need the GPU too, as in deepseek-v3,h100. Without --model, memory
    /// is that of the known models of the trace's experts and layers, where they agree.
    #[arg(long, value_name = "MODEL[,GPU]", help_heading = "Cluster")]
    pub(super) model: Option<ModelPerhapsOnGpu>,
}

/// Steps, or the choice of them.
#[derive(Debug, Clone, Copy)]
enum Length {
    Steps(usize),
    Auto,
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Length::Auto),
            (_, Ok(steps)) if steps > 0 => Ok(Length::Steps(steps)),
            _ => Err("expected a number of steps from 1 on, or auto".into()),
        }
    }
}

/// What was replayed.
#[derive(Debug)]
pub(super) struct Replanned {
    how: Replay,
    rows: Vec<Replayed>,
}

impl ReplanArgs {
    /// Replays, where that was asked for.
    pub(super) fn ask(
        &self,
        trace: &Trace,
        config: &Config,
        policies: &[Box<dyn Policy>],
    ) -> anyhow::Result<Option<Replanned>> {
        let Some(every) = self.replan_every else { return Ok(None) };
        if every == 0 {
            anyhow::bail!("--replan-every 0: expected at least one step between two plans");
        }
        let window = match (self.decay, self.window) {
            (Some(0), _) => anyhow::bail!("--decay 0: expected a half-life of at least one step"),
            (Some(half_life), _) => Window::HalfLife(half_life),
            (None, Length::Steps(steps)) => Window::Last(steps),
            (None, Length::Auto) => Window::Auto { ahead: every },
        };
        let pays = match (self.link_gbps, self.model) {
            (Some(gbps), Some(on)) => Some(horizon(every as u64, gbps, on.with_gpu("--link-gbps")?)?),
            _ => None,
        };
        let how = Replay { every, window, max_moves: self.max_moves.clone(), pays };
        let bar = Bar::layers();
        let rows = replay(trace, config, &how, policies, &bar)?;
        Ok(Some(Replanned { how, rows }))
    }
}

impl Replanned {
    /// What came of it, row by row.
    pub(super) fn rows(&self) -> &[Replayed] {
        &self.rows
    }

    pub(super) fn table(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            vec![
                row.policy.clone(),
                row.method.to_string(),
                pace(row.pace),
                format!("{:.3}", row.imbalance.mean),
                format!("{:.3}", row.imbalance.p95),
                format!("{:.4}", row.excess.mean),
                row.moves.to_string(),
                format!("{:.1}", per_replan(row)),
                format!("{:.1}", row.plan_time.as_secs_f64() * 1e3),
                if on_front(row, &self.rows) { "*".into() } else { String::new() },
            ]
        });
        let header = [
            "policy",
            "split",
            "planned again",
            "mean",
            "p95",
            "excess",
            "moves",
            "per time",
            "plan ms",
            "front",
        ];
        format!(
            "Planned again every {} steps, on {}; front: no row of the split is better with as few moves\n{}",
            self.how.every,
            self.how.window,
            table(&header, rows.collect(), 3)
        )
    }

    pub(super) fn document(&self) -> Value {
        let row = |row: &Replayed| {
            json!({
                "policy": row.policy,
                "split": row.method.to_string(),
                "planned_again": match row.pace {
                    Pace::Never => "never",
                    Pace::Again { .. } => "yes",
                    Pace::IfItPays => "where it pays",
                    Pace::Oracle => "oracle",
                },
                "max_moves": match row.pace {
                    Pace::Again { max_moves } => max_moves,
                    _ => None,
                },
                "imbalance": row.imbalance,
                "excess": row.excess,
                "moves": row.moves,
                "replans": row.replans,
                "moves_per_replan": per_replan(row),
                "plan_ms": row.plan_time.as_secs_f64() * 1e3,
                "on_front": on_front(row, &self.rows),
            })
        };
        json!({
            "every": self.how.every,
            "window": self.how.window.to_string(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

fn pace(pace: Pace) -> String {
    match pace {
        Pace::Never => "never".into(),
        Pace::Again { max_moves: None } => "yes".into(),
        Pace::Again { max_moves: Some(moves) } => format!("<= {moves} moves"),
        Pace::IfItPays => "where it pays".into(),
        Pace::Oracle => "oracle".into(),
    }
}

fn per_replan(row: &Replayed) -> f64 {
    row.moves as f64 / row.replans.max(1) as f64
}
