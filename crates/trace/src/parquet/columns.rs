//! The columns of a Parquet file that a long table needs, and the meaning of their values.
//!
//! Input is the schema. Output is [`TableColumns`]: the positions, by name in any case, and the
//! [`ColumnMeaning`] of each one's numbers. A DECIMAL stores its number times a power of ten, and dates are
//! no counts.

use super::super::header::{EXPERT_COLUMNS, LAYER_COLUMNS, TOKEN_COLUMNS};
use super::super::partition::FolderColumns;
use super::TraceError;
use crate::Location;
use crate::ReadOptions;
use evenkeel::trace::build::{invalid_content, quote_bytes};
use parquet::basic::{ConvertedType, IntType, LogicalType, Type};
use parquet::file::reader::FileReader;
use parquet::schema::types::ColumnDescriptor;
use std::path::Path;

/// The positions of the columns in use.
pub(super) struct TableColumns {
    pub(super) step: Option<usize>,
    pub(super) layer: Option<usize>,
    pub(super) expert: Option<usize>,
    pub(super) tokens: usize,
    pub(super) source: Option<usize>,
    pub(super) extra: Vec<String>,
}

/// The meaning of a column's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnMeaning {
    Signed,
    Unsigned,
    /// The number times ten to this power.
    Decimal(u32),
    /// Characters. A column of labels may also hold numbers of any kind.
    Label,
}

/// The most digits behind the point. No 128-bit number has more.
const MAX_SCALE: i32 = 38;

impl ColumnMeaning {
    /// Returns the meaning of a column of numbers, or a description of its content.
    fn numeric_meaning(column: &ColumnDescriptor) -> Result<Self, String> {
        let physical = column.physical_type();
        let fits = matches!(
            physical,
            Type::INT32
                | Type::INT64
                | Type::FLOAT
                | Type::DOUBLE
                | Type::FIXED_LEN_BYTE_ARRAY
                | Type::BYTE_ARRAY
        );
        let converted = column.converted_type();
        let logical = column.logical_type_ref();
        let scale = match (logical, converted) {
            (Some(LogicalType::Decimal(_)), _) | (None, ConvertedType::DECIMAL) => Some(column.type_scale()),
            _ => None,
        };
        let described = || {
            let name = match (logical, converted) {
                (Some(logical), _) => format!(" ({logical:?})"),
                (None, ConvertedType::NONE) => String::new(),
                (None, converted) => format!(" ({converted})"),
            };
            format!("type {physical}{name}")
        };
        if !fits {
            return Err(described());
        }
        match scale {
            Some(scale @ 0..=MAX_SCALE) if !matches!(physical, Type::FLOAT | Type::DOUBLE) => {
                return Ok(Self::Decimal(scale as u32));
            }
            Some(_) => return Err(described()),
            None => {}
        }
        if matches!(physical, Type::FIXED_LEN_BYTE_ARRAY | Type::BYTE_ARRAY) {
            return Err(described());
        }
        match (logical, converted) {
            (Some(LogicalType::Integer(IntType { is_signed: false, .. })), _)
            | (
                _,
                ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
                | ConvertedType::UINT_64,
            ) => Ok(Self::Unsigned),
            (Some(LogicalType::Integer(_)), _)
            | (
                None,
                ConvertedType::NONE
                | ConvertedType::INT_8
                | ConvertedType::INT_16
                | ConvertedType::INT_32
                | ConvertedType::INT_64,
            ) => Ok(Self::Signed),
            _ => Err(described()),
        }
    }

    /// Returns the meaning of a column of labels: that of its numbers if it holds numbers, else text.
    fn label_meaning(column: &ColumnDescriptor) -> Result<Self, String> {
        match (Self::numeric_meaning(column), column.physical_type()) {
            (Ok(meaning), _) => Ok(meaning),
            (Err(_), Type::BYTE_ARRAY | Type::INT32 | Type::INT64) => Ok(Self::Label),
            (Err(found), _) => Err(found),
        }
    }
}

impl TableColumns {
    pub(super) fn find_columns(
        file: &dyn FileReader,
        path: &Path,
        options: &ReadOptions,
        given: &FolderColumns,
    ) -> Result<Self, TraceError> {
        let schema = file.metadata().file_metadata().schema_descr();
        let names: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let find = |wanted: &[&str]| {
            wanted.iter().find_map(|name| {
                names
                    .iter()
                    .position(|column| column == name)
                    .or_else(|| names.iter().position(|column| column.eq_ignore_ascii_case(name)))
            })
        };
        let need = |wanted: &[&str]| {
            find(wanted).ok_or_else(|| {
                invalid_content(
                    path,
                    Location::File,
                    format!("columns {}", quote_bytes(names.join(",").as_bytes())),
                    format!("a column {}", wanted.join(" or ")),
                )
            })
        };
        let unless = |given: bool, wanted: &[&str]| {
            if given { Ok(find(wanted)) } else { need(wanted).map(Some) }
        };
        let step = match options.step_column.as_deref() {
            Some(name) => unless(given.step.is_some(), &[name])?,
            None => find(&["step"]),
        };
        let found = Self {
            step,
            layer: unless(given.layer.is_some(), LAYER_COLUMNS)?,
            expert: unless(given.expert.is_some(), EXPERT_COLUMNS)?,
            tokens: need(TOKEN_COLUMNS)?,
            source: find(&["source"]),
            extra: Vec::new(),
        };
        let used = found.used_columns();
        for &at in &used {
            let column = schema.column(at);
            let label = Some(at) == found.step || Some(at) == found.source;
            let wrong = |found: String| {
                let expected =
                    if label { "a flat column of integers or strings" } else { "a flat column of integers" };
                invalid_content(path, Location::Key(format!("column {}", names[at])), found, expected)
            };
            found.column_meaning(&column, at).map_err(wrong)?;
            if column.max_rep_level() > 0 || column.max_def_level() > 1 {
                return Err(wrong("nested values".into()));
            }
        }
        let extra = (0..names.len()).filter(|at| !used.contains(at)).map(|at| names[at].clone()).collect();
        Ok(Self { extra, ..found })
    }

    pub(super) fn used_columns(&self) -> Vec<usize> {
        let used = [self.step, self.layer, self.expert, Some(self.tokens), self.source];
        used.into_iter().flatten().collect()
    }

    /// Returns the meaning of a column in use.
    pub(super) fn column_meaning(
        &self,
        column: &ColumnDescriptor,
        at: usize,
    ) -> Result<ColumnMeaning, String> {
        let label = Some(at) == self.step || Some(at) == self.source;
        if label { ColumnMeaning::label_meaning(column) } else { ColumnMeaning::numeric_meaning(column) }
    }
}
