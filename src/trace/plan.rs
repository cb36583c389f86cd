//! Sorts files and folders into jobs, one per source of steps.
//!
//! In: the paths of a command line. Out: [`Job`]s in order. Dumps of several ranks become one
//! job and must be complete; arrays find their table of requests; independent files stay
//! apart, one after the other.

use super::error::{invalid, io_at};
use super::input::{Input, Tally};
use super::recognise::{Content, recognise};
use super::sink::Sink;
use super::{Format, Place, ReadOptions, TraceError, sglang};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files that make up one source.
pub(crate) enum Job<'a> {
    /// One file of its own.
    File(Format, Input<'a>),
    /// Dumps of all ranks of a run, by rank.
    Ranks(Format, String, Vec<Input<'a>>),
    /// TensorRT-LLM's folder.
    TrtLlm(Input<'a>, Vec<Input<'a>>),
    /// Per-token arrays and their table of requests.
    Arrays(Vec<(Format, Input<'a>)>, Option<Input<'a>>),
}

impl<'a> Job<'a> {
    /// Format and files, for the record.
    pub(crate) fn inputs(&self) -> (Format, Vec<&Input<'a>>) {
        match self {
            Self::File(format, input) => (*format, vec![input]),
            Self::Ranks(format, _, inputs) => (*format, inputs.iter().collect()),
            Self::TrtLlm(meta, ranks) => (Format::TrtLlm, std::iter::once(meta).chain(ranks).collect()),
            Self::Arrays(arrays, table) => {
                let format = arrays.first().map_or(Format::Npy, |(format, _)| *format);
                (format, arrays.iter().map(|(_, input)| input).chain(table).collect())
            }
        }
    }
}

/// Files of a folder, by name; hidden ones are no business of ours.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, TraceError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io_at(folder))? {
        let path = entry.map_err(io_at(folder))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_file() && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A folder, or nothing for files named one by one, and its files.
pub(crate) type Group = (PathBuf, Vec<PathBuf>);

/// All files that the paths stand for, with their total size.
pub(crate) fn expand(paths: &[PathBuf]) -> Result<(Vec<Group>, u64), TraceError> {
    if paths.is_empty() {
        return Err(TraceError::Options("no trace given, expected a file or folder".into()));
    }
    // Files named one by one go together, as a shell's `*` names them.
    let mut groups: Vec<Group> = Vec::new();
    let mut total = 0;
    for path in paths {
        if std::fs::metadata(path).map_err(io_at(path))?.is_dir() {
            groups.push((path.clone(), files_of(path)?));
        } else if let Some((base, files)) = groups.last_mut().filter(|(base, _)| base.as_os_str().is_empty())
        {
            debug_assert!(base.as_os_str().is_empty());
            files.push(path.clone());
        } else {
            groups.push((PathBuf::new(), vec![path.clone()]));
        }
    }
    for (_, files) in &groups {
        for file in files {
            total += std::fs::metadata(file).map_err(io_at(file))?.len();
        }
    }
    Ok((groups, total))
}

/// Sorts one group of files; `folder` is empty for files named one by one.
pub(crate) fn sort<'a>(
    folder: &Path,
    files: &[PathBuf],
    options: &ReadOptions,
    tally: &'a Tally<'a>,
    sink: &mut dyn Sink,
) -> Result<Vec<Job<'a>>, TraceError> {
    let named = folder.as_os_str().is_empty();
    if !named && let Some(job) = trtllm(folder, files, options, tally)? {
        return Ok(vec![job]);
    }
    let mut jobs: Vec<Job<'a>> = Vec::new();
    // Place in `jobs` of the ranks of a run, of the arrays.
    let mut runs: BTreeMap<(&'static str, String), usize> = BTreeMap::new();
    let mut ranks: Vec<Vec<usize>> = Vec::new();
    let mut arrays_at = None;
    let mut table = None;
    let mut ignored = Vec::new();
    for path in files {
        let input = Input::file(path, tally);
        let format = match choose(path, recognise(&input)?, options.format, named)? {
            Choice::Take(format) => format,
            Choice::Table => {
                if let Some(before) = table.replace(input) {
                    return Err(two_tables(path, &before));
                }
                continue;
            }
            Choice::Ignore => {
                ignored.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
                continue;
            }
        };
        let run = match format {
            Format::Npy | Format::Npz => {
                if let Some(Job::Arrays(arrays, _)) = arrays_at.and_then(|at: usize| jobs.get_mut(at)) {
                    arrays.push((format, input));
                } else {
                    arrays_at = Some(jobs.len());
                    jobs.push(Job::Arrays(vec![(format, input)], None));
                }
                continue;
            }
            Format::SglangPt => match sglang::kind(&input, options)? {
                sglang::Kind::Stat => None,
                sglang::Kind::Records { rank } => {
                    let (run, by_name) = split_rank(path);
                    Some((run, rank.or(by_name).unwrap_or(0)))
                }
            },
            Format::SglangCsv => csv_rank(path),
            _ => None,
        };
        let Some((run, rank)) = run else {
            jobs.push(Job::File(format, input));
            continue;
        };
        let at = *runs.entry((format.name(), run.clone())).or_insert(jobs.len());
        if ranks.len() <= at {
            ranks.resize(at + 1, Vec::new());
        }
        ranks[at].push(rank);
        if at == jobs.len() {
            jobs.push(Job::Ranks(format, run, vec![input]));
        } else if let Some(Job::Ranks(_, _, inputs)) = jobs.get_mut(at) {
            inputs.push(input);
        }
    }
    for (at, job) in jobs.iter_mut().enumerate() {
        if let Job::Ranks(_, _, inputs) = job {
            complete(folder, inputs, &ranks[at])?;
        }
    }
    if named && table.is_none() {
        jobs = jobs.into_iter().flat_map(apart).collect();
        arrays_at = None;
    }
    let alone = named || jobs.is_empty();
    match (table, arrays_at.and_then(|at| jobs.get_mut(at))) {
        (table, Some(Job::Arrays(_, place))) => *place = table,
        (Some(table), _) if alone => {
            return Err(invalid(
                &table.path,
                Place::File,
                "a table of requests alone",
                "an .npy or .npz of expert ids beside it",
            ));
        }
        _ => {}
    }
    if jobs.is_empty() {
        let found = if files.is_empty() { "no files".into() } else { format!("only {}", ignored.join(", ")) };
        return Err(TraceError::UnknownFormat { path: folder.to_path_buf(), found });
    }
    if !ignored.is_empty() {
        sink.notice(format!("{}: ignored {}", folder.display(), ignored.join(", ")));
    }
    Ok(jobs)
}

/// What becomes of a file.
enum Choice {
    Take(Format),
    /// It is the table of requests.
    Table,
    Ignore,
}

/// A file named by the user is taken at the user's word, a folder's only where it fits.
fn choose(path: &Path, content: Content, asked: Option<Format>, named: bool) -> Result<Choice, TraceError> {
    match (content, asked) {
        (Content::Requests, None | Some(Format::Npy | Format::Npz)) => Ok(Choice::Table),
        (Content::Trace(found), None) => Ok(Choice::Take(found)),
        (Content::Other(found), None) if named => {
            Err(TraceError::UnknownFormat { path: path.to_path_buf(), found })
        }
        (_, Some(Format::TrtLlm)) => {
            Err(invalid(path, Place::File, "a file", "a TensorRT-LLM folder with meta_info.json"))
        }
        (content, Some(asked)) if named || content == Content::Trace(asked) => Ok(Choice::Take(asked)),
        _ => Ok(Choice::Ignore),
    }
}

/// Array files named one by one are traces of their own, unless a table ties them together.
fn apart(job: Job<'_>) -> Vec<Job<'_>> {
    match job {
        Job::Arrays(files, None) => files.into_iter().map(|file| Job::Arrays(vec![file], None)).collect(),
        job => vec![job],
    }
}

fn two_tables(path: &Path, before: &Input<'_>) -> TraceError {
    invalid(path, Place::File, format!("a second table of requests beside {}", before.path.display()), "one")
}

/// `.../expert_distribution_recorder_{time}_{rank}.pt` as run and rank.
fn split_rank(path: &Path) -> (String, Option<usize>) {
    let folder = path.parent().unwrap_or(Path::new("")).to_string_lossy().into_owned();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match stem.rsplit_once('_') {
        Some((run, rank)) => match rank.parse() {
            Ok(rank) => (format!("{folder}/{run}"), Some(rank)),
            Err(_) => (format!("{folder}/{stem}"), None),
        },
        None => (format!("{folder}/{stem}"), None),
    }
}

/// `.../expert_distribution_rank{r}_timestamp{t}.csv` as run and rank.
fn csv_rank(path: &Path) -> Option<(String, usize)> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let (before, rest) = name.split_once("_rank")?;
    let (rank, time) = rest.split_once('_')?;
    let folder = path.parent().unwrap_or(Path::new("")).to_string_lossy().into_owned();
    let time = time.split('.').next().unwrap_or(time);
    Some((format!("{folder}/{before}_{time}"), rank.parse().ok()?))
}

/// Puts ranks in order and sees that none is missing or there twice.
fn complete(folder: &Path, inputs: &mut Vec<Input<'_>>, ranks: &[usize]) -> Result<(), TraceError> {
    let mut pairs: Vec<_> = ranks.iter().copied().zip(inputs.drain(..)).collect();
    pairs.sort_by_key(|(rank, _)| *rank);
    let last = pairs.last().map_or(0, |(rank, _)| *rank);
    for (expected, (rank, input)) in pairs.iter().enumerate() {
        let folder = if folder.as_os_str().is_empty() { &input.path } else { folder };
        if *rank > expected {
            return Err(TraceError::MissingRank { path: folder.to_path_buf(), rank: expected, last });
        }
        if *rank < expected {
            return Err(invalid(&input.path, Place::File, format!("rank {rank} again"), "one dump per rank"));
        }
    }
    inputs.extend(pairs.into_iter().map(|(_, input)| input));
    Ok(())
}

/// The folder as TensorRT-LLM's, if it is one.
fn trtllm<'a>(
    folder: &Path,
    files: &[PathBuf],
    options: &ReadOptions,
    tally: &'a Tally<'a>,
) -> Result<Option<Job<'a>>, TraceError> {
    if !matches!(options.format, None | Some(Format::TrtLlm)) {
        return Ok(None);
    }
    let mut meta = None;
    let (mut inputs, mut ranks) = (Vec::new(), Vec::new());
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rank = name.strip_prefix("rank").and_then(|rest| rest.strip_suffix(".safetensors"));
        if name == "meta_info.json" {
            meta = Some(Input::file(path, tally));
        } else if let Some(rank) = rank.and_then(|rank| rank.parse::<usize>().ok()) {
            inputs.push(Input::file(path, tally));
            ranks.push(rank);
        }
    }
    match meta {
        None if inputs.is_empty() && options.format.is_none() => Ok(None),
        None => {
            Err(invalid(folder, Place::File, "no meta_info.json", "meta_info.json beside rank0.safetensors"))
        }
        Some(_) if inputs.is_empty() => {
            Err(invalid(folder, Place::File, "no rank0.safetensors", "one rank{R}.safetensors per rank"))
        }
        Some(meta) => {
            complete(folder, &mut inputs, &ranks)?;
            Ok(Some(Job::TrtLlm(meta, inputs)))
        }
    }
}
