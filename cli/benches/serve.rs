//! Measures the load that `evenkeel serve` carries: the real binary on loopback, with posters and readers.
//!
//!     cargo bench -p evenkeel-cli --bench serve               # steps per second and latencies, one minute
//!     cargo bench -p evenkeel-cli --bench serve -- soak 20    # memory over 20 minutes, 200 steps per second
//!
//! Posters wait for each reply, which means that the step is durable. "taken" counts acknowledged steps. The
//! queue bounds how far the evaluation lags behind. Planning runs on the same cores.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, reason = "a benchmark")]

use evenkeel_serve::{Loads, Phase, StepLoads, binary};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

struct Server {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(file)
            .arg("--data")
            .arg(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { child, url: url.trim().trim_end_matches('/').to_owned(), _folder: folder }
    }

    /// Resident memory in MiB.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    }

    fn make(&self, shape: &Value) {
        let body = shape.to_string();
        let url = format!("{}/v1/models/m", self.url);
        ureq::put(url).header("content-type", "application/json").send(body.as_bytes()).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Made-up counts, different from step to step, as decode batches of 256 requests have them.
fn step(id: u64, layers: usize, experts: usize) -> StepLoads {
    let mut x = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let count = |at: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % 16) as u32 + 40 * u32::from(at as u64 % 17 == id / 500 % 17)
    };
    StepLoads { id, counts: (0..layers * experts).map(count).collect() }
}

fn body(first: u64, steps: u64, layers: usize, experts: usize) -> Vec<u8> {
    let steps = (first..first + steps).map(|id| step(id, layers, experts)).collect();
    binary::encode(&Loads { phase: Phase::All, layers: (0..layers as u32).collect(), experts, steps })
}

fn percentile(times: &mut [Duration], p: f64) -> f64 {
    times.sort_unstable();
    times
        .get((p * times.len().saturating_sub(1) as f64) as usize)
        .map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// Measures one row: a number of posters for some seconds, and one reader of the plan.
fn row(
    name: &str,
    decide: &str,
    (layers, experts, ranks): (usize, usize, usize),
    (posters, batch): (u64, u64),
    seconds: u64,
) {
    let server = Server::start(&format!("[limits]\nrequests_per_second = 0\n[decide]\n{decide}\n"));
    server.make(&json!({"ranks": ranks, "redundant": ranks}));
    // Bodies are made before, so that the posters' own work is small; ids are written into them.
    let bodies: Vec<Vec<u8>> = (0..32).map(|at| body(at * batch, batch, layers, experts)).collect();
    let first = ureq::post(format!("{}/v1/models/m/loads", server.url))
        .header("content-type", binary::CONTENT_TYPE)
        .send(&body(1 << 40, 8.max(batch), layers, experts)[..]);
    first.unwrap();
    ureq::get(format!("{}/v1/models/m/plan?wait=300", server.url)).call().unwrap();
    let (stop, next, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (posts, plans) = (Mutex::new(vec![]), Mutex::new(vec![]));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..posters {
            scope.spawn(|| {
                let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
                let (mut times, mut last) = (vec![], None);
                while !stop.load(Ordering::Relaxed) {
                    let number = last.take().unwrap_or_else(|| next.fetch_add(1, Ordering::Relaxed));
                    let body = renumbered(&bodies[(number % 32) as usize], number * batch, layers);
                    let asked = Instant::now();
                    let mut reply = agent
                        .post(format!("{}/v1/models/m/loads", server.url))
                        .header("content-type", binary::CONTENT_TYPE)
                        .send(&body[..])
                        .unwrap();
                    let _ = reply.body_mut().read_to_string();
                    match reply.status().as_u16() {
                        200 => times.push(asked.elapsed()),
                        429 => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            last = Some(number);
                            std::thread::sleep(Duration::from_millis(20));
                        }
                        status => panic!("{status}"),
                    }
                }
                posts.lock().unwrap().extend(times);
            });
        }
        scope.spawn(|| {
            let agent = ureq::Agent::new_with_defaults();
            let mut times = vec![];
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let mut reply =
                    agent.get(format!("{}/v1/models/m/plan?format=sglang", server.url)).call().unwrap();
                let _ = reply.body_mut().read_to_string();
                times.push(asked.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            plans.lock().unwrap().extend(times);
        });
        std::thread::sleep(Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
    });
    let taken = begun.elapsed().as_secs_f64();
    let (mut posts, mut plans) = (posts.into_inner().unwrap(), plans.into_inner().unwrap());
    println!(
        "{layers:3} x {experts:3}  {name:24} {posters:2} x {batch:2}  {:8.0} steps/s  post {:6.1} {:6.1} ms  plan {:6.1} {:6.1} ms  {:5} asked to wait  {:6.0} MiB",
        posts.len() as f64 * batch as f64 / taken,
        percentile(&mut posts, 0.5),
        percentile(&mut posts, 0.99),
        percentile(&mut plans, 0.5),
        percentile(&mut plans, 0.99),
        refused.load(Ordering::Relaxed),
        server.memory(),
    );
}

/// The same body with other step ids.
fn renumbered(body: &[u8], first: u64, layers: usize) -> Vec<u8> {
    let mut body = body.to_vec();
    let (mut at, mut id) = (20 + 4 * layers, first);
    while at < body.len() {
        body[at..at + 8].copy_from_slice(&id.to_le_bytes());
        let length = u32::from_le_bytes(body[at + 8..at + 12].try_into().unwrap()) as usize;
        at += 12 + length;
        id += 1;
    }
    body
}

fn soak(minutes: f64) {
    let server = Server::start("[limits]\nrequests_per_second = 0\n[decide]\npolicy = \"eplb\"\n");
    server.make(&json!({"ranks": 32, "redundant": 32}));
    let (begun, mut id, mut last_report) = (Instant::now(), 0u64, Instant::now());
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    println!("minutes   steps  MiB resident");
    while begun.elapsed().as_secs_f64() < 60.0 * minutes {
        let body = body(id, 10, 61, 256);
        let url = format!("{}/v1/models/m/loads", server.url);
        if agent
            .post(url)
            .header("content-type", binary::CONTENT_TYPE)
            .send(&body[..])
            .is_ok_and(|r| r.status() == 200)
        {
            id += 10;
        }
        // 200 steps a second.
        std::thread::sleep(
            Duration::from_millis(id * 5).saturating_sub(begun.elapsed()).min(Duration::from_millis(50)),
        );
        if last_report.elapsed() >= Duration::from_mins(1) || id == 10 {
            last_report = Instant::now();
            println!("{:7.1} {id:7} {:8.1}", begun.elapsed().as_secs_f64() / 60.0, server.memory());
        }
    }
    println!("{:7.1} {id:7} {:8.1}", begun.elapsed().as_secs_f64() / 60.0, server.memory());
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if args.first().is_some_and(|arg| arg == "soak") {
        soak(args.get(1).and_then(|minutes| minutes.parse().ok()).unwrap_or(20.0));
        return;
    }
    let seconds = args.first().and_then(|seconds| seconds.parse().ok()).unwrap_or(6);
    println!("shape      decisions            posters x steps; latencies p50, p99");
    let once = "every = 1000000000\ndrift = 0.0\npolicy = \"eplb\"";
    let often = "every = 64";
    for shape in [(61, 256, 32), (92, 512, 64)] {
        row("one plan, then none", once, shape, (1, 1), seconds);
        row("one plan, then none", once, shape, (8, 1), seconds);
        row("one plan, then none", once, shape, (4, 16), seconds);
        row("recourse every 64 steps", often, shape, (4, 16), seconds);
    }
}
