//! One frame: the result in words, the imbalance over time, the heat map, decisions and moves, as much as fits.

use super::seen::{Replanned, Seen, View};
use super::words::{figures, move_lines, outcome, plan, result, sentence, size, title};
use super::{heat, time};
use evenkeel::serve::{Decision, Outcome};
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
            ask(question, area, buffer);
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
            moves_and_experts(view, moves, buffer);
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
            moves_and_experts(view, moves, buffer);
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

fn moves_and_experts(view: &View, area: Rect, buffer: &mut Buffer) {
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
fn ask(question: &Replanned, area: Rect, buffer: &mut Buffer) {
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
    let wrapped: usize =
        lines.iter().map(|line| line.width().div_ceil(text).max(1) + usize::from(line.width() > text)).sum();
    let height = u16::try_from(wrapped + 2).unwrap_or(u16::MAX).min(area.height);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    Clear.render(place, buffer);
    let block = Block::bordered().title(" Plan again ").padding(Padding::horizontal(1));
    Paragraph::new(lines).wrap(Wrap { trim: false }).block(block).render(place, buffer);
}
