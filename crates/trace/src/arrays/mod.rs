//! NumPy arrays of the expert ids of single tokens, or of counts.
//!
//! Input is `.npy` and `.npz` files. Output is [`TokenArray`]s of ids `[tokens, layers, top_k]`, or counts
//! `[steps, layers, experts]` in a sink. Ids have two dimensions if every token visits one expert. If an npz
//! holds other arrays too, the matching ones are used, and a notice lists the others.

mod npy;
mod routing;

use super::input::InputFile;
use super::{Location, MAX_EXPERTS, MAX_LAYERS, TraceError, sglang};
use crate::{ReadOptions, TraceFormat};
use evenkeel::trace::build::Sink;
use evenkeel::trace::build::{invalid_content, quote_bytes};
use npy::NpyHeader;
use std::io::Read;
use std::path::Path;

pub(crate) use evenkeel::trace::build::NO_EXPERT;
pub(crate) use routing::TokenArray;

/// The most arrays of an npz.
const MAX_ARRAYS: usize = 4096;
/// The largest plausible top-k.
const MAX_TOP_K: usize = 1024;

/// One array of a file, with its data unread.
struct ArrayMember<'a> {
    name: String,
    header: NpyHeader,
    /// The bytes of the header and of the data, if a zip states them.
    size: Option<u64>,
    data: Box<dyn Read + 'a>,
}

/// Reads all arrays of ids of one file. `budget` counts down the bytes that may be held.
pub(crate) fn read_ids(
    input: &InputFile<'_>,
    format: TraceFormat,
    options: &ReadOptions,
    budget: &mut u64,
    sink: &mut dyn Sink,
) -> Result<Vec<TokenArray>, TraceError> {
    let path = input.path.as_path();
    let wanted = select_arrays(input, format, options, sink)?;
    let mut arrays = Vec::new();
    visit_arrays(input, format, &mut |name, open| {
        if !wanted.iter().any(|wanted| wanted == name) {
            arrays.push(TokenArray::without_ids(name.to_owned()));
            return Ok(());
        }
        let member = open()?;
        let (array, remark) = routing::read_array(member, path, options, budget)?;
        if let Some(remark) = remark {
            sink.add_notice(format!("{}, array {}: {remark}", path.display(), quote_bytes(name.as_bytes())));
        }
        arrays.push(array);
        Ok(())
    })?;
    Ok(arrays)
}

/// Reads arrays of counts `[layers, experts]` or `[steps, layers, experts]` into the current source.
pub(crate) fn read_counts(
    input: &InputFile<'_>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let path = input.path.as_path();
    let format = if input.read_head(2)? == b"PK" { TraceFormat::Npz } else { TraceFormat::Npy };
    let mut taken: Vec<String> = Vec::new();
    visit_arrays(input, format, &mut |name, open| {
        if is_excluded(name, options) {
            return Ok(());
        }
        let mut member = open()?;
        let place = || Location::Key(format!("array {}", quote_bytes(name.as_bytes())));
        let shape = member.header.shape.clone();
        if !matches!(shape.len(), 2 | 3) || member.header.kind.is_none() {
            return Ok(());
        }
        if let Some(before) = taken.first() {
            return Err(invalid_content(
                path,
                place(),
                format!("counts next to those of array {}", quote_bytes(before.as_bytes())),
                "one array of counts; --arrays chooses it",
            ));
        }
        let numbers = npy::read_integers(&mut member, path, &place, options.memory)?;
        let counts = numbers
            .into_iter()
            .map(|number| {
                u64::try_from(number)
                    .map_err(|_| invalid_content(path, place(), number.to_string(), "counts from 0"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        sglang::push_logical_counts(input, &shape, &counts, sink)?;
        taken.push(name.to_owned());
        Ok(())
    })?;
    if taken.is_empty() {
        let expected = "an array of whole numbers, [layers, experts] or [steps, layers, experts]";
        return Err(invalid_content(path, Location::File, "no such array", expected));
    }
    Ok(())
}

/// Returns whether the options select other arrays only.
fn is_excluded(name: &str, options: &ReadOptions) -> bool {
    !options.arrays.is_empty() && !options.arrays.iter().any(|wanted| wanted == name)
}

/// Returns a rank of the match: 2 for ids of three dimensions, 1 for two, 0 for no ids.
fn match_score(header: &NpyHeader) -> usize {
    let whole = header.kind.is_some_and(|kind| !kind.float);
    match *header.shape.as_slice() {
        [_, layers, top_k]
            if whole && (1..=MAX_LAYERS).contains(&layers) && (1..=MAX_TOP_K).contains(&top_k) =>
        {
            2
        }
        [_, layers] if whole && (1..=MAX_LAYERS).contains(&layers) => 1,
        _ => 0,
    }
}

/// Returns the names of the arrays to use: the selected ones, else those that match best. Adds a notice about
/// the others.
fn select_arrays(
    input: &InputFile<'_>,
    format: TraceFormat,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<Vec<String>, TraceError> {
    let mut found = Vec::new();
    visit_arrays(input, format, &mut |name, open| {
        if is_excluded(name, options) {
            return Ok(());
        }
        let header = open()?.header;
        found.push((
            name.to_owned(),
            match_score(&header),
            format!("{name} ({} {:?})", header.descr, header.shape),
        ));
        Ok(())
    })?;
    let best = found.iter().map(|(_, fit, _)| *fit).max().unwrap_or(0);
    if format == TraceFormat::Npy || !options.arrays.is_empty() || best == 0 {
        return Ok(found.into_iter().map(|(name, ..)| name).collect());
    }
    let (taken, left): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, fit, _)| *fit == best);
    let taken: Vec<String> = taken.into_iter().map(|(name, ..)| name).collect();
    if !left.is_empty() {
        let left: Vec<String> = left.into_iter().map(|(_, _, shown)| shown).collect();
        sink.add_notice(format!(
            "{}: read array {}, ignored {}; --arrays chooses others",
            input.path.display(),
            taken.join(", "),
            left.join(", ")
        ));
    }
    Ok(taken)
}

/// A function that opens a member on demand.
type OpenMember<'o, 'a> = &'o mut dyn FnMut() -> Result<ArrayMember<'a>, TraceError>;

/// Visits the arrays of a file in the order of the file.
fn visit_arrays(
    input: &InputFile<'_>,
    format: TraceFormat,
    take: &mut dyn for<'o, 'a> FnMut(&str, OpenMember<'o, 'a>) -> Result<(), TraceError>,
) -> Result<(), TraceError> {
    let path = input.path.as_path();
    let file = input.open_seekable()?;
    if format == TraceFormat::Npy {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let mut file = Some(file);
        return take(&name, &mut || {
            let Some(file) = file.take() else {
                return Err(invalid_content(path, Location::File, "no array", "one"));
            };
            npy::open_array(Box::new(file), name.clone(), None, path)
        });
    }
    let broken = |error: zip::result::ZipError| {
        invalid_content(path, Location::File, error.to_string(), "a zip of .npy arrays")
    };
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    if archive.len() > MAX_ARRAYS {
        return Err(invalid_content(
            path,
            Location::File,
            format!("{} members", archive.len()),
            format!("at most {MAX_ARRAYS} arrays"),
        ));
    }
    for at in 0..archive.len() {
        let member = archive.by_index(at).map_err(broken)?;
        let full = member.name().map_err(broken)?.into_owned();
        // Other files in the zip are no arrays.
        let Some(name) = full.strip_suffix(".npy").map(str::to_owned) else { continue };
        let size = member.size();
        let mut member = Some(member);
        take(&name, &mut || {
            let Some(member) = member.take() else {
                return Err(invalid_content(path, Location::File, "no array", "one"));
            };
            npy::open_array(Box::new(member), name.clone(), Some(size), path)
        })?;
    }
    Ok(())
}

/// Returns the shape `[tokens, layers, top_k]` of ids, or the error of another shape.
fn id_shape(header: &NpyHeader, path: &Path, place: &dyn Fn() -> Location) -> Result<[usize; 3], TraceError> {
    let shape = &header.shape;
    let expected = || {
        format!(
            "ids [tokens, layers, top-k] with 1 to {MAX_LAYERS} layers and top-k of 1 to {MAX_TOP_K}, or \
             [tokens, layers]; --arrays chooses arrays, --format npy-counts reads counts [layers, experts]"
        )
    };
    let wrong = || invalid_content(path, place(), format!("shape {shape:?}"), expected());
    let (tokens, layers, top_k) = match *shape.as_slice() {
        [tokens, layers, top_k] => (tokens, layers, top_k),
        [tokens, layers] => (tokens, layers, 1),
        _ => return Err(wrong()),
    };
    if layers == 0 || layers > MAX_LAYERS || top_k == 0 || top_k > MAX_TOP_K {
        return Err(wrong());
    }
    debug_assert!(MAX_EXPERTS <= usize::from(NO_EXPERT) + 1);
    Ok([tokens, layers, top_k])
}
