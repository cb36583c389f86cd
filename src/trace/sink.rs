//! Where readers pour what they find.
//!
//! In: steps, rows and count vectors, in whatever order a file has them. Out: whatever the
//! sink makes of them: [`super::builder`] holds a trace in memory, [`super::write`] passes
//! rows on to a file. Rows for the same (step, layer, expert) add up in every sink.

use super::error::Fault;

/// How a reader names a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label<'a> {
    /// A number; steps of a source that are all numbers end up in ascending order.
    Number(u64),
    /// Any other label; such steps stay in order of appearance.
    Text(&'a str),
}

impl Label<'_> {
    /// A label cell: canonical decimal numbers are numbers, all else is text.
    pub(crate) fn parse(text: &str) -> Label<'_> {
        let digits = text.as_bytes();
        let canonical = !digits.is_empty()
            && digits.iter().all(u8::is_ascii_digit)
            && (digits[0] != b'0' || digits.len() == 1);
        match text.parse() {
            Ok(number) if canonical => Label::Number(number),
            _ => Label::Text(text),
        }
    }
}

/// The receiving end of every reader.
pub(crate) trait Sink {
    /// Rows of the source about to begin say where their tokens came from.
    fn has_source(&mut self) {}
    /// Steps named from here on are others than, and come after, all before.
    fn begin(&mut self);
    /// Rows from here on belong to this step, new or named before.
    fn step(&mut self, label: Label<'_>) -> Result<(), Fault>;
    /// Adds tokens to an expert of the current step; `source` is where they came from, or empty.
    fn row(&mut self, layer: u32, expert: u32, tokens: u64, source: &[u8]) -> Result<(), Fault>;
    /// Adds one count per expert; the layer exists from then on even if all are zero.
    fn counts(&mut self, layer: u32, counts: &[u64]) -> Result<(), Fault>;
    /// The file itself says how many experts a layer has.
    fn experts(&mut self, experts: usize) -> Result<(), Fault>;
    /// Whether [`Sink::token_ids`] is of any use.
    fn wants_token_ids(&self) -> bool {
        false
    }
    /// The experts of all tokens of the current step, `[token][layer][top_k]`, [`PADDING`](super::npy::PADDING) for none;
    /// only from per-token arrays.
    fn token_ids(&mut self, _layers: usize, _top_k: usize, _ids: Vec<u16>) -> Result<(), Fault> {
        Ok(())
    }
    /// Something the user should know.
    fn notice(&mut self, text: String);
}
