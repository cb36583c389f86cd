//! The binary form of posted loads, content type `application/x-evenkeel-loads`.
//!
//! All numbers are little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | magic `EKLD` |
//! | 2 | version, 1 |
//! | 1 | phase: 0 all, 1 prefill, 2 decode |
//! | 1 | coding of counts: 0 for `u32`, 1 for LEB128 |
//! | 4 | layers `L`, 1 to 4096 |
//! | 4 | experts `E`, 1 to 65536 |
//! | 4 | steps `N`, 1 to 4096 |
//! | 4 `L` | real layer ids, ascending |
//!
//! The following table repeats for each of the `N` steps:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | step id, below 2^63 |
//! | 4 | bytes of the counts that follow |
//! | | `L * E` counts, layer by layer |
//!
//! Nothing follows them. In LEB128 a byte holds 7 bits, the low bits first. Its high bit is set if more bytes
//! follow. A small count takes one byte, as most counts of decode batches do.

use super::loads::{Loads, LoadsError, StepLoads};
use crate::{MAX_POSTED_STEPS, Phase};
use evenkeel::trace::{MAX_EXPERTS, MAX_LAYERS};

/// The content type of this form.
pub const CONTENT_TYPE: &str = "application/x-evenkeel-loads";

/// The most bytes of memory per byte of a body: the body, a step's counts twice (a byte becomes four), and
/// the packed counts.
pub(crate) const MEMORY_PER_BODY_BYTE: usize = 10;

const MAGIC: &[u8; 4] = b"EKLD";
const VERSION: u16 = 1;
const CODING_PLAIN: u8 = 0;
const CODING_LEB128: u8 = 1;

/// Writes loads with counts in LEB128.
pub fn encode(loads: &Loads) -> Vec<u8> {
    let mut out = Vec::with_capacity(24 + 4 * loads.layers.len() + loads.steps.len() * loads.experts * 2);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[loads.phase.code(), CODING_LEB128]);
    for number in [loads.layers.len(), loads.experts, loads.steps.len()] {
        out.extend_from_slice(&(number as u32).to_le_bytes());
    }
    loads.layers.iter().for_each(|layer| out.extend_from_slice(&layer.to_le_bytes()));
    let mut counts = Vec::new();
    for step in &loads.steps {
        counts.clear();
        pack_counts(&step.counts, &mut counts);
        out.extend_from_slice(&step.id.to_le_bytes());
        out.extend_from_slice(&(counts.len() as u32).to_le_bytes());
        out.extend_from_slice(&counts);
    }
    out
}

/// Parses loads in this form.
///
/// # Errors
/// [`LoadsError`] names the byte offset and the expected value.
pub fn decode(bytes: &[u8]) -> Result<Loads, LoadsError> {
    let mut reader = LoadsReader { bytes, at: 0 };
    if reader.read_bytes(4, "the magic EKLD")? != MAGIC {
        return Err(LoadsError::new("byte 0", "something else", "the magic EKLD"));
    }
    let version = u16::from_le_bytes(reader.read_array("the version")?);
    if version != VERSION {
        return Err(LoadsError::new("byte 4", format!("version {version}"), format!("version {VERSION}")));
    }
    let [phase, coding] = reader.read_array("phase and coding")?;
    let phase = Phase::from_code(phase)
        .ok_or_else(|| LoadsError::new("byte 6", format!("phase {phase}"), "0 all, 1 prefill, 2 decode"))?;
    if coding != CODING_PLAIN && coding != CODING_LEB128 {
        return Err(LoadsError::new("byte 7", format!("coding {coding}"), "0 for u32, 1 for LEB128"));
    }
    let layers = reader.read_count("layers", MAX_LAYERS)?;
    let experts = reader.read_count("experts", MAX_EXPERTS)?;
    let number = reader.read_count("steps", MAX_POSTED_STEPS)?;
    let ids = reader.read_bytes(4 * layers, "the layers' ids")?;
    let layers: Vec<u32> =
        ids.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let width = layers.len() * experts;
    let mut steps = Vec::new();
    for _ in 0..number {
        let id = u64::from_le_bytes(reader.read_array("a step id")?);
        let length = u32::from_le_bytes(reader.read_array("the length of the counts")?) as usize;
        let begins = reader.at;
        let packed = reader.read_bytes(length, "the counts")?;
        let counts = if coding == CODING_LEB128 {
            unpack_counts(packed, width)
        } else {
            parse_plain_counts(packed, width)
        };
        let counts = counts.map_err(|(offset, found)| {
            LoadsError::new(format!("byte {}", begins + offset), found, format!("{width} counts below 2^32"))
        })?;
        steps.push(StepLoads { id, counts: counts.into() });
    }
    if reader.at < bytes.len() {
        let found = format!("{} more bytes", bytes.len() - reader.at);
        return Err(LoadsError::new(format!("byte {}", reader.at), found, "the end"));
    }
    Loads { phase, layers, experts, steps }.validate()
}

/// Writes counts in LEB128.
pub(crate) fn pack_counts(counts: &[u32], out: &mut Vec<u8>) {
    for &count in counts {
        let mut rest = count;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
}

/// Parses exactly `width` counts in LEB128. The error has the byte offset and the reason.
pub(crate) fn unpack_counts(bytes: &[u8], width: usize) -> Result<Vec<u32>, (usize, String)> {
    // Every count takes at least one byte, so the reservation is bounded by the input.
    if bytes.len() < width {
        return Err((bytes.len(), format!("only {} bytes", bytes.len())));
    }
    let mut counts = Vec::with_capacity(width);
    let (mut count, mut shift) = (0u64, 0u32);
    for (at, &byte) in bytes.iter().enumerate() {
        if counts.len() == width {
            return Err((at, format!("{} bytes too many", bytes.len() - at)));
        }
        count |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 != 0 {
            shift += 7;
            if shift > 28 {
                return Err((at, "a count of more than five bytes".into()));
            }
            continue;
        }
        counts.push(u32::try_from(count).map_err(|_| (at, format!("a count of {count}")))?);
        (count, shift) = (0, 0);
    }
    if counts.len() == width { Ok(counts) } else { Err((bytes.len(), format!("{} counts", counts.len()))) }
}

fn parse_plain_counts(bytes: &[u8], width: usize) -> Result<Vec<u32>, (usize, String)> {
    if bytes.len() != 4 * width {
        return Err((0, format!("{} bytes", bytes.len())));
    }
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

struct LoadsReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> LoadsReader<'a> {
    fn read_bytes(&mut self, length: usize, what: &str) -> Result<&'a [u8], LoadsError> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            let left = self.bytes.len() - self.at;
            return Err(LoadsError::new(
                format!("byte {}", self.at),
                format!("{left} bytes left"),
                format!("{what}, {length} bytes"),
            ));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn read_array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], LoadsError> {
        let mut array = [0; N];
        array.copy_from_slice(self.read_bytes(N, what)?);
        Ok(array)
    }

    fn read_count(&mut self, what: &str, most: usize) -> Result<usize, LoadsError> {
        let at = self.at;
        let number = u32::from_le_bytes(self.read_array(what)?) as usize;
        if (1..=most).contains(&number) {
            return Ok(number);
        }
        Err(LoadsError::new(format!("byte {at}"), format!("{number} {what}"), format!("1 to {most}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Loads {
        let step = |id: u64| StepLoads { id, counts: [0u32, 127, 128, 300, 70_000, u32::MAX].into() };
        Loads { phase: Phase::Decode, layers: vec![3, 9], experts: 3, steps: vec![step(5), step(6)] }
    }

    #[test]
    fn what_is_written_is_read() {
        let loads = example();
        assert_eq!(decode(&encode(&loads)).unwrap(), loads);
        // The same loads with plain counts.
        let mut plain = encode(&Loads { steps: vec![], ..loads.clone() });
        plain[7] = CODING_PLAIN;
        plain[16] = 1;
        plain.extend_from_slice(&9u64.to_le_bytes());
        plain.extend_from_slice(&24u32.to_le_bytes());
        loads.steps[0].counts.iter().for_each(|count| plain.extend_from_slice(&count.to_le_bytes()));
        assert_eq!(decode(&plain).unwrap().steps[0].counts, loads.steps[0].counts);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_offset() {
        let good = encode(&example());
        for end in 0..good.len() {
            assert!(decode(&good[..end]).is_err(), "cut at {end}");
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode(&bytes).unwrap_err().to_string()
        };
        assert!(with(0, 0).contains("EKLD"));
        assert!(with(4, 2).contains("version 2, expected version 1"));
        assert!(with(6, 3).contains("phase 3"));
        assert!(with(7, 2).contains("coding 2"));
        assert!(with(20, 9).contains("ascending"));
        assert!(
            decode(&[good, vec![0]].concat())
                .unwrap_err()
                .to_string()
                .contains("1 more bytes, expected the end")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = decode(&[MAGIC.as_slice(), &[1, 0, 0, 1], &bytes].concat());
        }

        #[test]
        fn counts_survive(counts in prop::collection::vec(any::<u32>(), 1..50)) {
            let mut bytes = vec![];
            pack_counts(&counts, &mut bytes);
            prop_assert_eq!(unpack_counts(&bytes, counts.len()).unwrap(), counts);
        }
    }
}
