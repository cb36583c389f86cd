//! The phases of serving. Prefill and decode route differently and may have separate plans.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;

/// The phase of serving from which loads come. Each phase has its own history, decisions and plan.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Phases are not distinguished.
    #[default]
    All,
    /// Prefill: the prompts.
    Prefill,
    /// Decode: one token per request.
    Decode,
}

impl Phase {
    /// All phases, in the order of their codes.
    pub const ALL: [Phase; 3] = [Phase::All, Phase::Prefill, Phase::Decode];

    /// Returns the name in URLs and documents.
    pub fn name(self) -> &'static str {
        match self {
            Phase::All => "all",
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }

    /// Returns the code in the binary form and in the store.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Returns the phase of a code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Error of an unknown name of a [`Phase`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown phase `{0}`: expected all, prefill or decode")]
pub struct UnknownPhase(String);

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(text: &str) -> Result<Self, UnknownPhase> {
        let found = Self::ALL.into_iter().find(|phase| phase.name() == text);
        found.ok_or_else(|| UnknownPhase(text.to_owned()))
    }
}
