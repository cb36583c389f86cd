//! Dynamic slots, as arguments.

use anyhow::bail;
use evenkeel::split::{CopyAim, SlotMemory};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Most dynamic slots per rank.
const MAX_DYNAMIC_SLOTS: usize = 64;

/// Refuses numbers of dynamic slots out of range.
pub(crate) fn check_slots(per_rank: usize) -> anyhow::Result<()> {
    if !(1..=MAX_DYNAMIC_SLOTS).contains(&per_rank) {
        bail!("--dynamic {per_rank}: expected 1 to {MAX_DYNAMIC_SLOTS} slots per rank");
    }
    Ok(())
}

/// Argument `shared` or `kept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryName(pub(crate) SlotMemory);

/// Argument `imbalance:LIMIT`, `copies:N` or `time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AimName {
    Fixed(CopyAim),
    Time,
}

/// Error of text that is no [`MemoryName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected shared or kept")]
pub(crate) struct MemoryNameError;

/// Error of text that is no [`AimName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected imbalance:LIMIT with 0 to 100, copies:N, or time")]
pub(crate) struct AimNameError;

impl FromStr for MemoryName {
    type Err = MemoryNameError;

    fn from_str(text: &str) -> Result<Self, MemoryNameError> {
        match text {
            "shared" => Ok(MemoryName(SlotMemory::Shared)),
            "kept" => Ok(MemoryName(SlotMemory::Kept)),
            _ => Err(MemoryNameError),
        }
    }
}

impl fmt::Display for MemoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self.0 {
            SlotMemory::Shared => "shared",
            SlotMemory::Kept => "kept",
        })
    }
}

impl FromStr for AimName {
    type Err = AimNameError;

    fn from_str(text: &str) -> Result<Self, AimNameError> {
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "time" if value.is_empty() => Ok(AimName::Time),
            "copies" => value.parse().map(|n| AimName::Fixed(CopyAim::Copies(n))).map_err(|_| AimNameError),
            "imbalance" => {
                let limit: f64 = value.parse().map_err(|_| AimNameError)?;
                if !(0.0..=100.0).contains(&limit) {
                    return Err(AimNameError);
                }
                Ok(AimName::Fixed(CopyAim::Imbalance((limit * 1e6).round() as u32)))
            }
            _ => Err(AimNameError),
        }
    }
}

impl fmt::Display for AimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AimName::Fixed(CopyAim::Imbalance(millionths)) => {
                write!(f, "imbalance:{}", f64::from(*millionths) / 1e6)
            }
            AimName::Fixed(CopyAim::Copies(copies)) => write!(f, "copies:{copies}"),
            AimName::Fixed(CopyAim::Time(_)) | AimName::Time => f.write_str("time"),
        }
    }
}
