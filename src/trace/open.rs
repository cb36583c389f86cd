//! From the paths on a command line to a trace.
//!
//! In: files and folders, [`ReadOptions`]. Out: a [`Trace`]. Recognises formats by content,
//! sorts out what lies in a folder and hands each source to its reader.

use super::builder::Builder;
use super::error::io_at;
use super::input::{Input, Tally};
use super::sink::Sink;
use super::{Format, Progress, ReadOptions, SourceFile, Trace, TraceError, long_csv};
use std::path::{Path, PathBuf};

/// Reads one or several traces; the steps of the second follow those of the first.
///
/// # Errors
/// [`TraceError`], naming file and place, when a file cannot be read or understood.
pub fn read(paths: &[PathBuf], options: &ReadOptions, progress: &dyn Progress) -> Result<Trace, TraceError> {
    let mut builder = Builder::new(options)?;
    let (format, files) = pour(paths, options, progress, &mut builder)?;
    builder.finish(format, files)
}

/// Reads the bytes of a single file.
///
/// # Errors
/// As [`read`].
#[doc(hidden)]
pub fn read_bytes(format: Format, bytes: &[u8], options: &ReadOptions) -> Result<Trace, TraceError> {
    let tally = Tally::new(&(), bytes.len() as u64);
    let input = Input::bytes(Path::new("input"), bytes, &tally);
    let mut builder = Builder::new(options)?;
    file(format, &input, options, &mut builder)?;
    let source = input.source()?;
    builder.finish(format, vec![source])
}

/// Pours all paths into a sink.
pub(crate) fn pour(
    paths: &[PathBuf],
    options: &ReadOptions,
    progress: &dyn Progress,
    sink: &mut dyn Sink,
) -> Result<(Format, Vec<SourceFile>), TraceError> {
    if paths.is_empty() {
        return Err(TraceError::Options("no trace given, expected a file or folder".into()));
    }
    let mut total = 0;
    for path in paths {
        total += std::fs::metadata(path).map_err(io_at(path))?.len();
    }
    let tally = Tally::new(progress, total);
    let mut files = Vec::new();
    for path in paths {
        let input = Input::file(path, &tally);
        file(Format::Csv, &input, options, sink)?;
        files.push(input.source()?);
    }
    Ok((Format::Csv, files))
}

fn file(
    format: Format,
    input: &Input<'_>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let _ = format;
    long_csv::read(input, options, sink)
}
