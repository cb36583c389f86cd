//! One frame: the result in words, the imbalance over time, the heat map, decisions and moves, as much as fits.

use super::seen::{Replanned, Seen, View};
use super::{heat, time};
use evenkeel::serve::{Decision, Next, Outcome};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Padding, Paragraph, Widget as _, Wrap};

/// From this width on, decisions and moves stand beside the heat map.
const WIDE: u16 = 120;
const TIME: u16 = 6;
const LISTS: u16 = 9;

/// Everything a frame is drawn from.
#[derive(Debug, Default)]
pub(super) struct Frame<'a> {
    pub(super) seen: Option<&'a Seen>,
    pub(super) url: &'a str,
    /// Whether the service answers, and what it said if not.
    pub(super) link: &'a str,
    pub(super) trouble: Option<&'a str>,
    /// First layer of the heat map.
    pub(super) from: usize,
    /// What planning again would change, while that is asked.
    pub(super) question: Option<&'a Replanned>,
    /// What keys do.
    pub(super) keys: &'a str,
    pub(super) colour: bool,
}

impl Frame<'_> {
    /// Lines that show everything, at a width.
    pub(super) fn natural(&self, width: u16) -> u16 {
        let Some(view) = self.seen.and_then(|seen| seen.view.as_ref()) else { return 8 };
        let heat = heat::lines(view).saturating_add(2);
        (3 + TIME).saturating_add(if width >= WIDE {
            heat.max(2 * LISTS)
        } else {
            heat.saturating_add(2 * LISTS)
        })
    }

    pub(super) fn draw(&self, area: Rect, buffer: &mut Buffer) {
        if area.width < 20 || area.height < 4 {
            Paragraph::new("too small a terminal").render(area, buffer);
            return;
        }
        let keys = u16::from(!self.keys.is_empty() || self.trouble.is_some());
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(3), Constraint::Min(0), Constraint::Length(keys)])
                .areas(area);
        self.head(head, buffer);
        match self.seen.and_then(|seen| Some((seen, seen.view.as_ref()?))) {
            Some((seen, view)) => self.body(seen, view, body, buffer),
            None => self.empty(body, buffer),
        }
        let warn = if self.colour { Style::new().fg(Color::Red) } else { Style::new() };
        let foot_line = match self.trouble {
            Some(trouble) => Line::styled(trouble.to_owned(), warn),
            None => Line::styled(self.keys.to_owned(), soft()),
        };
        foot_line.render(foot, buffer);
        if let Some(question) = self.question {
            self.ask(question, area, buffer);
        }
    }

    /// Model, link and the result.
    fn head(&self, area: Rect, buffer: &mut Buffer) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let view = self.seen.and_then(|seen| seen.view.as_ref());
        let mut title = vec![Span::styled("evenkeel", bold), Span::raw("  ")];
        if let Some(view) = view {
            title.push(Span::styled(
                format!("{} / {}", view.model, view.state.phase),
                self.accent().patch(bold),
            ));
            title.push(Span::raw("  "));
        }
        title.push(Span::styled(format!("{}  {}", self.link, self.url), soft()));
        let (result, plan) = match (view, self.seen.and_then(Seen::imbalance)) {
            (Some(view), imbalance) => (result(view, imbalance, self.seen), plan(view)),
            (None, _) => (String::new(), String::new()),
        };
        let lines = [Line::from(title), Line::styled(result, bold), Line::styled(plan, soft())];
        for (line, row) in lines.into_iter().zip(area.rows()) {
            line.render(row, buffer);
        }
    }

    fn empty(&self, area: Rect, buffer: &mut Buffer) {
        let text = match self.seen {
            Some(seen) if seen.models.is_empty() => {
                format!("No model yet. Feed it:\n  evenkeel trace replay TRACE --to {} --speed 10", self.url)
            }
            Some(seen) => {
                let names: Vec<&str> = seen.models.iter().map(|model| model.name.as_str()).collect();
                format!("No loads yet of {}.", names.join(", "))
            }
            None => String::new(),
        };
        Paragraph::new(text).wrap(Wrap { trim: false }).render(area, buffer);
    }

    fn body(&self, seen: &Seen, view: &View, area: Rect, buffer: &mut Buffer) {
        let time = if area.height >= TIME + 6 { TIME } else { 0 };
        let [above, below] = Layout::vertical([Constraint::Length(time), Constraint::Min(0)]).areas(area);
        if time > 0 {
            time::draw(&seen.history, self.colour, Rect { height: TIME - 1, ..above }, buffer);
        }
        if area.width >= WIDE {
            let map = Constraint::Length(heat::width(view, below.width / 5 * 3).max(44));
            let [left, _, right] =
                Layout::horizontal([map, Constraint::Length(2), Constraint::Fill(1)]).areas(below);
            self.heat(view, left, buffer);
            let [decisions, moves] =
                Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).spacing(1).areas(right);
            self.decisions(&view.decisions, decisions, buffer);
            self.moves_and_experts(view, moves, buffer);
            return;
        }
        // The heat map first; lists take what it leaves, a third at least where there is room.
        let wanted = heat::lines(view) + 2;
        let least = if below.height >= 15 { (below.height / 3).min(2 * LISTS) } else { 0 };
        let heat = wanted.min(below.height - least);
        let [map, lists] = Layout::vertical([Constraint::Length(heat), Constraint::Min(0)]).areas(below);
        self.heat(view, map, buffer);
        let [decisions, moves] =
            Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).spacing(1).areas(lists);
        if lists.height < 8 {
            self.decisions(&view.decisions, lists, buffer);
        } else {
            self.decisions(&view.decisions, decisions, buffer);
            self.moves_and_experts(view, moves, buffer);
        }
    }

    fn heat(&self, view: &View, area: Rect, buffer: &mut Buffer) {
        let shown = usize::from(area.height.saturating_sub(2)).min(view.heat.len());
        let from = self.from.min(view.heat.len().saturating_sub(shown));
        let more = if shown < view.heat.len() {
            format!(" (layers {} to {} of {})", from + 1, from + shown, view.heat.len())
        } else {
            String::new()
        };
        let inner = section(&format!("Where the load sits{more}"), area, buffer);
        heat::draw(view, from, self.colour, inner, buffer);
    }

    fn decisions(&self, decisions: &[Decision], area: Rect, buffer: &mut Buffer) {
        let inner = section("Decisions", area, buffer);
        let mut lines = Vec::new();
        for decision in decisions.iter().rev() {
            let acted = decision.outcome == Outcome::Acted;
            let style = if acted { self.accent() } else { Style::new() };
            lines.push(Line::from(vec![
                Span::styled(
                    format!("{:<11}", outcome(decision.outcome)),
                    style.add_modifier(Modifier::BOLD),
                ),
                Span::raw(figures(decision)),
            ]));
            lines.push(Line::styled(format!("  {}", decision.reason), soft()));
        }
        if lines.is_empty() {
            lines.push(Line::raw("none yet"));
        }
        for (line, row) in lines.into_iter().zip(inner.rows()) {
            line.render(row, buffer);
        }
    }

    fn moves_and_experts(&self, view: &View, area: Rect, buffer: &mut Buffer) {
        let [moves, experts] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
        let (title, list) = match &view.next {
            Some(next) => (title(next), move_lines(next, usize::from(area.height.saturating_sub(1)))),
            None => ("Moves", vec!["no plan was considered yet".into()]),
        };
        let inner = section(title, moves, buffer);
        for (line, row) in list.iter().zip(inner.rows()) {
            buffer.set_stringn(row.x, row.y, line, usize::from(row.width.saturating_sub(1)), Style::new());
        }
        let inner = section("Hottest experts", experts, buffer);
        for (hot, row) in view.hottest.iter().zip(inner.rows()) {
            let ranks: Vec<String> = hot.ranks.iter().map(u32::to_string).collect();
            let text = format!(
                "layer {} expert {}: {:.2}x, on {}",
                hot.layer,
                hot.expert,
                hot.over_mean,
                ranks.join(",")
            );
            buffer.set_stringn(row.x, row.y, text, usize::from(row.width), Style::new());
        }
    }

    /// The question whether to do it, over everything else.
    fn ask(&self, question: &Replanned, area: Rect, buffer: &mut Buffer) {
        let decision = &question.decision;
        let mut lines = vec![Line::raw(sentence(&decision.reason)), Line::raw("")];
        if let Some(next) = &question.next {
            lines.extend(move_lines(next, 6).into_iter().map(Line::raw));
            if let Some(bytes) = decision.bytes.filter(|&bytes| bytes > 0) {
                lines.push(Line::raw(format!("{} to copy", size(bytes))));
            }
        }
        let what = if decision.outcome == Outcome::Kept {
            "Nothing would be moved. Decide all the same?"
        } else {
            "Re-plan now?"
        };
        lines.push(Line::raw(""));
        lines.push(Line::styled(
            format!("{what}  y: yes   n: leave it"),
            Style::new().add_modifier(Modifier::BOLD),
        ));
        let width = area.width.min(72);
        let text = usize::from(width.saturating_sub(4)).max(1);
        let wrapped: usize = lines
            .iter()
            .map(|line| line.width().div_ceil(text).max(1) + usize::from(line.width() > text))
            .sum();
        let height = u16::try_from(wrapped + 2).unwrap_or(u16::MAX).min(area.height);
        let place = Rect {
            x: area.x + (area.width - width) / 2,
            y: area.y + (area.height - height) / 2,
            width,
            height,
        };
        Clear.render(place, buffer);
        let block = Block::bordered().title(" Plan again ").padding(Padding::horizontal(1));
        Paragraph::new(lines).wrap(Wrap { trim: false }).block(block).render(place, buffer);
    }

    fn accent(&self) -> Style {
        if self.colour { Style::new().fg(Color::Cyan) } else { Style::new() }
    }
}

fn soft() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// A title; what is left below it.
fn section(title: &str, area: Rect, buffer: &mut Buffer) -> Rect {
    buffer.set_stringn(
        area.x,
        area.y,
        title,
        usize::from(area.width.saturating_sub(1)),
        Style::new().add_modifier(Modifier::BOLD),
    );
    Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area }.intersection(area)
}

fn result(view: &View, imbalance: Option<f64>, seen: Option<&Seen>) -> String {
    let Some(now) = imbalance else { return "No tokens in the latest steps.".into() };
    let bound = view.state.latest.map_or(1.0, |point| point.bound);
    let first = seen.and_then(|seen| {
        seen.history.decisions.iter().find(|decision| decision.trigger == evenkeel::serve::Trigger::First)
    });
    let without =
        first.map(|decision| decision.imbalance.before).filter(|&before| view.state.plan > 0 && before > now);
    let instead = without.map_or(String::new(), |before| format!(" instead of {before:.3}"));
    format!(
        "The busiest rank does {now:.3} times the average work{instead}; {bound:.3} is the least possible."
    )
}

fn plan(view: &View) -> String {
    let state = &view.state;
    let steps = |step: Option<u64>| step.map_or("-".into(), |step| step.to_string());
    let plan = if state.plan == 0 {
        "No plan yet".into()
    } else {
        format!("Plan {} since step {}", state.plan, steps(state.plan_step))
    };
    let due = if state.planning {
        "a decision is being worked out".into()
    } else {
        format!("next decision within {} steps", state.due_in)
    };
    let behind = if state.behind > 0 { format!(", {} steps behind", state.behind) } else { String::new() };
    let down = if state.down.is_empty() { String::new() } else { format!(", down: {:?}", state.down) };
    format!(
        "{plan}; step {}{behind}; {due}; {} layers, {} experts, {} of {} ranks{down}",
        steps(state.step),
        state.layers.len(),
        state.experts,
        view.ranks.len(),
        view.shape.ranks
    )
}

pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Acted => "re-planned",
        Outcome::Kept => "kept",
        Outcome::DryRun => "dry run",
        Outcome::PassedOver => "passed over",
        Outcome::Failed => "failed",
    }
}

fn figures(decision: &Decision) -> String {
    let step = decision.step.map_or(String::new(), |step| format!("step {step}, "));
    let plan =
        if decision.outcome == Outcome::Acted { format!("plan {}, ", decision.plan) } else { String::new() };
    let moves = if decision.moves > 0 {
        format!(", {} moves in {} layers", decision.moves, decision.layers)
    } else {
        String::new()
    };
    let bytes =
        decision.bytes.filter(|&bytes| bytes > 0).map_or(String::new(), |bytes| format!(", {}", size(bytes)));
    format!("{step}{plan}{:.3} -> {:.3}{moves}{bytes}", decision.imbalance.before, decision.imbalance.after)
}

fn title(next: &Next) -> &'static str {
    match next.outcome {
        Outcome::Acted => "Moves of the last plan",
        Outcome::DryRun => "Moves the next plan would make",
        _ => "Moves that were considered",
    }
}

/// A line per move, at most so many.
fn move_lines(next: &Next, most: usize) -> Vec<String> {
    if next.moves.is_empty() {
        return vec!["none".into()];
    }
    let shown = if next.moves.len() > most { most.saturating_sub(1) } else { next.moves.len() };
    let line = |m: &evenkeel::serve::MoveRecord| {
        let from = m.from.map_or("lost".into(), |from| format!("rank {from}"));
        format!("layer {} expert {}: {from} -> rank {}", m.layer, m.expert, m.to)
    };
    let mut lines: Vec<String> = next.moves.iter().take(shown).map(line).collect();
    if shown < next.moves.len() {
        lines.push(format!("and {} more", next.moves.len() - shown));
    }
    lines
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

/// Bytes in the unit that fits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let at = (bytes.max(1).ilog2() / 10).min(4);
    let value = bytes as f64 / (1u64 << (10 * at)) as f64;
    let digits = usize::from(at > 0 && value < 10.0);
    format!("{value:.digits$} {}", UNITS[at as usize])
}
