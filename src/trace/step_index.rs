//! Map from labels to steps.
//!
//! In: labels of rows in file order. Out: ordinals, the steps counted in order of first appearance. Ascending
//! numbers cost 8 bytes per step. Other labels go into a hash table.

use super::sink::StepLabel;
use std::collections::HashMap;

/// Steps of the current source by label.
#[derive(Debug, Default)]
pub(crate) struct StepIndex {
    /// Ordinal of the first entry of `ascending`.
    base: u32,
    /// Numeric steps, while they ascend.
    ascending: Vec<u64>,
    /// Numeric steps, after one did not ascend.
    numbers: HashMap<u64, u32>,
    texts: HashMap<Box<str>, u32>,
}

impl StepIndex {
    /// Returns the ordinal of a label and false, or `next` and true for a new label.
    pub(crate) fn find_or_insert(&mut self, label: StepLabel<'_>, next: u32) -> (u32, bool) {
        match label {
            StepLabel::Number(number) if self.numbers.is_empty() && self.texts.is_empty() => {
                if self.ascending.last().is_none_or(|&last| last < number) {
                    if self.ascending.is_empty() {
                        self.base = next;
                    }
                    self.ascending.push(number);
                    return (next, true);
                }
                if let Ok(at) = self.ascending.binary_search(&number) {
                    return (self.base + at as u32, false);
                }
                self.move_to_map();
                self.numbers.insert(number, next);
                (next, true)
            }
            StepLabel::Number(number) => {
                self.move_to_map();
                let ordinal = *self.numbers.entry(number).or_insert(next);
                (ordinal, ordinal == next)
            }
            StepLabel::Text(text) => {
                if let Some(&ordinal) = self.texts.get(text) {
                    return (ordinal, false);
                }
                self.texts.insert(text.into(), next);
                (next, true)
            }
        }
    }

    fn move_to_map(&mut self) {
        let base = self.base;
        self.numbers.extend(self.ascending.drain(..).zip(base..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_ordinals() {
        let mut index = StepIndex::default();
        let labels = [
            StepLabel::Number(3),
            StepLabel::Number(5),
            StepLabel::Number(3),
            StepLabel::Number(4),
            StepLabel::Text("a"),
        ];
        let mut next = 10;
        let found: Vec<u32> = labels
            .into_iter()
            .chain([StepLabel::Number(5), StepLabel::Text("a"), StepLabel::Number(4), StepLabel::Number(6)])
            .map(|label| {
                let (ordinal, new) = index.find_or_insert(label, next);
                next += u32::from(new);
                ordinal
            })
            .collect();
        assert_eq!(found, [10, 11, 10, 12, 13, 11, 13, 12, 14]);
    }
}
