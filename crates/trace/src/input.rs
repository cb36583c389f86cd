//! One input file, or bytes in its place, with its digest and the progress of reading.
//!
//! Input is a path or a byte slice. There are two kinds of readers. A plain one sees every byte once:
//! [`InputFile::open_stream`] decompresses gzip and zstd, and [`InputFile::open_text`] also decodes to UTF-8.
//! [`InputFile::open_seekable`] supports seeking. A separate thread reads and hashes the file, so that the
//! parser does not wait for SHA-256. Pipes are held in memory.

use super::{ReadProgress, SourceFile, TraceError, pipe};
use encoding_rs_io::DecodeReaderBytesBuilder;
use evenkeel::trace::build::io_error_at;
use sha2::{Digest, Sha256};
use std::cell::{Cell, OnceCell};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// Bytes per read of the hashing thread.
const CHUNK_BYTES: usize = 1 << 20;
/// The number of chunks by which the hashing thread may be ahead of the parser.
const MAX_CHUNKS_AHEAD: usize = 4;

/// A reader that supports seeking.
pub(crate) trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// The progress over all files of one call.
pub(crate) struct ProgressCounter<'a> {
    progress: &'a dyn ReadProgress,
    done: Cell<u64>,
    total: u64,
    /// The most bytes that a pipe may hold.
    memory: u64,
}

impl<'a> ProgressCounter<'a> {
    pub(crate) fn new(progress: &'a dyn ReadProgress, total: u64, memory: u64) -> Self {
        Self { progress, done: Cell::new(0), total, memory }
    }

    fn add_bytes(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        self.progress.report_bytes(self.done.get().min(self.total), self.total);
    }
}

enum InputData<'a> {
    File,
    Bytes(&'a [u8]),
    /// The whole content of a pipe, after it was read.
    Pipe(OnceCell<Vec<u8>>),
}

/// The file or bytes without a reader, for formats with readers of their own.
#[cfg(feature = "parquet")]
pub(crate) enum RawInput<'a> {
    File(File),
    Bytes(&'a [u8]),
}

/// One input file.
pub(crate) struct InputFile<'a> {
    pub(crate) path: PathBuf,
    data: InputData<'a>,
    tally: &'a ProgressCounter<'a>,
    digest: Cell<Option<[u8; 32]>>,
}

impl<'a> InputFile<'a> {
    pub(crate) fn from_path(path: &Path, tally: &'a ProgressCounter<'a>) -> Self {
        let data = if pipe::is_stream(path) { InputData::Pipe(OnceCell::new()) } else { InputData::File };
        Self { path: path.to_path_buf(), data, tally, digest: Cell::new(None) }
    }

    pub(crate) fn from_bytes(path: &Path, bytes: &'a [u8], tally: &'a ProgressCounter<'a>) -> Self {
        Self { path: path.to_path_buf(), data: InputData::Bytes(bytes), tally, digest: Cell::new(None) }
    }

    /// Returns the bytes of an input that is no file. The first call reads a pipe.
    fn held_bytes(&self) -> Result<Option<&[u8]>, TraceError> {
        match &self.data {
            InputData::File => Ok(None),
            InputData::Bytes(bytes) => Ok(Some(bytes)),
            InputData::Pipe(cell) => {
                if let Some(bytes) = cell.get() {
                    return Ok(Some(bytes));
                }
                let bytes = pipe::read(&self.path, self.tally.memory)?;
                Ok(Some(cell.get_or_init(|| bytes)))
            }
        }
    }

    fn open_file(&self) -> Result<File, TraceError> {
        File::open(&self.path).map_err(io_error_at(&self.path))
    }

    /// Returns the first bytes, up to `count`.
    pub(crate) fn read_head(&self, count: usize) -> Result<Vec<u8>, TraceError> {
        let mut head = Vec::new();
        match self.held_bytes()? {
            None => {
                self.open_file()?
                    .take(count as u64)
                    .read_to_end(&mut head)
                    .map_err(io_error_at(&self.path))?;
            }
            Some(bytes) => head.extend_from_slice(&bytes[..bytes.len().min(count)]),
        }
        Ok(head)
    }

    /// Returns the first bytes as UTF-8 text, after decompression. A broken stream ends early.
    pub(crate) fn read_text_head(&self, count: usize) -> Result<Vec<u8>, TraceError> {
        let start = self.read_decompressed_head(4)?;
        let mut head = Vec::new();
        let _ = decode_text(self.open_decompressed()?, &start).take(count as u64).read_to_end(&mut head);
        Ok(head)
    }

    /// Returns the first bytes after decompression. A broken stream ends early.
    fn read_decompressed_head(&self, count: usize) -> Result<Vec<u8>, TraceError> {
        let mut head = Vec::new();
        let _ = self.open_decompressed()?.take(count as u64).read_to_end(&mut head);
        Ok(head)
    }

    /// Returns a decompressing reader for a look at the start. It computes no digest.
    fn open_decompressed(&self) -> Result<Box<dyn Read + '_>, TraceError> {
        let reader: Box<dyn Read + '_> = match self.held_bytes()? {
            None => Box::new(self.open_file()?),
            Some(bytes) => Box::new(bytes),
        };
        decompress(reader, &self.read_head(4)?).map_err(io_error_at(&self.path))
    }

    /// Returns a reader of every byte once, decompressed according to the content.
    pub(crate) fn open_stream(&self) -> Result<Box<dyn Read + '_>, TraceError> {
        let magic = self.read_head(4)?;
        let raw: Box<dyn Read + '_> = match self.held_bytes()? {
            None => Box::new(
                HashingReader::start_hashing(self.open_file()?, self).map_err(io_error_at(&self.path))?,
            ),
            Some(bytes) => {
                self.digest.set(Some(Sha256::digest(bytes).into()));
                Box::new(bytes)
            }
        };
        decompress(raw, &magic).map_err(io_error_at(&self.path))
    }

    /// Returns a reader of the decompressed content as UTF-8. It drops a byte order mark and decodes UTF-16.
    pub(crate) fn open_text(&self) -> Result<Box<dyn Read + '_>, TraceError> {
        Ok(decode_text(self.open_stream()?, &self.read_decompressed_head(4)?))
    }

    /// Returns a reader that supports seeking. The digest is computed first, in a pass of its own.
    pub(crate) fn open_seekable(&self) -> Result<Box<dyn ReadSeek + '_>, TraceError> {
        match self.held_bytes()? {
            None => {
                if self.digest.get().is_none() {
                    self.hash_file()?;
                }
                Ok(Box::new(BufReader::new(self.open_file()?)))
            }
            Some(bytes) => {
                self.digest.set(Some(Sha256::digest(bytes).into()));
                Ok(Box::new(Cursor::new(bytes)))
            }
        }
    }

    /// Returns the size in bytes.
    #[cfg(feature = "parquet")]
    pub(crate) fn size_bytes(&self) -> Result<u64, TraceError> {
        match self.held_bytes()? {
            None => Ok(std::fs::metadata(&self.path).map_err(io_error_at(&self.path))?.len()),
            Some(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Returns the file or bytes without a reader. The digest is computed first, in a pass of its own.
    #[cfg(feature = "parquet")]
    pub(crate) fn open_raw(&self) -> Result<RawInput<'_>, TraceError> {
        match self.held_bytes()? {
            None => {
                if self.digest.get().is_none() {
                    self.hash_file()?;
                }
                Ok(RawInput::File(self.open_file()?))
            }
            Some(bytes) => Ok(RawInput::Bytes(bytes)),
        }
    }

    /// Returns the whole content, if it is not longer than `limit`.
    pub(crate) fn read_whole(&self, limit: u64) -> Result<Vec<u8>, TraceError> {
        let mut bytes = Vec::new();
        self.open_stream()?.take(limit + 1).read_to_end(&mut bytes).map_err(io_error_at(&self.path))?;
        if bytes.len() as u64 > limit {
            return Err(TraceError::Limit {
                path: self.path.clone(),
                place: super::Location::File,
                what: format!("longer than {} MiB, the limit for this format", limit >> 20),
            });
        }
        Ok(bytes)
    }

    fn hash_file(&self) -> Result<(), TraceError> {
        let mut file = File::open(&self.path).map_err(io_error_at(&self.path))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = file.read(&mut buffer).map_err(io_error_at(&self.path))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            self.tally.add_bytes(count as u64);
        }
        self.digest.set(Some(hasher.finalize().into()));
        Ok(())
    }

    /// Returns the path and the digest after reading. If a reader stopped early, the file is read once more.
    pub(crate) fn source_file(&self) -> Result<SourceFile, TraceError> {
        if self.digest.get().is_none() {
            match self.held_bytes()? {
                None => self.hash_file()?,
                Some(bytes) => self.digest.set(Some(Sha256::digest(bytes).into())),
            }
        }
        let mut sha256 = String::with_capacity(64);
        for byte in self.digest.get().unwrap_or_default() {
            let _ = write!(sha256, "{byte:02x}");
        }
        Ok(SourceFile { path: self.path.clone(), sha256 })
    }
}

fn decompress<'a>(raw: Box<dyn Read + 'a>, magic: &[u8]) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match magic {
        [0x1f, 0x8b, ..] => {
            Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(CHUNK_BYTES, raw)))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::Decoder::new(raw)?;
            // 128 MiB is the limit of `zstd` itself without --long.
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
        _ => raw,
    })
}

/// Returns text as UTF-8. `start` has its first four bytes. UTF-16 is recognised by its byte order mark, or
/// by the zero bytes of its first two letters.
fn decode_text<'a>(raw: Box<dyn Read + 'a>, start: &[u8]) -> Box<dyn Read + 'a> {
    use encoding_rs::{UTF_16BE, UTF_16LE};
    let encoding = match start {
        [0xef, 0xbb, 0xbf, ..] => None,
        [0xff, 0xfe, ..] => Some(UTF_16LE),
        [0xfe, 0xff, ..] => Some(UTF_16BE),
        [a, 0, b, 0] if *a > 0 && *b > 0 => Some(UTF_16LE),
        [0, a, 0, b] if *a > 0 && *b > 0 => Some(UTF_16BE),
        _ => return raw,
    };
    let mut builder = DecodeReaderBytesBuilder::new();
    Box::new(builder.encoding(encoding).utf8_passthru(true).strip_bom(true).build(raw))
}

/// The chunks that the reading thread sends.
type ChunkReceiver = Receiver<io::Result<Vec<u8>>>;

struct HashingReader<'a> {
    input: &'a InputFile<'a>,
    chunks: Option<ChunkReceiver>,
    thread: Option<JoinHandle<[u8; 32]>>,
    chunk: Vec<u8>,
    at: usize,
}

impl<'a> HashingReader<'a> {
    fn start_hashing(mut file: File, input: &'a InputFile<'a>) -> io::Result<Self> {
        let (send, chunks) = sync_channel(MAX_CHUNKS_AHEAD);
        let thread = std::thread::Builder::new().name("trace-read".into()).spawn(move || {
            let mut hasher = Sha256::new();
            loop {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                let result = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
                hasher.update(&chunk);
                let end = matches!(result, Ok(0) | Err(_));
                // The parser drops its end of the channel if it gives up. Reading then stops too.
                if send.send(result.map(|_| chunk)).is_err() || end {
                    return hasher.finalize().into();
                }
            }
        })?;
        Ok(Self { input, chunks: Some(chunks), thread: Some(thread), chunk: Vec::new(), at: 0 })
    }
}

impl Read for HashingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            let Some(chunks) = &self.chunks else { return Ok(0) };
            let chunk = chunks
                .recv()
                .map_err(|_| io::Error::other("the reading thread ended before the end of the file"))??;
            if chunk.is_empty() {
                self.chunks = None;
                if let Some(thread) = self.thread.take() {
                    let digest = thread.join().map_err(|_| io::Error::other("the reading thread failed"))?;
                    self.input.digest.set(Some(digest));
                }
                return Ok(0);
            }
            self.input.tally.add_bytes(chunk.len() as u64);
            (self.chunk, self.at) = (chunk, 0);
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
