//! `evenkeel simulate replay`: re-plans along a trace, and counts the moves.

use super::comparison::{Comparison, ComparisonSpec, StudyArgs};
use super::policies::{ReportParts, write_report};
use crate::args::expert_time::ExpertTimeSource;
use crate::args::model::ModelArgs;
use crate::args::replan::EconomicsSpec;
use crate::output::{Output, StderrBar};
use crate::render::table::render_table;
use anyhow::bail;
use clap::Args;
use evenkeel::forecast::HistoryWindow;
use evenkeel_simulate::{ReplanSchedule, ReplayOptions, ReplayRow, is_pareto_optimal, replay_trace};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// Re-plan every K judged steps along the trace, and count the moves
///
/// The table compares re-planning with planning once (`never`) and with planning on the served batches
/// themselves (`oracle`). A move is an expert that a rank newly holds. Ranks and slots are renumbered so that
/// experts keep their place where possible.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel simulate replay traces/sample-decode.csv.zst --ranks 8 --layers 0-3 --replan-every \
                       64 --max-moves 1,2,4\n  evenkeel simulate replay deepseek-v2-lite-domains/ --ranks 8 --replan-every 4 \
                       --link-gbps 400 --model deepseek-v2-lite,h100 --report report.html"
)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Judged steps between two plans
    #[arg(long, value_name = "K", required = true, help_heading = "Re-planning")]
    replan_every: usize,
    /// Past steps to plan on: the last W
    ///
    /// auto takes the number of steps that best predicts the latest ones.
    #[arg(long, value_name = "W|auto", default_value = "auto", help_heading = "Re-planning")]
    window: WindowLength,
    /// Plan on all past steps; the weight of a step halves every H steps
    #[arg(long, value_name = "H", conflicts_with = "window", help_heading = "Re-planning")]
    decay: Option<usize>,
    /// Also re-plan with at most N moves per layer; a list gives a curve
    #[arg(long, value_name = "N,..", value_delimiter = ',', help_heading = "Re-planning")]
    max_moves: Vec<usize>,
    /// Also move only if that pays until the next plan; needs --model
    ///
    /// A move pays if the time saved exceeds the time of the copies, as with `plan replan --horizon-steps`.
    /// --model needs a GPU: MODEL,GPU. The value is the link rate into a rank, in gigabits per second.
    #[arg(long, value_name = "GBPS", requires = "model", help_heading = "Re-planning")]
    link_gbps: Option<u64>,
    /// With --link-gbps: times of experts, instead of the GPU's data sheet
    ///
    /// A file of `evenkeel calibrate experts`, or measured kernels, as in h100:trtllm: a GPU of
    /// `evenkeel costs show` or a file of `evenkeel costs import`, and a framework.
    #[arg(
        long,
        value_name = "FILE|GPU:FRAMEWORK",
        requires = "link_gbps",
        hide_short_help = true,
        help_heading = "Re-planning"
    )]
    expert_time: Option<ExpertTimeSource>,
    /// Write a report to this file: one HTML page that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// A number of steps, or its automatic choice.
#[derive(Debug, Clone, Copy)]
enum WindowLength {
    Steps(usize),
    Auto,
}

/// Error of text that is no [`WindowLength`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected a number of steps from 1 on, or auto")]
struct WindowLengthError;

impl FromStr for WindowLength {
    type Err = WindowLengthError;

    fn from_str(text: &str) -> Result<Self, WindowLengthError> {
        match (text, text.parse()) {
            ("auto", _) => Ok(WindowLength::Auto),
            (_, Ok(steps)) if steps > 0 => Ok(WindowLength::Steps(steps)),
            _ => Err(WindowLengthError),
        }
    }
}

/// Replay to run, from options that are valid together.
#[derive(Debug)]
pub(super) struct ReplayRequest {
    comparison: ComparisonSpec,
    replay: ReplayOptions,
    economics: Option<EconomicsSpec>,
}

impl ReplayArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<ReplayRequest> {
        let every = self.replan_every;
        if every == 0 {
            bail!("--replan-every 0: expected at least one step between two plans");
        }
        let window = match (self.decay, self.window) {
            (Some(0), _) => bail!("--decay 0: expected a half-life of at least one step"),
            (Some(half_life), _) => HistoryWindow::HalfLife(half_life),
            (None, WindowLength::Steps(steps)) => HistoryWindow::Last(steps),
            (None, WindowLength::Auto) => HistoryWindow::Auto { ahead: every },
        };
        let times = self.expert_time.as_ref();
        let economics = match (self.link_gbps, self.model.model) {
            (Some(gbps), Some(on)) => {
                Some(EconomicsSpec::resolve((every as u64, gbps), on, times, "--link-gbps")?)
            }
            _ => None,
        };
        Ok(ReplayRequest {
            comparison: self.study.resolve(self.model.model.map(|on| on.model))?,
            replay: ReplayOptions { every, window, max_moves: self.max_moves.clone(), economics: None },
            economics,
        })
    }
}

pub(super) fn run(args: &ReplayArgs, output: Output) -> anyhow::Result<()> {
    let ReplayRequest { comparison: spec, replay: mut schedule, economics } = args.resolve()?;
    let trace = spec.trace.read_for_model(spec.model)?;
    output.print_notices(trace.notices());
    let comparison = Comparison::run(&spec, &trace, output)?;
    schedule.economics =
        economics.map(|economics| economics.for_cluster(&comparison.config.cluster)).transpose()?;
    let bar = StderrBar::for_layers();
    let rows = replay_trace(&trace, &comparison.config, &schedule, &comparison.policies, &bar)?;
    drop(bar);
    if let Some(path) = &args.report {
        let parts = ReportParts { replayed: &rows, ..ReportParts::default() };
        write_report(path, &comparison, &parts)?;
    }
    let results = ReplayResults { schedule, rows };
    comparison.print_study("replan", (results.to_text(), results.to_json()), output)?;
    if let Some(path) = &args.report {
        output.print_note(&format!("report written to {}", path.display()));
    }
    Ok(())
}

/// Results of a replay.
#[derive(Debug)]
struct ReplayResults {
    schedule: ReplayOptions,
    rows: Vec<ReplayRow>,
}

impl ReplayResults {
    fn to_text(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            vec![
                row.policy.clone(),
                row.method.to_string(),
                pace_name(row.schedule),
                format!("{:.3}", row.imbalance.mean),
                format!("{:.3}", row.imbalance.p95),
                format!("{:.4}", row.excess.mean),
                row.moves.to_string(),
                format!("{:.1}", moves_per_replan(row)),
                format!("{:.1}", row.plan_time.as_secs_f64() * 1e3),
                if is_pareto_optimal(row, &self.rows) { "*".into() } else { String::new() },
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
            self.schedule.every,
            self.schedule.window,
            render_table(&header, rows.collect(), 3)
        )
    }

    fn to_json(&self) -> Value {
        let row = |row: &ReplayRow| {
            json!({
                "policy": row.policy,
                "split": row.method.to_string(),
                "planned_again": match row.schedule {
                    ReplanSchedule::Never => "never",
                    ReplanSchedule::Periodic { .. } => "yes",
                    ReplanSchedule::IfItPays => "where it pays",
                    ReplanSchedule::Oracle => "oracle",
                },
                "max_moves": match row.schedule {
                    ReplanSchedule::Periodic { max_moves } => max_moves,
                    _ => None,
                },
                "imbalance": row.imbalance,
                "excess": row.excess,
                "moves": row.moves,
                "replans": row.replans,
                "moves_per_replan": moves_per_replan(row),
                "plan_ms": row.plan_time.as_secs_f64() * 1e3,
                "on_front": is_pareto_optimal(row, &self.rows),
            })
        };
        json!({
            "every": self.schedule.every,
            "window": self.schedule.window.to_string(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

fn pace_name(pace: ReplanSchedule) -> String {
    match pace {
        ReplanSchedule::Never => "never".into(),
        ReplanSchedule::Periodic { max_moves: None } => "yes".into(),
        ReplanSchedule::Periodic { max_moves: Some(moves) } => format!("<= {moves} moves"),
        ReplanSchedule::IfItPays => "where it pays".into(),
        ReplanSchedule::Oracle => "oracle".into(),
    }
}

fn moves_per_replan(row: &ReplayRow) -> f64 {
    row.moves as f64 / row.replans.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;

    #[test]
    fn no_steps_between_plans_are_refused() {
        assert!(refusal("replay t.csv --ranks 8 --replan-every 0").starts_with("--replan-every 0"));
    }

    #[test]
    fn a_half_life_of_no_steps_is_refused() {
        assert!(refusal("replay t.csv --ranks 8 --replan-every 4 --decay 0").starts_with("--decay 0"));
    }

    #[test]
    fn a_link_without_the_gpu_is_refused() {
        let message = refusal("replay t.csv --ranks 8 --replan-every 4 --link-gbps 400 --model deepseek-v3");
        assert!(message.contains("--link-gbps needs the GPU too"), "{message}");
    }

    #[test]
    fn a_link_of_no_speed_is_refused() {
        let message =
            refusal("replay t.csv --ranks 8 --replan-every 4 --link-gbps 0 --model deepseek-v3,h100");
        assert!(message.starts_with("--link-gbps 0"), "{message}");
    }
}
