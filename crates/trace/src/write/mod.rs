//! Writers of traces as the long table, CSV or Parquet, row by row.
//!
//! Input is a [`Trace`], any trace files ([`convert`]), or any rows pushed into a [`TraceWriter`]. Output is
//! one file, whose extension determines its format. Only the current step is held, so the memory of a
//! conversion does not depend on the size of the file.

mod csv;
#[cfg(feature = "parquet")]
mod parquet;

use super::{
    Location, MAX_EXPERTS, MAX_LAYERS, ReadProgress, SourceFile, Trace, TraceError, TraceFormat, folders,
    read,
};
use crate::{LayerSet, ReadOptions};
use evenkeel::trace::build::{MAX_LABEL_BYTES, Sink, StepLabel};
use evenkeel::trace::build::{SinkError, io_error_at};
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The result of [`convert`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConversionReport {
    /// The format of the input.
    pub format: TraceFormat,
    /// The input files.
    pub files: Vec<SourceFile>,
    /// The number of rows written.
    pub rows: u64,
    /// Notices for the user about the interpretation of the files.
    pub notices: Vec<String>,
}

/// Converts traces to one long table. The extension of `out` decides: `.csv`, `.csv.gz`, `.csv.zst` or
/// `.parquet`.
///
/// Labels of steps and sources are kept. If several traces share a label, the later ones get further numbers.
/// Rows stay in the order of the files; nothing is summed or left out.
///
/// The errors are those of [`read`](fn@super::read). It also fails if `out` cannot be written or has another
/// extension. An existing file is replaced only by a complete one.
///
/// # Errors
/// [`TraceError`], when an input cannot be read or `out` cannot be written.
pub fn convert(
    paths: &[PathBuf],
    options: &ReadOptions,
    out: &Path,
    progress: &dyn ReadProgress,
) -> Result<ConversionReport, TraceError> {
    // Check the inputs first, so that a missing one leaves no empty output behind.
    folders::expand_paths(paths)?;
    let mut writer = TraceWriter::create(out, options)?;
    let (formats, files) = read::read_into(paths, options, progress, &mut writer)?;
    let (rows, notices) = writer.finish()?;
    let format = formats.first().copied().unwrap_or(TraceFormat::Csv);
    Ok(ConversionReport { format, files, rows, notices })
}

/// Writes the steps of a trace, as [`convert`] does.
///
/// # Errors
/// Fails if `out` cannot be written or has an unknown extension.
pub fn write(trace: &Trace, out: &Path) -> Result<(), TraceError> {
    let mut writer = TraceWriter::create(out, &ReadOptions::default())?;
    let mut seen = HashSet::new();
    writer.begin_source();
    let fault = |fault: SinkError| fault.into_trace_error(out, Location::File);
    writer.declare_experts(trace.experts()).map_err(fault)?;
    for (step, label) in trace.steps().iter().enumerate() {
        // A repeated label belongs to the next one of several traces that were read one after the other.
        if !seen.insert(label) {
            writer.begin_source();
            seen.clear();
            seen.insert(label);
        }
        writer.select_step(StepLabel::parse(label)).map_err(fault)?;
        for (layer, &id) in trace.layers().iter().enumerate() {
            writer.add_counts(id, trace.loads(step, layer)).map_err(fault)?;
        }
    }
    writer.finish()?;
    Ok(())
}

/// One row of the file.
struct TableRow<'a> {
    step: &'a [u8],
    layer: u32,
    expert: u32,
    tokens: u64,
    source: &'a [u8],
}

/// A file format.
trait TableWriter {
    /// Adds a row. The first one determines the columns.
    fn write_row(&mut self, row: &TableRow<'_>) -> std::io::Result<()>;
    /// Writes the remaining rows.
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}

/// A sink that writes rows to a file.
pub(crate) struct TraceWriter {
    out: PathBuf,
    /// The path of the rows until the file is complete.
    partial: PathBuf,
    table: Option<Box<dyn TableWriter>>,
    kind: TableFormat,
    with_source: bool,
    rows: u64,
    filter: Option<LayerSet>,
    experts: Option<usize>,
    /// Layers of which every expert was written once, so that a reader can count the experts.
    complete: Vec<bool>,
    label: Vec<u8>,
    sources: u32,
    has_steps: bool,
    /// The number added to numeric labels of this source, so that labels are unique.
    label_shift: u64,
    next_shift: u64,
    /// The labels of earlier sources; `current_texts` has those of this one.
    earlier_texts: HashSet<Box<str>>,
    current_texts: HashSet<Box<str>>,
    notices: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum TableFormat {
    Csv(csv::CsvCompression),
    #[cfg(feature = "parquet")]
    Parquet,
}

impl TableFormat {
    fn create_table(self, file: File, with_source: bool) -> std::io::Result<Box<dyn TableWriter>> {
        Ok(match self {
            Self::Csv(packing) => Box::new(csv::CsvTable::create(file, packing, with_source)?),
            #[cfg(feature = "parquet")]
            Self::Parquet => Box::new(parquet::ParquetTable::create(file, with_source)?),
        })
    }
}

impl TraceWriter {
    pub(crate) fn create(out: &Path, options: &ReadOptions) -> Result<Self, TraceError> {
        let name = out.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let ends = |ending: &str| name.ends_with(ending);
        let kind = if ends(".csv") {
            TableFormat::Csv(csv::CsvCompression::None)
        } else if ends(".csv.gz") {
            TableFormat::Csv(csv::CsvCompression::Gzip)
        } else if ends(".csv.zst") {
            TableFormat::Csv(csv::CsvCompression::Zstd)
        } else if ends(".parquet") {
            #[cfg(feature = "parquet")]
            {
                TableFormat::Parquet
            }
            #[cfg(not(feature = "parquet"))]
            return Err(TraceError::Options("this build is without the feature parquet".into()));
        } else {
            return Err(TraceError::Options(format!(
                "{}: expected a name that ends in .csv, .csv.gz, .csv.zst or .parquet",
                out.display()
            )));
        };
        let mut partial = out.as_os_str().to_owned();
        partial.push(".partial");
        let mut writer = Self {
            out: out.to_path_buf(),
            partial: PathBuf::from(partial),
            table: None,
            kind,
            with_source: false,
            rows: 0,
            filter: options.layers.clone(),
            experts: options.experts,
            complete: vec![false; MAX_LAYERS],
            label: Vec::new(),
            sources: 0,
            has_steps: false,
            label_shift: 0,
            next_shift: 0,
            earlier_texts: HashSet::new(),
            current_texts: HashSet::new(),
            notices: Vec::new(),
        };
        // Detect an unwritable path before hours of reading.
        File::create(&writer.partial).map_err(io_error_at(&writer.out))?;
        if out.is_dir() {
            return Err(TraceError::Options(format!("{}: found a folder, expected a file", out.display())));
        }
        writer.has_steps = false;
        Ok(writer)
    }

    fn write_row(&mut self, layer: u32, expert: u32, tokens: u64, source: &[u8]) -> Result<(), SinkError> {
        let failed = |error| SinkError::Write(Box::new(io_error_at(&self.out)(error)));
        if self.table.is_none() {
            let file = File::create(&self.partial).map_err(failed)?;
            self.table = Some(self.kind.create_table(file, self.with_source).map_err(failed)?);
        }
        let Some(table) = &mut self.table else { return Ok(()) };
        let row = TableRow { step: &self.label, layer, expert, tokens, source };
        table.write_row(&row).map_err(failed)?;
        self.rows += 1;
        Ok(())
    }

    fn skips_layer(&self, layer: u32) -> Result<bool, SinkError> {
        if layer as usize >= MAX_LAYERS {
            return Err(SinkError::LayerLimit(u64::from(layer)));
        }
        Ok(self.filter.as_ref().is_some_and(|filter| !filter.contains(layer)))
    }

    fn check_expert(&self, expert: u32) -> Result<(), SinkError> {
        match self.experts {
            Some(experts) if expert as usize >= experts => {
                Err(SinkError::ExpertRange { expert: u64::from(expert), experts })
            }
            _ if expert as usize >= MAX_EXPERTS => Err(SinkError::ExpertLimit(u64::from(expert))),
            _ => Ok(()),
        }
    }

    /// Completes the file. Returns the number of rows and the notices.
    pub(crate) fn finish(mut self) -> Result<(u64, Vec<String>), TraceError> {
        let Some(table) = self.table.take() else {
            return Err(TraceError::Options(format!(
                "{}: nothing to write, the input has no matching rows",
                self.out.display()
            )));
        };
        table.finish().map_err(io_error_at(&self.out))?;
        std::fs::rename(&self.partial, &self.out).map_err(io_error_at(&self.out))?;
        Ok((self.rows, std::mem::take(&mut self.notices)))
    }
}

impl Drop for TraceWriter {
    /// Removes an incomplete file.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.partial);
    }
}

impl Sink for TraceWriter {
    fn announce_sources(&mut self) {
        if self.table.is_none() {
            self.with_source = true;
        } else if !self.with_source {
            self.add_notice(
                "the first trace has no column source, so the columns source of later traces are ignored"
                    .into(),
            );
        }
    }

    fn begin_source(&mut self) {
        if self.has_steps {
            self.sources += 1;
            self.label_shift = self.next_shift;
            self.earlier_texts.extend(self.current_texts.drain());
        }
    }

    fn select_step(&mut self, label: StepLabel<'_>) -> Result<(), SinkError> {
        self.has_steps = true;
        self.label.clear();
        match label {
            StepLabel::Number(number) => {
                let number = number.checked_add(self.label_shift).ok_or(SinkError::StepLimit)?;
                self.next_shift = self.next_shift.max(number.saturating_add(1));
                self.label.extend_from_slice(number.to_string().as_bytes());
            }
            StepLabel::Text(text) => {
                self.label.extend_from_slice(text.as_bytes());
                if self.earlier_texts.contains(text) {
                    self.label.extend_from_slice(format!("#{}", self.sources + 1).as_bytes());
                }
                if !self.current_texts.contains(text) {
                    self.current_texts.insert(text.into());
                }
            }
        }
        if self.label.len() > MAX_LABEL_BYTES {
            return Err(SinkError::Write(Box::new(TraceError::Options(format!(
                "{}: a step label of {} bytes, expected at most {MAX_LABEL_BYTES}",
                self.out.display(),
                self.label.len()
            )))));
        }
        Ok(())
    }

    fn add_row(&mut self, layer: u32, expert: u32, tokens: u64, source: &[u8]) -> Result<(), SinkError> {
        if self.skips_layer(layer)? {
            return Ok(());
        }
        self.check_expert(expert)?;
        self.write_row(layer, expert, tokens, source)
    }

    /// Leaves zeros out, with two exceptions: the first occurrence of a layer, and a layer that is all zeros.
    /// They preserve the shape of the trace.
    fn add_counts(&mut self, layer: u32, counts: &[u64]) -> Result<(), SinkError> {
        if counts.is_empty() || self.skips_layer(layer)? {
            return Ok(());
        }
        let last = counts.len() - 1;
        self.check_expert(last as u32)?;
        let all = !std::mem::replace(&mut self.complete[layer as usize], true);
        let empty = counts.iter().all(|&tokens| tokens == 0);
        for (expert, &tokens) in counts.iter().enumerate() {
            if tokens > 0 || all || (empty && expert == last) {
                self.write_row(layer, expert as u32, tokens, b"")?;
            }
        }
        Ok(())
    }

    fn declare_experts(&mut self, experts: usize) -> Result<(), SinkError> {
        match self.experts {
            Some(before) if before != experts => Err(SinkError::ExpertsDiffer { found: experts, before }),
            _ => {
                self.experts = Some(experts);
                Ok(())
            }
        }
    }

    fn add_notice(&mut self, text: String) {
        if !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }
}
