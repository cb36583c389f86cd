//! The long table as CSV, plain or compressed.
//!
//! Input is rows. Output is `step,layer,expert,tokens[,source]`. Numbers are formatted directly, and cells
//! are quoted only if CSV requires it (RFC 4180).

use super::{TableRow, TableWriter};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// The number of bytes that are gathered before a write.
const BUFFER_BYTES: usize = 256 << 10;

/// The compression of the file.
#[derive(Debug, Clone, Copy)]
pub(super) enum CsvCompression {
    None,
    Gzip,
    Zstd,
}

enum CsvOutput {
    Plain(BufWriter<File>),
    Gzip(GzEncoder<BufWriter<File>>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
}

impl CsvOutput {
    fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Gzip(out) => out.write_all(bytes),
            Self::Zstd(out) => out.write_all(bytes),
        }
    }
}

/// A CSV file that is being written.
pub(super) struct CsvTable {
    out: CsvOutput,
    buffer: Vec<u8>,
    with_source: bool,
    /// The last step; `cell` has its quoted form.
    step: Vec<u8>,
    cell: Vec<u8>,
}

impl CsvTable {
    pub(super) fn create(file: File, packing: CsvCompression, with_source: bool) -> io::Result<Self> {
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let out = match packing {
            CsvCompression::None => CsvOutput::Plain(file),
            CsvCompression::Gzip => CsvOutput::Gzip(GzEncoder::new(file, Compression::default())),
            CsvCompression::Zstd => CsvOutput::Zstd(zstd::Encoder::new(file, 3)?),
        };
        let mut buffer = Vec::with_capacity(BUFFER_BYTES + 1024);
        buffer.extend_from_slice(b"step,layer,expert,tokens");
        buffer.extend_from_slice(if with_source { b",source\n" } else { b"\n" });
        Ok(Self { out, buffer, with_source, step: Vec::new(), cell: Vec::new() })
    }
}

impl TableWriter for CsvTable {
    fn write_row(&mut self, row: &TableRow<'_>) -> io::Result<()> {
        if self.cell.is_empty() || self.step != row.step {
            self.step.clear();
            self.step.extend_from_slice(row.step);
            self.cell.clear();
            write_quoted(&mut self.cell, row.step);
            self.cell.push(b',');
        }
        let out = &mut self.buffer;
        out.extend_from_slice(&self.cell);
        write_number(out, u64::from(row.layer));
        out.push(b',');
        write_number(out, u64::from(row.expert));
        out.push(b',');
        write_number(out, row.tokens);
        if self.with_source {
            out.push(b',');
            write_quoted(out, row.source);
        }
        out.push(b'\n');
        if out.len() >= BUFFER_BYTES {
            self.out.write_bytes(out)?;
            out.clear();
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.out.write_bytes(&self.buffer)?;
        let mut file = match self.out {
            CsvOutput::Plain(out) => out,
            CsvOutput::Gzip(out) => out.finish()?,
            CsvOutput::Zstd(out) => out.finish()?,
        };
        file.flush()
    }
}

fn write_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn write_quoted(out: &mut Vec<u8>, cell: &[u8]) {
    if !cell.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) {
        out.extend_from_slice(cell);
        return;
    }
    out.push(b'"');
    for &byte in cell {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}
