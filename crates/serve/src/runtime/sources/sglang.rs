//! The client of an SGLang server's recorder: it starts the recorder once and requests dumps.
//!
//! It sends `POST /start_expert_distribution_record`, then `POST /dump_expert_distribution_record`
//! periodically. Each dump begins a new record. The server writes dumps into the folder of its variable
//! `SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR`. That folder must be the path of the source, from which they are
//! read.

use std::time::{Duration, Instant};
use ureq::Agent;

/// The time limit of a request. The server gathers a dump from all ranks.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// One server.
#[derive(Debug)]
pub(super) struct SglangRecorder {
    agent: Agent,
    base: String,
    every: Duration,
    /// The time of the last dump request. `None` means that the recorder is to be started.
    last: Option<Instant>,
    last_attempt: Option<Instant>,
}

impl SglangRecorder {
    pub(super) fn new(url: &str, dump_seconds: u64) -> Self {
        let agent = Agent::config_builder().timeout_global(Some(REQUEST_TIMEOUT)).build().into();
        let every = Duration::from_secs(dump_seconds);
        Self { agent, base: url.trim_end_matches('/').to_owned(), every, last: None, last_attempt: None }
    }

    /// Sends a due request. Returns false if none is due.
    pub(super) fn send_due_request(&mut self) -> Result<bool, String> {
        match self.last {
            // After a failed start, pause before the next attempt.
            None if self
                .last_attempt
                .is_some_and(|tried| tried.elapsed() < self.every.min(REQUEST_TIMEOUT)) =>
            {
                Ok(false)
            }
            None => {
                self.last_attempt = Some(Instant::now());
                self.post_command("start_expert_distribution_record")?;
                self.last = Some(Instant::now());
                Ok(true)
            }
            Some(last) if last.elapsed() < self.every => Ok(false),
            Some(_) => {
                self.last = Some(Instant::now());
                let asked = self.post_command("dump_expert_distribution_record").inspect_err(|_| {
                    self.last = None;
                    self.last_attempt = Some(Instant::now());
                });
                asked.map(|()| true)
            }
        }
    }

    /// Stops the recorder.
    fn stop(&self) {
        if self.last.is_some() {
            let _ = self.post_command("stop_expert_distribution_record");
        }
    }

    fn post_command(&self, what: &str) -> Result<(), String> {
        let url = format!("{}/{what}", self.base);
        let reply = self.agent.post(&url).send_empty().map_err(|error| format!("{url}: {error}"))?;
        if reply.status().is_success() { Ok(()) } else { Err(format!("{url}: {}", reply.status())) }
    }
}

impl Drop for SglangRecorder {
    fn drop(&mut self) {
        self.stop();
    }
}
