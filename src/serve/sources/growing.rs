//! A trace file that grows: a long CSV, or vLLM's JSONL.
//!
//! Whole lines behind what was read before are read as a trace of their own, for CSV with the file's first line before them.
//! The last step of a CSV may still grow, so it is held back until another follows or the file has not grown from one look to
//! the next. A step's number is its label where that is a number, otherwise its place in the file. A file that became shorter is
//! read anew.

use super::Found;
use crate::trace::{self, Format, ReadOptions, Trace, TraceError};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Most bytes read at one look.
const MOST: u64 = 64 << 20;

/// How far a file was read.
#[derive(Debug, Default)]
pub(super) struct Growing {
    offset: u64,
    /// A CSV's first line.
    header: Vec<u8>,
    /// Size at the last look.
    size: u64,
    steps: u64,
}

impl Growing {
    pub(super) fn look(&mut self, path: &Path) -> Result<Option<Found>, TraceError> {
        let io = |source| TraceError::Options(format!("{}: {source}", path.display()));
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if size < self.offset {
            *self = Self::default();
        }
        let still = size == self.size;
        self.size = size;
        if size == self.offset {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        bytes.truncate(whole);
        if bytes.is_empty() {
            return Ok(None);
        }
        let (trace, used) = if bytes[0] == b'{' && self.header.is_empty() {
            (trace::read_bytes(Format::VllmJsonl, &bytes, &ReadOptions::default())?, bytes.len())
        } else {
            let Some(found) = self.csv(&bytes, still)? else { return Ok(None) };
            found
        };
        self.offset += used as u64;
        let numbered: Vec<Option<u64>> = trace.steps().iter().map(|label| label.parse().ok()).collect();
        let by_label = numbered.iter().all(|id| id.is_some_and(|id| i64::try_from(id).is_ok()));
        let first = self.steps;
        self.steps += trace.steps().len() as u64;
        let ids =
            numbered.iter().enumerate().map(|(at, id)| id.filter(|_| by_label).unwrap_or(first + at as u64));
        Ok(Some(Found { ids: ids.collect(), trace }))
    }

    /// The trace of the steps that are whole, and the bytes that they take.
    fn csv(&mut self, bytes: &[u8], still: bool) -> Result<Option<(Trace, usize)>, TraceError> {
        let mut begin = 0;
        if self.offset == 0 {
            begin = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
            self.header = bytes[..begin].to_vec();
        }
        let end =
            if still { bytes.len() } else { self.last_step(&bytes[begin..]).map_or(begin, |at| begin + at) };
        if end <= begin {
            return Ok(None);
        }
        let text = [self.header.as_slice(), &bytes[begin..end]].concat();
        Ok(Some((trace::read_bytes(Format::Csv, &text, &ReadOptions::default())?, end)))
    }

    /// Where the rows of the last step begin; nothing where there is one step only.
    fn last_step(&self, rows: &[u8]) -> Option<usize> {
        let mut header = csv::ReaderBuilder::new().has_headers(false).from_reader(self.header.as_slice());
        let header = header.byte_records().next()?.ok()?;
        let column = header.iter().position(|name| name.trim_ascii() == b"step")?;
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(rows);
        let (mut label, mut begins) = (None, None);
        for record in reader.byte_records().map_while(Result::ok) {
            let this = record.get(column).map(<[u8]>::to_vec);
            if this != label {
                begins = label
                    .is_some()
                    .then(|| record.position().map(|at| at.byte() as usize))
                    .flatten()
                    .or(begins);
                label = this;
            }
        }
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn whole_steps_are_taken_as_the_file_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        let mut file = File::create(&path).unwrap();
        let mut growing = Growing::default();
        let mut ids = |text: &str| {
            file.write_all(text.as_bytes()).unwrap();
            growing.look(&path).unwrap().map(|found| found.ids)
        };
        assert_eq!(ids("step,layer,expert,tokens\n"), None);
        assert_eq!(ids("7,0,0,5\n7,0,1,3\n"), None, "step 7 may still grow");
        assert_eq!(ids("7,0,2,3\n8,0,0,1\n9,0"), Some(vec![7]));
        assert_eq!(ids(",0,4\n"), Some(vec![8]));
        assert_eq!(ids(""), Some(vec![9]), "the file stands still: step 9 is whole");
        assert_eq!(ids(""), None);
        assert_eq!(ids("10,0,0,1\n11,0,0,2\n"), Some(vec![10]));
        std::fs::write(&path, "step,layer,expert,tokens\n1,0,0,1\n2,0,0,1\n").unwrap();
        assert_eq!(growing.look(&path).unwrap().unwrap().ids, [1], "a shorter file is another file");
    }
}
