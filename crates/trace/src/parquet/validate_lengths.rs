//! Sees that delta-encoded text in a page holds no more texts than the page says.
//!
//! In: a page reader. Out: the same pages, or an error at the first one that lies. The Parquet
//! crate allocates as many lengths as the encoded bytes claim, and a few bytes can claim any
//! number. <https://parquet.apache.org/docs/file-format/data-pages/encodings/>.

use parquet::basic::Encoding;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

/// Texts in one page: their lengths take a quarter of a GiB.
const TEXTS: u64 = 1 << 26;

/// Checks pages of a text column on their way.
pub(super) struct Checked {
    pub(super) pages: Box<dyn PageReader>,
    /// Pages start with definition levels.
    pub(super) nullable: bool,
}

impl Iterator for Checked {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page
            && let Some(data) = self.texts(page)
        {
            check(data?, page)?;
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

fn error(text: impl Into<String>) -> ParquetError {
    ParquetError::General(text.into())
}

impl Checked {
    /// The page without its levels, where texts in it are delta-encoded.
    fn texts<'a>(&self, page: &'a Page) -> Option<Result<&'a [u8]>> {
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
        Some(page.buffer().get(levels..).ok_or_else(|| error("levels longer than their page")))
    }
}

fn check(data: &[u8], page: &Page) -> Result<()> {
    let limit = u64::from(page.num_values()).min(TEXTS);
    let mut streams = Lengths { bytes: data };
    if page.encoding() == Encoding::DELTA_BYTE_ARRAY {
        // Lengths of the shared beginnings, then those of the rest.
        streams.skip(limit)?;
    }
    streams.head(limit)?;
    Ok(())
}

/// Delta-encoded numbers, one stream after the other.
struct Lengths<'a> {
    bytes: &'a [u8],
}

impl Lengths<'_> {
    fn take(&mut self, count: u64) -> Result<&[u8]> {
        let (taken, rest) = usize::try_from(count)
            .ok()
            .and_then(|count| self.bytes.split_at_checked(count))
            .ok_or_else(|| error("delta-encoded lengths end early"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(error("a number longer than 64 bits"))
    }

    /// Values of a block, its parts and the number of values in all.
    fn head(&mut self, limit: u64) -> Result<(u64, u64, u64)> {
        let (block, parts, count) = (self.varint()?, self.varint()?, self.varint()?);
        self.varint()?;
        if count > limit {
            return Err(error(format!("{count} texts in a page, not {limit}")));
        }
        Ok((block, parts, count))
    }

    /// Goes to the end of a stream.
    fn skip(&mut self, limit: u64) -> Result<()> {
        let (block, parts, count) = self.head(limit)?;
        let each =
            block.checked_div(parts).filter(|each| *each > 0).ok_or_else(|| error("empty delta blocks"))?;
        let mut left = count.saturating_sub(1);
        while left > 0 {
            self.varint()?;
            let mut length = 0u64;
            for width in self.take(parts)? {
                // The parts after the last value have no bytes.
                if left > 0 {
                    length = length.saturating_add(each.saturating_mul(u64::from(*width)) / 8);
                    left = left.saturating_sub(each);
                }
            }
            self.take(length)?;
        }
        Ok(())
    }
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
        // Blocks of 128 values in 4 parts, a first value of 1.
        let one = [0x80, 1, 4, 1, 2];
        let many = [0x80, 1, 4, 0xff, 0xff, 0xff, 0xff, 7, 2];
        // Three values: one block, of which the first part has 2 bits for each of 32 values.
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
            let result = check(&bytes, &page(encoding, values, &bytes)).map_err(|error| error.to_string());
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
