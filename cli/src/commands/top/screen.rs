//! One frame: the result in words, the imbalance over time, the heat map, decisions and moves, as far as they
//! fit.

use super::documents::ServiceState;
use super::format::{
    as_sentence, decision_figures, format_bytes, move_lines, moves_title, outcome_name, plan_sentence,
    result_sentence,
};
use super::heatmap::{draw_heatmap, fitting_width, line_count};
use super::timeline::draw_timeline;
use evenkeel_serve::wire::{PhaseView, ReplanResponse};
use evenkeel_serve::{Decision, DecisionOutcome};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Padding, Paragraph, Widget as _, Wrap};

/// Width in characters from which decisions and moves stand to the right of the heat map.
const MIN_WIDE_COLUMNS: u16 = 120;
const TIMELINE_ROWS: u16 = 6;
const LIST_ROWS: u16 = 9;

/// Content of a frame.
#[derive(Debug, Default)]
pub(super) struct ScreenFrame<'a> {
    pub(super) service: Option<&'a ServiceState>,
    pub(super) url: &'a str,
    /// Status of the connection, and the service's error if it has one.
    pub(super) link: &'a str,
    pub(super) failure: Option<&'a str>,
    /// First layer of the heat map.
    pub(super) from: usize,
    /// Changes that a re-planning would make, while the user is asked to confirm them.
    pub(super) question: Option<&'a ReplanResponse>,
    /// Help line for the keys.
    pub(super) keys: &'a str,
    pub(super) colour: bool,
}

impl ScreenFrame<'_> {
    /// Returns the lines that show everything, at a width.
    pub(super) fn full_height(&self, width: u16) -> u16 {
        let Some(view) = self.service.and_then(|service| service.view.as_ref()) else { return 8 };
        let heat = line_count(view).saturating_add(2);
        (3 + TIMELINE_ROWS).saturating_add(if width >= MIN_WIDE_COLUMNS {
            heat.max(2 * LIST_ROWS)
        } else {
            heat.saturating_add(2 * LIST_ROWS)
        })
    }

    pub(super) fn draw_frame(&self, area: Rect, buffer: &mut Buffer) {
        if area.width < 20 || area.height < 4 {
            Paragraph::new("the terminal is too small").render(area, buffer);
            return;
        }
        let keys = u16::from(!self.keys.is_empty() || self.failure.is_some());
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(3), Constraint::Min(0), Constraint::Length(keys)])
                .areas(area);
        self.draw_head(head, buffer);
        match self.service.and_then(|service| Some((service, service.view.as_ref()?))) {
            Some((service, view)) => self.draw_body(service, view, body, buffer),
            None => self.draw_empty(body, buffer),
        }
        let warn = if self.colour { Style::new().fg(Color::Red) } else { Style::new() };
        let foot_line = match self.failure {
            Some(failure) => Line::styled(failure.to_owned(), warn),
            None => Line::styled(self.keys.to_owned(), dim_style()),
        };
        foot_line.render(foot, buffer);
        if let Some(question) = self.question {
            draw_question(question, area, buffer);
        }
    }

    /// Draws model, connection and result.
    fn draw_head(&self, area: Rect, buffer: &mut Buffer) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let view = self.service.and_then(|service| service.view.as_ref());
        let mut title = vec![Span::styled("evenkeel", bold), Span::raw("  ")];
        if let Some(view) = view {
            title.push(Span::styled(
                format!("{} / {}", view.model, view.state.phase),
                self.accent_style().patch(bold),
            ));
            title.push(Span::raw("  "));
        }
        title.push(Span::styled(format!("{}  {}", self.link, self.url), dim_style()));
        let (result, plan) = match (view, self.service.and_then(ServiceState::mean_imbalance)) {
            (Some(view), imbalance) => (result_sentence(view, imbalance, self.service), plan_sentence(view)),
            (None, _) => (String::new(), String::new()),
        };
        let lines = [Line::from(title), Line::styled(result, bold), Line::styled(plan, dim_style())];
        for (line, row) in lines.into_iter().zip(area.rows()) {
            line.render(row, buffer);
        }
    }

    fn draw_empty(&self, area: Rect, buffer: &mut Buffer) {
        let text = match self.service {
            Some(service) if service.models.is_empty() => {
                format!("No model yet. Feed it:\n  evenkeel trace replay TRACE --to {} --speed 10", self.url)
            }
            Some(service) => {
                let names: Vec<&str> = service.models.iter().map(|model| model.name.as_str()).collect();
                format!("No loads yet of {}.", names.join(", "))
            }
            None => String::new(),
        };
        Paragraph::new(text).wrap(Wrap { trim: false }).render(area, buffer);
    }

    fn draw_body(&self, service: &ServiceState, view: &PhaseView, area: Rect, buffer: &mut Buffer) {
        let time = if area.height >= TIMELINE_ROWS + 6 { TIMELINE_ROWS } else { 0 };
        let [above, below] = Layout::vertical([Constraint::Length(time), Constraint::Min(0)]).areas(area);
        if time > 0 {
            draw_timeline(&service.history, self.colour, Rect { height: TIMELINE_ROWS - 1, ..above }, buffer);
        }
        if area.width >= MIN_WIDE_COLUMNS {
            let map = Constraint::Length(fitting_width(view, below.width / 5 * 3).max(44));
            let [left, _, right] =
                Layout::horizontal([map, Constraint::Length(2), Constraint::Fill(1)]).areas(below);
            self.draw_heat(view, left, buffer);
            let [decisions, moves] =
                Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).spacing(1).areas(right);
            self.draw_decisions(&view.decisions, decisions, buffer);
            draw_moves_and_experts(view, moves, buffer);
            return;
        }
        // The heat map comes first. Lists take the rest, but at least a third if the area is high enough.
        let wanted = line_count(view) + 2;
        let least = if below.height >= 15 { (below.height / 3).min(2 * LIST_ROWS) } else { 0 };
        let heat = wanted.min(below.height - least);
        let [map, lists] = Layout::vertical([Constraint::Length(heat), Constraint::Min(0)]).areas(below);
        self.draw_heat(view, map, buffer);
        let [decisions, moves] =
            Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).spacing(1).areas(lists);
        if lists.height < 8 {
            self.draw_decisions(&view.decisions, lists, buffer);
        } else {
            self.draw_decisions(&view.decisions, decisions, buffer);
            draw_moves_and_experts(view, moves, buffer);
        }
    }

    fn draw_heat(&self, view: &PhaseView, area: Rect, buffer: &mut Buffer) {
        let shown = usize::from(area.height.saturating_sub(2)).min(view.heat.len());
        let from = self.from.min(view.heat.len().saturating_sub(shown));
        let more = if shown < view.heat.len() {
            format!(" (layers {} to {} of {})", from + 1, from + shown, view.heat.len())
        } else {
            String::new()
        };
        let inner = draw_section(&format!("Where the load sits{more}"), area, buffer);
        draw_heatmap(view, from, self.colour, inner, buffer);
    }

    fn draw_decisions(&self, decisions: &[Decision], area: Rect, buffer: &mut Buffer) {
        let inner = draw_section("Decisions", area, buffer);
        let mut lines = Vec::new();
        for decision in decisions.iter().rev() {
            let acted = decision.outcome == DecisionOutcome::Applied;
            let style = if acted { self.accent_style() } else { Style::new() };
            lines.push(Line::from(vec![
                Span::styled(
                    format!("{:<11}", outcome_name(decision.outcome)),
                    style.add_modifier(Modifier::BOLD),
                ),
                Span::raw(decision_figures(decision)),
            ]));
            lines.push(Line::styled(format!("  {}", decision.reason), dim_style()));
        }
        if lines.is_empty() {
            lines.push(Line::raw("none yet"));
        }
        for (line, row) in lines.into_iter().zip(inner.rows()) {
            line.render(row, buffer);
        }
    }

    fn accent_style(&self) -> Style {
        if self.colour { Style::new().fg(Color::Cyan) } else { Style::new() }
    }
}

fn dim_style() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// Draws a title and returns the area below it.
fn draw_section(title: &str, area: Rect, buffer: &mut Buffer) -> Rect {
    buffer.set_stringn(
        area.x,
        area.y,
        title,
        usize::from(area.width.saturating_sub(1)),
        Style::new().add_modifier(Modifier::BOLD),
    );
    Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area }.intersection(area)
}

fn draw_moves_and_experts(view: &PhaseView, area: Rect, buffer: &mut Buffer) {
    let [moves, experts] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    let (title, list) = match &view.preview {
        Some(next) => (moves_title(next), move_lines(next, usize::from(area.height.saturating_sub(1)))),
        None => ("Moves", vec!["no plan was considered yet".into()]),
    };
    let inner = draw_section(title, moves, buffer);
    for (line, row) in list.iter().zip(inner.rows()) {
        buffer.set_stringn(row.x, row.y, line, usize::from(row.width.saturating_sub(1)), Style::new());
    }
    let inner = draw_section("Hottest experts", experts, buffer);
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

/// Draws the confirmation of a re-planning over everything else.
fn draw_question(question: &ReplanResponse, area: Rect, buffer: &mut Buffer) {
    let decision = &question.decision;
    let mut lines = vec![Line::raw(as_sentence(&decision.reason)), Line::raw("")];
    if let Some(next) = &question.preview {
        lines.extend(move_lines(next, 6).into_iter().map(Line::raw));
        if let Some(bytes) = decision.bytes.filter(|&bytes| bytes > 0) {
            lines.push(Line::raw(format!("{} to copy", format_bytes(bytes))));
        }
    }
    let prompt = if decision.outcome == DecisionOutcome::Kept {
        "Nothing would move. Decide anyway?"
    } else {
        "Re-plan now?"
    };
    lines.push(Line::raw(""));
    lines.push(Line::styled(format!("{prompt}  y: yes   n: no"), Style::new().add_modifier(Modifier::BOLD)));
    let width = area.width.min(72);
    let text = usize::from(width.saturating_sub(4)).max(1);
    let wrapped: usize =
        lines.iter().map(|line| line.width().div_ceil(text).max(1) + usize::from(line.width() > text)).sum();
    let height = u16::try_from(wrapped + 2).unwrap_or(u16::MAX).min(area.height);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    Clear.render(place, buffer);
    let block = Block::bordered().title(" Re-plan ").padding(Padding::horizontal(1));
    Paragraph::new(lines).wrap(Wrap { trim: false }).block(block).render(place, buffer);
}
