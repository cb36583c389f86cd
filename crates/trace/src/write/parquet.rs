//! The long table as Parquet with zstd compression.
//!
//! Input is rows. Output is columns `step` (string), `layer`, `expert` (int32), `tokens` (int64) and
//! optionally `source` (string), in row groups of 1,048,576 rows.

use super::{TableRow, TableWriter};
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::fs::File;
use std::io;
use std::sync::Arc;

/// The number of rows in a row group.
const GROUP_ROWS: usize = 1 << 20;

/// A Parquet file that is being written.
pub(super) struct ParquetTable {
    writer: SerializedFileWriter<File>,
    with_source: bool,
    steps: Vec<ByteArray>,
    layers: Vec<i32>,
    experts: Vec<i32>,
    tokens: Vec<i64>,
    sources: Vec<ByteArray>,
}

fn parquet_io_error(error: ParquetError) -> io::Error {
    io::Error::other(error)
}

impl ParquetTable {
    pub(super) fn create(file: File, with_source: bool) -> io::Result<Self> {
        let source = if with_source { "required binary source (UTF8);" } else { "" };
        let schema = format!(
            "message trace {{ required binary step (UTF8); required int32 layer; required int32 expert; \
             required int64 tokens; {source} }}"
        );
        let schema = Arc::new(parse_message_type(&schema).map_err(parquet_io_error)?);
        let level = ZstdLevel::try_new(3).map_err(parquet_io_error)?;
        let properties =
            Arc::new(WriterProperties::builder().set_compression(Compression::ZSTD(level)).build());
        Ok(Self {
            writer: SerializedFileWriter::new(file, schema, properties).map_err(parquet_io_error)?,
            with_source,
            steps: Vec::new(),
            layers: Vec::new(),
            experts: Vec::new(),
            tokens: Vec::new(),
            sources: Vec::new(),
        })
    }

    fn flush_group(&mut self) -> Result<(), ParquetError> {
        if self.layers.is_empty() {
            return Ok(());
        }
        let mut group = self.writer.next_row_group()?;
        let mut at = 0;
        while let Some(mut column) = group.next_column()? {
            match (at, column.untyped()) {
                (0, ColumnWriter::ByteArrayColumnWriter(out)) => out.write_batch(&self.steps, None, None)?,
                (1, ColumnWriter::Int32ColumnWriter(out)) => out.write_batch(&self.layers, None, None)?,
                (2, ColumnWriter::Int32ColumnWriter(out)) => out.write_batch(&self.experts, None, None)?,
                (3, ColumnWriter::Int64ColumnWriter(out)) => out.write_batch(&self.tokens, None, None)?,
                (_, ColumnWriter::ByteArrayColumnWriter(out)) => {
                    out.write_batch(&self.sources, None, None)?
                }
                _ => return Err(ParquetError::General("columns out of order".into())),
            };
            column.close()?;
            at += 1;
        }
        group.close()?;
        self.steps.clear();
        self.layers.clear();
        self.experts.clear();
        self.tokens.clear();
        self.sources.clear();
        Ok(())
    }
}

impl TableWriter for ParquetTable {
    fn write_row(&mut self, row: &TableRow<'_>) -> io::Result<()> {
        let tokens = i64::try_from(row.tokens).map_err(|_| {
            io::Error::other(format!("{} tokens, more than Parquet's int64 holds", row.tokens))
        })?;
        // Rows of one step share its label.
        let step = match self.steps.last() {
            Some(last) if last.data() == row.step => last.clone(),
            _ => ByteArray::from(row.step.to_vec()),
        };
        self.steps.push(step);
        self.layers.push(row.layer.cast_signed());
        self.experts.push(row.expert.cast_signed());
        self.tokens.push(tokens);
        if self.with_source {
            self.sources.push(ByteArray::from(row.source.to_vec()));
        }
        if self.layers.len() == GROUP_ROWS {
            self.flush_group().map_err(parquet_io_error)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.flush_group().map_err(parquet_io_error)?;
        self.writer.close().map_err(parquet_io_error)?;
        Ok(())
    }
}
