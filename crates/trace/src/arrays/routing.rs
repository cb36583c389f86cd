//! Expert ids of consecutive tokens, with recognised padding.
//!
//! Input is an array `[tokens, layers, top_k]` of integers. Output is a [`TokenArray`] with one or two bytes
//! per id, in which padding is [`NO_EXPERT`]. The reader recognises four kinds of padding:
//!
//! - an id below zero,
//! - all ones in unsigned types,
//! - 255 in 8 bits beyond the existing experts,
//! - an id that fills a row, because no token visits one expert twice.
//!
//! Rows that repeat other ids are no routing, so the array is refused.

use super::npy::{self, decode_integer};
use super::{ArrayMember, Location, MAX_EXPERTS, TraceError, id_shape, invalid_content, quote_bytes};
use crate::ReadOptions;
use std::path::Path;

use evenkeel::trace::build::NO_EXPERT;

/// The distance to the next lower id from which 255 in 8 bits is certainly no expert.
const MIN_PADDING_GAP: usize = 32;
/// The expected number of repeated ids from which their absence shows that columns are not layers.
const MIN_EXPECTED_REPEATS: f64 = 20.0;

/// Expert ids of consecutive tokens.
#[derive(Debug)]
pub(crate) struct TokenArray {
    /// The name of the file or array.
    pub(crate) name: String,
    pub(crate) tokens: usize,
    pub(crate) layers: usize,
    pub(crate) top_k: usize,
    /// The highest id + 1.
    pub(crate) experts: usize,
    /// The ids, `[token][layer][k]`.
    ids: IdArray,
}

#[derive(Debug)]
enum IdArray {
    /// Ids of 8 bits, and the id that represents padding.
    Narrow(Vec<u8>, Option<u8>),
    Wide(Vec<u16>),
}

impl IdArray {
    fn len(&self) -> usize {
        match self {
            Self::Narrow(ids, _) => ids.len(),
            Self::Wide(ids) => ids.len(),
        }
    }

    fn get(&self, at: usize) -> u16 {
        match self {
            Self::Narrow(ids, mark) => widen_id(ids[at], *mark),
            Self::Wide(ids) => ids[at],
        }
    }

    /// Returns the id that represents padding. Among ids of 8 bits it is an unused one; without one, all ids
    /// become 16 bits wide.
    fn reserve_padding(&mut self) -> u16 {
        let Self::Narrow(ids, mark) = self else { return NO_EXPERT };
        if mark.is_none() {
            let mut used = [false; 256];
            ids.iter().for_each(|&id| used[usize::from(id)] = true);
            *mark = (0..=u8::MAX).rev().find(|&id| !used[usize::from(id)]);
        }
        if let Some(mark) = *mark {
            return u16::from(mark);
        }
        *self = Self::Wide(ids.iter().map(|&id| u16::from(id)).collect());
        NO_EXPERT
    }

    fn set_id(&mut self, at: usize, mark: u16) {
        match self {
            Self::Narrow(ids, _) => ids[at] = mark as u8,
            Self::Wide(ids) => ids[at] = mark,
        }
    }
}

fn widen_id(id: u8, mark: Option<u8>) -> u16 {
    if mark == Some(id) { NO_EXPERT } else { u16::from(id) }
}

impl TokenArray {
    /// Returns an array without ids. A table of sequences may still refer to it.
    pub(super) fn without_ids(name: String) -> Self {
        Self { name, tokens: 0, layers: 0, top_k: 0, experts: 0, ids: IdArray::Wide(Vec::new()) }
    }

    /// Adds one token's experts to counts `[layer][experts]`.
    pub(crate) fn count_token(&self, token: usize, experts: usize, counts: &mut [u64]) {
        let width = self.layers * self.top_k;
        let at = token * width..(token + 1) * width;
        match &self.ids {
            IdArray::Narrow(ids, mark) => {
                add_counts(ids[at].iter().map(|&id| widen_id(id, *mark)), self.top_k, experts, counts);
            }
            IdArray::Wide(ids) => add_counts(ids[at].iter().copied(), self.top_k, experts, counts),
        }
    }

    /// Appends one token's experts, `[layer][top_k]`, with padding.
    pub(crate) fn append_token(&self, token: usize, to: &mut Vec<u16>) {
        let width = self.layers * self.top_k;
        let at = token * width..(token + 1) * width;
        match &self.ids {
            IdArray::Narrow(ids, mark) => to.extend(ids[at].iter().map(|&id| widen_id(id, *mark))),
            IdArray::Wide(ids) => to.extend_from_slice(&ids[at]),
        }
    }
}

fn add_counts(ids: impl Iterator<Item = u16>, top_k: usize, experts: usize, counts: &mut [u64]) {
    for (at, id) in ids.enumerate() {
        // Padding exceeds every row: at most `MAX_EXPERTS` ids exist, 0 to 65535, and the last one is
        // padding.
        if id != NO_EXPERT && usize::from(id) < experts {
            counts[at / top_k * experts + usize::from(id)] += 1;
        }
    }
}

/// Reads an array of ids. Returns a notice for the user about it. `budget` counts down the bytes that may be
/// held.
pub(super) fn read_array(
    mut member: ArrayMember<'_>,
    path: &Path,
    options: &ReadOptions,
    budget: &mut u64,
) -> Result<(TokenArray, Option<String>), TraceError> {
    let name = member.name.clone();
    let place = || Location::Key(format!("array {}", quote_bytes(name.as_bytes())));
    let [tokens, layers, top_k] = id_shape(&member.header, path, &place)?;
    let kind = member.header.number_type(false, path, &place)?;
    let flat = member.header.shape.len() == 2;
    let held = if kind.bytes == 1 && !kind.signed { 1 } else { 2 };
    let length = tokens.checked_mul(layers * top_k * kind.bytes);
    let Some(length) = length.filter(|length| (length / kind.bytes * held) as u64 <= *budget) else {
        return Err(TraceError::Limit {
            path: path.to_path_buf(),
            place: place(),
            what: format!(
                "shape {:?} does not fit the {} MiB allowed; raise --memory or choose --arrays",
                member.header.shape,
                options.memory >> 20
            ),
        });
    };
    *budget -= (length / kind.bytes * held) as u64;

    let (mut narrow, mut wide) = (Vec::new(), Vec::new());
    let array = |ids| TokenArray { name: name.clone(), tokens, layers, top_k, experts: 0, ids };
    npy::read_elements(&mut member, kind, length, path, &place, &mut |element, bytes| {
        if held == 1 {
            narrow.push(bytes[0]);
            return Ok(());
        }
        let id = decode_integer(bytes, kind);
        let ones = !kind.signed && bytes.iter().all(|&byte| byte == u8::MAX);
        if id >= MAX_EXPERTS as i64 && !ones {
            let place = id_location(&name, element, layers, top_k);
            let expected = format!(
                "an expert id below {MAX_EXPERTS}, or -1 for padding; --format npy-counts reads counts"
            );
            return Err(invalid_content(path, place, format!("expert {id}"), expected));
        }
        wide.push(if id < 0 || ones { NO_EXPERT } else { id as u16 });
        Ok(())
    })?;
    let mut array = array(if held == 1 { IdArray::Narrow(narrow, None) } else { IdArray::Wide(wide) });
    let remark = resolve_padding(&mut array, path, options.experts)?;
    if flat {
        return Ok((array, Some(describe_top_1(remark))));
    }
    Ok((array, remark))
}

fn describe_top_1(remark: Option<String>) -> String {
    let more = remark.map_or_else(String::new, |remark| format!("; {remark}"));
    format!(
        "two dimensions read as ids [tokens, layers], top-1; --format npy-counts reads counts [layers, experts]{more}"
    )
}

fn id_location(name: &str, element: usize, layers: usize, top_k: usize) -> Location {
    let width = layers * top_k;
    let (token, layer) = (element / width, element % width / top_k);
    Location::Key(format!("array {}, token {token}, layer {layer}", quote_bytes(name.as_bytes())))
}

/// The repetitions in the rows of an array.
#[derive(Default)]
struct RowRepeats {
    /// The id that some rows repeat.
    filler: Option<u16>,
    /// The first row that repeats another id, or several ids.
    second_repeat: Option<(usize, u16)>,
    /// The number of rows that hold only the filler; `partial_rows` counts those that repeat it among other
    /// ids.
    full_rows: u64,
    partial_rows: u64,
    first_partial_row: usize,
    /// The number of rows that hold the filler once.
    single_rows: u64,
    /// The highest id other than the filler, + 1.
    experts_without_filler: usize,
}

impl RowRepeats {
    fn find_repeats(array: &TokenArray) -> Self {
        let (ids, top_k) = (&array.ids, array.top_k);
        let mut rows = Self::default();
        let mut row = vec![0u16; top_k];
        if top_k > 1 {
            for first in (0..ids.len()).step_by(top_k) {
                (0..top_k).for_each(|k| row[k] = ids.get(first + k));
                let Some(twice) = find_repeated(&mut row) else { continue };
                if *rows.filler.get_or_insert(twice) != twice {
                    rows.second_repeat.get_or_insert((first, twice));
                }
                let size = row.iter().filter(|&&id| id == twice).count();
                let padded = row.iter().filter(|&&id| id == NO_EXPERT).count();
                // Another id may repeat too.
                let mut left: Vec<u16> = row.iter().copied().filter(|&id| id != twice).collect();
                if let Some(another) = find_repeated(&mut left) {
                    rows.second_repeat.get_or_insert((first, another));
                }
                if size + padded == top_k {
                    rows.full_rows += 1;
                } else {
                    rows.partial_rows += 1;
                    if rows.partial_rows == 1 {
                        rows.first_partial_row = first;
                    }
                }
            }
        }
        for first in (0..ids.len()).step_by(top_k) {
            let mut held = 0;
            for at in first..first + top_k {
                let id = ids.get(at);
                held += usize::from(Some(id) == rows.filler);
                if Some(id) != rows.filler && id != NO_EXPERT {
                    rows.experts_without_filler = rows.experts_without_filler.max(usize::from(id) + 1);
                }
            }
            rows.single_rows += u64::from(held == 1);
        }
        rows
    }
}

/// Returns an id that a row holds twice, ignoring padding.
fn find_repeated(row: &mut [u16]) -> Option<u16> {
    if row.len() <= 16 {
        return (1..row.len())
            .find(|&at| row[at] != NO_EXPERT && row[..at].contains(&row[at]))
            .map(|at| row[at]);
    }
    row.sort_unstable();
    row.windows(2).find(|pair| pair[0] == pair[1] && pair[0] != NO_EXPERT).map(|pair| pair[0])
}

/// Finds the padding and the highest id, and refuses rows that are no routing. `stated` is the number of
/// experts in the options.
fn resolve_padding(
    array: &mut TokenArray,
    path: &Path,
    stated: Option<usize>,
) -> Result<Option<String>, TraceError> {
    let (layers, top_k) = (array.layers, array.top_k);
    let name = array.name.clone();
    let place = |element| id_location(&name, element, layers, top_k);
    let rows = RowRepeats::find_repeats(array);
    let refuse = |element, id: u16| {
        Err(invalid_content(
            path,
            place(element),
            format!("expert {id} more than once in a row of {top_k}"),
            "the ids of different experts, or one id that fills the rows of padding; --format npy-counts reads \
             counts [steps, layers, experts], --experts N reads ids from N on as padding",
        ))
    };
    let narrow = matches!(array.ids, IdArray::Narrow(..));
    let beyond = |id: u16| stated.is_some_and(|experts| usize::from(id) >= experts);
    let mut remark = None;
    if let Some((element, id)) = rows.second_repeat {
        return refuse(element, id);
    }
    let mut everywhere = None;
    if let Some(filler) = rows.filler {
        // Unused ids lie between the other ids and the filler.
        let apart = usize::from(filler) > rows.experts_without_filler;
        let last = usize::from(filler) == rows.experts_without_filler;
        if beyond(filler) || stated.is_none() && (apart || last && rows.single_rows == 0) {
            everywhere = Some(filler);
        } else if rows.partial_rows > 0 {
            return refuse(rows.first_partial_row, filler);
        } else if stated.is_none() && last && rows.single_rows > 0 {
            return Err(invalid_content(
                path,
                place(0),
                format!(
                    "the highest id, {filler}, once in each of {} rows and repeated in {} rows",
                    rows.single_rows, rows.full_rows
                ),
                format!(
                    "--experts {filler} if it is padding, --experts {} if it is an expert too",
                    filler + 1
                ),
            ));
        }
        remark =
            Some(format!("{} rows that repeat id {filler} are padding", rows.full_rows + rows.partial_rows));
    }
    // 255 is -1 in 8 unsigned bits.
    if narrow && rows.filler != Some(255) {
        let held = |at: usize| array.ids.get(at) == 255;
        let below = (0..array.ids.len()).map(|at| array.ids.get(at)).filter(|&id| id < 255).max();
        let below = below.map_or(0, |id| usize::from(id) + 1);
        if (0..array.ids.len()).any(held) {
            match stated {
                Some(experts) if experts <= 255 => {
                    everywhere = everywhere.or(Some(255));
                    remark.get_or_insert_with(|| "id 255 is padding".into());
                }
                None if below + MIN_PADDING_GAP <= 255 => {
                    return Err(invalid_content(
                        path,
                        Location::Key(format!("array {}", quote_bytes(name.as_bytes()))),
                        format!("id 255 in 8 bits, the next highest is {}", below.saturating_sub(1)),
                        format!(
                            "--experts {} if 255 is padding, --experts 256 if it is an expert",
                            below.max(1)
                        ),
                    ));
                }
                _ => {}
            }
        }
    }
    if rows.filler.is_some() || everywhere.is_some() {
        replace_padding(array, rows.filler, everywhere);
    }
    let limit = stated.unwrap_or(MAX_EXPERTS);
    for at in 0..array.ids.len() {
        let id = array.ids.get(at);
        if id != NO_EXPERT {
            if usize::from(id) >= limit {
                let expected = format!("an expert id below {limit}, or -1 for padding");
                return Err(invalid_content(path, place(at), format!("expert {id}"), expected));
            }
            array.experts = array.experts.max(usize::from(id) + 1);
        }
    }
    reject_counts(array, path, &name)?;
    Ok(remark)
}

/// Replaces an id by padding: `filler` in rows that repeat it, `everywhere` in all rows.
fn replace_padding(array: &mut TokenArray, filler: Option<u16>, everywhere: Option<u16>) {
    let top_k = array.top_k;
    let mut found = Vec::new();
    for first in (0..array.ids.len()).step_by(top_k) {
        let row = first..first + top_k;
        let twice = row.clone().filter(|&at| Some(array.ids.get(at)) == filler).count() > 1;
        found.extend(row.filter(|&at| {
            let id = Some(array.ids.get(at));
            id == everywhere || twice && id == filler
        }));
    }
    let mark = array.ids.reserve_padding();
    found.into_iter().for_each(|at| array.ids.set_id(at, mark));
}

/// Refuses counts, and ids of one layer that look like ids of several layers.
fn reject_counts(array: &TokenArray, path: &Path, name: &str) -> Result<(), TraceError> {
    let (layers, top_k, ids) = (array.layers, array.top_k, &array.ids);
    let place = || Location::Key(format!("array {}", quote_bytes(name.as_bytes())));
    if array.tokens < 2 || layers < 2 || ids.len() == 0 {
        return Ok(());
    }
    let row = |token: usize, layer: usize| {
        let first = (token * layers + layer) * top_k;
        first..first + top_k
    };
    let whole = (0..ids.len()).all(|at| ids.get(at) != NO_EXPERT);
    let sum = |token, layer| row(token, layer).map(|at| u64::from(ids.get(at))).sum::<u64>();
    // If top-k equals the number of experts, the sums are equal in every layer too.
    if top_k > 2 && top_k < array.experts && whole {
        let even = |token| (1..layers).all(|layer| sum(token, layer) == sum(token, 0));
        if (0..array.tokens).all(even) {
            return Err(invalid_content(
                path,
                place(),
                "rows with the same sum in every layer, as in counts",
                "ids of experts; --format npy-counts reads counts [steps, layers, experts]",
            ));
        }
    }
    let pairs = (layers * (layers - 1) / 2) as f64 * array.tokens as f64;
    if top_k == 1 && whole && pairs / array.experts.max(1) as f64 > MIN_EXPECTED_REPEATS {
        let mut ids_of = vec![0u16; layers];
        let mut distinct = (0..array.tokens).all(|token| {
            (0..layers).for_each(|layer| ids_of[layer] = ids.get(token * layers + layer));
            find_repeated(&mut ids_of).is_none()
        });
        distinct &= layers <= MAX_COLUMNS_OF_ONE_LAYER;
        if distinct {
            return Err(invalid_content(
                path,
                place(),
                format!("{layers} different ids in every row, like the top-{layers} ids of one layer"),
                format!("[tokens, layers] with one id per layer, or the shape [tokens, 1, {layers}]"),
            ));
        }
    }
    Ok(())
}

/// The most columns of one layer. Further columns are layers.
const MAX_COLUMNS_OF_ONE_LAYER: usize = 64;
