//! The assignment of files and folders to jobs, one per source of steps.
//!
//! Input is the paths of a command line. Output is [`InputSet`]s in order. Dumps of several ranks become one
//! job and must be complete. Arrays are joined with their table of requests. Parts of one long table are
//! joined by their names or their folders ([`super::partition`]). Independent files stay separate, one after
//! the other.

use super::detect::{FileContent, detect_content};
use super::folders::FileGroup;
use super::input::{InputFile, ProgressCounter};
use super::partition::{FolderColumns, TablePart};
use super::{Location, ReadOptions, TraceError, TraceFormat, sglang};
use evenkeel::trace::build::Sink;
use evenkeel::trace::build::invalid_content;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The files that form one source.
pub(crate) enum InputSet<'a> {
    /// A single file.
    File(TraceFormat, InputFile<'a>),
    /// A long table in one or several files, each with the columns from its folders.
    Table(TraceFormat, Vec<(InputFile<'a>, FolderColumns)>),
    /// The dumps of all ranks of a run, in the order of ranks.
    Ranks(TraceFormat, String, Vec<InputFile<'a>>),
    /// The folder of TensorRT-LLM.
    TrtLlm(InputFile<'a>, Vec<InputFile<'a>>),
    /// Per-token arrays and their table of requests.
    Arrays(Vec<(TraceFormat, InputFile<'a>)>, Option<InputFile<'a>>),
}

impl<'a> InputSet<'a> {
    /// Returns the format and the files, for the record.
    pub(crate) fn format_and_inputs(&self) -> (TraceFormat, Vec<&InputFile<'a>>) {
        match self {
            Self::File(format, input) => (*format, vec![input]),
            Self::Table(format, parts) => (*format, parts.iter().map(|(input, _)| input).collect()),
            Self::Ranks(format, _, inputs) => (*format, inputs.iter().collect()),
            Self::TrtLlm(meta, ranks) => (TraceFormat::TrtLlm, std::iter::once(meta).chain(ranks).collect()),
            Self::Arrays(arrays, table) => {
                let format = arrays.first().map_or(TraceFormat::Npy, |(format, _)| *format);
                (format, arrays.iter().map(|(_, input)| input).chain(table).collect())
            }
        }
    }
}

/// Assigns one group of files to jobs. A folder without traces gives no job; `ignored` then lists its
/// content.
pub(crate) fn group_files<'a>(
    group: &FileGroup,
    options: &ReadOptions,
    tally: &'a ProgressCounter<'a>,
    sink: &mut dyn Sink,
    ignored: &mut Vec<String>,
) -> Result<Vec<InputSet<'a>>, TraceError> {
    let FileGroup { folder, files, .. } = group;
    let named = folder.as_os_str().is_empty();
    if !named && let Some(job) = group_trtllm(folder, files, options, tally)? {
        return Ok(vec![job]);
    }
    let mut jobs: Vec<InputSet<'a>> = Vec::new();
    // The position in `jobs` of the ranks of a run, and of the arrays.
    let mut runs: BTreeMap<(&'static str, String), usize> = BTreeMap::new();
    let mut ranks: Vec<Vec<usize>> = Vec::new();
    let mut arrays_at = None;
    let mut table = None;
    let mut tables = TableGroups::default();
    for path in files {
        let input = InputFile::from_path(path, tally);
        let content = match detect_content(&input)? {
            FileContent::Part(_) if group.partitioned => FileContent::Trace(TraceFormat::Csv),
            FileContent::Part(found) => FileContent::Other(found),
            content => content,
        };
        let format = match choose_use(path, content, options.format, named)? {
            FileUse::Read(format) => format,
            FileUse::Table => {
                if let Some(before) = table.replace(input) {
                    return Err(two_tables_error(path, &before));
                }
                continue;
            }
            FileUse::Ignore => {
                ignored.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
                continue;
            }
        };
        let run = match format {
            TraceFormat::Npy | TraceFormat::Npz => {
                if let Some(InputSet::Arrays(arrays, _)) = arrays_at.and_then(|at: usize| jobs.get_mut(at)) {
                    arrays.push((format, input));
                } else {
                    arrays_at = Some(jobs.len());
                    jobs.push(InputSet::Arrays(vec![(format, input)], None));
                }
                continue;
            }
            TraceFormat::SglangPt => match sglang::detect_kind(&input, options)? {
                sglang::DumpKind::Stat => None,
                sglang::DumpKind::Records { rank } => {
                    let (run, by_name) = split_rank(path);
                    Some((run, rank.or(by_name).unwrap_or(0)))
                }
            },
            TraceFormat::SglangCsv => csv_rank(path),
            TraceFormat::Csv | TraceFormat::Parquet => {
                let given = FolderColumns::from_folders(folder, path, options)?;
                tables.add_file(&mut jobs, format, input, given, group.partitioned);
                continue;
            }
            _ => None,
        };
        let Some((run, rank)) = run else {
            jobs.push(InputSet::File(format, input));
            continue;
        };
        let at = *runs.entry((format.name(), run.clone())).or_insert(jobs.len());
        if ranks.len() <= at {
            ranks.resize(at + 1, Vec::new());
        }
        ranks[at].push(rank);
        if at == jobs.len() {
            jobs.push(InputSet::Ranks(format, run, vec![input]));
        } else if let Some(InputSet::Ranks(_, _, inputs)) = jobs.get_mut(at) {
            inputs.push(input);
        }
    }
    for (at, job) in jobs.iter_mut().enumerate() {
        if let InputSet::Ranks(_, _, inputs) = job {
            sort_by_rank(folder, inputs, &ranks[at])?;
        }
    }
    tables.finish_groups(folder, &mut jobs, sink)?;
    if named && table.is_none() {
        jobs = jobs.into_iter().flat_map(split_arrays).collect();
        arrays_at = None;
    }
    let alone = named || jobs.is_empty();
    match (table, arrays_at.and_then(|at| jobs.get_mut(at))) {
        (table, Some(InputSet::Arrays(_, place))) => *place = table,
        (Some(table), _) if alone => {
            return Err(invalid_content(
                &table.path,
                Location::File,
                "a table of requests without arrays",
                "a table together with an .npy or .npz of expert ids",
            ));
        }
        _ => {}
    }
    if !jobs.is_empty() && !ignored.is_empty() {
        sink.add_notice(format!("{}: ignored {}", folder.display(), ignored.join(", ")));
    }
    Ok(jobs)
}

/// The files of long tables found so far.
#[derive(Default)]
struct TableGroups {
    /// The position of a table's job, by format, folders and name.
    places: BTreeMap<(&'static str, String, String), usize>,
    /// The ranks of the files of a job.
    ranks: BTreeMap<usize, Vec<Option<usize>>>,
}

impl TableGroups {
    /// Adds a file to the table to which it belongs, or as a table of its own.
    fn add_file<'a>(
        &mut self,
        jobs: &mut Vec<InputSet<'a>>,
        format: TraceFormat,
        input: InputFile<'a>,
        given: FolderColumns,
        partitioned: bool,
    ) {
        let folder = input.path.parent().unwrap_or(Path::new("")).to_string_lossy().into_owned();
        let part = TablePart::from_path(&input.path);
        // All files below the folders of one partitioned table belong together, whatever their names.
        let key = match (&part, partitioned) {
            (_, true) => (format.name(), given.table.clone(), String::new()),
            (Some(part), false) => (format.name(), folder, part.table.clone()),
            // A file name has no slash, so this key is unique.
            (None, false) => (format.name(), folder, format!("/{}", jobs.len())),
        };
        let rank = part.and_then(|part| part.rank);
        let mut at = *self.places.entry(key.clone()).or_insert(jobs.len());
        if let Some(InputSet::Table(_, parts)) = jobs.get(at)
            && parts.iter().any(|(before, _)| before.path == input.path)
        {
            // A file that is listed a second time begins another table.
            at = jobs.len();
            self.places.insert(key, at);
        }
        match jobs.get_mut(at) {
            Some(InputSet::Table(_, parts)) => parts.push((input, given)),
            _ => jobs.push(InputSet::Table(format, vec![(input, given)])),
        }
        self.ranks.entry(at).or_default().push(rank);
    }

    /// Reports which files were joined. Fails if a rank is missing.
    fn finish_groups(
        self,
        folder: &Path,
        jobs: &mut [InputSet<'_>],
        sink: &mut dyn Sink,
    ) -> Result<(), TraceError> {
        let mut alone = Vec::new();
        let mut tables = BTreeSet::new();
        for (at, ranks) in self.ranks {
            let Some(InputSet::Table(_, parts)) = jobs.get_mut(at) else { continue };
            let name = |input: &InputFile<'_>| {
                input.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
            };
            let Some((first, given)) = parts.first() else { continue };
            let (first, path, table) = (name(first), first.path.clone(), given.table.clone());
            if !table.is_empty() {
                tables.insert(table);
            }
            if parts.len() == 1 {
                alone.push(first);
                continue;
            }
            let all: Option<BTreeSet<usize>> = ranks.iter().copied().collect();
            let of_ranks = all.filter(|all| all.len() == parts.len());
            if let Some((expected, &last)) = of_ranks.as_ref().and_then(|all| {
                let missing = (0..all.len()).find(|rank| !all.contains(rank))?;
                all.last().map(|last| (missing, last))
            }) && parts.len() > 1
            {
                let path = if folder.as_os_str().is_empty() { path } else { folder.to_path_buf() };
                return Err(TraceError::MissingRank { path, rank: expected, last });
            }
            let kind = if of_ranks.is_some() { "ranks" } else { "parts" };
            sink.add_notice(format!(
                "{first} and {} more files: {kind} of one table, added up",
                parts.len() - 1
            ));
            let label = first.split('.').next().unwrap_or_default().to_owned();
            for ((_, given), rank) in parts.iter_mut().zip(&ranks) {
                given.label = Some(label.clone());
                if of_ranks.is_some() && given.source.is_none() {
                    given.source = rank.map(|rank| rank.to_string());
                }
            }
        }
        if alone.len() > 1 {
            sink.add_notice(format!(
                "{}: separate runs, one after the other; files named part-0, part-1 or rank0, rank1 are read as one \
                 table",
                alone.join(", ")
            ));
        }
        if tables.len() > 1 {
            let tables: Vec<String> = tables.into_iter().collect();
            sink.add_notice(format!("folders {}: separate runs, one after the other", tables.join("; ")));
        }
        Ok(())
    }
}

/// The use of a file.
enum FileUse {
    Read(TraceFormat),
    /// The file is the table of requests.
    Table,
    Ignore,
}

/// Returns the use of a file. A file that the user names is read in the requested format, whatever its
/// content. A file of a folder is read only if its content matches.
fn choose_use(
    path: &Path,
    content: FileContent,
    asked: Option<TraceFormat>,
    named: bool,
) -> Result<FileUse, TraceError> {
    match (content, asked) {
        (FileContent::Requests, None | Some(TraceFormat::Npy | TraceFormat::Npz)) => Ok(FileUse::Table),
        (FileContent::Trace(found), None) => Ok(FileUse::Read(found)),
        (FileContent::Trace(TraceFormat::Npy | TraceFormat::Npz), Some(TraceFormat::NpyCounts)) => {
            Ok(FileUse::Read(TraceFormat::NpyCounts))
        }
        (FileContent::Other(found), None) if named => {
            Err(TraceError::UnknownFormat { path: path.to_path_buf(), found })
        }
        (_, Some(TraceFormat::TrtLlm)) => {
            Err(invalid_content(path, Location::File, "a file", "a TensorRT-LLM folder with meta_info.json"))
        }
        (content, Some(asked)) if named || content == FileContent::Trace(asked) => Ok(FileUse::Read(asked)),
        _ => Ok(FileUse::Ignore),
    }
}

/// Splits a job of array files into one job per file, unless a table of requests joins them.
fn split_arrays(job: InputSet<'_>) -> Vec<InputSet<'_>> {
    match job {
        InputSet::Arrays(files, None) => {
            files.into_iter().map(|file| InputSet::Arrays(vec![file], None)).collect()
        }
        job => vec![job],
    }
}

fn two_tables_error(path: &Path, before: &InputFile<'_>) -> TraceError {
    invalid_content(
        path,
        Location::File,
        format!("a second table of requests, after {}", before.path.display()),
        "one",
    )
}

/// Returns the run and the rank of `.../expert_distribution_recorder_{time}_{rank}.pt`.
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

/// Returns the run and the rank of `.../expert_distribution_rank{r}_timestamp{t}.csv`.
fn csv_rank(path: &Path) -> Option<(String, usize)> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let (before, rest) = name.split_once("_rank")?;
    let (rank, time) = rest.split_once('_')?;
    let folder = path.parent().unwrap_or(Path::new("")).to_string_lossy().into_owned();
    let time = time.split('.').next().unwrap_or(time);
    Some((format!("{folder}/{before}_{time}"), rank.parse().ok()?))
}

/// Sorts the dumps by rank. Fails if a rank is missing or occurs twice.
fn sort_by_rank(folder: &Path, inputs: &mut Vec<InputFile<'_>>, ranks: &[usize]) -> Result<(), TraceError> {
    let mut pairs: Vec<_> = ranks.iter().copied().zip(inputs.drain(..)).collect();
    pairs.sort_by_key(|(rank, _)| *rank);
    let last = pairs.last().map_or(0, |(rank, _)| *rank);
    for (expected, (rank, input)) in pairs.iter().enumerate() {
        let folder = if folder.as_os_str().is_empty() { &input.path } else { folder };
        if *rank > expected {
            return Err(TraceError::MissingRank { path: folder.to_path_buf(), rank: expected, last });
        }
        if *rank < expected {
            return Err(invalid_content(
                &input.path,
                Location::File,
                format!("rank {rank} again"),
                "one dump per rank",
            ));
        }
    }
    inputs.extend(pairs.into_iter().map(|(_, input)| input));
    Ok(())
}

/// Returns the job of a TensorRT-LLM folder, if the folder is one.
fn group_trtllm<'a>(
    folder: &Path,
    files: &[PathBuf],
    options: &ReadOptions,
    tally: &'a ProgressCounter<'a>,
) -> Result<Option<InputSet<'a>>, TraceError> {
    if !matches!(options.format, None | Some(TraceFormat::TrtLlm)) {
        return Ok(None);
    }
    let mut meta = None;
    let (mut inputs, mut ranks) = (Vec::new(), Vec::new());
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rank = name.strip_prefix("rank").and_then(|rest| rest.strip_suffix(".safetensors"));
        if name == "meta_info.json" {
            meta = Some(InputFile::from_path(path, tally));
        } else if let Some(rank) = rank.and_then(|rank| rank.parse::<usize>().ok()) {
            inputs.push(InputFile::from_path(path, tally));
            ranks.push(rank);
        }
    }
    match meta {
        None if inputs.is_empty() && options.format.is_none() => Ok(None),
        None => Err(invalid_content(
            folder,
            Location::File,
            "no meta_info.json",
            "meta_info.json in the folder of rank0.safetensors",
        )),
        Some(_) if inputs.is_empty() => Err(invalid_content(
            folder,
            Location::File,
            "no rank0.safetensors",
            "one rank{R}.safetensors per rank",
        )),
        Some(meta) => {
            sort_by_rank(folder, &mut inputs, &ranks)?;
            Ok(Some(InputSet::TrtLlm(meta, inputs)))
        }
    }
}
