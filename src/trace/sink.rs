//! Interface between readers and receivers of a trace.
//!
//! In: steps, rows and count vectors, in the order of the file. Out: the product of the sink.
//! [`TraceBuilder`](super::build::TraceBuilder) holds a trace in memory. The writer of `evenkeel-trace`
//! passes rows on to a file. Rows for the same (step, layer, expert) add up in every sink.

use super::error::SinkError;
use super::whole_number::parse_integer;

/// Highest number of bytes in a step's label.
pub const MAX_LABEL_BYTES: usize = 4096;

/// Id that stands for "no expert".
pub const NO_EXPERT: u16 = u16::MAX;

/// Name of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepLabel<'a> {
    /// Number. If all steps of a source are numbers, they are sorted in ascending order.
    Number(u64),
    /// Text. Steps with such labels stay in order of appearance.
    Text(&'a str),
}

impl StepLabel<'_> {
    /// Reads a cell of a table as [`parse`](Self::parse) does, and also accepts whole numbers with a decimal
    /// point. Columns of numbers that passed through floating point contain them.
    pub fn parse_cell(text: &str) -> StepLabel<'_> {
        match parse_integer(text.as_bytes()).filter(|_| text.contains('.')) {
            Some(number) => StepLabel::Number(number),
            None => StepLabel::parse(text),
        }
    }

    /// Reads a label. Canonical decimal numbers become numbers, everything else becomes text.
    pub fn parse(text: &str) -> StepLabel<'_> {
        let digits = text.as_bytes();
        let canonical = !digits.is_empty()
            && digits.iter().all(u8::is_ascii_digit)
            && (digits[0] != b'0' || digits.len() == 1);
        match text.parse() {
            Ok(number) if canonical => StepLabel::Number(number),
            _ => StepLabel::Text(text),
        }
    }
}

/// Receiver of a reader's rows.
pub trait Sink {
    /// Announces that the rows of the next source state the sources of their tokens.
    fn announce_sources(&mut self) {}
    /// Begins a new source. Its steps differ from all earlier ones and come after them.
    fn begin_source(&mut self);
    /// Selects the step of the following rows. The step may be new or a known one.
    ///
    /// # Errors
    /// When there are more steps than a trace may have.
    fn select_step(&mut self, label: StepLabel<'_>) -> Result<(), SinkError>;
    /// Adds tokens to an expert of the current step. `source` names the tokens' origin, or is empty.
    ///
    /// # Errors
    /// When an id or a sum is out of range, or the memory allowed is used up.
    fn add_row(&mut self, layer: u32, expert: u32, tokens: u64, source: &[u8]) -> Result<(), SinkError>;
    /// Adds one count per expert. The layer exists from then on, even if all counts are zero.
    ///
    /// # Errors
    /// As [`Sink::add_row`].
    fn add_counts(&mut self, layer: u32, counts: &[u64]) -> Result<(), SinkError>;
    /// Declares the number of experts per layer, as the file states it.
    ///
    /// # Errors
    /// When an earlier statement differs.
    fn declare_experts(&mut self, experts: usize) -> Result<(), SinkError>;
    /// Returns true if the sink uses [`Sink::add_token_ids`].
    fn wants_token_ids(&self) -> bool {
        false
    }
    /// Receives the experts of all tokens of the current step, `[token][layer][top_k]`, with [`NO_EXPERT`]
    /// for none. Only readers of per-token arrays call it.
    ///
    /// # Errors
    /// When the ids change their shape, or need more than the memory allowed.
    fn add_token_ids(&mut self, _layers: usize, _top_k: usize, _ids: Vec<u16>) -> Result<(), SinkError> {
        Ok(())
    }
    /// Receives a notice for the user.
    fn add_notice(&mut self, text: String);
}
