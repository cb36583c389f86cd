//! `evenkeel trace replay`: a recorded trace, posted to a running service as if it happened now.
//!
//! Step `k` of the trace is posted with id `k` (and `--first-step` more), so that a replay that was cut short goes on where it
//! was: what the service knows already it acknowledges. Failed posts are tried again with growing pauses.

use super::client::{Client, told};
use super::output::{Bar, Output, document, print};
use super::price_args::PriceArgs;
use super::trace_args::TraceArgs;
use anyhow::{Context as _, bail};
use evenkeel::serve::{CopyStatus, Loads, Phase, Step, binary};
use evenkeel::trace::Trace;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// Address of the service
    #[arg(long, value_name = "URL")]
    to: String,
    /// Steps a second; 0: as fast as they are taken
    #[arg(long, value_name = "N", default_value = "0")]
    speed: f64,
    /// Name of the model [default: the trace's file name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Phase of the steps: all, prefill or decode
    #[arg(long, default_value = "all")]
    phase: Phase,
    /// Ranks of the model, if the service does not know it yet [default: 8, or the highest power of two that fits]
    #[arg(long, value_name = "N", help_heading = "A new model")]
    ranks: Option<usize>,
    /// Redundant slots, all ranks together [default: one per rank, and what makes slots divide]
    #[arg(long, value_name = "SLOTS", help_heading = "A new model")]
    redundant: Option<usize>,
    /// Nodes that the ranks sit in
    #[arg(long, value_name = "N", default_value = "1", help_heading = "A new model")]
    nodes: usize,
    #[command(flatten)]
    price: PriceArgs,
    /// Steps in one post; 1 where --speed is below 1000
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Added to the number of every step
    #[arg(long, value_name = "N", default_value = "0")]
    first_step: u64,
    /// Wait after every post until the service has looked at it and decided
    #[arg(long)]
    lockstep: bool,
    /// File with the bearer token [default: the variable EVENKEEL_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<std::path::PathBuf>,
    /// Certificate to trust instead of the usual ones, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<std::path::PathBuf>,
    /// Seconds without an answer after which to give up
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    patience: f64,
}

pub(crate) fn run(args: &ReplayArgs, output: Output) -> anyhow::Result<()> {
    if !(args.speed >= 0.0 && args.speed.is_finite()) {
        bail!("--speed {}: expected steps a second, or 0", args.speed);
    }
    if !(args.patience >= 0.0 && args.patience < 1e6) {
        bail!("--patience {}: expected seconds", args.patience);
    }
    let trace = args.trace.read_recorded()?;
    output.notices(trace.notices());
    let patience = Duration::from_secs_f64(args.patience);
    let client = Client::new("--to ", &args.to, args.token_file.as_deref(), args.ca.as_deref(), patience)?;
    let name = args.name.clone().unwrap_or_else(|| default_name(args));
    client.make_model(args, &name, &trace)?;
    let replayed = post_all(args, &client, &name, &trace)?;
    let phase = args.phase;
    let state: Value = client.get(&format!("/v1/models/{name}"))?;
    let phases = state["phases"].as_array().cloned().unwrap_or_default();
    let state = phases.into_iter().find(|p| p["phase"] == phase.name()).unwrap_or_default();
    if output.json() {
        return document(&json!({
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
    print(&format!(
        "{} steps posted to {name} in {:.1} s: {} new, {} known already, {} tries again; plan {}{latest}\n{copies}",
        replayed.accepted + replayed.repeated,
        replayed.seconds,
        replayed.accepted,
        replayed.repeated,
        replayed.retries,
        state["plan"],
    ))
}

#[derive(Debug, Default)]
struct Replayed {
    accepted: u64,
    repeated: u64,
    retries: u64,
    seconds: f64,
}

fn post_all(args: &ReplayArgs, client: &Client, name: &str, trace: &Trace) -> anyhow::Result<Replayed> {
    let steps = trace.steps().len();
    let batch =
        args.batch.unwrap_or(if args.speed > 0.0 && args.speed < 1000.0 { 1 } else { 16 }).clamp(1, 4096);
    let bar = Bar::posting();
    let (begun, mut replayed) = (Instant::now(), Replayed::default());
    let mut at = 0;
    while at < steps {
        let end = steps.min(at + if args.lockstep { 1 } else { batch });
        if args.speed > 0.0 {
            let due = Duration::from_secs_f64(at as f64 / args.speed);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
        let loads = loads(args, trace, at..end)?;
        let receipt = client.post(
            &format!("/v1/models/{name}/loads"),
            &binary::encode(&loads),
            &mut replayed.retries,
        )?;
        replayed.accepted += receipt["accepted"].as_u64().unwrap_or(0);
        replayed.repeated += receipt["repeated"].as_u64().unwrap_or(0);
        if args.lockstep {
            client.settle(name, args.phase)?;
        }
        at = end;
        evenkeel::exec::run::Progress::steps(&bar, at, steps);
    }
    replayed.seconds = begun.elapsed().as_secs_f64();
    Ok(replayed)
}

fn loads(args: &ReplayArgs, trace: &Trace, steps: std::ops::Range<usize>) -> anyhow::Result<Loads> {
    let step = |at: usize| -> anyhow::Result<Step> {
        let counts = (0..trace.layers().len()).flat_map(|layer| trace.loads(at, layer)).map(|&load| {
            u32::try_from(load)
                .with_context(|| format!("step {}: {load} tokens: expected below 2^32", trace.steps()[at]))
        });
        let id = args.first_step.checked_add(at as u64).context("--first-step: too large")?;
        Ok(Step { id, counts: counts.collect::<anyhow::Result<Vec<u32>>>()?.into() })
    };
    let steps = steps.map(step).collect::<anyhow::Result<_>>()?;
    Ok(Loads { phase: args.phase, layers: trace.layers().to_vec(), experts: trace.experts(), steps }
        .checked()?)
}

/// The first file's name, what does not fit into a model's name left out.
fn default_name(args: &ReplayArgs) -> String {
    let path = args.trace.traces.first().map_or(std::path::Path::new("trace"), std::path::PathBuf::as_path);
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = name.split('.').next().unwrap_or_default();
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let name: String = name.chars().map(fits).take(64).collect();
    if name.is_empty() { "trace".into() } else { name }
}

/// Refuses a model, GPU or link that the service knows otherwise: a shape is for good.
fn check_price(args: &ReplayArgs, name: &str, shape: &Value) -> anyhow::Result<()> {
    for (key, value) in args.price.keys() {
        if shape[key] != value {
            bail!(
                "{name}: the service has {key} = {}, found {value} on the command line; expected the same, or another --name",
                shape[key]
            );
        }
    }
    Ok(())
}

impl Client {
    /// Posts, and tries again where that can help.
    fn post(&self, path: &str, body: &[u8], retries: &mut u64) -> anyhow::Result<Value> {
        let (mut pause, mut begun) = (Duration::from_millis(50), Instant::now());
        loop {
            let (what, wait) = match self.send("POST", path, Some((binary::CONTENT_TYPE, body))) {
                Ok((200, receipt, _)) => return Ok(receipt),
                // The service is there and asks for patience.
                Ok((429, _, again)) => {
                    begun = Instant::now();
                    (
                        String::new(),
                        again.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.0, 60.0)).min(pause)),
                    )
                }
                Ok((status @ (408 | 503), value, _)) => (told(status, &value), None),
                Ok((status, value, _)) => bail!("{}{path}: {}", self.base, told(status, &value)),
                Err(error) => (error.to_string(), None),
            };
            if begun.elapsed() >= self.patience {
                bail!("{}{path}: {what}; given up after {:.0} s", self.base, self.patience.as_secs_f64());
            }
            *retries += 1;
            std::thread::sleep(wait.unwrap_or(pause));
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn make_model(&self, args: &ReplayArgs, name: &str, trace: &Trace) -> anyhow::Result<()> {
        let path = format!("/v1/models/{name}");
        let (status, value, _) =
            self.send("GET", &path, None).with_context(|| format!("--to {}", self.base))?;
        match status {
            200 if args.ranks.is_none() && args.redundant.is_none() => {
                return check_price(args, name, &value["shape"]);
            }
            200 | 404 => {}
            _ => bail!("{}{path}: {}", self.base, told(status, &value)),
        }
        let experts = trace.experts();
        let power = (0..4).map(|k| 1usize << k).rfind(|&ranks| ranks <= experts);
        let ranks = args.ranks.or(power).unwrap_or(1).max(1);
        // One slot more per rank than the experts need.
        let redundant = args.redundant.unwrap_or_else(|| (experts.div_ceil(ranks) + 1) * ranks - experts);
        let mut shape = json!({ "ranks": ranks, "redundant": redundant, "nodes": args.nodes });
        for (key, value) in args.price.keys() {
            shape[key] = value;
        }
        let body = serde_json::to_vec(&shape)?;
        let (status, value, _) = self.send("PUT", &path, Some(("application/json", &body)))?;
        if matches!(status, 200 | 201) {
            Ok(())
        } else {
            bail!("{}{path}: {}", self.base, told(status, &value))
        }
    }

    /// Waits until everything that was posted has been looked at, and no decision is being worked out.
    fn settle(&self, name: &str, phase: Phase) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let state = self.get(&format!("/v1/models/{name}"))?;
            let phases = state["phases"].as_array().cloned().unwrap_or_default();
            if let Some(state) = phases.iter().find(|p| p["phase"] == phase.name())
                && state["behind"] == 0
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
