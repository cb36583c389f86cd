//! The thread that polls the service, so that keys never wait for a reply.

use super::documents::{PhaseChoice, ServiceState, fetch_models, parse_document, resource_path};
use crate::client::ServiceClient;
use evenkeel_serve::wire::{PhaseHistory, PhaseView, ReplanResponse};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Interval at which the whole history is fetched. Between two fetches only the latest point is added.
const HISTORY_INTERVAL: Duration = Duration::from_secs(5);

/// A request to the polling thread.
#[derive(Debug)]
pub(super) enum PollerRequest {
    Show(PhaseChoice),
    PreviewReplan(PhaseChoice),
    Replan(PhaseChoice),
}

/// A reply of the polling thread.
#[derive(Debug)]
pub(super) enum PollerReply {
    State(Box<ServiceState>),
    ReplanPreview(Box<ReplanResponse>),
    Replanned(Box<ReplanResponse>),
    Failure(String),
}

/// Starts the polling thread, which ends when the sender is dropped.
pub(super) fn start_poller(
    client: ServiceClient,
    preferred: Option<PhaseChoice>,
    every: Duration,
) -> (Sender<PollerRequest>, Receiver<PollerReply>) {
    let (request_sender, requests) = channel();
    let (reply_sender, replies) = channel();
    std::thread::spawn(move || {
        let mut poller = ServicePoller::new(client, preferred);
        loop {
            let reply = match poller.poll_service() {
                Ok(()) => PollerReply::State(Box::new(poller.state.clone())),
                Err(error) => PollerReply::Failure(evenkeel::error_chain(error.as_ref())),
            };
            if reply_sender.send(reply).is_err() {
                return;
            }
            let request = match requests.recv_timeout(every) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let reply = match request {
                PollerRequest::Show(choice) => {
                    poller.preferred = Some(choice);
                    poller.history_time = None;
                    continue;
                }
                PollerRequest::PreviewReplan(choice) => poller
                    .request_replan(&choice, true)
                    .map(|done| PollerReply::ReplanPreview(Box::new(done))),
                PollerRequest::Replan(choice) => {
                    poller.request_replan(&choice, false).map(|done| PollerReply::Replanned(Box::new(done)))
                }
            };
            let reply =
                reply.unwrap_or_else(|error| PollerReply::Failure(evenkeel::error_chain(error.as_ref())));
            if reply_sender.send(reply).is_err() {
                return;
            }
        }
    });
    (request_sender, replies)
}

/// State of the polling thread: the known data and the client that updates them.
pub(super) struct ServicePoller {
    client: ServiceClient,
    preferred: Option<PhaseChoice>,
    pub(super) state: ServiceState,
    history_time: Option<Instant>,
}

impl ServicePoller {
    pub(super) fn new(client: ServiceClient, preferred: Option<PhaseChoice>) -> Self {
        Self { client, preferred, state: ServiceState::default(), history_time: None }
    }

    /// Fetches the current state.
    pub(super) fn poll_service(&mut self) -> anyhow::Result<()> {
        self.state.models = fetch_models(&self.client)?;
        let choices = self.state.phase_choices();
        let preferred = self.preferred.clone().filter(|preferred| choices.contains(preferred));
        let Some(choice) = preferred.or_else(|| choices.into_iter().next()) else {
            self.state.view = None;
            return Ok(());
        };
        let known = self.state.shown_choice().as_ref() == Some(&choice);
        let view: PhaseView =
            parse_document(self.client.get_json(&resource_path(&choice, "/view?"))?, "/view")?;
        let decided = self.state.view.as_ref().is_none_or(|old| old.state.decisions != view.state.decisions);
        if !known || decided || self.history_time.is_none_or(|time| time.elapsed() >= HISTORY_INTERVAL) {
            self.state.history = parse_document::<PhaseHistory>(
                self.client.get_json(&resource_path(&choice, "/history?"))?,
                "/history",
            )?;
            self.history_time = Some(Instant::now());
        } else if let Some(latest) = view.state.latest {
            let points = &mut self.state.history.points;
            if points.last().is_none_or(|last| last.accepted < latest.accepted) {
                points.push(latest);
            }
        }
        self.state.view = Some(view);
        Ok(())
    }

    fn request_replan(&self, choice: &PhaseChoice, dry_run: bool) -> anyhow::Result<ReplanResponse> {
        let rest = if dry_run { "/replan?dry_run=true&" } else { "/replan?" };
        parse_document(self.client.request_json("POST", &resource_path(choice, rest))?, "/replan")
    }
}
