//! `evenkeel top`: a running service in a terminal.

mod heat;
mod screen;
mod seen;
mod time;
mod watch;
mod words;

use super::client::Client;
use super::output::{Output, document, print};
use anyhow::{Context as _, bail};
use evenkeel::serve::Phase;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use screen::Frame;
use seen::{Choice, Replanned, Seen};
use serde_json::json;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use watch::{Told, Watcher, Wish, watch};

const KEYS: &str = "tab: next model or phase   r: re-plan (asks first)   up, down: layers   q: quit";
const PATIENCE: Duration = Duration::from_secs(30);
/// Without word for so long, what is shown is old.
const STALE: Duration = Duration::from_secs(10);

/// Watch a running `evenkeel serve` in a terminal
///
/// Heat map of rank loads, imbalance over time with a mark for every plan, decisions, moves, hottest experts. `--once` prints one
/// frame as plain text; with `--json` it is the service's own documents. Colours are left out where NO_COLOR is set.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  evenkeel top\n  evenkeel top http://127.0.0.1:8787 --name gpt-oss-20b\n  evenkeel top --once | less\n\n\
    Keys: tab, shift-tab: next, previous model or phase; r: what re-planning would gain, and whether to; up, down, page up, page \
    down: layers; q, Ctrl-C: quit."
)]
pub(crate) struct TopArgs {
    /// Address of the service
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8787")]
    url: String,
    /// The model to begin with [default: the first that is fed]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Its phase: all, prefill or decode [default: the first that is fed]
    #[arg(long)]
    phase: Option<Phase>,
    /// Print one frame as text and end
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value = "1")]
    every: f64,
    /// File with the bearer token [default: the variable EVENKEEL_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate to trust instead of the usual ones, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

pub(crate) fn run(args: &TopArgs, output: Output) -> anyhow::Result<()> {
    if !(0.1..=3600.0).contains(&args.every) {
        bail!("--every {}: expected 0.1 to 3600 seconds", args.every);
    }
    let client = Client::new("", &args.url, args.token_file.as_deref(), args.ca.as_deref(), PATIENCE)?;
    let wanted = args.wanted(&client)?;
    if output.json() {
        return args.document(&client, wanted.as_ref());
    }
    if args.once {
        return once(args, client, wanted);
    }
    if !std::io::stdout().is_terminal() {
        bail!("stdout is no terminal: expected one, or --once for a frame of text");
    }
    let (wishes, told) = watch(client, wanted, Duration::from_secs_f64(args.every));
    // Restores the terminal also when it panics.
    let mut terminal = ratatui::try_init().context("the terminal cannot be used; --once prints text")?;
    let mut top = Top::new(args.url.clone(), wishes);
    let done = loop {
        while let Ok(news) = told.try_recv() {
            top.hear(news);
        }
        if let Err(error) = terminal.draw(|frame| top.draw(frame.area(), frame.buffer_mut())) {
            break Err(error);
        }
        match event::poll(Duration::from_millis(100)) {
            Ok(false) => {}
            Ok(true) => match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if top.key(key.code, key.modifiers) {
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
    /// What is asked for, if it is there; the first answer says whether the service is.
    fn wanted(&self, client: &Client) -> anyhow::Result<Option<Choice>> {
        let models = seen::models(client).map_err(|error| match error.downcast_ref::<ureq::Error>() {
            Some(_) => error.context("no service answers (evenkeel serve starts one)"),
            None => error,
        })?;
        let Some(name) = &self.name else {
            let Some(phase) = self.phase else { return Ok(None) };
            let found = models.iter().find(|model| model.phases.iter().any(|state| state.phase == phase));
            return found
                .map(|model| Some((model.name.clone(), phase)))
                .with_context(|| format!("--phase {phase}: no model is fed that"));
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
            (Some(phase), _) if !fed.contains(&phase) => bail!("--phase {phase}: {name} is not fed that"),
            (Some(phase), _) => Ok(Some((name.clone(), phase))),
            (None, first) => Ok(first.map(|&phase| (name.clone(), phase))),
        }
    }

    /// The service's own words.
    fn document(&self, client: &Client, wanted: Option<&Choice>) -> anyhow::Result<()> {
        let list = client.get("/v1/models")?;
        let models: Vec<seen::Model> = seen::read(list["models"].clone(), "/v1/models")?;
        let choices = Seen { models, ..Seen::default() }.choices();
        let (mut view, mut history) = (json!(null), json!(null));
        if let Some(choice) = wanted.or(choices.first()) {
            view = client.get(&seen::path(choice, "/view?"))?;
            history = client.get(&seen::path(choice, "/history?"))?;
        }
        document(&json!({ "url": self.url, "models": list["models"], "view": view, "history": history }))
    }
}

/// One frame as plain text, as wide as the terminal, and as long as it takes.
fn once(args: &TopArgs, client: Client, wanted: Option<Choice>) -> anyhow::Result<()> {
    let mut watcher = Watcher::new(client, wanted);
    watcher.look()?;
    let terminal =
        std::io::stdout().is_terminal().then(|| ratatui::crossterm::terminal::size().ok()).flatten();
    let named = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let width = terminal.map(|(width, _)| width).or(named).unwrap_or(100).clamp(40, 500);
    let frame = Frame { seen: Some(&watcher.seen), url: &args.url, link: "as of now", ..Frame::default() };
    let area = Rect::new(0, 0, width, frame.natural(width));
    let mut buffer = Buffer::empty(area);
    frame.draw(area, &mut buffer);
    let mut text = String::new();
    for row in area.rows() {
        let line: String = row.columns().map(|cell| buffer[(cell.x, cell.y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    print(&format!("{}\n", text.trim_end()))
}

/// What is on the screen, and what keys do to it.
struct Top {
    url: String,
    wishes: Sender<Wish>,
    seen: Option<Seen>,
    heard: Option<Instant>,
    trouble: Option<String>,
    from: usize,
    waiting: bool,
    question: Option<(Choice, Replanned)>,
    /// What came of the last question, until the next key.
    done: Option<String>,
    colour: bool,
}

impl Top {
    fn new(url: String, wishes: Sender<Wish>) -> Self {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            url,
            wishes,
            seen: None,
            heard: None,
            trouble: None,
            from: 0,
            waiting: false,
            question: None,
            done: None,
            colour,
        }
    }

    fn hear(&mut self, news: Told) {
        match news {
            Told::Seen(seen) => {
                self.seen = Some(*seen);
                self.heard = Some(Instant::now());
                self.trouble = None;
            }
            Told::WhatIf(asked) => {
                self.waiting = false;
                let choice = self.seen.as_ref().and_then(Seen::choice);
                self.question = choice.map(|choice| (choice, *asked));
            }
            Told::Replanned(done) => {
                self.waiting = false;
                self.done =
                    Some(format!("{}: {}", words::outcome(done.decision.outcome), done.decision.reason));
            }
            Told::Trouble(text) => {
                self.waiting = false;
                self.trouble = Some(text);
            }
        }
    }

    fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let link = match self.heard {
            None => "connecting".into(),
            Some(at) if at.elapsed() > STALE => format!("stale: last word {} s ago", at.elapsed().as_secs()),
            Some(_) if self.trouble.is_some() => "reconnecting".into(),
            Some(_) => match self.seen.as_ref().and_then(|seen| seen.view.as_ref()?.state.stopped()) {
                Some(quiet) => format!("no loads for {quiet} s"),
                None => "live".to_owned(),
            },
        };
        let frame = Frame {
            seen: self.seen.as_ref(),
            url: &self.url,
            link: &link,
            trouble: self.trouble.as_deref(),
            from: self.from,
            question: self.question.as_ref().map(|(_, asked)| asked),
            keys: if self.waiting { "planning ..." } else { self.done.as_deref().unwrap_or(KEYS) },
            colour: self.colour,
        };
        frame.draw(area, buffer);
    }

    /// Obeys a key; true for the end.
    fn key(&mut self, key: KeyCode, modifiers: KeyModifiers) -> bool {
        if modifiers.contains(KeyModifiers::CONTROL) && key == KeyCode::Char('c') {
            return true;
        }
        self.done = None;
        if let Some((choice, _)) = &self.question {
            match key {
                KeyCode::Char('y') => {
                    self.waiting = self.wishes.send(Wish::Replan(choice.clone())).is_ok();
                    self.question = None;
                }
                KeyCode::Char('n' | 'q') | KeyCode::Esc => self.question = None,
                _ => {}
            }
            return false;
        }
        let layers = self.seen.as_ref().and_then(|seen| seen.view.as_ref()).map_or(0, |view| view.heat.len());
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(-1),
            KeyCode::Down => self.from = (self.from + 1).min(layers.saturating_sub(1)),
            KeyCode::Up => self.from = self.from.saturating_sub(1),
            KeyCode::PageDown => self.from = (self.from + 10).min(layers.saturating_sub(1)),
            KeyCode::PageUp => self.from = self.from.saturating_sub(10),
            KeyCode::Char('r') if !self.waiting => {
                if let Some(choice) = self.seen.as_ref().and_then(Seen::choice) {
                    self.waiting = self.wishes.send(Wish::WhatIf(choice)).is_ok();
                }
            }
            _ => {}
        }
        false
    }

    /// Looks at the next model or phase, or the one before.
    fn turn(&mut self, by: isize) {
        let Some(seen) = &self.seen else { return };
        let choices = seen.choices();
        let Some(at) = choices.iter().position(|choice| Some(choice) == seen.choice().as_ref()) else {
            return;
        };
        let next = (at as isize + by).rem_euclid(choices.len() as isize) as usize;
        self.from = 0;
        let _ = self.wishes.send(Wish::Look(choices[next].clone()));
    }
}
