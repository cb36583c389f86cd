//! Pipes as trace files: read once and held in memory.
//!
//! Input is the path of a FIFO or another stream, as in `<(zcat x.gz)`. Output is its bytes, or one error.
//! The stream is read only once, so the bytes that identify the format must stay available to its reader. A
//! stream without a writer fails after [`NO_WRITER_TIMEOUT`], a silent one after [`SILENCE_TIMEOUT`].

use super::{Location, TraceError};
use evenkeel::trace::build::{invalid_content, io_error_at};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// The time that a stream may stay without a writer before its first byte.
const NO_WRITER_TIMEOUT: Duration = Duration::from_secs(5);
/// The time that a writer may stay silent.
const SILENCE_TIMEOUT: Duration = Duration::from_mins(1);
/// The longest pause between two reads of a silent stream.
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// Returns whether the path is a stream. A regular, missing or unreadable file is none.
pub(crate) fn is_stream(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

/// Reads the stream to its end, at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, TraceError> {
    let mut file = open(path).map_err(io_error_at(path))?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    let mut last = Instant::now();
    let mut pause = Duration::from_micros(100);
    // A stream without a writer looks like one at its end. Only the first byte tells them apart.
    loop {
        let wait = match file.read(&mut chunk) {
            Ok(0) if !bytes.is_empty() => return Ok(bytes),
            Ok(0) => NO_WRITER_TIMEOUT,
            Ok(count) => {
                bytes.extend_from_slice(&chunk[..count]);
                if bytes.len() as u64 > limit {
                    return Err(TraceError::Limit {
                        path: path.to_path_buf(),
                        place: Location::File,
                        what: format!(
                            "longer than the {} MiB that a pipe may hold; raise --memory, or save it to a file",
                            limit >> 20
                        ),
                    });
                }
                (last, pause) = (Instant::now(), Duration::from_micros(100));
                continue;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => SILENCE_TIMEOUT,
            Err(error) => return Err(io_error_at(path)(error)),
        };
        if last.elapsed() >= wait {
            let found = match wait {
                NO_WRITER_TIMEOUT => format!("a pipe without a writer for {} s", wait.as_secs()),
                _ => format!("a pipe that was silent for {} s", wait.as_secs()),
            };
            return Err(invalid_content(
                path,
                Location::File,
                found,
                "a program that writes a trace to it, or a file",
            ));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Opens without waiting for a writer.
#[cfg(unix)]
fn open(path: &Path) -> std::io::Result<File> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    File::open(path)
}

#[cfg(not(unix))]
fn open(path: &Path) -> std::io::Result<File> {
    File::open(path)
}
