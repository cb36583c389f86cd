//! The heat map of a terminal: layers down, ranks across. Cells are numbers if they fit, otherwise bars of
//! one character.

use evenkeel_serve::wire::PhaseView;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

/// Upper ends of all colour steps except the last, as in reports.
const COLOUR_STEPS: [f64; 10] = [0.5, 0.8, 0.9, 0.97, 1.03, 1.1, 1.25, 1.5, 2.0, 4.0];
/// Background and foreground of each step, from the 256 common colours of terminals.
const COLOURS: [(u8, u8); 11] = [
    (25, 231),
    (68, 16),
    (110, 16),
    (152, 16),
    (255, 16),
    (223, 16),
    (215, 16),
    (208, 16),
    (166, 16),
    (130, 231),
    (88, 231),
];
const BARS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
/// Width in characters of a layer's number, and of its imbalance behind the ranks.
const LAYER_WIDTH: u16 = 6;
const PEAK_WIDTH: u16 = 8;

/// Returns the number of lines of a heat map: one per layer, and the ranks.
pub(super) fn line_count(view: &PhaseView) -> u16 {
    u16::try_from(view.heat.len() + 1).unwrap_or(u16::MAX)
}

/// Returns the columns of a heat map within `room`: enough for numbers if they fit, otherwise two characters
/// or one per rank.
pub(super) fn fitting_width(view: &PhaseView, room: u16) -> u16 {
    let width_for = |each: usize| {
        view.ranks.len().saturating_mul(each).saturating_add(usize::from(LAYER_WIDTH + PEAK_WIDTH))
    };
    let fits = [5, 2, 1].into_iter().map(width_for).find(|&width| width <= usize::from(room));
    fits.and_then(|width| u16::try_from(width).ok()).unwrap_or(room)
}

/// Draws the layers from `from` on.
pub(super) fn draw_heatmap(view: &PhaseView, from: usize, colour: bool, area: Rect, buffer: &mut Buffer) {
    let soft = Style::new().add_modifier(Modifier::DIM);
    let room = usize::from(area.width.saturating_sub(LAYER_WIDTH + PEAK_WIDTH));
    let ranks = view.ranks.len().max(1);
    let (width, joined) = match ranks {
        _ if ranks * 5 <= room => (5, 1),
        _ if ranks * 2 <= room => (2, 1),
        _ => (1, ranks.div_ceil(room.max(1))),
    };
    let columns = ranks.div_ceil(joined);
    let right = area.x + LAYER_WIDTH + u16::try_from(columns * width).unwrap_or(u16::MAX) + 1;
    buffer.set_stringn(area.x, area.y, "layer", usize::from(LAYER_WIDTH), soft);
    let every = (0..usize::BITS)
        .map(|k| 1usize << k)
        .find(|every| every * width > 4 || *every > columns)
        .unwrap_or(1);
    for column in (0..columns).step_by(every) {
        let x = area.x + LAYER_WIDTH + u16::try_from(column * width).unwrap_or(u16::MAX);
        let rank = view.ranks.get(column * joined).map(u32::to_string).unwrap_or_default();
        buffer.set_stringn(x, area.y, rank, (every * width).saturating_sub(1), soft);
    }
    if right + PEAK_WIDTH <= area.right() + 1 {
        buffer.set_stringn(right, area.y, "peak", usize::from(area.right().saturating_sub(right)), soft);
    }
    for (line, y) in view.heat.iter().skip(from).zip(area.y + 1..area.bottom()) {
        buffer.set_stringn(area.x, y, format!("{:>4}", line.layer), usize::from(LAYER_WIDTH), soft);
        if line.imbalance <= 0.0 {
            buffer.set_stringn(area.x + LAYER_WIDTH, y, "no tokens", room, soft);
            continue;
        }
        for (column, group) in line.ranks.chunks(joined).enumerate() {
            let load = group.iter().copied().fold(0.0f32, f32::max);
            let x = area.x + LAYER_WIDTH + u16::try_from(column * width).unwrap_or(u16::MAX);
            let (text, style) = load_cell(f64::from(load), width, colour);
            buffer.set_stringn(x, y, text, usize::from(area.right().saturating_sub(x)), style);
        }
        let peak = format!("{:.3}", line.imbalance);
        buffer.set_stringn(right, y, peak, usize::from(area.right().saturating_sub(right)), Style::new());
    }
}

/// Returns one cell: a number if it fits. Without colours it is a bar as high as its colour step, half full
/// at the mean load.
fn load_cell(load: f64, width: usize, colour: bool) -> (String, Style) {
    let step = COLOUR_STEPS.partition_point(|&end| end < load);
    let (back, front) = COLOURS[step];
    let style =
        if colour { Style::new().bg(Color::Indexed(back)).fg(Color::Indexed(front)) } else { Style::new() };
    let text = match width {
        5 if load >= 9.995 => format!("{load:>4.1} "),
        5 => format!("{load:>4.2} "),
        _ if colour => " ".repeat(width),
        _ => BARS[step.min(BARS.len() - 1)].repeat(width),
    };
    (text, style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_numbers_or_bars() {
        assert_eq!(load_cell(1.0, 5, false).0, "1.00 ");
        assert_eq!(load_cell(12.34, 5, true).0, "12.3 ");
        assert_eq!((load_cell(1.0, 2, false).0.as_str(), load_cell(0.2, 1, false).0.as_str()), ("▄▄", " "));
        assert_eq!(load_cell(99.0, 1, false).0, "█");
        assert_eq!(load_cell(0.2, 2, true).1.bg, Some(Color::Indexed(25)));
        assert_eq!(load_cell(1.0, 2, true).1.bg, Some(Color::Indexed(255)));
    }
}
