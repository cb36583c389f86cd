//! The recorder of a SGLang server: started once, asked for a dump now and then.
//!
//! `POST /start_expert_distribution_record`, then `POST /dump_expert_distribution_record` every so many seconds; each dump begins a
//! new record. The server writes dumps into the folder of its variable `SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR`, which has to
//! be the source's path; from there they are read.

use std::time::{Duration, Instant};
use ureq::Agent;

/// How long the server may take; a dump is gathered from all ranks.
const PATIENCE: Duration = Duration::from_secs(30);

/// One server.
#[derive(Debug)]
pub(super) struct Recorder {
    agent: Agent,
    base: String,
    every: Duration,
    /// When the last dump was asked for; not started, or to be started anew, where there is none.
    last: Option<Instant>,
    tried: Option<Instant>,
}

impl Recorder {
    pub(super) fn new(url: &str, dump_seconds: u64) -> Self {
        let agent = Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
        let every = Duration::from_secs(dump_seconds);
        Self { agent, base: url.trim_end_matches('/').to_owned(), every, last: None, tried: None }
    }

    /// Does what is due; false where nothing is.
    pub(super) fn poll(&mut self) -> Result<bool, String> {
        match self.last {
            // A server that does not answer is asked again after a pause.
            None if self.tried.is_some_and(|tried| tried.elapsed() < self.every.min(PATIENCE)) => Ok(false),
            None => {
                self.tried = Some(Instant::now());
                self.post("start_expert_distribution_record")?;
                self.last = Some(Instant::now());
                Ok(true)
            }
            Some(last) if last.elapsed() < self.every => Ok(false),
            Some(_) => {
                self.last = Some(Instant::now());
                let asked = self.post("dump_expert_distribution_record").inspect_err(|_| {
                    self.last = None;
                    self.tried = Some(Instant::now());
                });
                asked.map(|()| true)
            }
        }
    }

    /// Ends the record.
    fn stop(&self) {
        if self.last.is_some() {
            let _ = self.post("stop_expert_distribution_record");
        }
    }

    fn post(&self, what: &str) -> Result<(), String> {
        let url = format!("{}/{what}", self.base);
        let reply = self.agent.post(&url).send_empty().map_err(|error| format!("{url}: {error}"))?;
        if reply.status().is_success() { Ok(()) } else { Err(format!("{url}: {}", reply.status())) }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}
