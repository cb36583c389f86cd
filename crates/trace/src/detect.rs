//! Recognition of formats by content.
//!
//! Input is the first bytes of a file. Output is its [`TraceFormat`], or that it is a table of requests, or a
//! description of other content. Names and extensions of files are ignored.

use super::header::{MAX_HEAD_BYTES, TOKEN_COLUMNS, TableHeader};
use super::input::InputFile;
use super::{TraceError, TraceFormat};
use evenkeel::trace::build::quote_bytes;

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileContent {
    Trace(TraceFormat),
    /// A table of requests for a per-token array.
    Requests,
    /// A table of counts without a column of layers or experts, which its folder may give. The text describes
    /// it.
    Part(String),
    /// Other content, with a description.
    Other(String),
}

/// Determines the content from the start of a file.
pub(crate) fn detect_content(input: &InputFile<'_>) -> Result<FileContent, TraceError> {
    let head = input.read_head(MAX_HEAD_BYTES)?;
    let trace = |format| Ok(FileContent::Trace(format));
    match head.as_slice() {
        [] => Ok(FileContent::Other("an empty file".into())),
        [b'P', b'A', b'R', b'1', ..] => trace(TraceFormat::Parquet),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => trace(TraceFormat::Npy),
        [0x80, 2, 0x8a, ..] => trace(TraceFormat::SglangPt),
        [b'P', b'K', 3, 4, rest @ ..] => {
            // The length and the text of the first member's name are at offsets 26 and 30.
            let length =
                rest.get(22..24).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
            let name = rest.get(26..26 + length).unwrap_or_default();
            let npz = name.ends_with(b".npy") || !name.ends_with(b"data.pkl") && holds_arrays(input)?;
            trace(if npz { TraceFormat::Npz } else { TraceFormat::SglangPt })
        }
        [b'P', b'K', 5, 6, ..] => Ok(FileContent::Other("an empty zip".into())),
        _ => Ok(detect_text(&input.read_text_head(MAX_HEAD_BYTES)?)),
    }
}

/// Returns whether a zip that begins with another member holds arrays and no pickle.
fn holds_arrays(input: &InputFile<'_>) -> Result<bool, TraceError> {
    let Ok(archive) = zip::ZipArchive::new(input.open_seekable()?) else { return Ok(false) };
    let names: Vec<_> = archive.file_names().filter_map(Result::ok).collect();
    Ok(names.iter().any(|name| name.ends_with(".npy"))
        && !names.iter().any(|name| name.ends_with("data.pkl")))
}

fn detect_text(head: &[u8]) -> FileContent {
    let head = head.trim_ascii_start();
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if head.first() == Some(&b'{') {
        let record = line.windows(13).any(|window| window == b"\"record_type\"");
        return FileContent::Trace(if record { TraceFormat::VllmJsonl } else { TraceFormat::SglangJson });
    }
    match TableHeader::from_head(head) {
        Some(header) if header.is_sglang() => FileContent::Trace(TraceFormat::SglangCsv),
        Some(header) if header.is_long_table() => FileContent::Trace(TraceFormat::Csv),
        Some(header) if header.is_requests() => FileContent::Requests,
        header => {
            let line = line.trim_ascii_end();
            let found = format!("a file that begins with {}", quote_bytes(&line[..line.len().min(200)]));
            match header {
                Some(header) if TOKEN_COLUMNS.iter().any(|name| header.has_column(name)) => {
                    FileContent::Part(found)
                }
                _ => FileContent::Other(found),
            }
        }
    }
}
