//! One column of a row group, a few thousand values at a time.
//!
//! Input is a row group. Output is [`ColumnCells`]: the numbers and labels of the current rows. Labels are
//! compared in place and copied only if they are new.

use super::columns::ColumnMeaning;
use super::{TraceError, parquet_error, validate_lengths};
use crate::Location;
use evenkeel::trace::build::float_to_integer;
use evenkeel::trace::build::{invalid_content, quote_bytes};
use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType,
    Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::reader::RowGroupReader;
use std::path::Path;

/// The number of rows per read.
const BATCH_ROWS: usize = 8192;

/// One column of a row group, with the values of the current rows.
pub(super) struct ColumnCells {
    pub(super) name: String,
    meaning: ColumnMeaning,
    data: ColumnData,
}

type TypedReader<T> = Box<ColumnReaderImpl<T>>;

enum ColumnData {
    I32(TypedReader<Int32Type>, Vec<i32>),
    I64(TypedReader<Int64Type>, Vec<i64>),
    F32(TypedReader<FloatType>, Vec<f32>),
    F64(TypedReader<DoubleType>, Vec<f64>),
    Bytes(TypedReader<ByteArrayType>, Vec<ByteArray>),
    Fixed(TypedReader<FixedLenByteArrayType>, Vec<FixedLenByteArray>),
}

impl ColumnCells {
    pub(super) fn open_column(
        group: &dyn RowGroupReader,
        at: usize,
        meaning: ColumnMeaning,
        path: &Path,
    ) -> Result<Self, TraceError> {
        let name = group.metadata().column(at).column_descr().path().string();
        let descr = group.metadata().schema_descr().column(at);
        let mut pages = group.get_column_page_reader(at).map_err(|error| parquet_error(path, &error))?;
        if descr.physical_type() == Type::BYTE_ARRAY {
            pages = Box::new(validate_lengths::CheckedPages { pages, nullable: descr.max_def_level() > 0 });
        }
        let data = match get_column_reader(descr, pages) {
            ColumnReader::Int32ColumnReader(reader) => ColumnData::I32(Box::new(reader), Vec::new()),
            ColumnReader::Int64ColumnReader(reader) => ColumnData::I64(Box::new(reader), Vec::new()),
            ColumnReader::FloatColumnReader(reader) => ColumnData::F32(Box::new(reader), Vec::new()),
            ColumnReader::DoubleColumnReader(reader) => ColumnData::F64(Box::new(reader), Vec::new()),
            ColumnReader::ByteArrayColumnReader(reader) => ColumnData::Bytes(Box::new(reader), Vec::new()),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                ColumnData::Fixed(Box::new(reader), Vec::new())
            }
            _ => {
                return Err(invalid_content(
                    path,
                    Location::Key(format!("column {name}")),
                    "a type that differs from the schema",
                    "integers or strings",
                ));
            }
        };
        Ok(Self { name, meaning, data })
    }

    /// Reads the next rows. Returns their number.
    pub(super) fn fill_rows(&mut self, path: &Path, row: u64) -> Result<usize, TraceError> {
        let counts = match &mut self.data {
            ColumnData::I32(reader, values) => read_batch(reader, values),
            ColumnData::I64(reader, values) => read_batch(reader, values),
            ColumnData::F32(reader, values) => read_batch(reader, values),
            ColumnData::F64(reader, values) => read_batch(reader, values),
            ColumnData::Bytes(reader, values) => read_batch(reader, values),
            ColumnData::Fixed(reader, values) => read_batch(reader, values),
        };
        let (records, values) = counts.map_err(|error| parquet_error(path, &error))?;
        if records != values {
            let place = Location::Cell { line: row + 1, column: self.name.clone() };
            return Err(invalid_content(
                path,
                place,
                "an empty cell (null) in or after this row",
                "a value in every row",
            ));
        }
        Ok(records)
    }

    /// Returns the non-negative integer of a row.
    pub(super) fn integer_at(&self, at: usize) -> Option<u64> {
        match (&self.data, self.meaning) {
            (_, ColumnMeaning::Label) => None,
            (ColumnData::F32(_, values), _) => float_to_integer(f64::from(values[at])),
            (ColumnData::F64(_, values), _) => float_to_integer(values[at]),
            (_, ColumnMeaning::Decimal(scale)) => unscale_integer(self.unscaled_at(at)?, scale),
            (ColumnData::I32(_, values), ColumnMeaning::Unsigned) => Some(u64::from(values[at] as u32)),
            (ColumnData::I64(_, values), ColumnMeaning::Unsigned) => Some(values[at] as u64),
            (_, _) => u64::try_from(self.unscaled_at(at)?).ok(),
        }
    }

    /// Returns the stored number of a row, or `None` beyond 128 bits.
    fn unscaled_at(&self, at: usize) -> Option<i128> {
        match &self.data {
            ColumnData::I32(_, values) => Some(i128::from(values[at])),
            ColumnData::I64(_, values) => Some(i128::from(values[at])),
            ColumnData::Bytes(_, values) => big_endian(values[at].data()),
            ColumnData::Fixed(_, values) => big_endian(values[at].data()),
            ColumnData::F32(..) | ColumnData::F64(..) => None,
        }
    }

    /// Returns the text of a cell for a message.
    pub(super) fn describe_cell(&self, at: usize) -> String {
        match (&self.data, self.meaning) {
            (_, ColumnMeaning::Decimal(scale)) => self
                .unscaled_at(at)
                .map_or_else(|| "a DECIMAL beyond 128 bits".into(), |number| format_decimal(number, scale)),
            (ColumnData::I32(_, values), _) => values[at].to_string(),
            (ColumnData::I64(_, values), _) => values[at].to_string(),
            (ColumnData::F32(_, values), _) => values[at].to_string(),
            (ColumnData::F64(_, values), _) => values[at].to_string(),
            (ColumnData::Bytes(_, values), _) => quote_bytes(values[at].data()),
            (ColumnData::Fixed(_, values), _) => quote_bytes(values[at].data()),
        }
    }

    /// Returns the bytes of a text without a copy.
    pub(super) fn label_bytes(&self, at: usize) -> Option<&ByteArray> {
        match (&self.data, self.meaning) {
            (ColumnData::Bytes(_, values), ColumnMeaning::Label) => Some(&values[at]),
            _ => None,
        }
    }
}

/// Returns a big-endian number in two's complement.
fn big_endian(bytes: &[u8]) -> Option<i128> {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let start = bytes.len().saturating_sub(16);
    let beyond = bytes[..start].iter().any(|&byte| byte != fill);
    let sign_lost = start > 0 && bytes.get(start).is_some_and(|byte| (byte & 0x80 != 0) != negative);
    if bytes.is_empty() || beyond || sign_lost {
        return None;
    }
    let mut wide = [fill; 16];
    wide[16 - (bytes.len() - start)..].copy_from_slice(&bytes[start..]);
    Some(i128::from_be_bytes(wide))
}

/// Returns a number with `scale` decimal places, if it is a non-negative integer.
fn unscale_integer(unscaled: i128, scale: u32) -> Option<u64> {
    let unit = 10i128.checked_pow(scale)?;
    (unscaled % unit == 0).then_some(unscaled / unit).and_then(|number| u64::try_from(number).ok())
}

fn format_decimal(unscaled: i128, scale: u32) -> String {
    let Some(unit) = 10u128.checked_pow(scale).filter(|_| scale > 0) else { return unscaled.to_string() };
    let (sign, size) = (if unscaled < 0 { "-" } else { "" }, unscaled.unsigned_abs());
    format!("{sign}{}.{:0width$}", size / unit, size % unit, width = scale as usize)
}

fn read_batch<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    values: &mut Vec<T::T>,
) -> Result<(usize, usize), ParquetError> {
    values.clear();
    let mut levels = Vec::new();
    let (mut records, mut count) = (0, 0);
    // A call may stop at a page. Continue until the batch is full or the column ends.
    while records < BATCH_ROWS {
        let (more, found, _) = reader.read_records(BATCH_ROWS - records, Some(&mut levels), None, values)?;
        if more == 0 {
            break;
        }
        records += more;
        count += found;
    }
    Ok((records, count))
}

#[cfg(test)]
mod tests {
    use super::{big_endian, format_decimal, unscale_integer};

    #[test]
    fn decimals() {
        assert_eq!(
            (unscale_integer(428_000, 3), unscale_integer(428_331, 3), unscale_integer(-1000, 3)),
            (Some(428), None, None)
        );
        assert_eq!(
            (unscale_integer(7, 0), unscale_integer(0, 38), unscale_integer(i128::MAX, 0)),
            (Some(7), Some(0), None)
        );
        assert_eq!(
            (format_decimal(428_331, 3), format_decimal(-5, 2), format_decimal(5, 0)),
            ("428.331".into(), "-0.05".into(), "5".into())
        );
        assert_eq!(big_endian(&[0x01, 0x00]), Some(256));
        assert_eq!(big_endian(&[0xff, 0xfe]), Some(-2));
        assert_eq!(big_endian(&[0; 20]), Some(0));
        assert_eq!(big_endian(&[[0xff; 8], [0xff; 8], [0xff; 8]].concat()), Some(-1));
        assert_eq!((big_endian(&[]), big_endian(&[1; 17])), (None, None));
        assert_eq!(big_endian(&[&[0][..], &[0x80; 16]].concat()), None);
    }
}
