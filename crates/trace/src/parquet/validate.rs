//! A check that a Parquet file stays within its own bounds, before the Parquet crate reads it.
//!
//! Input is the file and, for the columns in use, its metadata. Output is nothing, or an error with its
//! place. The crate skips unknown fields for as long as they claim to last, and allocates the size that a
//! page claims to decompress to. So the footer and every page header in use are walked here first. Layout:
//! <https://parquet.apache.org/docs/file-format/>.

use super::super::TraceError;
use super::super::input::ReadSeek;
use super::schema::{FOOTER, PAGE_HEADER};
use super::thrift::{WalkError, walk_struct};
use crate::Location;
use evenkeel::trace::build::{invalid_content, io_error_at, quote_bytes};
use parquet::basic::Compression;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use std::io::{Read as _, SeekFrom};
use std::path::Path;

/// The bytes of the first read of a page header. Most headers take less than a hundred.
const WINDOW_BYTES: u64 = 1 << 10;
/// The most bytes of a page header.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// The most bytes of a decompressed page. Writers aim at 1 MiB.
const MAX_PAGE_BYTES: u64 = 1 << 30;
/// The most bytes to which one byte of zstd decompresses: a block of 128 KiB takes four bytes. Gzip and LZ4
/// stay below.
const MAX_ZSTD_RATIO: u64 = 1 << 15;
/// The same for Brotli, whose copy commands reach 16 MiB. No page is larger than one of them.
const MAX_BROTLI_RATIO: u64 = 1 << 24;
/// The most bytes of a decompressed page of Brotli.
const MAX_BROTLI_PAGE_BYTES: u64 = 64 << 20;
/// The same for Snappy: a copy command of 64 bytes takes three.
const MAX_SNAPPY_RATIO: u64 = 64;
/// The fewest bytes of a dictionary entry: an `int32`, or the length of a string.
const MIN_ENTRY_BYTES: u64 = 4;

/// A file and its size in bytes.
pub(super) struct SizedFile<'a> {
    pub(super) bytes: Box<dyn ReadSeek + 'a>,
    pub(super) size: u64,
    pub(super) path: &'a Path,
}

impl SizedFile<'_> {
    fn read_at(&mut self, at: u64, length: u64) -> Result<Vec<u8>, TraceError> {
        let mut bytes = Vec::new();
        self.bytes.seek(SeekFrom::Start(at)).map_err(io_error_at(self.path))?;
        (&mut self.bytes).take(length).read_to_end(&mut bytes).map_err(io_error_at(self.path))?;
        Ok(bytes)
    }
}

/// Walks the footer.
pub(super) fn check_footer(source: &mut SizedFile<'_>) -> Result<(), TraceError> {
    let path = source.path;
    let Some(tail) = source.size.checked_sub(8) else {
        return Err(invalid_content(
            path,
            Location::File,
            format!("{} bytes", source.size),
            "a Parquet file",
        ));
    };
    let bytes = source.read_at(tail, 8)?;
    let (length, magic) = bytes.split_at(bytes.len().min(4));
    match magic {
        b"PAR1" => {}
        b"PARE" => {
            return Err(invalid_content(
                path,
                Location::Byte(tail + 4),
                "an encrypted footer (PARE)",
                "a plain one (PAR1)",
            ));
        }
        _ => {
            return Err(invalid_content(
                path,
                Location::Byte(tail + 4),
                quote_bytes(magic),
                "PAR1, the end of a Parquet file",
            ));
        }
    }
    let length = length.iter().rev().fold(0, |length, byte| length << 8 | u64::from(*byte));
    let Some(start) = tail.checked_sub(length) else {
        return Err(invalid_content(
            path,
            Location::Byte(tail),
            format!("a footer of {length} bytes"),
            format!("at most the {tail} bytes before it"),
        ));
    };
    let bytes = source.read_at(start, length)?;
    walk_struct(&bytes, FOOTER, &mut |_, _| {}).map(|_| ()).map_err(|flaw| {
        invalid_content(
            path,
            Location::Key(format!("footer, byte {}", start + flaw.at as u64)),
            flaw.found,
            flaw.expected,
        )
    })
}

/// Checks that every column lies within the file, and walks the page headers of the columns in use.
pub(super) fn check_columns(
    source: &mut SizedFile<'_>,
    metadata: &ParquetMetaData,
    used: &[usize],
) -> Result<(), TraceError> {
    let size = source.size;
    let mut total = 0u64;
    for (at, group) in metadata.row_groups().iter().enumerate() {
        for (index, column) in group.columns().iter().enumerate() {
            let name = format!("row group {at}, column {}", column.column_path().string());
            let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
            let span = u64::try_from(start)
                .ok()
                .zip(u64::try_from(column.compressed_size()).ok())
                .and_then(|(start, length)| Some((start, start.checked_add(length)?)))
                .filter(|(_, end)| *end <= size)
                .filter(|_| column.data_page_offset() >= 0 && column.num_values() >= 0);
            let Some((start, end)) = span else {
                return Err(invalid_content(
                    source.path,
                    Location::Key(name),
                    format!("{} bytes from byte {start}", column.compressed_size()),
                    format!("a place within the {size} bytes of the file"),
                ));
            };
            if used.contains(&index) {
                // Without this check, a footer could list the same pages once per entry.
                total = total.saturating_add(end - start);
                if total > size {
                    return Err(invalid_content(
                        source.path,
                        Location::Key(name),
                        format!("{total} bytes of columns up to here"),
                        format!("at most the {size} bytes of the file, as columns do not overlap"),
                    ));
                }
                check_pages(source, column, start, end, &name)?;
            }
        }
    }
    Ok(())
}

/// Walks the page headers from `start` to `end`.
fn check_pages(
    source: &mut SizedFile<'_>,
    column: &ColumnChunkMetaData,
    start: u64,
    end: u64,
    name: &str,
) -> Result<(), TraceError> {
    let mut at = start;
    while at < end {
        let page = read_page_header(source, at, end, name)?;
        let wrong = |found: String, expected: String| {
            Err(invalid_content(source.path, Location::Key(format!("{name}, byte {at}")), found, expected))
        };
        let left = end - at - page.length;
        let (Some(packed), Some(unpacked)) = (page.packed, page.unpacked) else {
            return wrong("a page header without sizes".into(), "both sizes of the page".into());
        };
        let (Ok(packed), Ok(unpacked)) = (u32::try_from(packed), u32::try_from(unpacked)) else {
            return wrong(
                format!("a page of {packed} bytes, {unpacked} unpacked"),
                "sizes of 31 bits".into(),
            );
        };
        let (packed, unpacked) = (u64::from(packed), u64::from(unpacked));
        if packed > left {
            return wrong(
                format!("a page of {packed} bytes"),
                format!("at most the {left} bytes left in the column"),
            );
        }
        let (limit, ratio) = match column.compression() {
            Compression::BROTLI(_) => (MAX_BROTLI_PAGE_BYTES, MAX_BROTLI_RATIO),
            Compression::SNAPPY => (MAX_PAGE_BYTES, MAX_SNAPPY_RATIO),
            _ => (MAX_PAGE_BYTES, MAX_ZSTD_RATIO),
        };
        if unpacked > limit {
            return Err(TraceError::Limit {
                path: source.path.to_path_buf(),
                place: Location::Key(format!("{name}, byte {at}")),
                what: format!(
                    "a page of {} MiB, more than the limit of {} MiB for one page; write it with smaller pages",
                    unpacked >> 20,
                    limit >> 20
                ),
            });
        }
        if unpacked > packed.saturating_mul(ratio) {
            return wrong(
                format!("a page of {packed} bytes that unpacks to {unpacked}"),
                format!("at most {ratio} times its size, the limit of {}", column.compression()),
            );
        }
        if let Some(entries) = page.entries
            && !u64::try_from(entries)
                .is_ok_and(|entries| entries.saturating_mul(MIN_ENTRY_BYTES) <= unpacked)
        {
            return wrong(
                format!("a dictionary of {entries} entries in {unpacked} bytes"),
                format!("at least {MIN_ENTRY_BYTES} bytes for each"),
            );
        }
        at += page.length + packed;
    }
    Ok(())
}

/// The relevant fields of a page header.
#[derive(Default)]
struct PageSizes {
    length: u64,
    unpacked: Option<i64>,
    packed: Option<i64>,
    entries: Option<i64>,
}

/// Walks one page header in a small piece of the file. Reads larger pieces if it is too short.
fn read_page_header(
    source: &mut SizedFile<'_>,
    at: u64,
    end: u64,
    name: &str,
) -> Result<PageSizes, TraceError> {
    let mut window = WINDOW_BYTES;
    loop {
        let bytes = source.read_at(at, window.min(end - at))?;
        let mut page = PageSizes::default();
        let result = walk_struct(&bytes, PAGE_HEADER, &mut |path, value| match path {
            [2] => page.unpacked = Some(value),
            [3] => page.packed = Some(value),
            [7, 1] => page.entries = Some(value),
            _ => {}
        });
        match result {
            Ok(length) => return Ok(PageSizes { length: length as u64, ..page }),
            Err(WalkError { is_incomplete: true, .. }) if window < MAX_HEADER_BYTES && at + window < end => {
                window <<= 5;
            }
            Err(flaw) => {
                let place =
                    Location::Key(format!("{name}, page header at byte {at}, byte {}", at + flaw.at as u64));
                let expected = if flaw.is_incomplete && at + window < end {
                    format!("a page header of at most {} MiB", MAX_HEADER_BYTES >> 20)
                } else {
                    flaw.expected
                };
                return Err(invalid_content(source.path, place, flaw.found, expected));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;
    use parquet::schema::parser::parse_message_type;
    use parquet::schema::types::SchemaDescriptor;
    use std::io::Cursor;
    use std::sync::Arc;

    /// Walks the bytes as the pages of one column.
    fn check(bytes: &[u8], compression: Compression) -> Result<(), String> {
        let schema = parse_message_type("message m { required int32 layer; }").unwrap();
        let schema = SchemaDescriptor::new(Arc::new(schema));
        let column =
            ColumnChunkMetaData::builder(schema.column(0)).set_compression(compression).build().unwrap();
        let size = bytes.len() as u64;
        let path = Path::new("x");
        let mut source = SizedFile { bytes: Box::new(Cursor::new(bytes)), size, path };
        check_pages(&mut source, &column, 0, size, "row group 0, column layer")
            .map_err(|error| error.to_string())
    }

    fn varint(mut value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while value > 0x7f {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
        out
    }

    /// Returns a page of type 0 with these sizes, further fields and a body.
    fn page(unpacked: u64, packed: u64, more: &[u8], body: usize) -> Vec<u8> {
        let mut out = vec![0x15, 0, 0x15];
        out.extend(varint(unpacked << 1));
        out.push(0x15);
        out.extend(varint(packed << 1));
        out.extend(more);
        out.push(0);
        out.resize(out.len() + body, 7);
        out
    }

    #[test]
    fn pages_that_keep_their_bounds() {
        let none = Compression::UNCOMPRESSED;
        check(&[], none).unwrap();
        // The second header is longer than the first read.
        let text = [&[0x08, 40][..], &varint(5000), &[b'x'; 5000]].concat();
        check(&[page(3, 3, &[], 3), page(2000, 2000, &text, 2000), page(0, 0, &[], 0)].concat(), none)
            .unwrap();
        check(&page(MAX_PAGE_BYTES, 1 << 15, &[], 1 << 15), none).unwrap();
        check(&page(640, 10, &[], 10), Compression::SNAPPY).unwrap();
    }

    #[test]
    fn pages_that_claim_too_much() {
        let bomb = [&[0x09, 40, 0xe9][..], &[0xf1, 0xff, 0xff, 0xff, 0xff, 0x07].repeat(14)].concat();
        let map = [0x0b, 40, 0xff, 0xff, 0xff, 0xff, 0x07, 0x12];
        let long = [&[0x08, 40][..], &varint(2 << 20), &vec![b'x'; 2 << 20]].concat();
        let none = Compression::UNCOMPRESSED;
        for (bytes, codec, expected) in [
            (page(3, 3, &bomb, 3), none, "byte 0, byte 15: found a container of 2147483647 booleans"),
            (page(3, 3, &map, 3), none, "found a container of 2147483647 booleans"),
            (page(3, 3, &long, 3), none, "expected a page header of at most 1 MiB"),
            (page(3, 4, &[], 3), none, "byte 0: found a page of 4 bytes, expected at most the 3 bytes left"),
            (
                page(MAX_PAGE_BYTES + 1, 1 << 16, &[], 1 << 16),
                none,
                "more than the limit of 1024 MiB for one page",
            ),
            (page(641, 10, &[], 10), Compression::SNAPPY, "expected at most 64 times its size"),
            (page(1, 0, &[], 0), none, "found a page of 0 bytes that unpacks to 1"),
            (page(1 << 32, 3, &[], 3), none, "expected sizes of 31 bits"),
            (page(3, 3, &[0x25, 2], 3), none, "field 5 of type 5, expected a struct"),
            (vec![0; 3], none, "found a page header without sizes"),
            (vec![0x15], none, "byte 1: found 1 bytes of metadata"),
            (vec![0x15; 300], none, "found field"),
        ] {
            let message = check(&bytes, codec).expect_err(expected);
            assert!(message.starts_with("x, row group 0, column layer, "), "{message}");
            assert!(message.contains(expected), "{expected}: {message}");
        }
    }
}
