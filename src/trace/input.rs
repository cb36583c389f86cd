//! One file, or bytes standing in for one, with its digest and progress taken on the way.
//!
//! In: a path or a byte slice. Out: a plain reader that sees every byte once
//! ([`Input::stream`], decompressed where gzip or zstd magic says so) or a seekable one
//! ([`Input::seekable`]). Files are read and hashed on a thread of their own, so that the
//! parser does not wait for SHA-256.

use super::error::io_at;
use super::{Progress, SourceFile, TraceError};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// Bytes per read of the hashing thread.
const CHUNK: usize = 1 << 20;
/// Chunks it may be ahead of the parser.
const AHEAD: usize = 4;

/// A reader that can jump.
pub(crate) trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// Progress over all files of one call.
pub(crate) struct Tally<'a> {
    progress: &'a dyn Progress,
    done: Cell<u64>,
    total: u64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(progress: &'a dyn Progress, total: u64) -> Self {
        Self { progress, done: Cell::new(0), total }
    }

    fn add(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        self.progress.bytes(self.done.get().min(self.total), self.total);
    }
}

enum Data<'a> {
    File,
    Bytes(&'a [u8]),
}

/// The bare file or bytes, for readers with needs of their own.
#[cfg(feature = "parquet")]
pub(crate) enum Raw<'a> {
    File(File),
    Bytes(&'a [u8]),
}

/// One file to be read.
pub(crate) struct Input<'a> {
    pub(crate) path: PathBuf,
    data: Data<'a>,
    tally: &'a Tally<'a>,
    digest: Cell<Option<[u8; 32]>>,
}

impl<'a> Input<'a> {
    pub(crate) fn file(path: &Path, tally: &'a Tally<'a>) -> Self {
        Self { path: path.to_path_buf(), data: Data::File, tally, digest: Cell::new(None) }
    }

    pub(crate) fn bytes(path: &Path, bytes: &'a [u8], tally: &'a Tally<'a>) -> Self {
        Self { path: path.to_path_buf(), data: Data::Bytes(bytes), tally, digest: Cell::new(None) }
    }

    /// The first bytes, up to `count`.
    pub(crate) fn head(&self, count: usize) -> Result<Vec<u8>, TraceError> {
        let mut head = Vec::new();
        match self.data {
            Data::File => {
                let file = File::open(&self.path).map_err(io_at(&self.path))?;
                file.take(count as u64).read_to_end(&mut head).map_err(io_at(&self.path))?;
            }
            Data::Bytes(bytes) => head.extend_from_slice(&bytes[..bytes.len().min(count)]),
        }
        Ok(head)
    }

    /// The first bytes after decompression; a broken stream ends early.
    pub(crate) fn head_decompressed(&self, count: usize) -> Result<Vec<u8>, TraceError> {
        let reader: Box<dyn Read + '_> = match self.data {
            Data::File => Box::new(File::open(&self.path).map_err(io_at(&self.path))?),
            Data::Bytes(bytes) => Box::new(bytes),
        };
        let mut head = Vec::new();
        let magic = self.head(4)?;
        let _ =
            decompress(reader, &magic).map_err(io_at(&self.path))?.take(count as u64).read_to_end(&mut head);
        Ok(head)
    }

    /// Every byte once, decompressed by content.
    pub(crate) fn stream(&self) -> Result<Box<dyn Read + '_>, TraceError> {
        let magic = self.head(4)?;
        let raw: Box<dyn Read + '_> = match self.data {
            Data::File => {
                let file = File::open(&self.path).map_err(io_at(&self.path))?;
                Box::new(Hashed::start(file, self).map_err(io_at(&self.path))?)
            }
            Data::Bytes(bytes) => {
                self.digest.set(Some(Sha256::digest(bytes).into()));
                Box::new(bytes)
            }
        };
        decompress(raw, &magic).map_err(io_at(&self.path))
    }

    /// A reader that can jump. The digest is taken first, in one pass.
    pub(crate) fn seekable(&self) -> Result<Box<dyn ReadSeek + '_>, TraceError> {
        match self.data {
            Data::File => {
                if self.digest.get().is_none() {
                    self.hash()?;
                }
                Ok(Box::new(BufReader::new(File::open(&self.path).map_err(io_at(&self.path))?)))
            }
            Data::Bytes(bytes) => {
                self.digest.set(Some(Sha256::digest(bytes).into()));
                Ok(Box::new(Cursor::new(bytes)))
            }
        }
    }

    /// Size in bytes.
    #[cfg(feature = "parquet")]
    pub(crate) fn size(&self) -> Result<u64, TraceError> {
        match self.data {
            Data::File => Ok(std::fs::metadata(&self.path).map_err(io_at(&self.path))?.len()),
            Data::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// The bare file or bytes. The digest is taken first, in one pass.
    #[cfg(feature = "parquet")]
    pub(crate) fn raw(&self) -> Result<Raw<'a>, TraceError> {
        match self.data {
            Data::File => {
                if self.digest.get().is_none() {
                    self.hash()?;
                }
                Ok(Raw::File(File::open(&self.path).map_err(io_at(&self.path))?))
            }
            Data::Bytes(bytes) => Ok(Raw::Bytes(bytes)),
        }
    }

    /// The whole content, if it is not longer than `limit`.
    pub(crate) fn whole(&self, limit: u64) -> Result<Vec<u8>, TraceError> {
        let mut bytes = Vec::new();
        self.stream()?.take(limit + 1).read_to_end(&mut bytes).map_err(io_at(&self.path))?;
        if bytes.len() as u64 > limit {
            return Err(TraceError::Limit {
                path: self.path.clone(),
                place: super::Place::File,
                what: format!("longer than {} MiB, the limit for this format", limit >> 20),
            });
        }
        Ok(bytes)
    }

    fn hash(&self) -> Result<(), TraceError> {
        let mut file = File::open(&self.path).map_err(io_at(&self.path))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = file.read(&mut buffer).map_err(io_at(&self.path))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            self.tally.add(count as u64);
        }
        self.digest.set(Some(hasher.finalize().into()));
        Ok(())
    }

    /// Path and digest, once read. Where a reader stopped early the file is read once more.
    pub(crate) fn source(&self) -> Result<SourceFile, TraceError> {
        if self.digest.get().is_none() {
            match self.data {
                Data::File => self.hash()?,
                Data::Bytes(bytes) => self.digest.set(Some(Sha256::digest(bytes).into())),
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
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(CHUNK, raw))),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::Decoder::new(raw)?;
            // 128 MiB: what `zstd` itself takes without --long.
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
        _ => raw,
    })
}

/// Chunks of a file as the reading thread hands them over.
type Chunks = Receiver<io::Result<Vec<u8>>>;

struct Hashed<'a> {
    input: &'a Input<'a>,
    chunks: Option<Chunks>,
    thread: Option<JoinHandle<[u8; 32]>>,
    chunk: Vec<u8>,
    at: usize,
}

impl<'a> Hashed<'a> {
    fn start(mut file: File, input: &'a Input<'a>) -> io::Result<Self> {
        let (send, chunks) = sync_channel(AHEAD);
        let thread = std::thread::Builder::new().name("trace-read".into()).spawn(move || {
            let mut hasher = Sha256::new();
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                let result = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk);
                hasher.update(&chunk);
                let end = matches!(result, Ok(0) | Err(_));
                // A parser that gave up has dropped its end: then stop reading, too.
                if send.send(result.map(|_| chunk)).is_err() || end {
                    return hasher.finalize().into();
                }
            }
        })?;
        Ok(Self { input, chunks: Some(chunks), thread: Some(thread), chunk: Vec::new(), at: 0 })
    }
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            let Some(chunks) = &self.chunks else { return Ok(0) };
            let chunk = chunks
                .recv()
                .map_err(|_| io::Error::other("the reading thread ended before the file did"))??;
            if chunk.is_empty() {
                self.chunks = None;
                if let Some(thread) = self.thread.take() {
                    let digest = thread.join().map_err(|_| io::Error::other("the reading thread failed"))?;
                    self.input.digest.set(Some(digest));
                }
                return Ok(0);
            }
            self.input.tally.add(chunk.len() as u64);
            (self.chunk, self.at) = (chunk, 0);
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
