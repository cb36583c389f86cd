//! From the paths on a command line to a trace.
//!
//! In: files and folders, [`ReadOptions`]. Out: a [`Trace`]. Hands each job of [`super::plan`]
//! to its reader.

use super::builder::Builder;
use super::error::invalid;
use super::input::{Input, Tally};
use super::plan::{self, Job};
use super::sink::Sink;
use super::{
    Format, Place, Progress, ReadOptions, SourceFile, Trace, TraceError, batches, json, long_csv, npy,
    requests, sglang, sglang_csv, trtllm, vllm,
};
use std::path::{Path, PathBuf};

/// Reads one or several traces; the steps of the second follow those of the first.
///
/// # Errors
/// [`TraceError`], naming file and place, when a file cannot be read or understood.
pub fn read(paths: &[PathBuf], options: &ReadOptions, progress: &dyn Progress) -> Result<Trace, TraceError> {
    let mut builder = Builder::new(options)?;
    let (formats, files) = pour(paths, options, progress, &mut builder)?;
    builder.finish(formats, files)
}

/// Reads the bytes of a single file; for [`Format::TrtLlm`] the file of one rank.
///
/// # Errors
/// As [`read`].
#[doc(hidden)]
pub fn read_bytes(format: Format, bytes: &[u8], options: &ReadOptions) -> Result<Trace, TraceError> {
    let tally = Tally::new(&(), bytes.len() as u64);
    let input = Input::bytes(Path::new("input"), bytes, &tally);
    let mut builder = Builder::new(options)?;
    let source = input.source()?;
    match format {
        Format::TrtLlm => {
            builder.begin();
            trtllm::rank(&input, None, options, &mut builder)?;
        }
        Format::Npy | Format::Npz => run(&Job::Arrays(vec![(format, input)], None), options, &mut builder)?,
        _ => run(&Job::File(format, input), options, &mut builder)?,
    }
    builder.finish(vec![format], vec![source])
}

/// Pours all paths into a sink; returns the distinct formats in order of appearance, and the files.
pub(crate) fn pour(
    paths: &[PathBuf],
    options: &ReadOptions,
    progress: &dyn Progress,
    sink: &mut dyn Sink,
) -> Result<(Vec<Format>, Vec<SourceFile>), TraceError> {
    let (groups, total) = plan::expand(paths)?;
    let tally = Tally::new(progress, total);
    let mut files = Vec::new();
    let mut formats = Vec::new();
    for (folder, paths) in groups {
        for job in plan::sort(&folder, &paths, options, &tally, sink)? {
            run(&job, options, sink)?;
            let (format, inputs) = job.inputs();
            if !formats.contains(&format) {
                formats.push(format);
            }
            // Digests are taken while reading: only now are they there to be asked for.
            for input in inputs {
                files.push(input.source()?);
            }
        }
    }
    Ok((formats, files))
}

fn run(job: &Job<'_>, options: &ReadOptions, sink: &mut dyn Sink) -> Result<(), TraceError> {
    match job {
        Job::File(format, input) => file(*format, input, options, sink),
        Job::Ranks(format, run, inputs) => {
            sink.begin();
            let label = Path::new(run).file_name().map(|name| name.to_string_lossy().into_owned());
            for input in inputs {
                match format {
                    Format::SglangCsv => sglang_csv::read(input, label.as_deref(), sink)?,
                    _ => sglang::read(input, options, sink)?,
                }
            }
            if inputs.len() > 1 {
                sink.notice(format!("{run}: {} ranks added up", inputs.len()));
            }
            Ok(())
        }
        Job::TrtLlm(meta, ranks) => {
            sink.begin();
            let experts = trtllm::meta(meta, sink)?;
            for input in ranks {
                trtllm::rank(input, Some(experts), options, sink)?;
            }
            if ranks.len() > 1 {
                sink.notice(format!("{} ranks added up", ranks.len()));
            }
            Ok(())
        }
        Job::Arrays(files, table) => {
            let mut budget = options.memory;
            let mut arrays = Vec::new();
            for (format, input) in files {
                arrays.extend(npy::read(input, *format, options, &mut budget)?);
            }
            let Some((_, first)) = files.first() else { return Ok(()) };
            let spans = match table {
                Some(table) if !arrays.is_empty() => Some(requests::read(table, &arrays)?),
                _ => None,
            };
            batches::cut(&first.path, &arrays, spans.as_deref(), options, sink)
        }
    }
}

fn file(
    format: Format,
    input: &Input<'_>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    match format {
        Format::Csv => long_csv::read(input, options, sink),
        #[cfg(feature = "parquet")]
        Format::Parquet => super::parquet::read(input, options, sink),
        Format::SglangPt => {
            sink.begin();
            sglang::read(input, options, sink)
        }
        Format::SglangJson => {
            sink.begin();
            json::read(input, options, sink)
        }
        Format::SglangCsv => {
            sink.begin();
            sglang_csv::read(input, None, sink)
        }
        Format::VllmJsonl => {
            sink.begin();
            vllm::read(input, sink)
        }
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => Err(invalid(
            &input.path,
            Place::File,
            "Parquet",
            "another format: this build is without the feature parquet",
        )),
        Format::TrtLlm | Format::Npy | Format::Npz => {
            Err(invalid(&input.path, Place::File, "a single file", "a folder or arrays"))
        }
    }
}
