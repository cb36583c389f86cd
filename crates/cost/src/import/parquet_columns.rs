//! Whole columns of a Parquet file, by name.
//!
//! In: the bytes of a file. Out: a column's integers, numbers or labels. A missing column, another type and
//! a missing value are errors.

use bytes::Bytes;
use parquet::basic::Type;
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Description of unusable content: found and expected.
pub(super) type ContentError = (String, String);

/// The most rows of a table. The largest published one has 90 000.
const MAX_ROWS: i64 = 50_000_000;

/// An opened file.
pub(super) struct ParquetTable {
    reader: SerializedFileReader<Bytes>,
    rows: usize,
}

/// Labels of all rows: a list of different ones, and for every row an index into it.
pub(super) struct LabelColumn {
    pub(super) labels: Vec<String>,
    pub(super) rows: Vec<u32>,
}

impl LabelColumn {
    /// Returns the label of a row.
    pub(super) fn label(&self, row: usize) -> &str {
        let index = self.rows.get(row).map(|&index| index as usize);
        index.and_then(|index| self.labels.get(index)).map_or("", String::as_str)
    }
}

/// Runs a reader of untrusted bytes. The Parquet crate panics on some contradictory files.
pub(super) fn guard_panics<T>(read: impl FnOnce() -> Result<T, ContentError>) -> Result<T, ContentError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(("contradictory metadata".into(), "a Parquet file".into())))
}

impl ParquetTable {
    pub(super) fn open(bytes: Vec<u8>) -> Result<Self, ContentError> {
        let reader = SerializedFileReader::new(Bytes::from(bytes)).map_err(|error| unreadable(&error))?;
        let rows = reader.metadata().file_metadata().num_rows();
        if !(0..=MAX_ROWS).contains(&rows) {
            return Err((format!("{rows} rows"), format!("at most {MAX_ROWS} rows")));
        }
        Ok(Self { reader, rows: rows as usize })
    }

    pub(super) fn row_count(&self) -> usize {
        self.rows
    }

    /// Returns true if there is a column of a name.
    pub(super) fn has_column(&self, name: &str) -> bool {
        self.find_column(name).is_some()
    }

    /// Returns a column of integers from 0.
    pub(super) fn integers(&self, name: &str) -> Result<Vec<u64>, ContentError> {
        let expected = || format!("a column {name} of integers from 0");
        let signed: Vec<i64> = match self.physical_type(name, expected)? {
            Type::INT32 => self.values::<Int32Type>(name)?.into_iter().map(i64::from).collect(),
            Type::INT64 => self.values::<Int64Type>(name)?,
            // Columns with missing values elsewhere were written as floating-point numbers.
            Type::DOUBLE => {
                let values = self.values::<DoubleType>(name)?;
                if let Some(value) = values.iter().find(|value| value.fract() != 0.0 || value.abs() > 1e15) {
                    return Err((format!("{value}"), expected()));
                }
                values.into_iter().map(|value| value as i64).collect()
            }
            other => return Err((format!("type {other}"), expected())),
        };
        signed
            .into_iter()
            .map(|value| u64::try_from(value).map_err(|_| (value.to_string(), expected())))
            .collect()
    }

    /// Returns a column of finite numbers.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f64>, ContentError> {
        let expected = || format!("a column {name} of finite numbers");
        let values: Vec<f64> = match self.physical_type(name, expected)? {
            Type::DOUBLE => self.values::<DoubleType>(name)?,
            Type::FLOAT => self.values::<FloatType>(name)?.into_iter().map(f64::from).collect(),
            other => return Err((format!("type {other}"), expected())),
        };
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err((value.to_string(), expected())),
            None => Ok(values),
        }
    }

    /// Returns a column of labels.
    pub(super) fn labels(&self, name: &str) -> Result<LabelColumn, ContentError> {
        let expected = || format!("a column {name} of strings");
        match self.physical_type(name, expected)? {
            Type::BYTE_ARRAY => {}
            other => return Err((format!("type {other}"), expected())),
        }
        let mut index: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut labels = Vec::new();
        let mut rows = Vec::with_capacity(self.rows.min(1 << 20));
        for value in self.values::<ByteArrayType>(name)? {
            if let Some(&row) = index.get(value.data()) {
                rows.push(row);
                continue;
            }
            let text = std::str::from_utf8(value.data())
                .map_err(|_| ("bytes that are no UTF-8".to_owned(), expected()))?;
            rows.push(labels.len() as u32);
            index.insert(value.data().to_vec(), labels.len() as u32);
            labels.push(text.to_owned());
        }
        Ok(LabelColumn { labels, rows })
    }

    fn find_column(&self, name: &str) -> Option<usize> {
        let columns = self.reader.metadata().file_metadata().schema_descr().columns();
        columns.iter().position(|column| column.path().string() == name && column.max_rep_level() == 0)
    }

    fn physical_type(&self, name: &str, expected: impl Fn() -> String) -> Result<Type, ContentError> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let names = || {
            let names: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
            format!("columns {}", names.join(", "))
        };
        let at = self.find_column(name).ok_or_else(|| (names(), expected()))?;
        Ok(schema.column(at).physical_type())
    }

    fn values<T: DataType>(&self, name: &str) -> Result<Vec<T::T>, ContentError> {
        let missing = || (format!("missing values in column {name}"), "a value in every row".to_owned());
        let at = self.find_column(name).ok_or_else(missing)?;
        let mut values = Vec::new();
        for group in 0..self.reader.num_row_groups() {
            let group = self.reader.get_row_group(group).map_err(|error| unreadable(&error))?;
            let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
            let column = group.get_column_reader(at).map_err(|error| unreadable(&error))?;
            let mut column: ColumnReaderImpl<T> = get_typed_column_reader(column);
            let (before, mut records) = (values.len(), 0);
            while records < rows {
                let mut levels = Vec::new();
                let (read, ..) = column
                    .read_records(rows - records, Some(&mut levels), None, &mut values)
                    .map_err(|error| unreadable(&error))?;
                if read == 0 {
                    break;
                }
                records += read;
            }
            if values.len() - before != rows {
                return Err(missing());
            }
        }
        if values.len() == self.rows { Ok(values) } else { Err(missing()) }
    }
}

fn unreadable(error: &ParquetError) -> ContentError {
    (error.to_string(), "a readable Parquet file".to_owned())
}
