//! The long table as Parquet.
//!
//! In: a file with columns `layer`, `expert`, `tokens` and, where there, `step` and `source`;
//! 32 or 64 bit integers, step and source also as strings. Out: rows into a [`Sink`]. Read
//! column by column through the low-level interface, a few thousand rows at a time, after
//! [`sound`] has seen to it that the file keeps to its own bounds.

mod layout;
mod lengths;
mod sound;
mod thrift;

use super::TraceError;
use super::error::{Fault, Place, invalid, quote};
use super::input::{Input, Raw};
use super::long_csv::single_step;
use super::options::ReadOptions;
use super::sink::{Label, Sink};
use parquet::basic::{ConvertedType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Rows read at a time.
const BATCH: usize = 8192;

/// Reads one file as one source.
pub(crate) fn read(input: &Input<'_>, options: &ReadOptions, sink: &mut dyn Sink) -> Result<(), TraceError> {
    // The Parquet crate checks most of what a file claims, but not all: a claim it trusts may
    // end in a panic, which is a malformed file to us.
    catch_unwind(AssertUnwindSafe(|| read_inner(input, options, sink))).unwrap_or_else(|_| {
        Err(invalid(&input.path, Place::File, "contradictory metadata", "a Parquet file"))
    })
}

fn read_inner(input: &Input<'_>, options: &ReadOptions, sink: &mut dyn Sink) -> Result<(), TraceError> {
    let path = input.path.as_path();
    let mut source = sound::Source { bytes: input.seekable()?, size: input.size()?, path };
    sound::footer(&mut source)?;
    let file: Box<dyn FileReader> = match input.raw()? {
        Raw::File(file) => Box::new(SerializedFileReader::new(file).map_err(|error| broken(path, &error))?),
        Raw::Bytes(bytes) => {
            let bytes = bytes::Bytes::copy_from_slice(bytes);
            Box::new(SerializedFileReader::new(bytes).map_err(|error| broken(path, &error))?)
        }
    };
    let columns = Columns::find(&*file, path, options)?;
    sound::columns(&mut source, file.metadata(), &columns.used())?;
    if !columns.extra.is_empty() {
        sink.notice(format!("{}: columns ignored: {}", path.display(), columns.extra.join(", ")));
    }
    if columns.source.is_some() {
        sink.has_source();
    }
    sink.begin();
    if columns.step.is_none() {
        sink.step(Label::Text(&single_step(input))).map_err(|fault| fault.at(path, Place::File))?;
        sink.notice(format!("{}: no step column, the file is one step", path.display()));
    }
    let as_text = options.step_column.as_deref().is_some_and(|name| name != "step");
    let mut row = 0;
    for group in 0..file.metadata().num_row_groups() {
        let group = file.get_row_group(group).map_err(|error| broken(path, &error))?;
        rows(&*group, &columns, path, as_text, &mut row, sink)?;
    }
    Ok(())
}

fn broken(path: &Path, error: &ParquetError) -> TraceError {
    invalid(path, Place::File, quote(error.to_string().as_bytes()), "a readable Parquet file")
}

/// Positions of the columns in use.
struct Columns {
    step: Option<usize>,
    layer: usize,
    expert: usize,
    tokens: usize,
    source: Option<usize>,
    step_name: String,
    extra: Vec<String>,
}

impl Columns {
    fn find(file: &dyn FileReader, path: &Path, options: &ReadOptions) -> Result<Self, TraceError> {
        let schema = file.metadata().file_metadata().schema_descr();
        let names: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let find = |name: &str| names.iter().position(|column| column == name);
        let need = |name: &str| {
            find(name).ok_or_else(|| {
                invalid(
                    path,
                    Place::File,
                    format!("columns {}", quote(names.join(",").as_bytes())),
                    format!("a column {name}"),
                )
            })
        };
        let step_name = options.step_column.clone().unwrap_or_else(|| "step".into());
        let step = if options.step_column.is_some() { Some(need(&step_name)?) } else { find(&step_name) };
        let found = Self {
            step,
            layer: need("layer")?,
            expert: need("expert")?,
            tokens: need("tokens")?,
            source: find("source"),
            step_name,
            extra: Vec::new(),
        };
        let used = found.used();
        for &at in &used {
            let column = schema.column(at);
            let text = Some(at) == found.step || Some(at) == found.source;
            let fits = match column.physical_type() {
                Type::INT32 | Type::INT64 => true,
                Type::BYTE_ARRAY => text,
                _ => false,
            };
            if !fits || column.max_rep_level() > 0 || column.max_def_level() > 1 {
                return Err(invalid(
                    path,
                    Place::Key(format!("column {}", names[at])),
                    format!("type {}", column.physical_type()),
                    if text { "a flat column of integers or strings" } else { "a flat column of integers" },
                ));
            }
        }
        let extra = (0..names.len()).filter(|at| !used.contains(at)).map(|at| names[at].clone()).collect();
        Ok(Self { extra, ..found })
    }

    fn used(&self) -> Vec<usize> {
        let used = [self.step, Some(self.layer), Some(self.expert), Some(self.tokens), self.source];
        used.into_iter().flatten().collect()
    }
}

/// One column of a row group and the rows of it in hand.
struct Cells {
    name: String,
    unsigned: bool,
    data: Data,
}

enum Data {
    I32(Box<ColumnReaderImpl<Int32Type>>, Vec<i32>),
    I64(Box<ColumnReaderImpl<Int64Type>>, Vec<i64>),
    Text(Box<ColumnReaderImpl<ByteArrayType>>, Vec<ByteArray>),
}

impl Cells {
    fn open(group: &dyn RowGroupReader, at: usize, path: &Path) -> Result<Self, TraceError> {
        let column = group.metadata().column(at).column_descr();
        let name = column.path().string();
        let unsigned = matches!(
            column.converted_type(),
            ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64
        );
        let descr = group.metadata().schema_descr().column(at);
        let mut pages = group.get_column_page_reader(at).map_err(|error| broken(path, &error))?;
        if descr.physical_type() == Type::BYTE_ARRAY {
            pages = Box::new(lengths::Checked { pages, nullable: descr.max_def_level() > 0 });
        }
        let data = match get_column_reader(descr, pages) {
            ColumnReader::Int32ColumnReader(reader) => Data::I32(Box::new(reader), Vec::new()),
            ColumnReader::Int64ColumnReader(reader) => Data::I64(Box::new(reader), Vec::new()),
            ColumnReader::ByteArrayColumnReader(reader) => Data::Text(Box::new(reader), Vec::new()),
            _ => {
                return Err(invalid(
                    path,
                    Place::Key(format!("column {name}")),
                    "another type than the schema says",
                    "integers or strings",
                ));
            }
        };
        Ok(Self { name, unsigned, data })
    }

    /// The next rows; how many.
    fn fill(&mut self, path: &Path, row: u64) -> Result<usize, TraceError> {
        let counts = match &mut self.data {
            Data::I32(reader, values) => fill(reader, values),
            Data::I64(reader, values) => fill(reader, values),
            Data::Text(reader, values) => fill(reader, values),
        };
        let (records, values) = counts.map_err(|error| broken(path, &error))?;
        if records != values {
            let place = Place::Cell { line: row + 1, column: self.name.clone() };
            return Err(invalid(
                path,
                place,
                "an empty cell (null) in or after this row",
                "a value in every row",
            ));
        }
        Ok(records)
    }

    fn number(&self, at: usize) -> Option<u64> {
        match &self.data {
            Data::I32(_, values) if self.unsigned => Some(u64::from(values[at] as u32)),
            Data::I32(_, values) => u64::try_from(values[at]).ok(),
            Data::I64(_, values) if self.unsigned => Some(values[at] as u64),
            Data::I64(_, values) => u64::try_from(values[at]).ok(),
            Data::Text(..) => None,
        }
    }

    fn found(&self, at: usize) -> String {
        match &self.data {
            Data::I32(_, values) => values[at].to_string(),
            Data::I64(_, values) => values[at].to_string(),
            Data::Text(_, values) => quote(values[at].data()),
        }
    }

    /// The cell as text, numbers written out.
    fn text(&self, at: usize, out: &mut Vec<u8>) {
        out.clear();
        match (&self.data, self.number(at)) {
            (Data::Text(_, values), _) => out.extend_from_slice(values[at].data()),
            (_, Some(number)) => out.extend_from_slice(number.to_string().as_bytes()),
            (_, None) => out.extend_from_slice(self.found(at).as_bytes()),
        }
    }
}

fn fill<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    values: &mut Vec<T::T>,
) -> Result<(usize, usize), ParquetError> {
    values.clear();
    let mut levels = Vec::new();
    let (mut records, mut count) = (0, 0);
    // A call may stop at a page; go on until the batch is full or the column ends.
    while records < BATCH {
        let (more, found, _) = reader.read_records(BATCH - records, Some(&mut levels), None, values)?;
        if more == 0 {
            break;
        }
        records += more;
        count += found;
    }
    Ok((records, count))
}

fn rows(
    group: &dyn RowGroupReader,
    columns: &Columns,
    path: &Path,
    as_text: bool,
    row: &mut u64,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let mut layer = Cells::open(group, columns.layer, path)?;
    let mut expert = Cells::open(group, columns.expert, path)?;
    let mut tokens = Cells::open(group, columns.tokens, path)?;
    let mut step = columns.step.map(|at| Cells::open(group, at, path)).transpose()?;
    let mut source = columns.source.map(|at| Cells::open(group, at, path)).transpose()?;
    let (mut label, mut last, mut from) = (Vec::new(), None::<Vec<u8>>, Vec::new());
    loop {
        let count = layer.fill(path, *row)?;
        for cells in
            [Some(&mut expert), Some(&mut tokens), step.as_mut(), source.as_mut()].into_iter().flatten()
        {
            let other = cells.fill(path, *row)?;
            if other != count {
                return Err(invalid(
                    path,
                    Place::Key(format!("column {}", cells.name)),
                    format!("{} rows", *row + other as u64),
                    format!("{} rows, as in column layer", *row + count as u64),
                ));
            }
        }
        if count == 0 {
            return Ok(());
        }
        for at in 0..count {
            let cell = |name: &str| Place::Cell { line: *row + at as u64 + 1, column: name.to_owned() };
            if let Some(step) = &step {
                step.text(at, &mut label);
                if last.as_deref() != Some(&label) {
                    let Ok(text) = std::str::from_utf8(&label) else {
                        return Err(invalid(
                            path,
                            cell(&columns.step_name),
                            quote(&label),
                            "a label in UTF-8",
                        ));
                    };
                    sink.step(if as_text { Label::Text(text) } else { Label::parse(text) })
                        .map_err(|fault| fault.at(path, cell(&columns.step_name)))?;
                    last = Some(label.clone());
                }
            }
            let number = |cells: &Cells| {
                cells
                    .number(at)
                    .ok_or_else(|| invalid(path, cell(&cells.name), cells.found(at), "a whole number from 0"))
            };
            let (l, e, t) = (number(&layer)?, number(&expert)?, number(&tokens)?);
            if let Some(source) = &source {
                source.text(at, &mut from);
            }
            let result = match (u32::try_from(l), u32::try_from(e)) {
                (Err(_), _) => Err(Fault::LayerLimit(l)),
                (_, Err(_)) => Err(Fault::ExpertLimit(e)),
                (Ok(l), Ok(e)) => sink.row(l, e, t, &from),
            };
            result.map_err(|fault| {
                let name = match fault {
                    Fault::LayerLimit(_) => "layer",
                    Fault::Overflow => "tokens",
                    _ => "expert",
                };
                fault.at(path, cell(name))
            })?;
        }
        *row += count as u64;
    }
}
