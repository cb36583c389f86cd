//! A check that delta-encoded text in a page holds no more texts than the page states, and no long ones.
//!
//! Input is a page reader. Output is the same pages, or an error at the first invalid one. The Parquet crate
//! allocates as many lengths as the encoded bytes claim, and a few bytes can claim any number. If texts share
//! prefixes, the crate copies every text, so a long text lets a small page take hours.
//! <https://parquet.apache.org/docs/file-format/data-pages/encodings/>.

use evenkeel::trace::build::MAX_LABEL_BYTES;
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

/// The most texts in one page. Their lengths take a quarter of a GiB.
const MAX_TEXTS: u64 = 1 << 26;

/// A page reader that checks the pages of a text column.
pub(super) struct CheckedPages {
    pub(super) pages: Box<dyn PageReader>,
    /// Flag that is set if pages start with definition levels.
    pub(super) nullable: bool,
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page
            && let Some(data) = self.delta_texts(page)
        {
            check_page(data?, page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

fn page_error(text: impl Into<String>) -> ParquetError {
    ParquetError::General(text.into())
}

impl CheckedPages {
    /// Returns the page without its levels, if its texts are delta-encoded.
    fn delta_texts<'a>(&self, page: &'a Page) -> Option<Result<&'a [u8]>> {
        if !matches!(page.encoding(), Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY) {
            return None;
        }
        let levels = match page {
            Page::DataPage { buf, def_level_encoding, num_values, .. } if self.nullable => {
                match def_level_encoding {
                    Encoding::RLE => buf.first_chunk().map_or(usize::MAX, |length| {
                        (u32::from_le_bytes(*length) as usize).saturating_add(4)
                    }),
                    _ => num_values.div_ceil(8) as usize,
                }
            }
            Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
                (*def_levels_byte_len as usize).saturating_add(*rep_levels_byte_len as usize)
            }
            _ => 0,
        };
        Some(page.buffer().get(levels..).ok_or_else(|| page_error("levels longer than their page")))
    }
}

fn check_page(data: &[u8], page: &Page) -> Result<()> {
    let limit = u64::from(page.num_values()).min(MAX_TEXTS);
    let mut streams = DeltaLengths { bytes: data };
    if page.encoding() == Encoding::DELTA_BYTE_ARRAY {
        // The lengths of the shared prefixes precede those of the suffixes.
        streams.skip_prefix_lengths(limit)?;
    }
    streams.read_block_header(limit)?;
    Ok(())
}

/// Delta-encoded numbers, one stream after the other.
struct DeltaLengths<'a> {
    bytes: &'a [u8],
}

impl DeltaLengths<'_> {
    fn take_bytes(&mut self, count: u64) -> Result<&[u8]> {
        let (taken, rest) = usize::try_from(count)
            .ok()
            .and_then(|count| self.bytes.split_at_checked(count))
            .ok_or_else(|| page_error("delta-encoded lengths end early"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn read_varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take_bytes(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(page_error("a number longer than 64 bits"))
    }

    /// Reads the number of values in a block, of its parts, and of values in all.
    fn read_block_header(&mut self, limit: u64) -> Result<(u64, u64, u64)> {
        let (block, parts, count) = (self.read_varint()?, self.read_varint()?, self.read_varint()?);
        self.read_varint()?;
        if count > limit {
            return Err(page_error(format!("{count} texts in a page, not {limit}")));
        }
        Ok((block, parts, count))
    }

    /// Skips the lengths of shared prefixes. Fails if one exceeds the longest label.
    fn skip_prefix_lengths(&mut self, limit: u64) -> Result<()> {
        let (block, parts, count) = (self.read_varint()?, self.read_varint()?, self.read_varint()?);
        let mut value = decode_zigzag(self.read_varint()?);
        if count > limit {
            return Err(page_error(format!("{count} texts in a page, not {limit}")));
        }
        let each = block
            .checked_div(parts)
            .filter(|each| *each > 0)
            .ok_or_else(|| page_error("empty delta blocks"))?;
        let fits = |value: i64| {
            let short = u64::try_from(value).is_ok_and(|value| value <= MAX_LABEL_BYTES as u64);
            if short {
                Ok(())
            } else {
                Err(page_error(format!("a label of more than {MAX_LABEL_BYTES} bytes")))
            }
        };
        if count > 0 {
            fits(value)?;
        }
        let mut left = count.saturating_sub(1);
        while left > 0 {
            let least = decode_zigzag(self.read_varint()?);
            let widths = self.take_bytes(parts)?.to_vec();
            for width in widths {
                // The parts after the last value have no bytes.
                if left == 0 {
                    break;
                }
                let bytes = self.take_bytes(each.saturating_mul(u64::from(width)) / 8)?;
                for at in 0..each.min(left) {
                    value =
                        value.wrapping_add(least).wrapping_add(unpack_bits(bytes, at, width).cast_signed());
                    fits(value)?;
                }
                left = left.saturating_sub(each);
            }
        }
        Ok(())
    }
}

fn decode_zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Returns the number at a position among numbers of `width` bits each, the lowest bit first.
fn unpack_bits(bytes: &[u8], at: u64, width: u8) -> u64 {
    let first = at * u64::from(width);
    (0..u64::from(width.min(64))).fold(0, |value, bit| {
        let place = first + bit;
        let byte = bytes.get((place / 8) as usize).copied().unwrap_or_default();
        value | u64::from(byte >> (place % 8) & 1) << bit
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn page(encoding: Encoding, num_values: u32, buf: &[u8]) -> Page {
        let buf = bytes::Bytes::copy_from_slice(buf);
        let levels = Encoding::RLE;
        let (def_level_encoding, rep_level_encoding) = (levels, levels);
        Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, statistics: None }
    }

    #[test]
    fn claims_of_delta_encoded_text() {
        let (length, both) = (Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY);
        // One stream: blocks of 128 values in 4 parts, a first value of 1.
        let one = [0x80, 1, 4, 1, 2];
        let many = [0x80, 1, 4, 0xff, 0xff, 0xff, 0xff, 7, 2];
        // Three values: one block, whose first part has 2 bits for each of 32 values.
        let three = [&[0x80, 1, 4, 3, 2, 0, 2, 9, 9, 9][..], &[0; 8]].concat();
        let then = |next: &[u8]| [&three[..], next].concat();
        for (encoding, values, bytes, expected) in [
            (length, 1, one.to_vec(), None),
            (length, 3, three.clone(), None),
            (length, 2, three.clone(), Some("3 texts in a page, not 2")),
            (length, u32::MAX, many.to_vec(), Some("2147483647 texts in a page, not 67108864")),
            (both, 3, then(&three), None),
            (both, 3, then(&many), Some("2147483647 texts in a page, not 3")),
            (both, 3, three[..12].to_vec(), Some("end early")),
            (both, 3, vec![0x80, 1, 0, 3, 2], Some("empty delta blocks")),
            (length, 3, vec![0xff; 20], Some("longer than 64 bits")),
        ] {
            let result =
                check_page(&bytes, &page(encoding, values, &bytes)).map_err(|error| error.to_string());
            match expected {
                None => result.unwrap(),
                Some(expected) => {
                    let message = result.unwrap_err();
                    assert!(message.contains(expected), "{expected}: {message}");
                }
            }
        }
    }
}
