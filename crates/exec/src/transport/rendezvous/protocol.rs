//! The words of PyTorch's `TCPStore`, as clients and servers of ours speak them.
//!
//! A request is one byte, then numbers of 8 bytes, and keys and values behind their length in 8 bytes, all little-endian. Two
//! dialects are in use: since PyTorch 2.1 a connection begins with [`VALIDATE`] and a fixed number, and may be tried by [`PING`];
//! before, there was neither, and all requests had numbers one lower. Source: PyTorch, `torch/csrc/distributed/c10d/TCPStore*`.

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

/// What follows [`VALIDATE`].
pub(super) const MAGIC: u32 = 0x3c85_f7ce;

/// Answers to [`CHECK`]: all keys are there, or not; and to [`WAIT`].
pub(super) const READY: u8 = 0;
pub(super) const NOT_READY: u8 = 1;
pub(super) const STOP_WAITING: u8 = 0;

/// The longest key and value that we take.
pub(super) const MOST_KEY: usize = 4 << 10;
pub(super) const MOST_VALUE: usize = 1 << 20;

/// What PyTorch puts before every key.
pub(super) fn named(key: &str) -> Vec<u8> {
    format!("/{key}").into_bytes()
}

pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

pub(super) fn number<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Bytes behind their length.
pub(super) fn bytes(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let length = u64::from_le_bytes(number(from)?);
    if length > most as u64 {
        let why = format!("{length} bytes announced, where at most {most} can be");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn answer(to: &mut impl Write, value: &[u8]) -> io::Result<()> {
    let mut out = Vec::with_capacity(8 + value.len());
    put(&mut out, value);
    to.write_all(&out)
}
