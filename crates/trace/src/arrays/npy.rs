//! The file format of one NumPy array.
//!
//! Input is bytes. Output is a [`NpyHeader`] and, on demand, the elements. Layout: NumPy's `lib/format.py`,
//! versions 1 to 3, with little-endian elements in C order.

use super::{ArrayMember, Location, TraceError};
use evenkeel::trace::build::{invalid_content, io_error_at, quote_bytes};
use std::io::Read;
use std::path::Path;

/// The most bytes of a header.
const MAX_HEADER_BYTES: u32 = 64 << 10;

/// The number type of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NumberType {
    pub(super) bytes: usize,
    pub(super) signed: bool,
    pub(super) float: bool,
}

/// The description of the data.
#[derive(Debug, Clone)]
pub(super) struct NpyHeader {
    /// The type in NumPy's notation.
    pub(super) descr: String,
    /// The number type, or `None` for an unsupported one.
    pub(super) kind: Option<NumberType>,
    pub(super) shape: Vec<usize>,
    fortran_order: bool,
    /// The number of bytes before the data.
    pub(super) bytes: u64,
}

/// Reads the header of an array.
pub(super) fn open_array<'a>(
    mut data: Box<dyn Read + 'a>,
    name: String,
    size: Option<u64>,
    path: &Path,
) -> Result<ArrayMember<'a>, TraceError> {
    let place = || Location::Key(format!("array {}", quote_bytes(name.as_bytes())));
    let (text, bytes) = read_header(&mut data, path, &place)?;
    let header = NpyHeader { bytes, ..parse_header(&text, path, &place)? };
    Ok(ArrayMember { name, header, size, data })
}

impl NpyHeader {
    /// Returns an integer type, or also a floating-point type if `floats` is set.
    pub(super) fn number_type(
        &self,
        floats: bool,
        path: &Path,
        place: &dyn Fn() -> Location,
    ) -> Result<NumberType, TraceError> {
        let Some(kind) = self.kind.filter(|kind| floats || !kind.float) else {
            return Err(invalid_content(
                path,
                place(),
                format!("element type {}", quote_bytes(self.descr.as_bytes())),
                "little-endian integers of 8 to 64 bits; --arrays chooses arrays",
            ));
        };
        if self.fortran_order {
            return Err(invalid_content(
                path,
                place(),
                "fortran_order: True",
                "C order; numpy.ascontiguousarray converts the array",
            ));
        }
        Ok(kind)
    }
}

/// A consumer of elements. It gets their index and their bytes.
type ElementConsumer<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<(), TraceError>;

/// Reads the elements of an array in pieces, so that a false shape allocates nothing. Passes each one to
/// `take` with its index.
pub(super) fn read_elements(
    member: &mut ArrayMember<'_>,
    kind: NumberType,
    length: usize,
    path: &Path,
    place: &dyn Fn() -> Location,
    take: ElementConsumer<'_>,
) -> Result<(), TraceError> {
    let shape = &member.header.shape;
    let bytes = length as u64 + member.header.bytes;
    if let Some(size) = member.size
        && size < bytes
    {
        return Err(invalid_content(
            path,
            place(),
            format!("{size} bytes"),
            format!("{bytes} bytes for shape {shape:?}"),
        ));
    }
    let mut buffer = vec![0; (1 << 16) * kind.bytes];
    let (mut left, mut element) = (length, 0);
    while left > 0 {
        let count = left.min(buffer.len());
        member.data.read_exact(&mut buffer[..count]).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                invalid_content(
                    path,
                    place(),
                    "the end of the data",
                    format!("{length} bytes for shape {shape:?}"),
                )
            } else {
                io_error_at(path)(error)
            }
        })?;
        for bytes in buffer[..count].chunks_exact(kind.bytes) {
            take(element, bytes)?;
            element += 1;
        }
        left -= count;
    }
    // Several arrays may be saved into one file. Using only the first one would lose the rest of the trace.
    if member.data.read(&mut [0]).map_err(io_error_at(path))? > 0 {
        return Err(invalid_content(
            path,
            place(),
            "more bytes after the array",
            format!("the end of the file after {length} bytes for shape {shape:?}"),
        ));
    }
    Ok(())
}

/// Returns all elements as integers.
pub(super) fn read_integers(
    member: &mut ArrayMember<'_>,
    path: &Path,
    place: &dyn Fn() -> Location,
    memory: u64,
) -> Result<Vec<i64>, TraceError> {
    let kind = member.header.number_type(true, path, place)?;
    let shape = member.header.shape.clone();
    let count = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let Some(count) = count.filter(|&count| (count as u64).saturating_mul(8) <= memory) else {
        return Err(TraceError::Limit {
            path: path.to_path_buf(),
            place: place(),
            what: format!("shape {shape:?} does not fit the {} MiB allowed; raise --memory", memory >> 20),
        });
    };
    let mut numbers = Vec::new();
    read_elements(member, kind, count * kind.bytes, path, place, &mut |element, bytes| {
        let number = if kind.float { decode_whole_float(bytes) } else { Some(decode_integer(bytes, kind)) };
        numbers.push(number.ok_or_else(|| {
            invalid_content(
                path,
                place(),
                format!("a fraction or no number at element {element}"),
                "whole numbers",
            )
        })?);
        Ok(())
    })?;
    Ok(numbers)
}

/// Returns a double or float that is an integer.
fn decode_whole_float(bytes: &[u8]) -> Option<i64> {
    let number = match bytes {
        &[a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        bytes => f64::from_le_bytes(bytes.try_into().ok()?),
    };
    evenkeel::trace::build::float_to_integer(number).and_then(|number| i64::try_from(number).ok())
}

/// Returns a little-endian integer.
pub(super) fn decode_integer(bytes: &[u8], kind: NumberType) -> i64 {
    let mut wide = [0u8; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let shift = 64 - 8 * kind.bytes as u32;
    let raw = u64::from_le_bytes(wide);
    if kind.signed {
        (raw << shift).cast_signed() >> shift
    } else {
        // A number beyond i64 exceeds every limit too.
        i64::try_from(raw).unwrap_or(i64::MAX)
    }
}

/// Returns the text of the header dictionary, and the number of bytes before the data.
fn read_header(
    reader: &mut dyn Read,
    path: &Path,
    place: &dyn Fn() -> Location,
) -> Result<(String, u64), TraceError> {
    let short = |_| invalid_content(path, place(), "the end of the data", "a NumPy array header");
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(short)?;
    if &start[..6] != b"\x93NUMPY" || !(1..=3).contains(&start[6]) {
        return Err(invalid_content(
            path,
            place(),
            quote_bytes(&start),
            "NumPy's magic bytes and a version from 1 to 3",
        ));
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
    if length > MAX_HEADER_BYTES {
        return Err(invalid_content(
            path,
            place(),
            format!("a header of {length} bytes"),
            format!("at most {MAX_HEADER_BYTES} bytes"),
        ));
    }
    let mut text = vec![0; length as usize];
    reader.read_exact(&mut text).map_err(short)?;
    Ok((String::from_utf8_lossy(&text).into_owned(), before + u64::from(length)))
}

/// Parses element type, order and shape from `{'descr': '<u2', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse_header(header: &str, path: &Path, place: &dyn Fn() -> Location) -> Result<NpyHeader, TraceError> {
    let value = |key: &str| -> Option<&str> {
        let after = header.split_once(&format!("'{key}'"))?.1.trim_start();
        Some(after.strip_prefix(':')?.trim_start())
    };
    let missing = |key: &str| {
        invalid_content(
            path,
            place(),
            format!("header {}", quote_bytes(header.as_bytes())),
            format!("a header with key '{key}'"),
        )
    };
    let descr = value("descr").ok_or_else(|| missing("descr"))?;
    let descr =
        descr.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map_or(descr, |(name, _)| name);
    let whole = |bytes, signed| Some(NumberType { bytes, signed, float: false });
    let kind = match descr {
        "|u1" | "u1" => whole(1, false),
        "|i1" | "i1" => whole(1, true),
        "<u2" => whole(2, false),
        "<i2" => whole(2, true),
        "<u4" => whole(4, false),
        "<i4" => whole(4, true),
        "<u8" => whole(8, false),
        "<i8" => whole(8, true),
        "<f4" => Some(NumberType { bytes: 4, signed: true, float: true }),
        "<f8" => Some(NumberType { bytes: 8, signed: true, float: true }),
        _ => None,
    };
    let order = value("fortran_order").ok_or_else(|| missing("fortran_order"))?;
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
            invalid_content(
                path,
                place(),
                format!("shape ({})", quote_bytes(shape.as_bytes())),
                "a tuple of sizes",
            )
        })?;
    Ok(NpyHeader {
        descr: descr.to_owned(),
        kind,
        shape,
        fortran_order: !order.starts_with("False"),
        bytes: 0,
    })
}
