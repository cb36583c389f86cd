//! The long table as Parquet, zstd-packed.
//!
//! In: rows. Out: columns `step` (string), `layer`, `expert` (int32), `tokens` (int64) and, where
//! there is one, `source` (string), in row groups of a million rows.

use super::{Row, Table};
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

/// Rows of a row group.
const GROUP: usize = 1 << 20;

/// A Parquet file in the making.
pub(super) struct ParquetTable {
    writer: SerializedFileWriter<File>,
    with_source: bool,
    steps: Vec<ByteArray>,
    layers: Vec<i32>,
    experts: Vec<i32>,
    tokens: Vec<i64>,
    sources: Vec<ByteArray>,
}

fn other(error: ParquetError) -> io::Error {
    io::Error::other(error)
}

impl ParquetTable {
    pub(super) fn create(file: File, with_source: bool) -> io::Result<Self> {
        let source = if with_source { "required binary source (UTF8);" } else { "" };
        let schema = format!(
            "message trace {{ required binary step (UTF8); required int32 layer; required int32 expert; \
             required int64 tokens; {source} }}"
        );
        let schema = Arc::new(parse_message_type(&schema).map_err(other)?);
        let level = ZstdLevel::try_new(3).map_err(other)?;
        let properties =
            Arc::new(WriterProperties::builder().set_compression(Compression::ZSTD(level)).build());
        Ok(Self {
            writer: SerializedFileWriter::new(file, schema, properties).map_err(other)?,
            with_source,
            steps: Vec::new(),
            layers: Vec::new(),
            experts: Vec::new(),
            tokens: Vec::new(),
            sources: Vec::new(),
        })
    }

    fn flush(&mut self) -> Result<(), ParquetError> {
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

impl Table for ParquetTable {
    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        let tokens = i64::try_from(row.tokens).map_err(|_| {
            io::Error::other(format!("{} tokens, more than Parquet's int64 holds", row.tokens))
        })?;
        // Rows of a step share its label.
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
        if self.layers.len() == GROUP {
            self.flush().map_err(other)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.flush().map_err(other)?;
        self.writer.close().map_err(other)?;
        Ok(())
    }
}
