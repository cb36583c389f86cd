//! `evenkeel top`: a running service in a terminal.

mod documents;
mod format;
mod heatmap;
mod poller;
mod screen;
mod timeline;

use crate::client::ServiceClient;
use crate::output::{Output, print_json, print_text};
use anyhow::{Context as _, bail};
use documents::{PhaseChoice, ServiceState, fetch_models, parse_document, resource_path, stopped_seconds};
use evenkeel_serve::Phase;
use evenkeel_serve::wire::{ModelStatus, ReplanResponse};
use poller::{PollerReply, PollerRequest, ServicePoller, start_poller};
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use screen::ScreenFrame;
use serde_json::json;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

const KEY_HELP: &str = "tab: next model or phase   r: re-plan (asks first)   up, down: layers   q: quit";
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time without a reply after which the display counts as outdated.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// Watch a running `evenkeel serve` in a terminal
///
/// The screen shows a heat map of rank loads, the imbalance over time with a mark for every plan, decisions,
/// moves and the hottest experts. `--once` prints one frame as plain text, `--json` the documents of the
/// service. NO_COLOR disables colours.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel top\n  evenkeel top http://127.0.0.1:8787 --name gpt-oss-20b\n  evenkeel top --once | less\n\n\
    Keys: tab, shift-tab: next, previous model or phase; r: preview a re-planning and confirm it; up, down, page up, page down: \
    layers; q, Ctrl-C: quit."
)]
pub(crate) struct TopArgs {
    /// Address of the service
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8787")]
    url: String,
    /// Model to show first [default: the first with loads]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Phase to show first: all, prefill or decode [default: the first with loads]
    #[arg(long)]
    phase: Option<Phase>,
    /// Print one frame as text and exit
    #[arg(long)]
    once: bool,
    /// Seconds between two updates
    #[arg(long, value_name = "SECONDS", default_value = "1")]
    every: f64,
    /// File with the bearer token [default: the variable EVENKEEL_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate in PEM format to trust instead of the usual ones
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    ca: Option<PathBuf>,
}

impl TopArgs {
    /// Checks the options. Returns the time between two updates.
    fn resolve(&self) -> anyhow::Result<Duration> {
        if !(0.1..=3600.0).contains(&self.every) {
            bail!("--every {}: expected 0.1 to 3600 seconds", self.every);
        }
        Ok(Duration::from_secs_f64(self.every))
    }
}

pub(crate) fn run(args: &TopArgs, output: Output) -> anyhow::Result<()> {
    let interval = args.resolve()?;
    let client =
        ServiceClient::new("", &args.url, args.token_file.as_deref(), args.ca.as_deref(), REPLY_TIMEOUT)?;
    let preferred = args.select_phase(&client)?;
    if output.is_json() {
        return args.print_documents(&client, preferred.as_ref());
    }
    if args.once {
        return print_frame(args, client, preferred);
    }
    if !std::io::stdout().is_terminal() {
        bail!("stdout is not a terminal: expected one, or --once for a frame of text");
    }
    let (requests, replies) = start_poller(client, preferred, interval);
    // ratatui restores the terminal, also after a panic.
    let mut terminal = ratatui::try_init().context("the terminal cannot be used; --once prints text")?;
    let mut top = ScreenState::new(args.url.clone(), requests);
    let done = loop {
        while let Ok(reply) = replies.try_recv() {
            top.apply_reply(reply);
        }
        if let Err(error) = terminal.draw(|frame| top.draw_screen(frame.area(), frame.buffer_mut())) {
            break Err(error);
        }
        match event::poll(Duration::from_millis(100)) {
            Ok(false) => {}
            Ok(true) => match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if top.handle_key(key.code, key.modifiers) {
                        break Ok(());
                    }
                }
                Ok(_) => {}
                Err(error) => break Err(error),
            },
            Err(error) => break Err(error),
        }
    };
    ratatui::restore();
    done.context("the terminal")
}

impl TopArgs {
    /// Returns the requested model and phase, if they exist. The first reply shows whether the service
    /// answers.
    fn select_phase(&self, client: &ServiceClient) -> anyhow::Result<Option<PhaseChoice>> {
        let models = fetch_models(client).map_err(|error| match error.downcast_ref::<ureq::Error>() {
            Some(_) => error.context("no service answers (`evenkeel serve` starts one)"),
            None => error,
        })?;
        let Some(name) = &self.name else {
            let Some(phase) = self.phase else { return Ok(None) };
            let found = models.iter().find(|model| model.phases.iter().any(|state| state.phase == phase));
            return found
                .map(|model| Some((model.name.clone(), phase)))
                .with_context(|| format!("--phase {phase}: no model has loads of it"));
        };
        let Some(model) = models.iter().find(|model| model.name == *name) else {
            let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
            bail!(
                "--name {name}: no such model; there are: {}",
                if names.is_empty() { "none".into() } else { names.join(", ") }
            );
        };
        let fed: Vec<Phase> = model.phases.iter().map(|state| state.phase).collect();
        match (self.phase, fed.first()) {
            (Some(phase), _) if !fed.contains(&phase) => bail!("--phase {phase}: {name} has no loads of it"),
            (Some(phase), _) => Ok(Some((name.clone(), phase))),
            (None, first) => Ok(first.map(|&phase| (name.clone(), phase))),
        }
    }

    /// Prints the service's own documents.
    fn print_documents(&self, client: &ServiceClient, preferred: Option<&PhaseChoice>) -> anyhow::Result<()> {
        let list = client.get_json("/v1/models")?;
        let models: Vec<ModelStatus> = parse_document(list["models"].clone(), "/v1/models")?;
        let choices = ServiceState { models, ..ServiceState::default() }.phase_choices();
        let (mut view, mut history) = (json!(null), json!(null));
        if let Some(choice) = preferred.or(choices.first()) {
            view = client.get_json(&resource_path(choice, "/view?"))?;
            history = client.get_json(&resource_path(choice, "/history?"))?;
        }
        print_json(&json!({ "url": self.url, "models": list["models"], "view": view, "history": history }))
    }
}

/// Prints one frame as plain text, as wide as the terminal and as long as necessary.
fn print_frame(args: &TopArgs, client: ServiceClient, preferred: Option<PhaseChoice>) -> anyhow::Result<()> {
    let mut poller = ServicePoller::new(client, preferred);
    poller.poll_service()?;
    let terminal =
        std::io::stdout().is_terminal().then(|| ratatui::crossterm::terminal::size().ok()).flatten();
    let named = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let width = terminal.map(|(width, _)| width).or(named).unwrap_or(100).clamp(40, 500);
    let frame = ScreenFrame {
        service: Some(&poller.state),
        url: &args.url,
        link: "as of now",
        ..ScreenFrame::default()
    };
    let area = Rect::new(0, 0, width, frame.full_height(width));
    let mut buffer = Buffer::empty(area);
    frame.draw_frame(area, &mut buffer);
    let mut text = String::new();
    for row in area.rows() {
        let line: String = row.columns().map(|cell| buffer[(cell.x, cell.y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    print_text(&format!("{}\n", text.trim_end()))
}

/// State of the screen, changed by keys.
struct ScreenState {
    url: String,
    requests: Sender<PollerRequest>,
    service: Option<ServiceState>,
    reply_time: Option<Instant>,
    failure: Option<String>,
    from: usize,
    waiting: bool,
    question: Option<(PhaseChoice, ReplanResponse)>,
    /// Result of the last confirmation, until the next key.
    status: Option<String>,
    colour: bool,
}

impl ScreenState {
    fn new(url: String, requests: Sender<PollerRequest>) -> Self {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            url,
            requests,
            service: None,
            reply_time: None,
            failure: None,
            from: 0,
            waiting: false,
            question: None,
            status: None,
            colour,
        }
    }

    fn apply_reply(&mut self, reply: PollerReply) {
        match reply {
            PollerReply::State(service) => {
                self.service = Some(*service);
                self.reply_time = Some(Instant::now());
                self.failure = None;
            }
            PollerReply::ReplanPreview(asked) => {
                self.waiting = false;
                let choice = self.service.as_ref().and_then(ServiceState::shown_choice);
                self.question = choice.map(|choice| (choice, *asked));
            }
            PollerReply::Replanned(done) => {
                self.waiting = false;
                self.status = Some(format!(
                    "{}: {}",
                    format::outcome_name(done.decision.outcome),
                    done.decision.reason
                ));
            }
            PollerReply::Failure(text) => {
                self.waiting = false;
                self.failure = Some(text);
            }
        }
    }

    fn draw_screen(&self, area: Rect, buffer: &mut Buffer) {
        let link = match self.reply_time {
            None => "connecting".into(),
            Some(at) if at.elapsed() > STALE_AFTER => {
                format!("stale: last reply {} s ago", at.elapsed().as_secs())
            }
            Some(_) if self.failure.is_some() => "reconnecting".into(),
            Some(_) => {
                match self.service.as_ref().and_then(|service| stopped_seconds(&service.view.as_ref()?.state))
                {
                    Some(quiet) => format!("no loads for {quiet} s"),
                    None => "live".to_owned(),
                }
            }
        };
        let frame = ScreenFrame {
            service: self.service.as_ref(),
            url: &self.url,
            link: &link,
            failure: self.failure.as_deref(),
            from: self.from,
            question: self.question.as_ref().map(|(_, asked)| asked),
            keys: if self.waiting { "planning ..." } else { self.status.as_deref().unwrap_or(KEY_HELP) },
            colour: self.colour,
        };
        frame.draw_frame(area, buffer);
    }

    /// Handles a key. Returns true if the program ends.
    fn handle_key(&mut self, key: KeyCode, modifiers: KeyModifiers) -> bool {
        if modifiers.contains(KeyModifiers::CONTROL) && key == KeyCode::Char('c') {
            return true;
        }
        self.status = None;
        if let Some((choice, _)) = &self.question {
            match key {
                KeyCode::Char('y') => {
                    self.waiting = self.requests.send(PollerRequest::Replan(choice.clone())).is_ok();
                    self.question = None;
                }
                KeyCode::Char('n' | 'q') | KeyCode::Esc => self.question = None,
                _ => {}
            }
            return false;
        }
        let layers =
            self.service.as_ref().and_then(|service| service.view.as_ref()).map_or(0, |view| view.heat.len());
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Tab => self.select_next(1),
            KeyCode::BackTab => self.select_next(-1),
            KeyCode::Down => self.from = (self.from + 1).min(layers.saturating_sub(1)),
            KeyCode::Up => self.from = self.from.saturating_sub(1),
            KeyCode::PageDown => self.from = (self.from + 10).min(layers.saturating_sub(1)),
            KeyCode::PageUp => self.from = self.from.saturating_sub(10),
            KeyCode::Char('r') if !self.waiting => {
                if let Some(choice) = self.service.as_ref().and_then(ServiceState::shown_choice) {
                    self.waiting = self.requests.send(PollerRequest::PreviewReplan(choice)).is_ok();
                }
            }
            _ => {}
        }
        false
    }

    /// Selects the next or the previous model or phase.
    fn select_next(&mut self, by: isize) {
        let Some(service) = &self.service else { return };
        let choices = service.phase_choices();
        let Some(at) = choices.iter().position(|choice| Some(choice) == service.shown_choice().as_ref())
        else {
            return;
        };
        let next = (at as isize + by).rem_euclid(choices.len() as isize) as usize;
        self.from = 0;
        let _ = self.requests.send(PollerRequest::Show(choices[next].clone()));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn intervals_out_of_range_are_refused() {
        for every in ["0", "nan", "1e9"] {
            let crate::Command::Top(args) = crate::parse_line(&format!("top --every {every}")) else {
                panic!("top")
            };
            assert!(args.resolve().unwrap_err().to_string().starts_with("--every"), "{every}");
        }
    }
}
