//! A trace file that grows: a long CSV, or vLLM's JSONL.
//!
//! New whole lines are read as a trace of their own; for a CSV, the file's first line precedes them. The last
//! step of a CSV may be incomplete. It is held back until another step follows, or until the file is
//! unchanged between two looks. The number of a step is its label if that is a number, else its place in the
//! file. Lines that cannot be parsed are skipped and reported by number.
//!
//! Step numbers belong to a run, such as `1f0c..-0-2`. A run id has three parts:
//!
//! - a digest of the file's inode and first lines,
//! - the number of times that the file was rewritten in place,
//! - the number of times that its step numbers started again.
//!
//! A rotated file has another inode; the old one is read to its end first. A rewritten file is recognised by
//! its size, or by the bytes around the part that was read. After a restart of the service the file is read
//! again from its beginning, and runs before the current one are left out.

use super::SourceSteps;
use super::lines::{StepLines, step_column};
use evenkeel_trace::{self as trace, Location, ReadOptions, Trace, TraceError, TraceFormat};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The most bytes of one read.
const MAX_BYTES: u64 = 4 << 20;
/// The most bytes that are read at one look.
const MAX_LOOK_BYTES: u64 = 64 << 20;
/// The bytes at the beginning, and before the end of the part that was read, that identify a rewritten file.
const MAX_MARK: usize = 512;

/// The result of a look at the file.
#[derive(Debug, Default)]
pub(super) struct TailUpdate {
    pub(super) found: Vec<SourceSteps>,
    /// Lines that could not be parsed: number and error.
    pub(super) skipped: Vec<(u64, String)>,
}

/// A growing file, and the position up to which it was read.
#[derive(Debug, Default)]
pub(super) struct TailedFile {
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    inode: (u64, u64),
    /// The bytes that were read; `lines` counts them in lines.
    offset: u64,
    lines: u64,
    /// The size at the last look.
    size: u64,
    /// The first line of a CSV; empty for JSONL.
    header: Vec<u8>,
    /// The first bytes of the file; `tail` has the last ones that were read.
    head: Vec<u8>,
    tail: Vec<u8>,
    /// The digest of the inode and the first lines; empty until these exist.
    digest: String,
    rewritten: u64,
    restarts: u64,
    /// The number of runs that were taken before the service started.
    earlier_runs: u64,
    last_label: Option<u64>,
    /// The number of steps of the current run.
    steps: u64,
}

impl TailedFile {
    /// Reads the new lines. `current` is the id of the run that the service knows for this source.
    pub(super) fn read_new(&mut self, path: &Path, current: Option<&str>) -> Result<TailUpdate, TraceError> {
        let io = |source| TraceError::Io { path: path.to_owned(), source };
        let mut look = TailUpdate::default();
        let meta = std::fs::metadata(path).map_err(io)?;
        if !meta.is_file() {
            let what = "neither a regular file nor a folder; expected one of these".to_owned();
            return Err(TraceError::Options(format!("{}: {what}", path.display())));
        }
        let inode = (meta.dev(), meta.ino());
        if let Some(open) = self.open.as_mut().filter(|open| open.inode != inode) {
            // The file was rotated. Read the old one to its end.
            open.read_whole_lines(current, true, &mut look).map_err(|error| with_file_path(error, path))?;
            self.open = None;
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => OpenFile::new(File::open(path).map_err(io)?, inode, 0),
        };
        if open.is_rewritten(meta.len()).map_err(io)? {
            open = OpenFile::new(File::open(path).map_err(io)?, inode, open.rewritten + 1);
        }
        let still = meta.len() == open.size;
        open.size = meta.len();
        let open = self.open.insert(open);
        open.read_whole_lines(current, still, &mut look).map_err(|error| with_file_path(error, path))?;
        Ok(look)
    }
}

/// Adds the file's name to an error about bytes in memory.
fn with_file_path(error: TraceError, path: &Path) -> TraceError {
    match error {
        TraceError::Invalid { place, found, expected, .. } => {
            TraceError::Invalid { path: path.to_owned(), place, found, expected }
        }
        TraceError::Limit { place, what, .. } => TraceError::Limit { path: path.to_owned(), place, what },
        TraceError::Io { source, .. } => TraceError::Io { path: path.to_owned(), source },
        TraceError::UnknownFormat { found, .. } => TraceError::UnknownFormat { path: path.to_owned(), found },
        error => error,
    }
}

impl OpenFile {
    fn new(file: File, inode: (u64, u64), rewritten: u64) -> Self {
        Self {
            file,
            inode,
            rewritten,
            offset: 0,
            lines: 0,
            size: 0,
            header: vec![],
            head: vec![],
            tail: vec![],
            digest: String::new(),
            restarts: 0,
            earlier_runs: 0,
            last_label: None,
            steps: 0,
        }
    }

    /// Returns whether the content that was read has changed.
    fn is_rewritten(&mut self, size: u64) -> std::io::Result<bool> {
        if size < self.offset {
            return Ok(true);
        }
        if size == self.size || self.offset == 0 {
            return Ok(false);
        }
        let head = self.bytes_at(0, self.head.len())?;
        let tail = self.bytes_at(self.offset - self.tail.len() as u64, self.tail.len())?;
        Ok(head != self.head || tail != self.tail)
    }

    fn bytes_at(&mut self, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(length);
        (&self.file).take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads whole lines up to the end. `still` states that the last step is complete.
    fn read_whole_lines(
        &mut self,
        current: Option<&str>,
        still: bool,
        look: &mut TailUpdate,
    ) -> Result<(), TraceError> {
        let io = |source| TraceError::Io { path: "".into(), source };
        let begin = self.offset;
        while self.offset - begin < MAX_LOOK_BYTES {
            self.file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
            let mut bytes = Vec::new();
            let read = (&self.file).take(MAX_BYTES).read_to_end(&mut bytes).map_err(io)?;
            let full = read as u64 == MAX_BYTES;
            let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            bytes.truncate(whole);
            if bytes.is_empty() {
                if full {
                    let what = format!("longer than {} MiB", MAX_BYTES >> 20);
                    let place = Location::Line(self.lines + 1);
                    return Err(TraceError::Limit { path: "".into(), place, what });
                }
                break;
            }
            let used = self.consume_lines(&bytes, current, still && !full, look)?;
            if used == 0 {
                break;
            }
            let keep = bytes[..used].len().min(MAX_MARK);
            if self.offset == 0 {
                self.head = bytes[..keep].to_vec();
            }
            self.tail = bytes[used - keep..used].to_vec();
            self.offset += used as u64;
            self.lines += line_ends(&bytes[..used]);
            if !full {
                break;
            }
        }
        Ok(())
    }

    /// Takes the complete steps. Returns the number of their bytes.
    fn consume_lines(
        &mut self,
        bytes: &[u8],
        current: Option<&str>,
        still: bool,
        look: &mut TailUpdate,
    ) -> Result<usize, TraceError> {
        let mut begin = 0;
        if self.offset == 0 {
            let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            begin = bytes.len() - text.len();
            let mut ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
            let first = ends.next().unwrap_or(text.len());
            let is_json = text.first() == Some(&b'{');
            let Some(known) = (if is_json { Some(first) } else { ends.next() }) else { return Ok(0) };
            self.identify_file(&text[..known], current);
            if !is_json {
                self.header = text[..first].to_vec();
                begin += first;
            }
        }
        let format = if self.header.is_empty() { TraceFormat::VllmJsonl } else { TraceFormat::Csv };
        let lines = StepLines::parse(&bytes[begin..], format, step_column(&self.header));
        let end = if still || format == TraceFormat::VllmJsonl { lines.len() } else { lines.last_step() };
        let first_line = self.lines + 1 + line_ends(&bytes[..begin]);
        for run in lines.split_runs(end, self.last_label) {
            if run.restarts {
                self.restarts += 1;
                self.steps = 0;
            }
            self.last_label = run.last_label.or(self.last_label);
            let (trace, skipped) = self.read_lines(format, &lines, run.lines.clone())?;
            look.skipped.extend(skipped.into_iter().map(|(at, what)| (first_line + at as u64, what)));
            let Some(trace) = trace else { continue };
            let ids = self.number_steps(&trace);
            if self.restarts >= self.earlier_runs {
                look.found.push(SourceSteps { trace, ids, run: self.run_id() });
            }
        }
        Ok(begin + lines.byte_offset(end))
    }

    /// Identifies the file by its inode and its first lines.
    fn identify_file(&mut self, first: &[u8], current: Option<&str>) {
        let mut hash = Sha256::new();
        hash.update(self.inode.0.to_le_bytes());
        hash.update(self.inode.1.to_le_bytes());
        hash.update(first);
        let digest = hash.finalize();
        self.digest = digest.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let known =
            current.and_then(|run| run.strip_prefix(&self.digest)?.strip_prefix('-')?.split_once('-'));
        if let Some((rewritten, restarts)) = known
            && let (Ok(rewritten), Ok(restarts)) = (rewritten.parse(), restarts.parse())
            && self.rewritten <= rewritten
        {
            // The digest matches, so the service was restarted: this is the file of the current run.
            if self.rewritten == 0 {
                (self.rewritten, self.earlier_runs) = (rewritten, restarts);
            } else {
                self.rewritten = rewritten + 1;
            }
        }
    }

    fn run_id(&self) -> String {
        format!("{}-{}-{}", self.digest, self.rewritten, self.restarts)
    }

    /// Reads lines as a trace, without those that cannot be parsed.
    fn read_lines(
        &self,
        format: TraceFormat,
        lines: &StepLines<'_>,
        range: std::ops::Range<usize>,
    ) -> Result<ReadableLines, TraceError> {
        let text = |from: usize, without: &[(usize, String)]| {
            let kept = (from..range.end).filter(|at| without.binary_search_by_key(at, |bad| bad.0).is_err());
            kept.fold(self.header.clone(), |mut text, at| {
                text.extend_from_slice(lines.line(at));
                text
            })
        };
        let read = |text: &[u8]| trace::read_bytes(format, text, &ReadOptions::default());
        let header_lines = usize::from(!self.header.is_empty());
        let mut bad: Vec<(usize, String)> = vec![];
        // The reader stops at the first invalid line, so the lines after it are read separately.
        let mut from = range.start;
        while from < range.end {
            match read(&text(from, &[])) {
                Ok(trace) if bad.is_empty() => return Ok((Some(trace), bad)),
                Ok(_) => break,
                Err(error) => {
                    let Some(line) = error_line(&error) else {
                        return Ok(skip_unreadable(&error, range, bad));
                    };
                    let Some(at) =
                        usize::try_from(line).ok().and_then(|line| line.checked_sub(1 + header_lines))
                    else {
                        // The header is invalid, so nothing of this file can be read.
                        return Err(error);
                    };
                    bad.push((from + at, message_without_location(&error)));
                    from += at + 1;
                }
            }
        }
        if bad.len() == range.len() {
            return Ok((None, bad));
        }
        match read(&text(range.start, &bad)) {
            Ok(trace) => Ok((Some(trace), bad)),
            Err(error) => Ok(skip_unreadable(&error, range, bad)),
        }
    }

    fn number_steps(&mut self, trace: &Trace) -> Vec<u64> {
        let numbered: Vec<Option<u64>> = trace.steps().iter().map(|label| label.parse().ok()).collect();
        let by_label = numbered.iter().all(|id| id.is_some_and(|id| i64::try_from(id).is_ok()));
        let first = self.steps;
        self.steps += trace.steps().len() as u64;
        let ids = numbered.iter().enumerate();
        ids.map(|(at, id)| id.filter(|_| by_label).unwrap_or(first + at as u64)).collect()
    }
}

/// The trace of the valid lines, and the other lines by place, with their errors.
type ReadableLines = (Option<Trace>, Vec<(usize, String)>);

/// Skips lines that cannot be read together, for a reason outside any single line.
fn skip_unreadable(
    error: &TraceError,
    range: std::ops::Range<usize>,
    mut bad: Vec<(usize, String)>,
) -> ReadableLines {
    let known: Vec<usize> = bad.iter().map(|bad| bad.0).collect();
    let what = message_without_location(error);
    bad.extend(range.filter(|at| !known.contains(at)).map(|at| (at, what.clone())));
    bad.sort_unstable_by_key(|bad| bad.0);
    (None, bad)
}

fn line_ends(bytes: &[u8]) -> u64 {
    bytes.split(|&byte| byte == b'\n').count() as u64 - 1
}

fn error_line(error: &TraceError) -> Option<u64> {
    match error {
        TraceError::Invalid { place, .. } | TraceError::Limit { place, .. } => match place {
            Location::Line(line) | Location::Cell { line, .. } => Some(*line),
            _ => None,
        },
        _ => None,
    }
}

/// Returns the text of an error without the placeholder name and line of bytes in memory.
fn message_without_location(error: &TraceError) -> String {
    match error {
        TraceError::Invalid { place, found, expected, .. } => match place {
            Location::Cell { column, .. } => format!("column {column}: found {found}, expected {expected}"),
            _ => format!("found {found}, expected {expected}"),
        },
        TraceError::Limit { what, .. } => what.clone(),
        error => evenkeel::error_chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    struct Fed {
        _folder: tempfile::TempDir,
        path: std::path::PathBuf,
        growing: TailedFile,
        current: Option<String>,
    }

    impl Fed {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("t.csv");
            File::create(&path).unwrap();
            Self { _folder: folder, path, growing: TailedFile::default(), current: None }
        }

        fn append(&self, text: &str) {
            File::options().append(true).open(&self.path).unwrap().write_all(text.as_bytes()).unwrap();
        }

        /// Returns the numbers by run, and the skipped lines.
        fn look(&mut self) -> (Vec<(String, Vec<u64>)>, Vec<u64>) {
            let look = self.growing.read_new(&self.path, self.current.as_deref()).unwrap();
            let found: Vec<_> = look.found.into_iter().map(|found| (found.run, found.ids)).collect();
            self.current = found.last().map(|found| found.0.clone()).or(self.current.take());
            (found, look.skipped.iter().map(|skipped| skipped.0).collect())
        }

        fn ids(&mut self, text: &str) -> Vec<u64> {
            self.append(text);
            self.look().0.into_iter().flat_map(|found| found.1).collect()
        }
    }

    #[test]
    fn whole_steps_are_taken_as_the_file_grows() {
        let mut fed = Fed::new();
        assert_eq!(fed.ids("step,layer,expert,tokens\n"), [0; 0]);
        assert_eq!(fed.ids("7,0,0,5\n7,0,1,3\n"), [0; 0], "step 7 may still grow");
        assert_eq!(fed.ids("7,0,2,3\n8,0,0,1\n9,0"), [7]);
        assert_eq!(fed.ids(",0,4\n"), [8]);
        assert_eq!(fed.ids(""), [9], "the file stands still: step 9 is whole");
        assert_eq!(fed.ids(""), [0; 0]);
        assert_eq!(fed.ids("10,0,0,1\n11,0,0,2\n"), [10]);
    }

    #[test]
    fn bad_lines_are_skipped_and_named() {
        let mut fed = Fed::new();
        fed.append("step,layer,expert,tokens\n1,0,0,1\nxx\n1,0,1,x\n1,0,1,4\n2,0,0,1\n2,0,one,1\n3,0,0,1\n");
        let (found, skipped) = fed.look();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].1.as_slice(), skipped.as_slice()), (&[1, 2][..], &[3, 4, 7][..]));
        fed.append("garbage\n3,0,1,1\n4,0,0,1\n");
        let (found, skipped) = fed.look();
        assert_eq!((found[0].1.as_slice(), skipped.as_slice()), (&[3][..], &[9][..]));
    }

    #[test]
    fn bad_records_are_skipped_and_named() {
        let mut fed = Fed::new();
        let record = |step: u64| {
            format!(
                "{{\"record_type\":\"eplb_load_stats\",\"version\":1,\"step\":{step},\"expert_load\":[[1,2]],\
                 \"p2l_map\":[[0,1]]}}\n"
            )
        };
        fed.append(&format!("\u{feff}{}{{\"a\n{}", record(1), record(2)));
        let (found, skipped) = fed.look();
        assert_eq!((found[0].1.as_slice(), skipped.as_slice()), (&[1, 2][..], &[2][..]));
        // The engine is restarted and continues in the same file.
        fed.append(&format!("{}{}", record(1), record(2)));
        let (again, _) = fed.look();
        assert_eq!(again[0].1, [1, 2]);
        assert_ne!(again[0].0, found[0].0, "another run");
        // The service is restarted too: only the current run is read again.
        fed.growing = TailedFile::default();
        assert_eq!(fed.look().0, again);
    }

    #[test]
    fn files_that_are_rotated_or_rewritten_begin_another_run() {
        let mut fed = Fed::new();
        fed.append("step,layer,expert,tokens\n1,0,0,1\n2,0,0,1\n");
        let first = fed.look().0;
        assert_eq!(first[0].1, [1]);
        // The file is renamed and created again. The old one has unread lines.
        fed.append("3,0,0,1\n");
        std::fs::rename(&fed.path, fed.path.with_extension("old")).unwrap();
        std::fs::write(&fed.path, "step,layer,expert,tokens\n1,0,0,1\n2,0,0,9\n3,0,0,9\n").unwrap();
        let second = fed.look().0;
        assert_eq!(second[0], (first[0].0.clone(), vec![2, 3]), "the old file is read to its end");
        assert_eq!(second[1].1, [1, 2]);
        assert_ne!(second[1].0, first[0].0);
        // The file is truncated and grows longer than before, with the same first lines.
        std::fs::write(&fed.path, "step,layer,expert,tokens\n1,0,0,1\n2,0,0,5\n3,0,0,5\n4,0,0,5\n5,0,0,5\n")
            .unwrap();
        let third = fed.look().0;
        assert_eq!(third[0].1, [1, 2, 3, 4]);
        assert_ne!(third[0].0, second[1].0);
        // The file is truncated and stays shorter.
        std::fs::write(&fed.path, "step,layer,expert,tokens\n1,0,0,1\n2,0,0,5\n").unwrap();
        let fourth = fed.look().0;
        assert_eq!(fourth[0].1, [1]);
        assert!(![&first[0].0, &second[1].0, &third[0].0].contains(&&fourth[0].0));
        // After a restart of the service the run is the same.
        fed.growing = TailedFile::default();
        assert_eq!(fed.look().0, fourth);
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = TailedFile::default().read_new(&path, None).unwrap_err().to_string();
        assert!(error.contains("regular file"), "{error}");
    }
}
