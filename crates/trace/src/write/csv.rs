//! The long table as CSV, plain or packed.
//!
//! In: rows. Out: `step,layer,expert,tokens[,source]`. Numbers are written by hand and cells
//! quoted only where CSV asks for it (RFC 4180).

use super::{Row, Table};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// Bytes gathered before they go on.
const BUFFER: usize = 256 << 10;

/// How the file is packed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
}

enum Out {
    Plain(BufWriter<File>),
    Gzip(GzEncoder<BufWriter<File>>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
}

impl Out {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Gzip(out) => out.write_all(bytes),
            Self::Zstd(out) => out.write_all(bytes),
        }
    }
}

/// A CSV file in the making.
pub(super) struct CsvTable {
    out: Out,
    buffer: Vec<u8>,
    with_source: bool,
    /// The last step and its cell, quoted where needed.
    step: Vec<u8>,
    cell: Vec<u8>,
}

impl CsvTable {
    pub(super) fn create(file: File, packing: Packing, with_source: bool) -> io::Result<Self> {
        let file = BufWriter::with_capacity(BUFFER, file);
        let out = match packing {
            Packing::None => Out::Plain(file),
            Packing::Gzip => Out::Gzip(GzEncoder::new(file, Compression::default())),
            Packing::Zstd => Out::Zstd(zstd::Encoder::new(file, 3)?),
        };
        let mut buffer = Vec::with_capacity(BUFFER + 1024);
        buffer.extend_from_slice(b"step,layer,expert,tokens");
        buffer.extend_from_slice(if with_source { b",source\n" } else { b"\n" });
        Ok(Self { out, buffer, with_source, step: Vec::new(), cell: Vec::new() })
    }
}

impl Table for CsvTable {
    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        if self.cell.is_empty() || self.step != row.step {
            self.step.clear();
            self.step.extend_from_slice(row.step);
            self.cell.clear();
            quoted(&mut self.cell, row.step);
            self.cell.push(b',');
        }
        let out = &mut self.buffer;
        out.extend_from_slice(&self.cell);
        number(out, u64::from(row.layer));
        out.push(b',');
        number(out, u64::from(row.expert));
        out.push(b',');
        number(out, row.tokens);
        if self.with_source {
            out.push(b',');
            quoted(out, row.source);
        }
        out.push(b'\n');
        if out.len() >= BUFFER {
            self.out.put(out)?;
            out.clear();
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.out.put(&self.buffer)?;
        let mut file = match self.out {
            Out::Plain(out) => out,
            Out::Gzip(out) => out.finish()?,
            Out::Zstd(out) => out.finish()?,
        };
        file.flush()
    }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
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

fn quoted(out: &mut Vec<u8>, cell: &[u8]) {
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
