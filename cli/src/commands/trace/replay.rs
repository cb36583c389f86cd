//! `evenkeel trace replay`: posts a recorded trace to a running service in real time.
//!
//! Step `k` of the trace is posted with number `k` (plus `--first-step`) in a run whose name is a digest of
//! the trace. An interrupted replay therefore continues where it stopped, since the service acknowledges
//! known steps. Another trace is another run. Failed posts are repeated with growing pauses.

use crate::args::move_price::MovePriceArgs;
use crate::args::trace::TraceArgs;
use crate::client::{ServiceClient, error_text};
use crate::output::{Output, StderrBar, print_json, print_text};
use anyhow::{Context as _, bail};
use evenkeel::trace::Trace;
use evenkeel_serve::{CopyStatus, Loads, Phase, StepLoads, binary};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::time::{Duration, Instant};

/// Longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Post a trace to a running `evenkeel serve`, step by step
///
/// Steps are numbered from 0. An interrupted replay can run again: the service only acknowledges steps that
/// it knows. A model that the service does not know is created, with --ranks and --redundant.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel trace replay traces/sample-prefill.csv.zst --to http://127.0.0.1:8787 --speed \
                       10\n  evenkeel trace replay gptoss/ --decode-batch 64 --to http://127.0.0.1:8787 --name gpt-oss --ranks \
                       8 --redundant 8"
)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// Address of the service
    #[arg(long, value_name = "URL")]
    to: String,
    /// Steps per second; 0: as fast as the service accepts them
    #[arg(long, value_name = "N", default_value = "0")]
    speed: f64,
    /// Name of the model [default: the trace's file name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Phase of the steps: all, prefill or decode
    #[arg(long, default_value = "all")]
    phase: Phase,
    /// Ranks [default: 8, or the highest power of two that fits]
    ///
    /// The service creates a model that it does not know.
    #[arg(long, value_name = "N", help_heading = "A new model")]
    ranks: Option<usize>,
    /// Redundant slots of all ranks together [default: one per rank]
    ///
    /// The default is larger if one per rank does not make the slots divide.
    #[arg(long, value_name = "SLOTS", help_heading = "A new model")]
    redundant: Option<usize>,
    /// Nodes that hold the ranks
    #[arg(long, value_name = "N", default_value = "1", help_heading = "A new model")]
    nodes: usize,
    #[command(flatten)]
    price: MovePriceArgs,
    /// Steps per post [default: 16, or 1 with a --speed below 1000]
    #[arg(long, value_name = "N", hide_short_help = true)]
    batch: Option<usize>,
    /// Number of the first step
    #[arg(long, value_name = "N", default_value = "0", hide_short_help = true)]
    first_step: u64,
    /// Run of the steps, 1 to 64 letters, digits, `-`, `_` or `.` [default: a digest of the trace]
    #[arg(long, value_name = "ID", hide_short_help = true)]
    run: Option<String>,
    /// Post single steps, and wait after each until the service has processed it and decided
    #[arg(long, hide_short_help = true)]
    lockstep: bool,
    /// File with the bearer token [default: the variable EVENKEEL_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<std::path::PathBuf>,
    /// Certificate in PEM format to trust instead of the usual ones
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    ca: Option<std::path::PathBuf>,
    /// Seconds without an answer after which the command fails
    #[arg(long, value_name = "SECONDS", default_value = "60", hide_short_help = true)]
    patience: f64,
}

/// A replay, from options that are valid.
#[derive(Debug)]
struct ReplayRequest {
    patience: Duration,
    /// Steps per post.
    batch: usize,
}

impl ReplayArgs {
    /// Checks the options.
    fn resolve(&self) -> anyhow::Result<ReplayRequest> {
        if !(self.speed >= 0.0 && self.speed.is_finite()) {
            bail!("--speed {}: expected steps per second, or 0", self.speed);
        }
        if !(self.patience >= 0.0 && self.patience < 1e6) {
            bail!("--patience {}: expected seconds", self.patience);
        }
        let batch = self.batch.unwrap_or(if self.speed > 0.0 && self.speed < 1000.0 { 1 } else { 16 });
        Ok(ReplayRequest {
            patience: Duration::from_secs_f64(self.patience),
            batch: if self.lockstep { 1 } else { batch.clamp(1, 4096) },
        })
    }
}

pub(super) fn run(args: &ReplayArgs, output: Output) -> anyhow::Result<()> {
    let ReplayRequest { patience, batch } = args.resolve()?;
    let trace = args.trace.read_recorded()?;
    output.print_notices(trace.notices());
    let client =
        ServiceClient::new("--to ", &args.to, args.token_file.as_deref(), args.ca.as_deref(), patience)?;
    let name = args.name.clone().unwrap_or_else(|| default_model_name(args));
    client.create_model(args, &name, &trace)?;
    let replayed = post_steps(args, batch, &client, &name, &trace)?;
    let phase = args.phase;
    let state: Value = client.get_json(&format!("/v1/models/{name}"))?;
    let phases = state["phases"].as_array().cloned().unwrap_or_default();
    let state = phases.into_iter().find(|p| p["phase"] == phase.name()).unwrap_or_default();
    if output.is_json() {
        return print_json(&json!({
            "model": name, "phase": phase, "steps": trace.steps().len(), "accepted": replayed.accepted,
            "repeated": replayed.repeated, "retries": replayed.retries, "seconds": replayed.seconds,
            "steps_per_second": replayed.accepted as f64 / replayed.seconds.max(1e-9), "state": state,
        }));
    }
    let latest =
        state["latest"]["mean"].as_f64().map_or(String::new(), |mean| format!(", imbalance {mean:.3}"));
    let copies =
        serde_json::from_value::<CopyStatus>(state["copies"].clone()).map_or(String::new(), |copies| {
            format!(
                "copies took {:.0} ms of link time, {:.2} % at {} ms a step; {copies}\n",
                copies.spent_ms,
                100.0 * copies.spent_share,
                copies.step_ms
            )
        });
    print_text(&format!(
        "{} steps posted to {name} in {:.1} s: {} new, {} known already, {} retries; plan {}{latest}\n{copies}",
        replayed.accepted + replayed.repeated,
        replayed.seconds,
        replayed.accepted,
        replayed.repeated,
        replayed.retries,
        state["plan"],
    ))
}

#[derive(Debug, Default)]
struct PostCounts {
    accepted: u64,
    repeated: u64,
    retries: u64,
    seconds: f64,
}

fn post_steps(
    args: &ReplayArgs,
    batch: usize,
    client: &ServiceClient,
    name: &str,
    trace: &Trace,
) -> anyhow::Result<PostCounts> {
    let steps = trace.steps().len();
    let run = args.run.clone().unwrap_or_else(|| run_digest(trace));
    let bar = StderrBar::for_posting();
    let (begun, mut replayed) = (Instant::now(), PostCounts::default());
    let mut at = 0;
    while at < steps {
        let end = steps.min(at + batch);
        if args.speed > 0.0 {
            let due = Duration::from_secs_f64(at as f64 / args.speed);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
        let loads = encode_steps(args, trace, at..end)?;
        let receipt = client.post_with_retries(
            &format!("/v1/models/{name}/loads?run={run}"),
            &binary::encode(&loads),
            &mut replayed.retries,
        )?;
        replayed.accepted += receipt["accepted"].as_u64().unwrap_or(0);
        replayed.repeated += receipt["repeated"].as_u64().unwrap_or(0);
        if args.lockstep {
            client.wait_until_processed(name, args.phase)?;
        }
        at = end;
        evenkeel_exec::run::StepProgress::report_steps(&bar, at, steps);
    }
    replayed.seconds = begun.elapsed().as_secs_f64();
    Ok(replayed)
}

/// Returns a run id from all counts of a trace.
fn run_digest(trace: &Trace) -> String {
    let mut hash = Sha256::new();
    for step in 0..trace.steps().len() {
        for (layer, id) in trace.layers().iter().enumerate() {
            hash.update(id.to_le_bytes());
            trace.loads(step, layer).iter().for_each(|load| hash.update(load.to_le_bytes()));
        }
    }
    hash.finalize().iter().take(8).fold("replay-".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn encode_steps(args: &ReplayArgs, trace: &Trace, steps: std::ops::Range<usize>) -> anyhow::Result<Loads> {
    let step = |at: usize| -> anyhow::Result<StepLoads> {
        let counts = (0..trace.layers().len()).flat_map(|layer| trace.loads(at, layer)).map(|&load| {
            u32::try_from(load)
                .with_context(|| format!("step {}: {load} tokens: expected below 2^32", trace.steps()[at]))
        });
        let id = args.first_step.checked_add(at as u64).context("--first-step: too large")?;
        Ok(StepLoads { id, counts: counts.collect::<anyhow::Result<Vec<u32>>>()?.into() })
    };
    let steps = steps.map(step).collect::<anyhow::Result<_>>()?;
    Ok(Loads { phase: args.phase, layers: trace.layers().to_vec(), experts: trace.experts(), steps }
        .validate()?)
}

/// Returns the first file's name, without the characters that a model's name cannot have.
fn default_model_name(args: &ReplayArgs) -> String {
    let path = args.trace.traces.first().map_or(std::path::Path::new("trace"), std::path::PathBuf::as_path);
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = name.split('.').next().unwrap_or_default();
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let name: String = name.chars().map(fits).take(64).collect();
    if name.is_empty() { "trace".into() } else { name }
}

/// Refuses a model, GPU or link that differs from the service's: a shape cannot change.
fn check_price(args: &ReplayArgs, name: &str, shape: &Value) -> anyhow::Result<()> {
    for (key, value) in args.price.shape_fields() {
        if shape[key] != value {
            bail!(
                "{name}: the service has {key} = {}, found {value} on the command line; expected the same, or another --name",
                shape[key]
            );
        }
    }
    Ok(())
}

impl ServiceClient {
    /// Posts, and repeats the post if that can help.
    fn post_with_retries(&self, path: &str, body: &[u8], retries: &mut u64) -> anyhow::Result<Value> {
        let (mut pause, mut begun) = (Duration::from_millis(50), Instant::now());
        loop {
            let (reason, wait) = match self.send_request("POST", path, Some((binary::CONTENT_TYPE, body))) {
                Ok((200, receipt, _)) => return Ok(receipt),
                // The service answers but is overloaded.
                Ok((429, _, retry_after)) => {
                    begun = Instant::now();
                    (
                        String::new(),
                        retry_after
                            .map(|seconds| Duration::from_secs_f64(seconds.clamp(0.0, 60.0)).min(pause)),
                    )
                }
                Ok((status @ (408 | 503), value, _)) => (error_text(status, &value), None),
                Ok((status, value, _)) => bail!("{}{path}: {}", self.base, error_text(status, &value)),
                Err(error) => (error.to_string(), None),
            };
            if begun.elapsed() >= self.patience {
                bail!("{}{path}: {reason}; gave up after {:.0} s", self.base, self.patience.as_secs_f64());
            }
            *retries += 1;
            std::thread::sleep(wait.unwrap_or(pause));
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }

    fn create_model(&self, args: &ReplayArgs, name: &str, trace: &Trace) -> anyhow::Result<()> {
        let path = format!("/v1/models/{name}");
        let (status, value, _) =
            self.send_request("GET", &path, None).with_context(|| format!("--to {}", self.base))?;
        match status {
            200 if args.ranks.is_none() && args.redundant.is_none() => {
                return check_price(args, name, &value["shape"]);
            }
            200 | 404 => {}
            _ => bail!("{}{path}: {}", self.base, error_text(status, &value)),
        }
        let experts = trace.experts();
        let power = (0..4).map(|k| 1usize << k).rfind(|&ranks| ranks <= experts);
        let ranks = args.ranks.or(power).unwrap_or(1).max(1);
        // Each rank gets one slot more than the experts need.
        let redundant = args.redundant.unwrap_or_else(|| (experts.div_ceil(ranks) + 1) * ranks - experts);
        let mut shape = json!({ "ranks": ranks, "redundant": redundant, "nodes": args.nodes });
        for (key, value) in args.price.shape_fields() {
            shape[key] = value;
        }
        let body = serde_json::to_vec(&shape)?;
        let (status, value, _) = self.send_request("PUT", &path, Some(("application/json", &body)))?;
        if matches!(status, 200 | 201) {
            Ok(())
        } else {
            bail!("{}{path}: {}", self.base, error_text(status, &value))
        }
    }

    /// Waits until all posted steps are processed and no decision is being computed.
    fn wait_until_processed(&self, name: &str, phase: Phase) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let state = self.get_json(&format!("/v1/models/{name}"))?;
            let phases = state["phases"].as_array().cloned().unwrap_or_default();
            if let Some(state) = phases.iter().find(|p| p["phase"] == phase.name())
                && state["lag"] == 0
                && state["planning"] == false
            {
                return Ok(());
            }
            if begun.elapsed() > self.patience.max(Duration::from_mins(10)) {
                bail!("{name}: the service is behind for {:.0} s", begun.elapsed().as_secs_f64());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TraceCommand;

    fn refusal(options: &str) -> String {
        let command = crate::parse_line(&format!("trace replay t.csv --to http://127.0.0.1:1 {options}"));
        let crate::Command::Trace(TraceCommand::Replay(args)) = command else { panic!("{options}") };
        args.resolve().unwrap_err().to_string()
    }

    #[test]
    fn speeds_and_patience_out_of_range_are_refused() {
        assert!(refusal("--speed inf").starts_with("--speed inf: expected steps per second"));
        assert!(refusal("--patience 1e9").starts_with("--patience 1000000000: expected seconds"));
    }
}
