//! The compact form of posted loads, content type `application/x-evenkeel-loads`.
//!
//! All numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic `EKLD` |
//! | 2 | version, 1 |
//! | 1 | phase: 0 all, 1 prefill, 2 decode |
//! | 1 | how counts are written: 0 as `u32`, 1 as LEB128 (7 bits a byte, low bits first, the high bit says that more follow) |
//! | 4 | layers `L`, 1 to 4096 |
//! | 4 | experts `E`, 1 to 65536 |
//! | 4 | steps `N`, 1 to 4096 |
//! | 4 `L` | the layers' real ids, ascending |
//!
//! then for each of the `N` steps:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | step id, below 2^63 |
//! | 4 | bytes of the counts that follow |
//! | | `L * E` counts, layer by layer |
//!
//! and nothing after them. Small counts, as those of decode batches, take a byte each in LEB128.

use super::loads::{Loads, LoadsError, Step};
use super::{MAX_POSTED, Phase};
use crate::trace::{MAX_EXPERTS, MAX_LAYERS};

/// The content type that announces this form.
pub const CONTENT_TYPE: &str = "application/x-evenkeel-loads";

const MAGIC: &[u8; 4] = b"EKLD";
const VERSION: u16 = 1;
const PLAIN: u8 = 0;
const LEB128: u8 = 1;

/// Writes loads, counts in LEB128.
pub fn encode(loads: &Loads) -> Vec<u8> {
    let mut out = Vec::with_capacity(24 + 4 * loads.layers.len() + loads.steps.len() * loads.experts * 2);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[loads.phase.code(), LEB128]);
    for number in [loads.layers.len(), loads.experts, loads.steps.len()] {
        out.extend_from_slice(&(number as u32).to_le_bytes());
    }
    loads.layers.iter().for_each(|layer| out.extend_from_slice(&layer.to_le_bytes()));
    let mut counts = Vec::new();
    for step in &loads.steps {
        counts.clear();
        pack(&step.counts, &mut counts);
        out.extend_from_slice(&step.id.to_le_bytes());
        out.extend_from_slice(&(counts.len() as u32).to_le_bytes());
        out.extend_from_slice(&counts);
    }
    out
}

/// Reads loads in this form.
///
/// # Errors
/// [`LoadsError`] names the byte offset and what was expected there.
pub fn decode(bytes: &[u8]) -> Result<Loads, LoadsError> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4, "the magic EKLD")? != MAGIC {
        return Err(LoadsError::new("byte 0", "something else", "the magic EKLD"));
    }
    let version = u16::from_le_bytes(reader.array("the version")?);
    if version != VERSION {
        return Err(LoadsError::new("byte 4", format!("version {version}"), format!("version {VERSION}")));
    }
    let [phase, coding] = reader.array("phase and coding")?;
    let phase = Phase::of_code(phase)
        .ok_or_else(|| LoadsError::new("byte 6", format!("phase {phase}"), "0 all, 1 prefill, 2 decode"))?;
    if coding != PLAIN && coding != LEB128 {
        return Err(LoadsError::new("byte 7", format!("coding {coding}"), "0 for u32, 1 for LEB128"));
    }
    let layers = reader.number("layers", MAX_LAYERS)?;
    let experts = reader.number("experts", MAX_EXPERTS)?;
    let number = reader.number("steps", MAX_POSTED)?;
    let ids = reader.take(4 * layers, "the layers' ids")?;
    let layers: Vec<u32> =
        ids.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let width = layers.len() * experts;
    let mut steps = Vec::new();
    for _ in 0..number {
        let id = u64::from_le_bytes(reader.array("a step id")?);
        let length = u32::from_le_bytes(reader.array("the length of the counts")?) as usize;
        let begins = reader.at;
        let packed = reader.take(length, "the counts")?;
        let counts = if coding == LEB128 { unpack(packed, width) } else { plain(packed, width) };
        let counts = counts.map_err(|(offset, found)| {
            LoadsError::new(format!("byte {}", begins + offset), found, format!("{width} counts below 2^32"))
        })?;
        steps.push(Step { id, counts: counts.into() });
    }
    if reader.at < bytes.len() {
        let found = format!("{} more bytes", bytes.len() - reader.at);
        return Err(LoadsError::new(format!("byte {}", reader.at), found, "the end"));
    }
    Loads { phase, layers, experts, steps }.checked()
}

/// Writes counts in LEB128.
pub(crate) fn pack(counts: &[u32], out: &mut Vec<u8>) {
    for &count in counts {
        let mut rest = count;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
}

/// Reads exactly so many counts in LEB128; the offset and what is wrong there otherwise.
pub(crate) fn unpack(bytes: &[u8], width: usize) -> Result<Vec<u32>, (usize, String)> {
    // Every count takes a byte at least: nothing is reserved that the bytes cannot fill.
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

fn plain(bytes: &[u8], width: usize) -> Result<Vec<u32>, (usize, String)> {
    if bytes.len() != 4 * width {
        return Err((0, format!("{} bytes", bytes.len())));
    }
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], LoadsError> {
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

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], LoadsError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn number(&mut self, what: &str, most: usize) -> Result<usize, LoadsError> {
        let at = self.at;
        let number = u32::from_le_bytes(self.array(what)?) as usize;
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
        let step = |id: u64| Step { id, counts: [0u32, 127, 128, 300, 70_000, u32::MAX].into() };
        Loads { phase: Phase::Decode, layers: vec![3, 9], experts: 3, steps: vec![step(5), step(6)] }
    }

    #[test]
    fn what_is_written_is_read() {
        let loads = example();
        assert_eq!(decode(&encode(&loads)).unwrap(), loads);
        // The same with plain counts.
        let mut plain = encode(&Loads { steps: vec![], ..loads.clone() });
        plain[7] = PLAIN;
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
            pack(&counts, &mut bytes);
            prop_assert_eq!(unpack(&bytes, counts.len()).unwrap(), counts);
        }
    }
}
