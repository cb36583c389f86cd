//! The store itself, where the launcher keeps none: a map behind a port, a thread per connection.
//!
//! It speaks the newer dialect, and of its requests those that a rendezvous needs: a PyTorch client can set, get, add, compare, check,
//! wait, count and delete keys here. What asks for anything else, or does not begin as a store's client does, is hung up on.

use super::protocol::{
    ADD, CHECK, COMPARE_SET, DELETE_KEY, GET, GET_NUM_KEYS, MAGIC, MOST_KEY, MOST_VALUE, NOT_READY, PING,
    READY, SET, STOP_WAITING, VALIDATE, WAIT, answer, bytes, number,
};
use std::collections::BTreeMap;
use std::io::{self, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Connections at a time, keys in all and keys in one request.
const MOST_CONNECTIONS: usize = 8 << 10;
const MOST_KEYS: usize = 1 << 16;

type Key = Vec<u8>;

#[derive(Debug, Default)]
struct Shared {
    values: Mutex<BTreeMap<Key, Vec<u8>>>,
    changed: Condvar,
    ending: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

/// A store that this process keeps, until it is dropped.
#[derive(Debug)]
pub struct StoreServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    listening: Option<JoinHandle<()>>,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StoreServer {
    /// Keeps a store at an address; port 0 is any that is free.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let (shared, address) = (Arc::new(Shared::default()), listener.local_addr()?);
        let of_thread = Arc::clone(&shared);
        let listening = std::thread::Builder::new().name("store".into()).spawn(move || {
            listener.incoming().flatten().take_while(|_| !of_thread.ends()).for_each(|c| of_thread.take(c));
        })?;
        Ok(Self { shared, address, listening: Some(listening) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        // Wakes the thread that listens.
        let mut own = self.address;
        if own.ip().is_unspecified() {
            own.set_ip(if own.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        let woken = TcpStream::connect_timeout(&own, Duration::from_secs(1)).is_ok();
        for connection in locked(&self.shared.connections).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
        if let Some(listening) = self.listening.take().filter(|_| woken) {
            let _ = listening.join();
        }
    }
}

impl Shared {
    fn ends(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn take(self: &Arc<Self>, connection: TcpStream) {
        let (Ok(end), Ok(known)) = (connection.try_clone(), connection.peer_addr()) else { return };
        {
            let mut all = locked(&self.connections);
            all.retain(|other| other.peer_addr().is_ok());
            if all.len() >= MOST_CONNECTIONS {
                return;
            }
            all.push(end);
        }
        let shared = Arc::clone(self);
        // Without a thread for it, it is closed here.
        let _ = std::thread::Builder::new().name("store client".into()).spawn(move || {
            // A client that leaves, or is no client, ends its own connection alone.
            let _ = shared.serve(&connection);
            let _ = connection.shutdown(Shutdown::Both);
            locked(&shared.connections)
                .retain(|other| other.peer_addr().ok().is_some_and(|other| other != known));
        });
    }

    fn serve(&self, mut connection: &TcpStream) -> io::Result<()> {
        let refuse = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        connection.set_nodelay(true)?;
        let mut from = BufReader::new(connection);
        if number(&mut from)? != [VALIDATE] || number(&mut from)? != MAGIC.to_le_bytes() {
            return Err(refuse("no client of a store"));
        }
        while !self.ends() {
            let [request] = number(&mut from)?;
            match request {
                PING => {
                    let nonce: [u8; 4] = number(&mut from)?;
                    connection.write_all(&nonce)?;
                }
                SET => {
                    let (key, value) = (bytes(&mut from, MOST_KEY)?, bytes(&mut from, MOST_VALUE)?);
                    self.change(|values| values.insert(key, value))?;
                }
                COMPARE_SET => {
                    let key = bytes(&mut from, MOST_KEY)?;
                    let (expected, wanted) = (bytes(&mut from, MOST_VALUE)?, bytes(&mut from, MOST_VALUE)?);
                    let now = self.change(|values| match values.get(&key) {
                        Some(value) if *value != expected => value.clone(),
                        None if !expected.is_empty() => expected,
                        _ => {
                            values.insert(key, wanted.clone());
                            wanted
                        }
                    })?;
                    answer(&mut connection, &now)?;
                }
                GET => {
                    let key = bytes(&mut from, MOST_KEY)?;
                    let value = locked(&self.values).get(&key).cloned();
                    answer(&mut connection, &value.ok_or_else(|| refuse("no such key"))?)?;
                }
                ADD => {
                    let (key, more) = (bytes(&mut from, MOST_KEY)?, i64::from_le_bytes(number(&mut from)?));
                    let sum = self.change(|values| {
                        let old =
                            values.get(&key).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
                        let sum = old.unwrap_or(0i64).wrapping_add(more);
                        values.insert(key, sum.to_string().into_bytes());
                        sum
                    })?;
                    connection.write_all(&sum.to_le_bytes())?;
                }
                CHECK => {
                    let keys = keys(&mut from)?;
                    let values = locked(&self.values);
                    let there = keys.iter().all(|key| values.contains_key(key));
                    drop(values);
                    connection.write_all(&[if there { READY } else { NOT_READY }])?;
                }
                WAIT => {
                    let keys = keys(&mut from)?;
                    let mut values = locked(&self.values);
                    while !self.ends() && !keys.iter().all(|key| values.contains_key(key)) {
                        let waited = self.changed.wait_timeout(values, Duration::from_secs(1));
                        values = waited.unwrap_or_else(PoisonError::into_inner).0;
                    }
                    drop(values);
                    connection.write_all(&[STOP_WAITING])?;
                }
                GET_NUM_KEYS => {
                    let keys = locked(&self.values).len() as i64;
                    connection.write_all(&keys.to_le_bytes())?;
                }
                DELETE_KEY => {
                    let key = bytes(&mut from, MOST_KEY)?;
                    let deleted = i64::from(self.change(|values| values.remove(&key))?.is_some());
                    connection.write_all(&deleted.to_le_bytes())?;
                }
                _ => return Err(refuse("a request that this store does not know")),
            }
        }
        Ok(())
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<Key, Vec<u8>>) -> T) -> io::Result<T> {
        let mut values = locked(&self.values);
        let changed = change(&mut values);
        let full = values.len() > MOST_KEYS;
        drop(values);
        self.changed.notify_all();
        if full { Err(io::Error::new(io::ErrorKind::OutOfMemory, "too many keys")) } else { Ok(changed) }
    }
}

fn keys(from: &mut impl io::Read) -> io::Result<Vec<Key>> {
    let count = u64::from_le_bytes(number(from)?);
    if count > MOST_KEYS as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many keys in one request"));
    }
    (0..count).map(|_| bytes(from, MOST_KEY)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::super::{Store, StoreError};
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn started() -> (StoreServer, (String, u16)) {
        let server = StoreServer::start(([127, 0, 0, 1], 0).into()).unwrap();
        let meet = ("127.0.0.1".to_owned(), server.address().port());
        (server, meet)
    }

    #[test]
    fn clients_find_what_others_set() {
        let (server, meet) = started();
        let mut one = Store::connect(&meet, SOON).unwrap();
        let mut other = one.again(&meet).unwrap();
        assert_eq!(one.get("a").unwrap(), None);
        one.set("a", b"1234").unwrap();
        other.set("empty", b"").unwrap();
        assert_eq!(other.wait(&["a".into()], SOON).unwrap(), Vec::<usize>::new());
        assert_eq!(other.get("a").unwrap().unwrap(), b"1234");
        assert_eq!(other.get("empty").unwrap().unwrap(), b"");
        assert_eq!((one.add("n", 2).unwrap(), other.add("n", -5).unwrap()), (2, -3));
        assert_eq!(one.wait(&["b".into(), "a".into()], Duration::from_millis(30)).unwrap(), vec![0]);
        // Threads that wait are woken by whoever sets.
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| other.wait(&["late".into()], SOON));
            std::thread::sleep(Duration::from_millis(30));
            one.set("late", &vec![7; MOST_VALUE]).unwrap();
            assert!(waits.join().unwrap().unwrap().is_empty());
        });
        assert_eq!(one.get("late").unwrap().unwrap().len(), MOST_VALUE);
        drop(server);
        assert!(matches!(one.get("a"), Err(StoreError::Gone { .. })));
        assert!(matches!(Store::connect(&meet, Duration::from_millis(60)), Err(StoreError::Absent { .. })));
    }

    #[test]
    fn whoever_is_no_client_is_hung_up_on() {
        use std::io::Read as _;
        let (_server, meet) = started();
        let hello = [&[VALIDATE][..], &MAGIC.to_le_bytes()].concat();
        let long = [&hello[..], &[SET], &u64::MAX.to_le_bytes()].concat();
        let many = [&hello[..], &[CHECK], &u64::MAX.to_le_bytes()].concat();
        let unknown = [&hello[..], &[99]].concat();
        for sent in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![1; 20], long, many, unknown] {
            let mut stream = TcpStream::connect((meet.0.as_str(), meet.1)).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.write_all(&sent).unwrap();
            // Closed with bytes unread, the other end may say so less politely.
            match stream.read(&mut [0; 8]) {
                Ok(read) => assert_eq!(read, 0, "{sent:?}"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{sent:?}"),
            }
        }
        let mut still = Store::connect(&meet, SOON).unwrap();
        still.set("a", b"b").unwrap();
        assert!(still.has(&["a".into()]).unwrap());
    }

    #[test]
    fn what_listens_but_is_no_store_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let meet = ("127.0.0.1".to_owned(), listener.local_addr().unwrap().port());
        let talks = std::thread::spawn(move || {
            for mut stream in listener.incoming().take(1).flatten() {
                stream.write_all(b"220 welcome\r\n").unwrap();
            }
        });
        let said = Store::connect(&meet, Duration::ZERO).unwrap_err().to_string();
        assert!(said.contains("no store") && said.contains("MASTER_ADDR"), "{said}");
        talks.join().unwrap();
    }
}
