//! How many tokens of one source an expert takes, and what becomes of the others.
//!
//! Room is counted per source and expert, as GShard counts it per group and Switch per core: no rank has to know another's
//! tokens to route its own.

use std::str::FromStr;

/// What becomes of a choice whose expert is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// It is dropped; the token passes by the residual (Switch, GShard).
    Drop,
    /// It goes to the token's next best expert with room, and is dropped only where there is none.
    Next,
}

impl FromStr for Overflow {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "drop" => Ok(Overflow::Drop),
            "next" => Ok(Overflow::Next),
            _ => Err(format!("unknown overflow rule `{name}`: expected drop or next")),
        }
    }
}

/// Room of an expert for the tokens of one source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    /// Room over what an even routing would need; 1.25 is a usual figure. Nothing fits where it is not positive.
    pub factor: f64,
    /// What becomes of the rest.
    pub overflow: Overflow,
}

impl Capacity {
    /// Tokens that one expert takes from a source of `tokens` tokens with `top_k` choices each:
    /// `ceil(factor * tokens * top_k / experts)`.
    pub fn of(&self, tokens: usize, top_k: usize, experts: usize) -> u64 {
        (self.factor * (tokens * top_k) as f64 / experts as f64).ceil().max(0.0) as u64
    }
}
