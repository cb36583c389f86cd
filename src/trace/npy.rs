//! Per-token expert ids as NumPy arrays, alone (.npy) or several in a zip (.npz).
//!
//! In: arrays `[tokens, layers, top_k]` of 8 to 64 bit integers, little-endian, C order; ids
//! below zero, and 65535 in 16 bit arrays, are padding. Out: [`TokenArray`]s, held at one or
//! two bytes per id. Layout: NumPy's `lib/format.py`, versions 1 to 3.

use super::error::{invalid, io_at, quote};
use super::input::Input;
use super::options::{Format, ReadOptions};
use super::{MAX_EXPERTS, MAX_LAYERS, Place, TraceError};
use std::io::Read;
use std::path::Path;

/// Longest header taken.
const MAX_HEADER: u32 = 64 << 10;
/// Most arrays of an npz.
const MAX_ARRAYS: usize = 4096;
/// Largest top-k that makes sense.
const MAX_TOP_K: usize = 1024;

/// An id that stands for "no expert".
pub(crate) const PADDING: u16 = u16::MAX;

/// Expert ids of consecutive tokens.
#[derive(Debug)]
pub(crate) struct TokenArray {
    /// File or array name.
    pub(crate) name: String,
    pub(crate) tokens: usize,
    pub(crate) layers: usize,
    pub(crate) top_k: usize,
    /// Highest id + 1.
    pub(crate) experts: usize,
    /// `[token][layer][k]`
    ids: Ids,
}

#[derive(Debug)]
enum Ids {
    Narrow(Vec<u8>),
    Wide(Vec<u16>),
}

impl TokenArray {
    /// An array that is not read: a table of sequences may still speak of it.
    fn named(name: String) -> Self {
        Self { name, tokens: 0, layers: 0, top_k: 0, experts: 0, ids: Ids::Narrow(Vec::new()) }
    }

    /// Adds one token's experts to counts `[layer][experts]`.
    pub(crate) fn count(&self, token: usize, experts: usize, counts: &mut [u64]) {
        let width = self.layers * self.top_k;
        let at = token * width..(token + 1) * width;
        match &self.ids {
            Ids::Narrow(ids) => add(ids[at].iter().map(|&id| usize::from(id)), self.top_k, experts, counts),
            Ids::Wide(ids) => {
                // Padding lies beyond every row.
                let ids = ids[at].iter().map(|&id| if id == PADDING { usize::MAX } else { usize::from(id) });
                add(ids, self.top_k, experts, counts);
            }
        }
    }

    /// Appends one token's experts, `[layer][top_k]`, padding included.
    pub(crate) fn append(&self, token: usize, to: &mut Vec<u16>) {
        let width = self.layers * self.top_k;
        let at = token * width..(token + 1) * width;
        match &self.ids {
            Ids::Narrow(ids) => to.extend(ids[at].iter().map(|&id| u16::from(id))),
            Ids::Wide(ids) => to.extend_from_slice(&ids[at]),
        }
    }
}

fn add(ids: impl Iterator<Item = usize>, top_k: usize, experts: usize, counts: &mut [u64]) {
    for (at, id) in ids.enumerate() {
        if id < experts {
            counts[at / top_k * experts + id] += 1;
        }
    }
}

/// Integer types of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    bytes: usize,
    signed: bool,
}

/// Reads all arrays of one file. `budget` counts down the bytes that may be held.
pub(crate) fn read(
    input: &Input<'_>,
    format: Format,
    options: &ReadOptions,
    budget: &mut u64,
) -> Result<Vec<TokenArray>, TraceError> {
    let path = input.path.as_path();
    let mut file = input.seekable()?;
    if format == Format::Npy {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        if skipped(&name, options) {
            return Ok(vec![TokenArray::named(name)]);
        }
        return Ok(vec![array(&mut file, path, &name, None, options, budget)?]);
    }
    let broken =
        |error: zip::result::ZipError| invalid(path, Place::File, error.to_string(), "a zip of .npy arrays");
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    if archive.len() > MAX_ARRAYS {
        return Err(invalid(
            path,
            Place::File,
            format!("{} members", archive.len()),
            format!("at most {MAX_ARRAYS} arrays"),
        ));
    }
    let mut arrays = Vec::new();
    for at in 0..archive.len() {
        let member = archive.by_index(at).map_err(broken)?;
        let full = member.name().map_err(broken)?.into_owned();
        let Some(name) = full.strip_suffix(".npy").map(str::to_owned) else {
            return Err(invalid(
                path,
                Place::Key(format!("member {}", quote(full.as_bytes()))),
                "another file",
                "only .npy arrays in an .npz",
            ));
        };
        if skipped(&name, options) {
            arrays.push(TokenArray::named(name));
            continue;
        }
        let size = member.size();
        arrays.push(array(member, path, &name, Some(size), options, budget)?);
    }
    Ok(arrays)
}

/// Did the options ask for other arrays only?
fn skipped(name: &str, options: &ReadOptions) -> bool {
    !options.arrays.is_empty() && !options.arrays.iter().any(|wanted| wanted == name)
}

fn array(
    mut reader: impl Read,
    path: &Path,
    name: &str,
    size: Option<u64>,
    options: &ReadOptions,
    budget: &mut u64,
) -> Result<TokenArray, TraceError> {
    let place = || Place::Key(format!("array {}", quote(name.as_bytes())));
    let (header, header_bytes) = header(&mut reader, path, &place)?;
    let (kind, shape) = describe(&header, path, &place)?;
    let &[tokens, layers, top_k] = shape.as_slice() else {
        return Err(invalid(
            path,
            place(),
            format!("shape {shape:?}"),
            "3 dimensions: tokens, layers, top-k",
        ));
    };
    if layers == 0 || layers > MAX_LAYERS || top_k == 0 || top_k > MAX_TOP_K {
        return Err(invalid(
            path,
            place(),
            format!("shape {shape:?}"),
            format!("[tokens, layers, top-k] with 1 to {MAX_LAYERS} layers and top-k of 1 to {MAX_TOP_K}"),
        ));
    }
    let held = if kind == (Kind { bytes: 1, signed: false }) { 1 } else { 2 };
    let width = layers * top_k;
    let length = tokens.checked_mul(width * kind.bytes);
    let Some(length) = length.filter(|length| (length / kind.bytes * held) as u64 <= *budget) else {
        return Err(TraceError::Limit {
            path: path.to_path_buf(),
            place: place(),
            what: format!(
                "shape {shape:?} does not fit the {} MiB allowed; raise --memory or choose --arrays",
                options.memory >> 20
            ),
        });
    };
    if let Some(size) = size
        && size < length as u64 + header_bytes
    {
        return Err(invalid(
            path,
            place(),
            format!("{size} bytes"),
            format!("{} bytes for shape {shape:?}", length as u64 + header_bytes),
        ));
    }
    *budget -= (length / kind.bytes * held) as u64;

    let mut out =
        TokenArray { name: name.to_owned(), tokens, layers, top_k, experts: 0, ids: Ids::Wide(Vec::new()) };
    // Read in pieces and grow as bytes really come: a false shape costs nothing.
    let mut narrow = Vec::new();
    let mut wide = Vec::new();
    let mut buffer = vec![0; (1 << 16) * kind.bytes];
    let mut left = length;
    let mut element = 0usize;
    let limit = options.experts.unwrap_or(MAX_EXPERTS).min(MAX_EXPERTS);
    while left > 0 {
        let count = left.min(buffer.len());
        reader.read_exact(&mut buffer[..count]).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                invalid(path, place(), "the end of the data", format!("{length} bytes for shape {shape:?}"))
            } else {
                io_at(path)(error)
            }
        })?;
        for bytes in buffer[..count].chunks_exact(kind.bytes) {
            let id = decode(bytes, kind);
            if id >= 0 && !(kind.bytes == 2 && !kind.signed && id == i64::from(PADDING)) {
                if id as u64 >= limit as u64 {
                    return Err(invalid(
                        path,
                        Place::Key(format!(
                            "array {}, token {}, layer {}",
                            quote(name.as_bytes()),
                            element / width,
                            element % width / top_k
                        )),
                        format!("expert {id}"),
                        format!("an expert id below {limit}, or -1 for padding"),
                    ));
                }
                out.experts = out.experts.max(id as usize + 1);
                if held == 1 { narrow.push(id as u8) } else { wide.push(id as u16) }
            } else {
                wide.push(PADDING);
            }
            element += 1;
        }
        left -= count;
    }
    out.ids = if held == 1 { Ids::Narrow(narrow) } else { Ids::Wide(wide) };
    Ok(out)
}

fn decode(bytes: &[u8], kind: Kind) -> i64 {
    let mut wide = [0u8; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let shift = 64 - 8 * kind.bytes as u32;
    let raw = u64::from_le_bytes(wide);
    if kind.signed {
        (raw << shift).cast_signed() >> shift
    } else {
        // Beyond i64 is beyond every limit, too.
        i64::try_from(raw).unwrap_or(i64::MAX)
    }
}

/// The header dictionary as text, and the bytes up to the data.
fn header(
    reader: &mut impl Read,
    path: &Path,
    place: &impl Fn() -> Place,
) -> Result<(String, u64), TraceError> {
    let short = |_| invalid(path, place(), "the end of the data", "a NumPy array header");
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(short)?;
    if &start[..6] != b"\x93NUMPY" || !(1..=3).contains(&start[6]) {
        return Err(invalid(path, place(), quote(&start), "NumPy's magic bytes and a version from 1 to 3"));
    }
    let (length, before) = if start[6] == 1 {
        let mut length = [0; 2];
        reader.read_exact(&mut length).map_err(short)?;
        (u32::from(u16::from_le_bytes(length)), 10)
    } else {
        let mut length = [0; 4];
        reader.read_exact(&mut length).map_err(short)?;
        (u32::from_le_bytes(length), 12)
    };
    if length > MAX_HEADER {
        return Err(invalid(
            path,
            place(),
            format!("a header of {length} bytes"),
            format!("at most {MAX_HEADER} bytes"),
        ));
    }
    let mut text = vec![0; length as usize];
    reader.read_exact(&mut text).map_err(short)?;
    Ok((String::from_utf8_lossy(&text).into_owned(), before + u64::from(length)))
}

/// Element type and shape from `{'descr': '<u2', 'fortran_order': False, 'shape': (3, 4), }`.
fn describe(header: &str, path: &Path, place: &impl Fn() -> Place) -> Result<(Kind, Vec<usize>), TraceError> {
    let value = |key: &str| -> Option<&str> {
        let after = header.split_once(&format!("'{key}'"))?.1.trim_start();
        Some(after.strip_prefix(':')?.trim_start())
    };
    let missing = |key: &str| {
        invalid(
            path,
            place(),
            format!("header {}", quote(header.as_bytes())),
            format!("a header with key '{key}'"),
        )
    };
    let descr = value("descr").ok_or_else(|| missing("descr"))?;
    let descr =
        descr.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map_or(descr, |(name, _)| name);
    let kind = match descr {
        "|u1" | "u1" => Kind { bytes: 1, signed: false },
        "|i1" | "i1" => Kind { bytes: 1, signed: true },
        "<u2" => Kind { bytes: 2, signed: false },
        "<i2" => Kind { bytes: 2, signed: true },
        "<u4" => Kind { bytes: 4, signed: false },
        "<i4" => Kind { bytes: 4, signed: true },
        "<u8" => Kind { bytes: 8, signed: false },
        "<i8" => Kind { bytes: 8, signed: true },
        other => {
            return Err(invalid(
                path,
                place(),
                format!("element type {}", quote(other.as_bytes())),
                "little-endian integers of 8 to 64 bits",
            ));
        }
    };
    let order = value("fortran_order").ok_or_else(|| missing("fortran_order"))?;
    if !order.starts_with("False") {
        return Err(invalid(
            path,
            place(),
            "fortran_order: True",
            "C order; numpy.ascontiguousarray makes it so",
        ));
    }
    let shape = value("shape")
        .and_then(|shape| shape.strip_prefix('(')?.split_once(')'))
        .ok_or_else(|| missing("shape"))?
        .0;
    let shape = shape
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| size.trim_end_matches('L').parse::<usize>().ok())
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| {
            invalid(path, place(), format!("shape ({})", quote(shape.as_bytes())), "a tuple of sizes")
        })?;
    Ok((kind, shape))
}
