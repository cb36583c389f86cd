//! The thread that asks the service, so that keys are never waited for.

use super::super::client::Client;
use super::seen::{Choice, History, Replanned, Seen, models, path, read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// The whole history is fetched so often; in between its latest point is added.
const PAST: Duration = Duration::from_secs(5);

/// What is wanted of the service.
#[derive(Debug)]
pub(super) enum Wish {
    Look(Choice),
    WhatIf(Choice),
    Replan(Choice),
}

/// What it said.
#[derive(Debug)]
pub(super) enum Told {
    Seen(Box<Seen>),
    WhatIf(Box<Replanned>),
    Replanned(Box<Replanned>),
    Trouble(String),
}

/// Begins to watch; ends when the sender is dropped.
pub(super) fn watch(
    client: Client,
    wanted: Option<Choice>,
    every: Duration,
) -> (Sender<Wish>, Receiver<Told>) {
    let (wish, wishes) = channel();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut watcher = Watcher::new(client, wanted);
        loop {
            let news = match watcher.look() {
                Ok(()) => Told::Seen(Box::new(watcher.seen.clone())),
                Err(error) => Told::Trouble(evenkeel::in_words(error.as_ref())),
            };
            if tell.send(news).is_err() {
                return;
            }
            let wish = match wishes.recv_timeout(every) {
                Ok(wish) => wish,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let answer = match wish {
                Wish::Look(choice) => {
                    watcher.wanted = Some(choice);
                    watcher.past = None;
                    continue;
                }
                Wish::WhatIf(choice) => {
                    watcher.replan(&choice, true).map(|done| Told::WhatIf(Box::new(done)))
                }
                Wish::Replan(choice) => {
                    watcher.replan(&choice, false).map(|done| Told::Replanned(Box::new(done)))
                }
            };
            let answer = answer.unwrap_or_else(|error| Told::Trouble(evenkeel::in_words(error.as_ref())));
            if tell.send(answer).is_err() {
                return;
            }
        }
    });
    (wish, told)
}

/// What is known, and how to know more.
pub(super) struct Watcher {
    client: Client,
    wanted: Option<Choice>,
    pub(super) seen: Seen,
    past: Option<Instant>,
}

impl Watcher {
    pub(super) fn new(client: Client, wanted: Option<Choice>) -> Self {
        Self { client, wanted, seen: Seen::default(), past: None }
    }

    /// Fetches how things stand.
    pub(super) fn look(&mut self) -> anyhow::Result<()> {
        self.seen.models = models(&self.client)?;
        let choices = self.seen.choices();
        let wanted = self.wanted.clone().filter(|wanted| choices.contains(wanted));
        let Some(choice) = wanted.or_else(|| choices.into_iter().next()) else {
            self.seen.view = None;
            return Ok(());
        };
        let known = self.seen.choice().as_ref() == Some(&choice);
        let view: super::seen::View = read(self.client.get(&path(&choice, "/view?"))?, "/view")?;
        let decided = self.seen.view.as_ref().is_none_or(|old| old.state.decisions != view.state.decisions);
        if !known || decided || self.past.is_none_or(|past| past.elapsed() >= PAST) {
            self.seen.history = read::<History>(self.client.get(&path(&choice, "/history?"))?, "/history")?;
            self.past = Some(Instant::now());
        } else if let Some(latest) = view.state.latest {
            let points = &mut self.seen.history.points;
            if points.last().is_none_or(|last| last.accepted < latest.accepted) {
                points.push(latest);
            }
        }
        self.seen.view = Some(view);
        Ok(())
    }

    fn replan(&self, choice: &Choice, dry_run: bool) -> anyhow::Result<Replanned> {
        let rest = if dry_run { "/replan?dry_run=true&" } else { "/replan?" };
        read(self.client.ask("POST", &path(choice, rest))?, "/replan")
    }
}
