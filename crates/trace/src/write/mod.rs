//! Writes traces as the long table, CSV or Parquet, row by row.
//!
//! In: a [`Trace`], or any trace files ([`convert`]), or whatever pours into a [`Writer`].
//! Out: one file, its kind told by the ending of its name. Nothing is held but the current
//! step, so a conversion needs no more memory for a larger file.

mod csv;
#[cfg(feature = "parquet")]
mod parquet;

use super::error::{Fault, io_at};
use super::options::{LayerSet, ReadOptions};
use super::sink::{Label, Sink};
use super::{Format, MAX_EXPERTS, MAX_LAYERS, Place, Progress, SourceFile, Trace, TraceError, open, plan};
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What [`convert`] did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Written {
    /// Format read.
    pub format: Format,
    /// Files read.
    pub files: Vec<SourceFile>,
    /// Rows written.
    pub rows: u64,
    /// What a user should know about how the files were understood.
    pub notices: Vec<String>,
}

/// Rewrites traces as one long table: `.csv`, `.csv.gz`, `.csv.zst` or `.parquet` by the name.
///
/// Labels of steps and sources are kept; where several traces would share a label, later ones
/// are numbered on. Rows stay in the order of the files, nothing is summed or thinned.
///
/// # Errors
/// As [`super::read`], and when `out` cannot be written or its ending is none of these. An
/// existing file is replaced only by a complete one.
pub fn convert(
    paths: &[PathBuf],
    options: &ReadOptions,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Written, TraceError> {
    // Look at the inputs first: a missing one shall not leave an empty output behind.
    plan::expand(paths)?;
    let mut writer = Writer::create(out, options)?;
    let (formats, files) = open::pour(paths, options, progress, &mut writer)?;
    let (rows, notices) = writer.finish()?;
    let format = formats.first().copied().unwrap_or(Format::Csv);
    Ok(Written { format, files, rows, notices })
}

/// Writes the steps a trace holds, as [`convert`] does.
///
/// # Errors
/// When `out` cannot be written or its ending is not known.
pub fn write(trace: &Trace, out: &Path) -> Result<(), TraceError> {
    let mut writer = Writer::create(out, &ReadOptions::default())?;
    let mut seen = HashSet::new();
    writer.begin();
    let fault = |fault: Fault| fault.at(out, Place::File);
    writer.experts(trace.experts()).map_err(fault)?;
    for (step, label) in trace.steps().iter().enumerate() {
        // A label that comes again belongs to another of the traces read one after the other.
        if !seen.insert(label) {
            writer.begin();
            seen.clear();
            seen.insert(label);
        }
        writer.step(Label::parse(label)).map_err(fault)?;
        for (layer, &id) in trace.layers().iter().enumerate() {
            writer.counts(id, trace.loads(step, layer)).map_err(fault)?;
        }
    }
    writer.finish()?;
    Ok(())
}

/// One row, as the files have it.
struct Row<'a> {
    step: &'a [u8],
    layer: u32,
    expert: u32,
    tokens: u64,
    source: &'a [u8],
}

/// A kind of file.
trait Table {
    /// Adds a row; the columns are settled by the first.
    fn row(&mut self, row: &Row<'_>) -> std::io::Result<()>;
    /// Writes whatever is left.
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}

/// A sink that writes rows through to a file.
pub(crate) struct Writer {
    out: PathBuf,
    /// Where the rows go until the file is complete.
    partial: PathBuf,
    table: Option<Box<dyn Table>>,
    kind: Kind,
    with_source: bool,
    rows: u64,
    filter: Option<LayerSet>,
    experts: Option<usize>,
    /// Layers whose every expert was written once, so that a reader can count them.
    complete: Vec<bool>,
    label: Vec<u8>,
    sources: u32,
    named: bool,
    /// Added to numeric labels of this source, so that none comes twice.
    shift: u64,
    next_shift: u64,
    /// Labels of earlier sources and of this one.
    texts: HashSet<Box<str>>,
    current_texts: HashSet<Box<str>>,
    notices: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Csv(csv::Packing),
    #[cfg(feature = "parquet")]
    Parquet,
}

impl Kind {
    fn create(self, file: File, with_source: bool) -> std::io::Result<Box<dyn Table>> {
        Ok(match self {
            Self::Csv(packing) => Box::new(csv::CsvTable::create(file, packing, with_source)?),
            #[cfg(feature = "parquet")]
            Self::Parquet => Box::new(parquet::ParquetTable::create(file, with_source)?),
        })
    }
}

impl Writer {
    pub(crate) fn create(out: &Path, options: &ReadOptions) -> Result<Self, TraceError> {
        let name = out.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let ends = |ending: &str| name.ends_with(ending);
        let kind = if ends(".csv") {
            Kind::Csv(csv::Packing::None)
        } else if ends(".csv.gz") {
            Kind::Csv(csv::Packing::Gzip)
        } else if ends(".csv.zst") {
            Kind::Csv(csv::Packing::Zstd)
        } else if ends(".parquet") {
            #[cfg(feature = "parquet")]
            {
                Kind::Parquet
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
            named: false,
            shift: 0,
            next_shift: 0,
            texts: HashSet::new(),
            current_texts: HashSet::new(),
            notices: Vec::new(),
        };
        // An unwritable place is better known before hours of reading.
        File::create(&writer.partial).map_err(io_at(&writer.out))?;
        if out.is_dir() {
            return Err(TraceError::Options(format!("{}: a folder is in the way", out.display())));
        }
        writer.named = false;
        Ok(writer)
    }

    fn put(&mut self, layer: u32, expert: u32, tokens: u64, source: &[u8]) -> Result<(), Fault> {
        let failed = |error| Fault::Write(Box::new(io_at(&self.out)(error)));
        if self.table.is_none() {
            let file = File::create(&self.partial).map_err(failed)?;
            self.table = Some(self.kind.create(file, self.with_source).map_err(failed)?);
        }
        let Some(table) = &mut self.table else { return Ok(()) };
        let row = Row { step: &self.label, layer, expert, tokens, source };
        table.row(&row).map_err(failed)?;
        self.rows += 1;
        Ok(())
    }

    fn skips(&self, layer: u32) -> Result<bool, Fault> {
        if layer as usize >= MAX_LAYERS {
            return Err(Fault::LayerLimit(u64::from(layer)));
        }
        Ok(self.filter.as_ref().is_some_and(|filter| !filter.contains(layer)))
    }

    fn check(&self, expert: u32) -> Result<(), Fault> {
        match self.experts {
            Some(experts) if expert as usize >= experts => {
                Err(Fault::ExpertRange { expert: u64::from(expert), experts })
            }
            _ if expert as usize >= MAX_EXPERTS => Err(Fault::ExpertLimit(u64::from(expert))),
            _ => Ok(()),
        }
    }

    /// Completes the file; rows and notices.
    pub(crate) fn finish(mut self) -> Result<(u64, Vec<String>), TraceError> {
        let Some(table) = self.table.take() else {
            return Err(TraceError::Options(format!(
                "{}: nothing to write, no row was left",
                self.out.display()
            )));
        };
        table.finish().map_err(io_at(&self.out))?;
        std::fs::rename(&self.partial, &self.out).map_err(io_at(&self.out))?;
        Ok((self.rows, std::mem::take(&mut self.notices)))
    }
}

impl Drop for Writer {
    /// An incomplete file is of no use.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.partial);
    }
}

impl Sink for Writer {
    fn has_source(&mut self) {
        if self.table.is_none() {
            self.with_source = true;
        } else if !self.with_source {
            self.notice("the first trace has no column source, those of later ones are left out".into());
        }
    }

    fn begin(&mut self) {
        if self.named {
            self.sources += 1;
            self.shift = self.next_shift;
            self.texts.extend(self.current_texts.drain());
        }
    }

    fn step(&mut self, label: Label<'_>) -> Result<(), Fault> {
        self.named = true;
        self.label.clear();
        match label {
            Label::Number(number) => {
                let number = number.checked_add(self.shift).ok_or(Fault::StepLimit)?;
                self.next_shift = self.next_shift.max(number.saturating_add(1));
                self.label.extend_from_slice(number.to_string().as_bytes());
            }
            Label::Text(text) => {
                self.label.extend_from_slice(text.as_bytes());
                if self.texts.contains(text) {
                    self.label.extend_from_slice(format!("#{}", self.sources + 1).as_bytes());
                }
                if !self.current_texts.contains(text) {
                    self.current_texts.insert(text.into());
                }
            }
        }
        Ok(())
    }

    fn row(&mut self, layer: u32, expert: u32, tokens: u64, source: &[u8]) -> Result<(), Fault> {
        if self.skips(layer)? {
            return Ok(());
        }
        self.check(expert)?;
        self.put(layer, expert, tokens, source)
    }

    /// Zeros are left out, but for the first time a layer comes and where a layer has nothing
    /// else: the shape of the trace must survive.
    fn counts(&mut self, layer: u32, counts: &[u64]) -> Result<(), Fault> {
        if counts.is_empty() || self.skips(layer)? {
            return Ok(());
        }
        let last = counts.len() - 1;
        self.check(last as u32)?;
        let all = !std::mem::replace(&mut self.complete[layer as usize], true);
        let empty = counts.iter().all(|&tokens| tokens == 0);
        for (expert, &tokens) in counts.iter().enumerate() {
            if tokens > 0 || all || (empty && expert == last) {
                self.put(layer, expert as u32, tokens, b"")?;
            }
        }
        Ok(())
    }

    fn experts(&mut self, experts: usize) -> Result<(), Fault> {
        match self.experts {
            Some(before) if before != experts => Err(Fault::ExpertsDiffer { found: experts, before }),
            _ => {
                self.experts = Some(experts);
                Ok(())
            }
        }
    }

    fn notice(&mut self, text: String) {
        if !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }
}
