//! The messages of PyTorch's `TCPStore`, for clients and servers.
//!
//! A request is one byte, then numbers of 8 bytes; keys and values follow their length in 8 bytes. All
//! numbers are little-endian. Two dialects are in use. Since PyTorch 2.1 a connection begins with
//! [`VALIDATE`] and a fixed number, and may be tested with [`PING`]. Earlier versions had neither, and all
//! their requests have numbers one lower. Source: PyTorch, `torch/csrc/distributed/c10d/TCPStore*`.

use std::io::{self, Read, Write};

pub(super) const VALIDATE: u8 = 0;
pub(super) const SET: u8 = 1;
pub(super) const COMPARE_SET: u8 = 2;
pub(super) const GET: u8 = 3;
pub(super) const ADD: u8 = 4;
pub(super) const CHECK: u8 = 5;
pub(super) const WAIT: u8 = 6;
pub(super) const GET_NUM_KEYS: u8 = 7;
pub(super) const DELETE_KEY: u8 = 8;
pub(super) const PING: u8 = 13;

/// The number that follows [`VALIDATE`].
pub(super) const MAGIC: u32 = 0x3c85_f7ce;

/// Answers: all keys of [`CHECK`] exist, or not; [`WAIT`] has ended.
pub(super) const READY: u8 = 0;
pub(super) const NOT_READY: u8 = 1;
pub(super) const STOP_WAITING: u8 = 0;

/// The longest accepted key and value, in bytes.
pub(super) const MAX_KEY_BYTES: usize = 4 << 10;
pub(super) const MAX_VALUE_BYTES: usize = 1 << 20;

/// Adds the prefix that PyTorch puts before every key.
pub(super) fn prefixed_key(key: &str) -> Vec<u8> {
    format!("/{key}").into_bytes()
}

pub(super) fn encode_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

pub(super) fn read_array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads a length of 8 bytes and as many bytes.
pub(super) fn read_bytes(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let length = u64::from_le_bytes(read_array(from)?);
    if length > most as u64 {
        let why = format!("{length} bytes announced, expected at most {most}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn write_answer(to: &mut impl Write, value: &[u8]) -> io::Result<()> {
    let mut out = Vec::with_capacity(8 + value.len());
    encode_bytes(&mut out, value);
    to.write_all(&out)
}
