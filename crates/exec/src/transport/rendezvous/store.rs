//! A client of the store.

use super::protocol::{
    ADD, CHECK, GET, MAGIC, MOST_VALUE, PING, READY, SET, VALIDATE, bytes, named, number, put,
};
use std::io::{self, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};
use thiserror::Error;

/// The longest that one request may take: a store that does not answer for so long is gone.
const ANSWER: Duration = Duration::from_secs(5);
/// From one look for keys to the next.
const LOOK: Duration = Duration::from_millis(10);

/// Why the store was no help.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Nobody listens.
    #[error("no store at {at} within {:.0} s: {source} (MASTER_ADDR and MASTER_PORT say where it is; rank 0 keeps it, or torchrun's agent)", waited.as_secs_f64())]
    Absent {
        /// Host and port.
        at: String,
        /// How long was tried.
        waited: Duration,
        /// What the last try said.
        source: io::Error,
    },
    /// It went away, or speaks otherwise.
    #[error("the store at {at}: {source}")]
    Gone {
        /// Host and port.
        at: String,
        /// What happened.
        source: io::Error,
    },
}

/// A connection to the store. Requests are made one after the other.
#[derive(Debug)]
pub struct Store {
    at: String,
    stream: TcpStream,
    /// What requests have numbers lower by: 1 before PyTorch 2.1.
    older: u8,
}

impl Store {
    /// Connects to the store at a host and port, trying again for `timeout`.
    ///
    /// # Errors
    /// [`StoreError::Absent`].
    pub fn connect(meet: &(String, u16), timeout: Duration) -> Result<Self, StoreError> {
        let begun = Instant::now();
        let at = format!("{}:{}", meet.0, meet.1);
        loop {
            match Self::dial(meet, &at) {
                Ok(store) => return Ok(store),
                Err(source) if begun.elapsed() >= timeout => {
                    return Err(StoreError::Absent { at, waited: begun.elapsed(), source });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Another connection to the same store.
    ///
    /// # Errors
    /// [`StoreError::Absent`].
    pub fn again(&self, meet: &(String, u16)) -> Result<Self, StoreError> {
        Self::connect(meet, ANSWER)
    }

    fn dial(meet: &(String, u16), at: &str) -> io::Result<Self> {
        let mut newer = Self { at: at.to_owned(), stream: open(meet)?, older: 0 };
        let mut hello = vec![VALIDATE];
        hello.extend(MAGIC.to_le_bytes());
        hello.push(PING);
        // An older store reads the length of a key in this, and one so long that it ends the connection at once.
        hello.extend(u32::MAX.to_le_bytes());
        newer.stream.write_all(&hello)?;
        match number::<4>(&mut newer.stream) {
            Ok(pong) if pong == u32::MAX.to_le_bytes() => Ok(newer),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "what listens there is no store")),
            Err(error) if ended(&error) => {
                let mut older = Self { at: at.to_owned(), stream: open(meet)?, older: 1 };
                // Whether it is one: anything else would not answer this with one of two bytes.
                older.has_all(&["evenkeel/older".into()])?;
                Ok(older)
            }
            Err(error) => Err(error),
        }
    }

    fn failed(&self) -> impl Fn(io::Error) -> StoreError + use<> {
        let at = self.at.clone();
        move |source| StoreError::Gone { at: at.clone(), source }
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`StoreError::Gone`].
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let mut out = vec![SET - self.older];
        put(&mut out, &named(key));
        put(&mut out, value);
        self.stream.write_all(&out).map_err(self.failed())
    }

    /// Adds to the number that a key holds (none is 0), and returns the sum.
    ///
    /// # Errors
    /// [`StoreError::Gone`].
    pub fn add(&mut self, key: &str, more: i64) -> Result<i64, StoreError> {
        let mut out = vec![ADD - self.older];
        put(&mut out, &named(key));
        out.extend(more.to_le_bytes());
        let sum = self.stream.write_all(&out).and_then(|()| number(&mut self.stream));
        sum.map(i64::from_le_bytes).map_err(self.failed())
    }

    /// Whether all keys are there.
    ///
    /// # Errors
    /// [`StoreError::Gone`].
    pub fn has(&mut self, keys: &[String]) -> Result<bool, StoreError> {
        self.has_all(keys).map_err(self.failed())
    }

    fn has_all(&mut self, keys: &[String]) -> io::Result<bool> {
        let mut out = vec![CHECK - self.older];
        out.extend((keys.len() as u64).to_le_bytes());
        keys.iter().for_each(|key| put(&mut out, &named(key)));
        self.stream.write_all(&out)?;
        match number(&mut self.stream)? {
            [READY] => Ok(true),
            [1] => Ok(false),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "what listens there is no store")),
        }
    }

    /// What a key holds; `None` where it is not there.
    ///
    /// # Errors
    /// [`StoreError::Gone`].
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        // A store may end a connection that asks for what is not there.
        if !self.has(std::slice::from_ref(&key.to_owned()))? {
            return Ok(None);
        }
        let mut out = vec![GET - self.older];
        put(&mut out, &named(key));
        let value = self.stream.write_all(&out).and_then(|()| bytes(&mut self.stream, MOST_VALUE));
        value.map(Some).map_err(self.failed())
    }

    /// Waits for keys, `timeout` at most; which of them are not there by then.
    ///
    /// # Errors
    /// [`StoreError::Gone`].
    pub fn wait(&mut self, keys: &[String], timeout: Duration) -> Result<Vec<usize>, StoreError> {
        let begun = Instant::now();
        while !self.has(keys)? {
            if begun.elapsed() >= timeout {
                let mut missing = Vec::new();
                for (at, key) in keys.iter().enumerate() {
                    if !self.has(std::slice::from_ref(key))? {
                        missing.push(at);
                    }
                }
                return Ok(missing);
            }
            std::thread::sleep(LOOK);
        }
        Ok(Vec::new())
    }
}

fn open(meet: &(String, u16)) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (meet.0.as_str(), meet.1).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ANSWER) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER))?;
                stream.set_write_timeout(Some(ANSWER))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether the other end closed the connection.
fn ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}
