//! Tells formats apart by content.
//!
//! In: the first bytes of a file. Out: its [`Format`], or that it is a table of requests, or
//! what it looks like instead. Names and endings of files play no part.

use super::error::quote;
use super::input::Input;
use super::{Format, TraceError, requests, sglang_csv};

/// Bytes looked at; a header longer than this is not one of ours.
const HEAD: usize = 64 << 10;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Trace(Format),
    /// A table of requests for a per-token array.
    Requests,
    /// None of ours; what it looks like.
    Other(String),
}

/// Looks at the start of a file.
pub(crate) fn recognise(input: &Input<'_>) -> Result<Content, TraceError> {
    let head = input.head(HEAD)?;
    let trace = |format| Ok(Content::Trace(format));
    match head.as_slice() {
        [] => Ok(Content::Other("an empty file".into())),
        [b'P', b'A', b'R', b'1', ..] => trace(Format::Parquet),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => trace(Format::Npy),
        [0x80, 2, 0x8a, ..] => trace(Format::SglangPt),
        [b'P', b'K', 3, 4, rest @ ..] => {
            // Length and text of the first member's name lie at 26 and 30.
            let length =
                rest.get(22..24).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
            let name = rest.get(26..26 + length).unwrap_or_default();
            trace(if name.ends_with(b".npy") { Format::Npz } else { Format::SglangPt })
        }
        [b'P', b'K', 5, 6, ..] => Ok(Content::Other("an empty zip".into())),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(text(&input.head_decompressed(HEAD)?)),
        _ => Ok(text(&head)),
    }
}

fn text(head: &[u8]) -> Content {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if head.first() == Some(&b'{') {
        let record = line.windows(13).any(|window| window == b"\"record_type\"");
        return Content::Trace(if record { Format::VllmJsonl } else { Format::SglangJson });
    }
    let line = String::from_utf8_lossy(line);
    let columns: Vec<&str> = line.split(',').map(|name| name.trim().trim_matches('"')).collect();
    if ["layer", "expert", "tokens"].iter().all(|name| columns.contains(name)) {
        Content::Trace(Format::Csv)
    } else if sglang_csv::is_header(&columns) {
        Content::Trace(Format::SglangCsv)
    } else if requests::is_header(&columns) {
        Content::Requests
    } else {
        let line = line.trim_end();
        Content::Other(format!("a file that begins with {}", quote(&line.as_bytes()[..line.len().min(60)])))
    }
}
