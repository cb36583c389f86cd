//! A real `evenkeel serve` on loopback, and its clients.

#![allow(dead_code, reason = "each test program uses its own part")]

use evenkeel_serve::{
    AcceptedStep, ControllerConfig, Loads, ModelSpec, Phase, PhaseCommand, PhaseState, StepLoads,
};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

/// Longest time that an operation may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// A running server, killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    lines: Mutex<mpsc::Receiver<String>>,
    agent: ureq::Agent,
    token: Option<String>,
}

/// A reply: status, headers by lower-case name, body.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Returns the command that starts a server with its store in a folder.
pub(crate) fn command(data: &Path, config: &str) -> Command {
    let file = data.join("config.toml");
    std::fs::create_dir_all(data).unwrap();
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data).arg("--config").arg(file);
    command
}

impl Server {
    pub(crate) fn start(data: &Path, config: &str) -> Self {
        Self::run(command(data, config), None)
    }

    pub(crate) fn run(mut command: Command, token: Option<&str>) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let url = url.trim().trim_end_matches('/').to_owned();
        if url.is_empty() {
            let said: Vec<String> = lines.iter().collect();
            panic!("no URL: {said:?}");
        }
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        Self {
            child,
            url,
            lines: Mutex::new(lines),
            agent: config.build().into(),
            token: token.map(str::to_owned),
        }
    }

    /// Returns host and port.
    pub(crate) fn address(&self) -> String {
        self.url.split("//").nth(1).unwrap().to_owned()
    }

    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Reply {
        self.try_send(method, path, headers, body).unwrap()
    }

    pub(crate) fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Reply, ureq::Error> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = match body {
            Some(body) => self.agent.run(request.body(body)?)?,
            None => self.agent.run(request.body(())?)?,
        };
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let headers = headers.collect();
        Ok(Reply { status: response.status().as_u16(), headers, text: response.body_mut().read_to_string()? })
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], None)
    }

    pub(crate) fn post(&self, path: &str) -> Reply {
        self.send("POST", path, &[], None)
    }

    pub(crate) fn put_model(&self, name: &str, shape: &Value) -> Reply {
        let headers = [("content-type", "application/json")];
        self.send("PUT", &format!("/v1/models/{name}"), &headers, Some(shape.to_string().as_bytes()))
    }

    pub(crate) fn loads(&self, name: &str, loads: &Loads) -> Reply {
        let body = serde_json::to_vec(&loads.to_body()).unwrap();
        let headers = [("content-type", "application/json")];
        self.send("POST", &format!("/v1/models/{name}/loads"), &headers, Some(&body))
    }

    /// Posts loads of a run.
    pub(crate) fn loads_of(&self, name: &str, run: &str, loads: &Loads) -> Reply {
        let body = evenkeel_serve::binary::encode(loads);
        let headers = [("content-type", evenkeel_serve::binary::CONTENT_TYPE)];
        self.send("POST", &format!("/v1/models/{name}/loads?run={run}"), &headers, Some(&body))
    }

    /// Waits until all posted steps are processed, and returns the phase's state.
    pub(crate) fn settled(&self, name: &str, phase: &str) -> Value {
        let begun = Instant::now();
        loop {
            let state = self.get(&format!("/v1/models/{name}")).json();
            let phases = state["phases"].as_array().unwrap();
            let found = phases.iter().find(|p| p["phase"] == phase).cloned();
            if let Some(found) = found.filter(|p| p["lag"] == 0 && p["planning"] == false) {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{state}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status();
        assert!(sent.unwrap().success());
    }

    /// Ends the server by SIGTERM and returns its log.
    pub(crate) fn terminate(mut self) -> Vec<String> {
        self.signal("TERM");
        assert!(self.wait().success());
        let lines = self.lines.lock().unwrap();
        lines.iter().collect()
    }

    /// Kills the server.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the first log line from now on that contains these words.
    pub(crate) fn said(&self, words: &str) -> String {
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let line = self
                .lines
                .lock()
                .unwrap()
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("it never said {words:?}"));
            if line.contains(words) {
                return line;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the only line that a server prints if it cannot start.
pub(crate) fn refusal(mut command: Command) -> String {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{text}");
    text
}

/// Returns a number from 0 to 1 by a small generator, so that kills and damages occur at varying places.
pub(crate) fn noise(seed: u64) -> f64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635;
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    (x >> 11) as f64 / (1u64 << 53) as f64
}

/// Layers of the artificial model.
pub(crate) const LAYERS: usize = 3;
/// Experts of the artificial model.
pub(crate) const EXPERTS: usize = 16;

/// Returns the cluster of the artificial model: 4 ranks x 6 slots, enough to lose one rank.
pub(crate) fn shape() -> ModelSpec {
    serde_json::from_value(json!({"ranks": 4, "redundant": 8})).unwrap()
}

/// Returns one step of the artificial model. Its hot experts change every 12 steps.
pub(crate) fn step(id: u64) -> StepLoads {
    let count = |at: usize| {
        let (layer, expert) = (at / EXPERTS, (at % EXPERTS) as u64);
        let hot = (id / 12 * 5 + layer as u64) % 16;
        20 + ((id * 7 + expert * 13 + layer as u64 * 3) % 11) as u32 + 120 * u32::from(expert == hot)
    };
    StepLoads { id, counts: (0..LAYERS * EXPERTS).map(count).collect() }
}

/// Returns consecutive steps of the artificial model.
pub(crate) fn loads(ids: std::ops::Range<u64>) -> Loads {
    Loads { phase: Phase::All, layers: vec![1, 2, 5], experts: EXPERTS, steps: ids.map(step).collect() }
}

/// Configuration with decisions every few steps, by a fast policy.
pub(crate) const CONFIG: &str = "[decide]\npolicy = \"eplb\"\nfirst_after = 4\nevery = 6\nmin_every = 3\nmax_moves = 3\nwindow = 16\njudged = 8\nmove_cost = 0.5\nmax_lag = 100000\n";

/// Returns the options of [`CONFIG`].
pub(crate) fn options() -> ControllerConfig {
    evenkeel_serve::ServiceConfig::from_toml(CONFIG, Path::new("test"))
        .unwrap()
        .controller_config(None)
        .unwrap()
}

/// Returns the version and the text of the plan after these steps, computed without a server.
pub(crate) fn plan_of(steps: std::ops::Range<u64>) -> (u64, String) {
    let mut lane = PhaseState::new(shape(), options(), Phase::All, vec![1, 2, 5], EXPERTS).unwrap();
    let never = AtomicBool::new(false);
    for id in steps {
        let seen = AcceptedStep { accepted: lane.accepted_steps() + 1, step: step(id) };
        if let Some(trigger) = lane.apply_step(seen, 0).unwrap() {
            let proposal =
                lane.propose(&PhaseCommand::Replan { trigger, dry_run: false }, &never).unwrap().unwrap();
            lane.apply_proposal(&proposal).unwrap();
        }
    }
    (lane.plan_version(), lane.current_plan().map(|plan| plan.to_json().unwrap()).unwrap_or_default())
}

/// Returns a folder that is deleted after the test.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Returns the store in a data folder.
pub(crate) fn store(data: &Path) -> PathBuf {
    data.join("evenkeel.redb")
}
