//! The time by batch size: a static plan, copies before every batch, or neither.

use super::html::{escape_text, format_count, format_percent};
use super::svg::SvgWriter;
use super::{SimulationPage, open_section};
use evenkeel_simulate::{BatchSizeRow, DynamicRow, DynamicTimeSums};
use std::fmt::Write as _;

const HEIGHT: f64 = 280.0;
const TOP: f64 = 12.0;
/// The space on the right, in percent, for the names of the lines.
const NAME_MARGIN: f64 = 18.0;
/// The share of the time without a plan at which the scale begins.
const STEP: f64 = 0.1;

/// Names of the lines, in the order of their colours.
const NAMES: [&str; 3] = ["no plan", "static", "with copies"];

/// Times at one size, as shares of the time without a plan, and the policies of the best ones.
struct SizeTimes<'a> {
    tokens: f64,
    shares: [f64; 3],
    policies: [&'a str; 3],
    copies: f64,
}

impl<'a> SizeTimes<'a> {
    /// Returns the times of a size, or `None` if they are not known.
    fn new(page: &SimulationPage<'a>, size: &'a BatchSizeRow) -> Option<Self> {
        let policy =
            |row: &DynamicRow| page.outcome.planned.get(row.planned).map_or("", |p| p.policy.as_str());
        let timed = || size.rows.iter().filter_map(|row| row.times.map(|times| (row, times)));
        let none = timed().find(|(row, _)| policy(row) == "contiguous").or_else(|| timed().next())?;
        let least = |time: fn(&DynamicTimeSums) -> u64| timed().min_by_key(|(_, times)| time(times));
        let (fixed, copied) = (least(|times| times.static_ps)?, least(with_copies)?);
        let base = none.1.static_ps.max(1) as f64;
        Some(Self {
            tokens: size.tokens,
            shares: [1.0, fixed.1.static_ps as f64 / base, with_copies(&copied.1) as f64 / base],
            policies: [policy(none.0), policy(fixed.0), policy(copied.0)],
            copies: copied.0.copies.mean,
        })
    }

    /// Returns the line that is lowest. Ties go to the line that needs less work.
    fn fastest(&self) -> usize {
        (0..3).reduce(|best, at| if self.shares[at] < self.shares[best] { at } else { best }).unwrap_or(0)
    }
}

fn with_copies(times: &DynamicTimeSums) -> u64 {
    times.experts_ps.saturating_add(times.exposed_ps)
}

/// Writes the section with the chart, or nothing without times.
pub(super) fn write(out: &mut String, page: &SimulationPage<'_>) {
    let sizes: Vec<SizeTimes<'_>> =
        page.batch_sizes.iter().filter_map(|size| SizeTimes::new(page, size)).collect();
    let Some(last) = sizes.last() else { return };
    open_section(
        out,
        "batch-sizes",
        "Static, copies or neither",
        "The time of the slowest rank's experts and of exposed copies, relative to the time without a plan. Each \
         line takes the best policy at every size. Larger batches are sums of consecutive recorded ones.",
    );
    let least = sizes.iter().flat_map(|size| size.shares).fold(1.0, f64::min);
    let most = sizes.iter().flat_map(|size| size.shares).fold(1.0, f64::max);
    let (low, high) = ((least / STEP).floor() * STEP, (most / STEP).ceil() * STEP);
    let width = 100.0 - NAME_MARGIN;
    let across = |at: usize| width * (at as f64 + 0.5) / sizes.len() as f64;
    let up = |share: f64| TOP + (high - share) / (high - low).max(STEP) * (HEIGHT - TOP);
    let verdicts: Vec<String> = sizes
        .iter()
        .map(|size| {
            format!("{} at {} tokens", NAMES[size.fastest()], format_count(size.tokens.round() as usize))
        })
        .collect();
    let words = format!("Fastest by expert tokens per batch of a layer: {}.", verdicts.join(", "));
    out.push_str("<figure>\n");
    let mut svg = SvgWriter::open(out, "plot", HEIGHT + 42.0, &words);
    let ticks = ((high - low) / STEP).round() as usize;
    for tick in 0..=ticks {
        let share = low + tick as f64 * STEP;
        let class = if (share - 1.0).abs() < 1e-9 { "one" } else { "grid" };
        svg.draw_line(class, 0.0, up(share), width, up(share));
        svg.draw_margin_text(up(share) + 4.0, &format_percent(share));
    }
    for (at, size) in sizes.iter().enumerate() {
        svg.draw_text("middle soft", across(at), HEIGHT + 18.0, &format_count(size.tokens.round() as usize));
    }
    for (line, name) in NAMES.into_iter().enumerate() {
        for (at, pair) in sizes.windows(2).enumerate() {
            let (from, to) = (up(pair[0].shares[line]), up(pair[1].shares[line]));
            svg.draw_line(&format!("s{line}"), across(at), from, across(at + 1), to);
        }
        for (at, size) in sizes.iter().enumerate() {
            let class = if size.fastest() == line { "full" } else { "hollow" };
            let share = size.shares[line];
            let copies = if line == 2 { format!(", {:.1} copies", size.copies) } else { String::new() };
            let said = format!("{name}, {}: {}{copies}", size.policies[line], format_percent(share));
            svg.draw_with_tooltip(&said, |g| {
                g.draw_circle(&format!("s{line} {class}"), across(at), up(share), 4.5);
            });
        }
    }
    let mut names: Vec<(f64, usize)> = (0..NAMES.len()).map(|line| (up(last.shares[line]), line)).collect();
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = f64::NEG_INFINITY;
    for (at, line) in names {
        let at = (at + 4.0).max(lowest + 15.0);
        lowest = at;
        svg.draw_text(&format!("start n{line}"), width + 1.5, at, NAMES[line]);
    }
    svg.draw_text("middle soft", width / 2.0, HEIGHT + 38.0, "expert tokens per batch of a layer");
    svg.close();
    let _ = write!(
        out,
        "<figcaption>{} Filled dots are the fastest.</figcaption>\n</figure>\n</section>\n",
        escape_text(&words)
    );
}
