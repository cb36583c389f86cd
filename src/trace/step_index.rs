//! Which step a label means.
//!
//! In: labels of rows as they come. Out: ordinals, steps counted in order of first appearance.
//! Numbers that ascend cost 8 bytes per step; a hash table takes over where they do not.

use super::sink::Label;
use std::collections::HashMap;

/// Steps of the current source by label.
#[derive(Debug, Default)]
pub(crate) struct StepIndex {
    /// Ordinal of the first of `ascending`.
    base: u32,
    /// Numeric steps while they come in ascending order.
    ascending: Vec<u64>,
    /// Numeric steps once they did not.
    numbers: HashMap<u64, u32>,
    texts: HashMap<Box<str>, u32>,
}

impl StepIndex {
    /// The ordinal of a label; `next` and `true` for a new one.
    pub(crate) fn find(&mut self, label: Label<'_>, next: u32) -> (u32, bool) {
        match label {
            Label::Number(number) if self.numbers.is_empty() && self.texts.is_empty() => {
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
                self.spill();
                self.numbers.insert(number, next);
                (next, true)
            }
            Label::Number(number) => {
                self.spill();
                let ordinal = *self.numbers.entry(number).or_insert(next);
                (ordinal, ordinal == next)
            }
            Label::Text(text) => {
                if let Some(&ordinal) = self.texts.get(text) {
                    return (ordinal, false);
                }
                self.texts.insert(text.into(), next);
                (next, true)
            }
        }
    }

    fn spill(&mut self) {
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
        let labels =
            [Label::Number(3), Label::Number(5), Label::Number(3), Label::Number(4), Label::Text("a")];
        let mut next = 10;
        let found: Vec<u32> = labels
            .into_iter()
            .chain([Label::Number(5), Label::Text("a"), Label::Number(4), Label::Number(6)])
            .map(|label| {
                let (ordinal, new) = index.find(label, next);
                next += u32::from(new);
                ordinal
            })
            .collect();
        assert_eq!(found, [10, 11, 10, 12, 13, 11, 13, 12, 14]);
    }
}
