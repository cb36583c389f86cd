//! Files that the operator configures: reading never hangs, and new files are private.
//!
//! Configuration, tokens, certificate and key must be regular files of at most 1 MiB. The error for any other
//! file names its kind. If a file does not answer within [`READ_SECONDS`] (on a lost network mount), reading
//! fails and its thread is abandoned.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// The seconds within which a file must be read.
const READ_SECONDS: u64 = 5;
/// The most bytes of a file.
const MAX_BYTES: u64 = 1 << 20;

/// The content and the permissions of a file.
pub(super) struct OperatorFile {
    pub(super) bytes: Vec<u8>,
    /// The permission bits.
    pub(super) mode: u32,
}

/// Reads a regular file.
pub(super) fn read_file(path: &Path) -> io::Result<OperatorFile> {
    let (send, receive) = mpsc::sync_channel(1);
    let owned = path.to_owned();
    std::thread::Builder::new().name("read file".into()).spawn(move || {
        let _ = send.send(read_regular(&owned));
    })?;
    receive.recv_timeout(Duration::from_secs(READ_SECONDS)).unwrap_or_else(|_| {
        let reason = format!("not read within {READ_SECONDS} s, expected a file on a disk that answers");
        Err(io::Error::new(io::ErrorKind::TimedOut, reason))
    })
}

/// Reads a regular file as text.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8, expected text");
    String::from_utf8(read_file(path)?.bytes).map_err(invalid)
}

fn read_regular(path: &Path) -> io::Result<OperatorFile> {
    // Opening a FIFO would wait for a writer, so open without blocking.
    let file = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    let kind = meta.file_type();
    if !kind.is_file() {
        let found = match () {
            () if kind.is_dir() => "a folder",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_socket() => "a socket",
            () => "a device",
        };
        return Err(io::Error::other(format!("{found}, expected a regular file")));
    }
    let too_large = || io::Error::other(format!("larger than {MAX_BYTES} bytes, expected at most that many"));
    if meta.len() > MAX_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(too_large());
    }
    Ok(OperatorFile { bytes, mode: meta.permissions().mode() & 0o7777 })
}

/// The flag `O_NONBLOCK` of open(2).
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

/// Creates a folder, and in it an empty file that only this user can read. Leaves existing ones unchanged.
pub(super) fn create_private(folder: &Path, file: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Returns a warning for a file that other users can read or write.
pub(super) fn exposure_warning(what: &str, path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| permission_warning(what, path, mode))
}

/// Returns the warning for a file with these permissions.
pub(super) fn permission_warning(what: &str, path: &Path, mode: u32) -> String {
    let path = path.display();
    format!(
        "warning: other users can use the {what} {path} (mode {mode:04o}): expected mode 0600 (chmod 600 {path})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let message = |path: &Path| read_file(path).err().unwrap().to_string();
        assert_eq!(message(&fifo), "a FIFO, expected a regular file");
        assert_eq!(message(Path::new("/dev/zero")), "a device, expected a regular file");
        assert_eq!(message(folder.path()), "a folder, expected a regular file");
        let large = folder.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(message(&large).starts_with("larger than"));
    }

    #[test]
    fn what_is_created_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let (data, file) = (folder.path().join("a/b"), folder.path().join("a/b/f"));
        create_private(&data, &file).unwrap();
        create_private(&data, &file).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&file)), (0o700, 0o600));
        assert_eq!(exposure_warning("store", &file), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(exposure_warning("store", &file).unwrap().contains("(mode 0644)"));
    }
}
