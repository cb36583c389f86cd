//! Which part of serving a batch belongs to: prefill and decode route differently and may have plans of their own.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

/// The part of serving that loads come from. Each part that is fed has its own history, decisions and plan.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not told apart.
    #[default]
    All,
    /// Prompts.
    Prefill,
    /// One token per request.
    Decode,
}

impl Phase {
    /// Every phase, in the order of their codes.
    pub const ALL: [Phase; 3] = [Phase::All, Phase::Prefill, Phase::Decode];

    /// The name in URLs and documents.
    pub fn name(self) -> &'static str {
        match self {
            Phase::All => "all",
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }

    /// The code in the binary form and in the store.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The phase of a code.
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|phase| phase.name() == text);
        found.ok_or_else(|| format!("unknown phase `{text}`: expected all, prefill or decode"))
    }
}
