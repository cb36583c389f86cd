//! The capacity of an expert for the tokens of one source, and the handling of overflow.
//!
//! Capacity is counted per source and expert, as GShard counts it per group and Switch per core. So no rank
//! has to know another's tokens to route its own.

use crate::error::UnknownName;
use std::str::FromStr;

/// The handling of a choice whose expert is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The choice is dropped; the token passes by the residual (Switch, GShard).
    Drop,
    /// The choice goes to the token's next best expert with room, and is dropped only if there is none.
    Next,
}

impl FromStr for Overflow {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "drop" => Ok(Overflow::Drop),
            "next" => Ok(Overflow::Next),
            _ => Err(UnknownName::new("overflow rule", name, "drop or next")),
        }
    }
}

/// The capacity of an expert for the tokens of one source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    /// Capacity relative to an even routing; 1.25 is a common value. Values that are not positive give no
    /// capacity.
    pub factor: f64,
    /// The handling of overflow.
    pub overflow: Overflow,
}

impl Capacity {
    /// Returns the number of tokens that one expert accepts from a source of `tokens` tokens with `top_k`
    /// choices each: `ceil(factor * tokens * top_k / experts)`.
    pub fn tokens_per_expert(&self, tokens: usize, top_k: usize, experts: usize) -> u64 {
        (self.factor * (tokens * top_k) as f64 / experts as f64).ceil().max(0.0) as u64
    }
}
