//! The client of the store.

use super::launch::StoreAddress;
use super::protocol::{
    ADD, CHECK, GET, MAGIC, MAX_VALUE_BYTES, PING, READY, SET, VALIDATE, encode_bytes, prefixed_key,
    read_array, read_bytes,
};
use std::io::{self, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};
use thiserror::Error;

/// The longest time of one request. A store that does not answer within it is gone.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two checks for keys.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// An error of the store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreClientError {
    /// Nothing listens at the address.
    #[error("no store at {at} within {:.0} s: {source} (its address is MASTER_ADDR and MASTER_PORT; rank 0 or torchrun's agent runs it)", waited.as_secs_f64())]
    Absent {
        /// Host and port.
        at: String,
        /// Time since the first attempt.
        waited: Duration,
        /// Error of the last attempt.
        source: io::Error,
    },
    /// The connection broke, or the other end uses another protocol.
    #[error("the store at {at}: {source}")]
    Gone {
        /// Host and port.
        at: String,
        /// Cause.
        source: io::Error,
    },
}

/// A connection to the store. It processes one request at a time.
#[derive(Debug)]
pub struct StoreClient {
    at: String,
    stream: TcpStream,
    /// Offset by which request numbers are lower: 1 before PyTorch 2.1.
    older: u8,
}

impl StoreClient {
    /// Connects to a store, and retries for `timeout`.
    ///
    /// # Errors
    /// Returns [`StoreClientError::Absent`] if no connection succeeds.
    pub fn connect(meet: &StoreAddress, timeout: Duration) -> Result<Self, StoreClientError> {
        let begun = Instant::now();
        let at = meet.to_string();
        loop {
            match Self::try_connect(meet, &at) {
                Ok(store) => return Ok(store),
                Err(source) if begun.elapsed() >= timeout => {
                    return Err(StoreClientError::Absent { at, waited: begun.elapsed(), source });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Opens another connection to the same store.
    ///
    /// # Errors
    /// Returns [`StoreClientError::Absent`] if no connection succeeds.
    pub fn reconnect(&self, meet: &StoreAddress) -> Result<Self, StoreClientError> {
        Self::connect(meet, REQUEST_TIMEOUT)
    }

    fn try_connect(meet: &StoreAddress, at: &str) -> io::Result<Self> {
        let mut newer = Self { at: at.to_owned(), stream: open_stream(meet)?, older: 0 };
        let mut hello = vec![VALIDATE];
        hello.extend(MAGIC.to_le_bytes());
        hello.push(PING);
        // An older store reads this as the length of a key. It is so long that the store closes the
        // connection at once.
        hello.extend(u32::MAX.to_le_bytes());
        newer.stream.write_all(&hello)?;
        match read_array::<4>(&mut newer.stream) {
            Ok(pong) if pong == u32::MAX.to_le_bytes() => Ok(newer),
            Ok(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the server at this address is not a store"))
            }
            Err(error) if is_disconnect(&error) => {
                let mut older = Self { at: at.to_owned(), stream: open_stream(meet)?, older: 1 };
                // Checks that it is a store: anything else would not answer this with one of two bytes.
                older.query_keys(&["evenkeel/older".into()])?;
                Ok(older)
            }
            Err(error) => Err(error),
        }
    }

    fn gone_error(&self) -> impl Fn(io::Error) -> StoreClientError + use<> {
        let at = self.at.clone();
        move |source| StoreClientError::Gone { at: at.clone(), source }
    }

    /// Sets a key.
    ///
    /// # Errors
    /// Returns [`StoreClientError::Gone`] if the connection fails.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<(), StoreClientError> {
        let mut out = vec![SET - self.older];
        encode_bytes(&mut out, &prefixed_key(key));
        encode_bytes(&mut out, value);
        self.stream.write_all(&out).map_err(self.gone_error())
    }

    /// Adds to the number that a key holds (0 if absent), and returns the sum.
    ///
    /// # Errors
    /// Returns [`StoreClientError::Gone`] if the connection fails.
    pub fn add(&mut self, key: &str, more: i64) -> Result<i64, StoreClientError> {
        let mut out = vec![ADD - self.older];
        encode_bytes(&mut out, &prefixed_key(key));
        out.extend(more.to_le_bytes());
        let sum = self.stream.write_all(&out).and_then(|()| read_array(&mut self.stream));
        sum.map(i64::from_le_bytes).map_err(self.gone_error())
    }

    /// Returns whether all keys exist.
    ///
    /// # Errors
    /// Returns [`StoreClientError::Gone`] if the connection fails.
    pub fn has_keys(&mut self, keys: &[String]) -> Result<bool, StoreClientError> {
        self.query_keys(keys).map_err(self.gone_error())
    }

    fn query_keys(&mut self, keys: &[String]) -> io::Result<bool> {
        let mut out = vec![CHECK - self.older];
        out.extend((keys.len() as u64).to_le_bytes());
        keys.iter().for_each(|key| encode_bytes(&mut out, &prefixed_key(key)));
        self.stream.write_all(&out)?;
        match read_array(&mut self.stream)? {
            [READY] => Ok(true),
            [1] => Ok(false),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the server at this address is not a store")),
        }
    }

    /// Returns the value of a key; `None` if it does not exist.
    ///
    /// # Errors
    /// Returns [`StoreClientError::Gone`] if the connection fails.
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, StoreClientError> {
        // A store may close a connection that gets a missing key.
        if !self.has_keys(std::slice::from_ref(&key.to_owned()))? {
            return Ok(None);
        }
        let mut out = vec![GET - self.older];
        encode_bytes(&mut out, &prefixed_key(key));
        let value = self.stream.write_all(&out).and_then(|()| read_bytes(&mut self.stream, MAX_VALUE_BYTES));
        value.map(Some).map_err(self.gone_error())
    }

    /// Waits at most `timeout` for keys. Returns the indices of those that are still missing.
    ///
    /// # Errors
    /// Returns [`StoreClientError::Gone`] if the connection fails.
    pub fn wait_for_keys(
        &mut self,
        keys: &[String],
        timeout: Duration,
    ) -> Result<Vec<usize>, StoreClientError> {
        let begun = Instant::now();
        while !self.has_keys(keys)? {
            if begun.elapsed() >= timeout {
                let mut missing = Vec::new();
                for (at, key) in keys.iter().enumerate() {
                    if !self.has_keys(std::slice::from_ref(key))? {
                        missing.push(at);
                    }
                }
                return Ok(missing);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(Vec::new())
    }
}

fn open_stream(meet: &StoreAddress) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (meet.host.as_str(), meet.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, REQUEST_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
                stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Returns whether the other end closed the connection.
fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}
