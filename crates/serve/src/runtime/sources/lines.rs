//! The lines of a part of a growing file, each with the number of its step.

use evenkeel::trace::TraceFormat;
use serde::Deserialize;
use std::ops::Range;

/// Lines with the labels of their steps.
pub(super) struct StepLines<'a> {
    bytes: &'a [u8],
    /// The positions at which lines begin, and the position at which the last one ends.
    begins: Vec<usize>,
    labels: Vec<Option<&'a [u8]>>,
    numbers: Vec<Option<u64>>,
}

/// Lines that belong to one run of the engine.
pub(super) struct RunLines {
    pub(super) lines: Range<usize>,
    /// Flag that is set if step numbers start again with these lines.
    pub(super) restarts: bool,
    /// The last step number among them.
    pub(super) last_label: Option<u64>,
}

/// The format of a CSV's rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct CsvColumns {
    delimiter: u8,
    step: usize,
    number: usize,
}

/// Finds the step column in a CSV's first line.
pub(super) fn step_column(header: &[u8]) -> Option<CsvColumns> {
    let is_step = |name: &[u8]| {
        let name = name.trim_ascii();
        let name = name.strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\"")).unwrap_or(name);
        name.eq_ignore_ascii_case(b"step")
    };
    [b',', b';', b'\t'].into_iter().find_map(|delimiter| {
        let names: Vec<&[u8]> = header.split(|&byte| byte == delimiter).collect();
        let step = names.iter().position(|name| is_step(name))?;
        Some(CsvColumns { delimiter, step, number: names.len() })
    })
}

#[derive(Deserialize)]
struct NumberedRecord {
    step: u64,
}

impl<'a> StepLines<'a> {
    /// Splits whole lines.
    pub(super) fn parse(bytes: &'a [u8], format: TraceFormat, columns: Option<CsvColumns>) -> Self {
        let mut begins = vec![0];
        begins.extend(bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1));
        let lines = begins.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        let (mut labels, mut numbers) = (vec![], vec![]);
        for line in lines {
            if format == TraceFormat::VllmJsonl {
                labels.push(None);
                numbers.push(serde_json::from_slice::<NumberedRecord>(line).ok().map(|record| record.step));
                continue;
            }
            // The step of a truncated line is unknown.
            let label = columns.and_then(|columns| {
                let cells: Vec<&[u8]> = line.split(|&byte| byte == columns.delimiter).collect();
                let whole = cells.len() == columns.number && !line.starts_with(b"#");
                whole.then(|| cells[columns.step].trim_ascii())
            });
            labels.push(label);
            numbers.push(label.and_then(|label| std::str::from_utf8(label).ok()?.parse().ok()));
        }
        Self { bytes, begins, labels, numbers }
    }

    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(super) fn line(&self, at: usize) -> &'a [u8] {
        &self.bytes[self.begins[at]..self.begins[at + 1]]
    }

    /// Returns the bytes of the first lines.
    pub(super) fn byte_offset(&self, lines: usize) -> usize {
        self.begins[lines]
    }

    /// Returns the line with which the last step begins, or 0 if there is only one step. If any step has a
    /// number, a line without one belongs to the step before it.
    pub(super) fn last_step(&self) -> usize {
        let numbered = self.numbers.iter().any(Option::is_some);
        let (mut last, mut begin) = (None, 0);
        for at in 0..self.len() {
            let Some(label) = self.labels[at].filter(|_| !numbered || self.numbers[at].is_some()) else {
                continue;
            };
            if last.is_some_and(|last| last != label) {
                begin = at;
            }
            last = Some(label);
        }
        begin
    }

    /// Splits the first lines into runs. `before` is the number before the first line.
    pub(super) fn split_runs(&self, end: usize, before: Option<u64>) -> Vec<RunLines> {
        let mut runs = vec![];
        let (mut begin, mut restarts, mut last) = (0, false, before);
        for (at, number) in self.numbers[..end].iter().enumerate() {
            let Some(number) = *number else { continue };
            if last.is_some_and(|last| number < last) {
                if begin < at {
                    runs.push(RunLines { lines: begin..at, restarts, last_label: last });
                }
                (begin, restarts) = (at, true);
            }
            last = Some(number);
        }
        if begin < end {
            runs.push(RunLines { lines: begin..end, restarts, last_label: last });
        }
        runs
    }
}
