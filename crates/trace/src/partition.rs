//! Recognition of files that are parts of one table.
//!
//! Input is names of files and of the folders above them. Output is [`TablePart`] and [`FolderColumns`].
//! [`TablePart`] is the table to which a name such as `part-00003.parquet` or `rank2.csv` belongs.
//! [`FolderColumns`] has the columns that folders such as `step=7/layer=3` hold instead of the file. Hive,
//! Spark and DuckDB write such folders.

use super::header::{EXPERT_COLUMNS, LAYER_COLUMNS};
use super::{Location, TraceError};
use crate::ReadOptions;
use evenkeel::trace::build::parse_integer;
use evenkeel::trace::build::{Sink, StepLabel};
use evenkeel::trace::build::{SinkError, invalid_content, quote_bytes};
use std::path::Path;

/// Words that number the files of one table.
const PART_WORDS: [&str; 6] = ["part", "shard", "chunk", "split", "slice", "data"];
/// Words that number the ranks of one run.
const RANK_WORDS: [&str; 6] = ["rank", "ep", "dp", "worker", "gpu", "proc"];
/// The fewest digits of a purely numeric name that numbers a part.
const MIN_DIGITS: usize = 4;

/// The table to which a file belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TablePart {
    /// The name without its numbers.
    pub(crate) table: String,
    /// The rank, if the name has one.
    pub(crate) rank: Option<usize>,
}

impl TablePart {
    /// Parses the name of a file. Returns `None` if the name shows no part.
    pub(crate) fn from_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let stem = name.split('.').next().unwrap_or_default();
        if stem.len() >= MIN_DIGITS && stem.starts_with('0') && stem.bytes().all(|byte| byte.is_ascii_digit())
        {
            return Some(Self { table: String::new(), rank: None });
        }
        let (mut table, mut rank, mut found) = (String::new(), None, false);
        let mut rest = name.as_str();
        let mut inside = false;
        while let Some(letter) = rest.chars().next() {
            if !inside && let Some((word, number, after)) = split_numbered(rest) {
                found = true;
                table.push_str(word);
                if PART_WORDS.contains(&word) {
                    // Job and task follow the number. They differ for parts that were appended later, so they
                    // are left out.
                    break;
                }
                rank = number.parse().ok();
                rest = after;
                continue;
            }
            inside = letter.is_ascii_alphabetic();
            table.push(letter);
            rest = &rest[letter.len_utf8()..];
        }
        found.then_some(Self { table, rank })
    }
}

/// Returns a known word with its number at the start of the text, and the rest.
fn split_numbered(text: &str) -> Option<(&'static str, &str, &str)> {
    PART_WORDS.into_iter().chain(RANK_WORDS).find_map(|word| {
        let after = text.strip_prefix(word)?;
        let after = after.strip_prefix(['-', '_', '.']).unwrap_or(after);
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        (digits > 0).then(|| (word, &after[..digits], &after[digits..]))
    })
}

/// The columns whose value follows from the folders of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FolderColumns {
    /// Folder names `key=value` that are no column of a trace. They distinguish tables.
    pub(crate) table: String,
    pub(crate) step: Option<String>,
    pub(crate) layer: Option<u64>,
    pub(crate) expert: Option<u64>,
    pub(crate) source: Option<String>,
    /// The step of a file without steps, if several files share it.
    pub(crate) label: Option<String>,
}

impl FolderColumns {
    /// Parses the folders between `root` and a file.
    pub(crate) fn from_folders(root: &Path, file: &Path, options: &ReadOptions) -> Result<Self, TraceError> {
        let mut given = Self::default();
        let Some(inner) = file.strip_prefix(root).ok().and_then(Path::parent) else { return Ok(given) };
        let step = options.step_column.as_deref().unwrap_or("step");
        for folder in inner.components() {
            let folder = folder.as_os_str().to_string_lossy();
            let Some((key, value)) = folder.split_once('=') else { continue };
            let value = decode_escapes(value);
            let is = |names: &[&str]| names.iter().any(|name| key.eq_ignore_ascii_case(name));
            let number = || {
                parse_integer(value.as_bytes()).ok_or_else(|| {
                    invalid_content(
                        file,
                        Location::Key(format!("folder {}", quote_bytes(folder.as_bytes()))),
                        quote_bytes(value.as_bytes()),
                        format!("a {key} id, a whole number from 0"),
                    )
                })
            };
            if is(&[step]) {
                given.step = Some(value);
            } else if is(LAYER_COLUMNS) {
                given.layer = Some(number()?);
            } else if is(EXPERT_COLUMNS) {
                given.expert = Some(number()?);
            } else if is(&["source"]) {
                given.source = Some(value);
            } else {
                given.table += &format!("{key}={value} ");
            }
        }
        given.table.truncate(given.table.trim_end().len());
        Ok(given)
    }

    /// Enters the step of a file without a step column. Returns a notice about it.
    pub(crate) fn enter_step(
        &self,
        stem: &str,
        as_text: bool,
        sink: &mut dyn Sink,
    ) -> Result<Option<&'static str>, SinkError> {
        match (&self.step, &self.label) {
            (Some(step), _) if as_text => sink.select_step(StepLabel::Text(step)).map(|()| None),
            (Some(step), _) => sink.select_step(StepLabel::parse_cell(step)).map(|()| None),
            (None, Some(label)) => {
                sink.select_step(StepLabel::Text(label))?;
                Ok(Some("no step column, the files together are one step"))
            }
            (None, None) => {
                sink.select_step(StepLabel::Text(stem))?;
                Ok(Some("no step column, the file is one step"))
            }
        }
    }
}

/// Decodes escapes such as `%20`, which Hive writes in values.
fn decode_escapes(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let byte = match (first, after) {
            (b'%', [high, low, ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                digit(high).zip(digit(low)).map(|(high, low)| (high * 16 + low) as u8)
            }
            _ => None,
        };
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let part = |name: &str| TablePart::from_path(Path::new(name)).map(|part| (part.table, part.rank));
        let table = |name: &str, rank| Some((name.to_owned(), rank));
        assert_eq!(part("a/part-00000-2f1e-c000.snappy.parquet"), table("part", None));
        assert_eq!(part("part.0.parquet"), table("part", None));
        assert_eq!(part("data_12.parquet"), table("data", None));
        assert_eq!(part("00000003.parquet"), table("", None));
        assert_eq!(part("counts_rank3.csv"), table("counts_rank.csv", Some(3)));
        assert_eq!(part("Rank-0.csv.gz"), table("rank.csv.gz", Some(0)));
        assert_eq!(part("run1-ep7-b.csv"), table("run1-ep-b.csv", Some(7)));
        for other in ["run1.csv", "step0.csv", "depart3.csv", "trace.csv", "2024.csv", "frank1.csv"] {
            assert_eq!(part(other), None, "{other}");
        }
    }

    #[test]
    fn folders_hold_columns() {
        let given = |file: &str| {
            let options = ReadOptions::default();
            FolderColumns::from_folders(Path::new("r"), Path::new(file), &options)
        };
        let found = given("r/model=a%20b/step=7/Layer=3/x.csv").unwrap();
        let expected = FolderColumns {
            table: "model=a b".into(),
            step: Some("7".into()),
            layer: Some(3),
            ..FolderColumns::default()
        };
        assert_eq!(found, expected);
        assert_eq!(given("r/x.csv").unwrap(), FolderColumns::default());
        let message = given("r/layer=__HIVE_DEFAULT_PARTITION__/x.csv").unwrap_err().to_string();
        assert!(message.contains("expected a layer id"), "{message}");
    }
}
