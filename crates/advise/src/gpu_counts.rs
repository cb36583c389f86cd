//! Numbers of GPUs of an instance, from a list or a range.

use evenkeel::cluster::MAX_RANKS;
use std::str::FromStr;
use thiserror::Error;

/// Numbers of GPUs of an instance: a list, or a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuCounts {
    /// The numbers themselves.
    List(Vec<u64>),
    /// All useful numbers from the first to the last.
    Range(u64, u64),
}

/// Error of text that states no numbers of GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{0}\": expected numbers of GPUs from 1 to {MAX_RANKS}, as 8,16,32 or 16..96")]
pub struct WrongGpuCounts(String);

impl FromStr for GpuCounts {
    type Err = WrongGpuCounts;

    fn from_str(text: &str) -> Result<Self, WrongGpuCounts> {
        let wrong = || WrongGpuCounts(text.to_owned());
        let number = |text: &str| {
            let number: Option<u64> = text.trim().parse().ok();
            number.filter(|number| (1..=MAX_RANKS as u64).contains(number)).ok_or_else(wrong)
        };
        if let Some((first, last)) = text.split_once("..") {
            let (first, last) = (number(first)?, number(last)?);
            return if first <= last { Ok(Self::Range(first, last)) } else { Err(wrong()) };
        }
        Ok(Self::List(text.split(',').map(number).collect::<Result<_, _>>()?))
    }
}

/// Highest number of sizes that a range stands for. Larger ranges take wider steps.
const MAX_SIZES: u64 = 16;

impl GpuCounts {
    /// Returns the numbers. A range has powers of two below a node of eight GPUs and whole nodes above.
    pub fn counts(&self, linked: u64) -> Vec<u64> {
        let (first, last) = match self {
            Self::List(list) => return list.clone(),
            Self::Range(first, last) => (*first, *last),
        };
        let node = linked.clamp(1, 8);
        let step = node * (last / node).div_ceil(MAX_SIZES).max(1);
        let small = [1, 2, 4].into_iter().filter(|&count| count < node);
        let whole = (1..).map(|nodes| nodes * node).take_while(|&count| count <= last);
        let wide = whole.filter(|&count| count.is_multiple_of(step) || count.is_power_of_two());
        let mut found: Vec<u64> =
            small.chain(wide).filter(|&count| (first..=last).contains(&count)).collect();
        if found.is_empty() {
            found.push(first);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_whole_nodes() {
        let counts = |text: &str| text.parse::<GpuCounts>().unwrap().counts(8);
        assert_eq!(counts("16..48"), [16, 24, 32, 40, 48]);
        assert_eq!(counts("1..16"), [1, 2, 4, 8, 16]);
        assert_eq!(counts("8,12"), [8, 12]);
        assert!(counts("8..512").len() <= 18);
        for wrong in ["", "0", "4..2", "8..", "8;16", "99999"] {
            assert!(wrong.parse::<GpuCounts>().is_err(), "{wrong}");
        }
    }
}
