//! The path from the arguments of a command line to a trace.
//!
//! Input is files and folders with [`ReadOptions`]. Output is a [`Trace`]. Each job of [`super::discover`]
//! goes to the reader of its format.

use super::discover::{self, InputSet};
use super::folders;
use super::input::{InputFile, ProgressCounter};
use super::partition::FolderColumns;
use super::{
    Location, ReadOptions, ReadProgress, SourceFile, Trace, TraceError, TraceFormat, arrays, batches, json,
    long_csv, requests, sglang, sglang_csv, trtllm, vllm,
};
use evenkeel::trace::build::Sink;
use evenkeel::trace::build::TraceBuilder;
use evenkeel::trace::build::invalid_content;
use std::path::{Path, PathBuf};

/// Reads one or several traces. The steps of the second follow those of the first.
///
/// # Errors
/// [`TraceError`] names the file and the place that cannot be read or understood.
pub fn read(
    paths: &[PathBuf],
    options: &ReadOptions,
    progress: &dyn ReadProgress,
) -> Result<Trace, TraceError> {
    let mut builder = TraceBuilder::new(options)?;
    let (formats, files) = read_into(paths, options, progress, &mut builder)?;
    builder.finish(formats, files)
}

/// Reads the bytes of a single file. For [`TraceFormat::TrtLlm`] they are the file of one rank.
///
/// # Errors
/// The errors are those of [`read`].
#[doc(hidden)]
pub fn read_bytes(format: TraceFormat, bytes: &[u8], options: &ReadOptions) -> Result<Trace, TraceError> {
    let tally = ProgressCounter::new(&(), bytes.len() as u64, options.memory);
    let input = InputFile::from_bytes(Path::new("input"), bytes, &tally);
    let mut builder = TraceBuilder::new(options)?;
    let source = input.source_file()?;
    match format {
        TraceFormat::TrtLlm => {
            builder.begin_source();
            trtllm::read_rank(&input, None, options, &mut builder)?;
        }
        TraceFormat::Npy | TraceFormat::Npz => {
            read_set(&InputSet::Arrays(vec![(format, input)], None), options, &mut builder)?;
        }
        TraceFormat::Csv | TraceFormat::Parquet => {
            read_set(
                &InputSet::Table(format, vec![(input, FolderColumns::default())]),
                options,
                &mut builder,
            )?;
        }
        _ => read_set(&InputSet::File(format, input), options, &mut builder)?,
    }
    builder.finish(vec![format], vec![source])
}

/// Reads all paths into a sink. Returns the distinct formats in order of appearance, and the files.
pub(crate) fn read_into(
    paths: &[PathBuf],
    options: &ReadOptions,
    progress: &dyn ReadProgress,
    sink: &mut dyn Sink,
) -> Result<(Vec<TraceFormat>, Vec<SourceFile>), TraceError> {
    let (groups, total) = folders::expand_paths(paths)?;
    let tally = ProgressCounter::new(progress, total, options.memory);
    let mut files = Vec::new();
    let mut formats = Vec::new();
    for at in 0..groups.len() {
        let group = &groups[at];
        let mut ignored = Vec::new();
        let jobs = discover::group_files(group, options, &tally, sink, &mut ignored)?;
        let before = files.len();
        for job in jobs {
            read_set(&job, options, sink)?;
            let (format, inputs) = job.format_and_inputs();
            if !formats.contains(&format) {
                formats.push(format);
            }
            // The digests exist only after reading.
            for input in inputs {
                files.push(input.source_file()?);
            }
        }
        if files.len() > before {
            continue;
        }
        // One folder of a path may hold no trace if another folder of the path does.
        let others = groups.iter().filter(|other| other.path == group.path).count() > 1;
        let found =
            if ignored.is_empty() { "no files".into() } else { format!("only {}", ignored.join(", ")) };
        if !others {
            return Err(TraceError::UnknownFormat { path: group.folder.clone(), found });
        }
        if !ignored.is_empty() {
            sink.add_notice(format!("{}: no trace, {found}", group.folder.display()));
        }
    }
    if let (true, Some(first)) = (files.is_empty(), paths.first()) {
        return Err(TraceError::UnknownFormat {
            path: first.clone(),
            found: "no trace in it or in the folders below".into(),
        });
    }
    Ok((formats, files))
}

fn read_set(job: &InputSet<'_>, options: &ReadOptions, sink: &mut dyn Sink) -> Result<(), TraceError> {
    match job {
        InputSet::File(format, input) => read_file(*format, input, options, sink),
        InputSet::Table(format, parts) => {
            sink.begin_source();
            let mut steps = None;
            for (input, given) in parts {
                let has = read_table(*format, input, options, given, sink)?;
                let &mut (before, first) = steps.get_or_insert((has, &input.path));
                if before != has {
                    return Err(long_csv::uneven_steps_error(&input.path, first, has));
                }
            }
            Ok(())
        }
        InputSet::Ranks(format, run, inputs) => {
            sink.begin_source();
            let label = Path::new(run).file_name().map(|name| name.to_string_lossy().into_owned());
            for input in inputs {
                match format {
                    TraceFormat::SglangCsv => sglang_csv::read(input, label.as_deref(), sink)?,
                    _ => sglang::read(input, options, sink)?,
                }
            }
            if inputs.len() > 1 {
                sink.add_notice(format!("{run}: {} ranks added up", inputs.len()));
            }
            Ok(())
        }
        InputSet::TrtLlm(meta, ranks) => {
            sink.begin_source();
            let experts = trtllm::read_meta(meta, sink)?;
            for input in ranks {
                trtllm::read_rank(input, Some(experts), options, sink)?;
            }
            if ranks.len() > 1 {
                sink.add_notice(format!("{} ranks added up", ranks.len()));
            }
            Ok(())
        }
        InputSet::Arrays(files, table) => {
            let mut budget = options.memory;
            let mut found = Vec::new();
            for (format, input) in files {
                found.extend(arrays::read_ids(input, *format, options, &mut budget, sink)?);
            }
            let Some((_, first)) = files.first() else { return Ok(()) };
            let spans = match table {
                Some(table) if !found.is_empty() => Some(requests::read(table, &found)?),
                _ => None,
            };
            batches::cut_batches(&first.path, &found, spans.as_deref(), options, sink)
        }
    }
}

fn read_table(
    format: TraceFormat,
    input: &InputFile<'_>,
    options: &ReadOptions,
    given: &FolderColumns,
    sink: &mut dyn Sink,
) -> Result<bool, TraceError> {
    match format {
        #[cfg(feature = "parquet")]
        TraceFormat::Parquet => super::parquet::read(input, options, given, sink),
        #[cfg(not(feature = "parquet"))]
        TraceFormat::Parquet => Err(invalid_content(
            &input.path,
            Location::File,
            "Parquet",
            "another format: this build is without the feature parquet",
        )),
        _ => long_csv::read(input, options, given, sink),
    }
}

fn read_file(
    format: TraceFormat,
    input: &InputFile<'_>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    sink.begin_source();
    match format {
        TraceFormat::SglangPt => sglang::read(input, options, sink),
        TraceFormat::SglangJson => json::read(input, options, sink),
        TraceFormat::SglangCsv => sglang_csv::read(input, None, sink),
        TraceFormat::VllmJsonl => vllm::read(input, sink),
        TraceFormat::NpyCounts => arrays::read_counts(input, options, sink),
        _ => {
            Err(invalid_content(&input.path, Location::File, "a single file", "a folder, a table or arrays"))
        }
    }
}
