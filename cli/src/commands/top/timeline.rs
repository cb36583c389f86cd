//! The imbalance over time as bars, with a mark at each change of the plan.

use evenkeel_serve::wire::PhaseHistory;
use evenkeel_serve::{DecisionOutcome, HistoryPoint};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

const BARS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
/// Width of the scale in characters.
const SCALE_WIDTH: u16 = 7;
/// Difference from an imbalance of 1 up to which the scale is linear, so that small differences remain
/// visible.
const LINEAR_RANGE: f64 = 0.02;

/// Draws marks above and bars below them.
pub(super) fn draw_timeline(history: &PhaseHistory, colour: bool, area: Rect, buffer: &mut Buffer) {
    let soft = Style::new().add_modifier(Modifier::DIM);
    let columns = usize::from(area.width.saturating_sub(SCALE_WIDTH + 1));
    let (Some(first), Some(last)) = (history.points.first(), history.points.last()) else {
        buffer.set_stringn(area.x, area.y, "no step yet", usize::from(area.width), soft);
        return;
    };
    if columns == 0 || area.height < 2 {
        return;
    }
    let begin = (first.accepted + 1).saturating_sub(u64::from(first.steps));
    let span = (last.accepted + 1).saturating_sub(begin).max(1);
    // While there are fewer steps than columns, one step takes one column.
    let columns = columns.min(usize::try_from(span).unwrap_or(columns)).max(1);
    let at = |accepted: u64| {
        ((accepted.saturating_sub(begin)) as u128 * columns as u128 / u128::from(span)) as usize
    };
    let means = column_means(&history.points, columns, at);
    let top = means.iter().copied().fold(1.0 + LINEAR_RANGE, f64::max);
    let rows = usize::from(area.height - 1);
    let accent = if colour { Style::new().fg(Color::Cyan) } else { Style::new() };
    for (column, &mean) in means.iter().enumerate() {
        let filled = ((bar_height(mean, top) * (rows * 8) as f64).round() as usize).max(1);
        let x = area.x + SCALE_WIDTH + u16::try_from(column).unwrap_or(u16::MAX);
        for row in 0..rows {
            let part = filled.saturating_sub(row * 8).min(8);
            let y = area.bottom() - 1 - u16::try_from(row).unwrap_or(0);
            buffer.set_stringn(x, y, BARS[part], 1, accent);
        }
    }
    buffer.set_stringn(area.x, area.y + 1, format!("{top:>6.3}"), usize::from(SCALE_WIDTH), soft);
    buffer.set_stringn(area.x, area.bottom() - 1, format!("{:>6.3}", 1.0), usize::from(SCALE_WIDTH), soft);
    let mark = if colour { Style::new().fg(Color::Yellow) } else { Style::new() };
    for decision in history.decisions.iter().filter(|decision| decision.accepted >= begin) {
        let x =
            area.x + SCALE_WIDTH + u16::try_from(at(decision.accepted).min(columns - 1)).unwrap_or(u16::MAX);
        if decision.outcome == DecisionOutcome::Applied {
            buffer.set_stringn(x, area.y, "▼", 1, mark);
        } else if buffer[(x, area.y)].symbol() == " " {
            buffer.set_stringn(x, area.y, "·", 1, soft);
        }
    }
}

/// Returns the mean of each column. A column without a point repeats the previous one.
fn column_means(points: &[HistoryPoint], columns: usize, at: impl Fn(u64) -> usize) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); columns];
    for point in points {
        let column = &mut sums[at(point.accepted).min(columns - 1)];
        column.0 += point.mean * f64::from(point.steps);
        column.1 += f64::from(point.steps);
    }
    let mut last = points.first().map_or(1.0, |point| point.mean);
    let column_mean = |(sum, steps): (f64, f64)| {
        if steps > 0.0 {
            last = sum / steps;
        }
        last
    };
    sums.into_iter().map(column_mean).collect()
}

/// Returns a height from 0 to 1. The scale is finer near an imbalance of 1.
fn bar_height(mean: f64, top: f64) -> f64 {
    let bend = |value: f64| ((value - 1.0).max(0.0) / LINEAR_RANGE).asinh();
    (bend(mean) / bend(top)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_means_and_gaps_repeat_the_previous_mean() {
        let point = |accepted, steps, mean| HistoryPoint {
            accepted,
            step: accepted,
            steps,
            mean,
            max: mean,
            bound: 1.0,
            plan: 1,
            timestamp_unix_s: 0,
        };
        let points = [point(2, 2, 1.5), point(3, 1, 1.2), point(4, 1, 1.4), point(8, 1, 2.0)];
        let found = column_means(&points, 4, |accepted| (accepted as usize - 1) / 2);
        assert_eq!(
            found.iter().map(|m| (m * 100.0).round()).collect::<Vec<_>>(),
            [150.0, 130.0, 130.0, 200.0]
        );
        assert!(bar_height(1.0, 2.0) < bar_height(1.02, 2.0) && bar_height(1.02, 2.0) > 0.15);
        assert!((bar_height(2.0, 2.0) - 1.0).abs() < 1e-12);
    }
}
