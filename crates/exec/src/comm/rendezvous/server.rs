//! The store itself, for launchers that run none: a map behind a port, with one thread per connection.
//!
//! It speaks the newer dialect, with the requests that a rendezvous needs: set, get, add, compare, check,
//! wait, count and delete. The server closes a connection that makes other requests, or that does not begin
//! like a store's client.

use super::protocol::{
    ADD, CHECK, COMPARE_SET, DELETE_KEY, GET, GET_NUM_KEYS, MAGIC, MAX_KEY_BYTES, MAX_VALUE_BYTES, NOT_READY,
    PING, READY, SET, STOP_WAITING, VALIDATE, WAIT, read_array, read_bytes, write_answer,
};
use std::collections::BTreeMap;
use std::io::{self, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Limit of connections at a time. `MAX_KEYS` limits the keys in total and those in one request.
const MAX_CONNECTIONS: usize = 8 << 10;
const MAX_KEYS: usize = 1 << 16;

type StoreKey = Vec<u8>;

#[derive(Debug, Default)]
struct StoreState {
    values: Mutex<BTreeMap<StoreKey, Vec<u8>>>,
    changed: Condvar,
    ending: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

/// A store that runs in this process until it is dropped.
#[derive(Debug)]
pub struct StoreServer {
    shared: Arc<StoreState>,
    address: SocketAddr,
    listening: Option<JoinHandle<()>>,
}

fn lock_ignoring_poison<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StoreServer {
    /// Starts a store at an address. Port 0 selects any free port.
    ///
    /// # Errors
    /// Fails if the port is in use.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let (shared, address) = (Arc::new(StoreState::default()), listener.local_addr()?);
        let of_thread = Arc::clone(&shared);
        let listening = std::thread::Builder::new().name("store".into()).spawn(move || {
            listener
                .incoming()
                .flatten()
                .take_while(|_| !of_thread.is_ending())
                .for_each(|c| of_thread.accept_client(c));
        })?;
        Ok(Self { shared, address, listening: Some(listening) })
    }

    /// Returns the address on which it listens.
    pub fn listen_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        // Wakes the listening thread.
        let mut own = self.address;
        if own.ip().is_unspecified() {
            own.set_ip(if own.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        let woken = TcpStream::connect_timeout(&own, Duration::from_secs(1)).is_ok();
        for connection in lock_ignoring_poison(&self.shared.connections).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
        if let Some(listening) = self.listening.take().filter(|_| woken) {
            let _ = listening.join();
        }
    }
}

impl StoreState {
    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn accept_client(self: &Arc<Self>, connection: TcpStream) {
        let (Ok(end), Ok(known)) = (connection.try_clone(), connection.peer_addr()) else { return };
        {
            let mut all = lock_ignoring_poison(&self.connections);
            all.retain(|other| other.peer_addr().is_ok());
            if all.len() >= MAX_CONNECTIONS {
                return;
            }
            all.push(end);
        }
        let shared = Arc::clone(self);
        // If no thread can be started, the connection is closed here.
        let _ = std::thread::Builder::new().name("store client".into()).spawn(move || {
            // A client that leaves, or sends invalid data, ends only its own connection.
            let _ = shared.serve_client(&connection);
            let _ = connection.shutdown(Shutdown::Both);
            lock_ignoring_poison(&shared.connections)
                .retain(|other| other.peer_addr().ok().is_some_and(|other| other != known));
        });
    }

    fn serve_client(&self, mut connection: &TcpStream) -> io::Result<()> {
        let refuse = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        connection.set_nodelay(true)?;
        let mut from = BufReader::new(connection);
        if read_array(&mut from)? != [VALIDATE] || read_array(&mut from)? != MAGIC.to_le_bytes() {
            return Err(refuse("not a client of a store"));
        }
        while !self.is_ending() {
            let [request] = read_array(&mut from)?;
            match request {
                PING => {
                    let nonce: [u8; 4] = read_array(&mut from)?;
                    connection.write_all(&nonce)?;
                }
                SET => {
                    let (key, value) =
                        (read_bytes(&mut from, MAX_KEY_BYTES)?, read_bytes(&mut from, MAX_VALUE_BYTES)?);
                    self.update_values(|values| values.insert(key, value))?;
                }
                COMPARE_SET => {
                    let key = read_bytes(&mut from, MAX_KEY_BYTES)?;
                    let (expected, wanted) =
                        (read_bytes(&mut from, MAX_VALUE_BYTES)?, read_bytes(&mut from, MAX_VALUE_BYTES)?);
                    let now = self.update_values(|values| match values.get(&key) {
                        Some(value) if *value != expected => value.clone(),
                        None if !expected.is_empty() => expected,
                        _ => {
                            values.insert(key, wanted.clone());
                            wanted
                        }
                    })?;
                    write_answer(&mut connection, &now)?;
                }
                GET => {
                    let key = read_bytes(&mut from, MAX_KEY_BYTES)?;
                    let value = lock_ignoring_poison(&self.values).get(&key).cloned();
                    write_answer(&mut connection, &value.ok_or_else(|| refuse("no such key"))?)?;
                }
                ADD => {
                    let (key, more) =
                        (read_bytes(&mut from, MAX_KEY_BYTES)?, i64::from_le_bytes(read_array(&mut from)?));
                    let sum = self.update_values(|values| {
                        let old =
                            values.get(&key).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
                        let sum = old.unwrap_or(0i64).wrapping_add(more);
                        values.insert(key, sum.to_string().into_bytes());
                        sum
                    })?;
                    connection.write_all(&sum.to_le_bytes())?;
                }
                CHECK => {
                    let keys = read_keys(&mut from)?;
                    let values = lock_ignoring_poison(&self.values);
                    let there = keys.iter().all(|key| values.contains_key(key));
                    drop(values);
                    connection.write_all(&[if there { READY } else { NOT_READY }])?;
                }
                WAIT => {
                    let keys = read_keys(&mut from)?;
                    let mut values = lock_ignoring_poison(&self.values);
                    while !self.is_ending() && !keys.iter().all(|key| values.contains_key(key)) {
                        let waited = self.changed.wait_timeout(values, Duration::from_secs(1));
                        values = waited.unwrap_or_else(PoisonError::into_inner).0;
                    }
                    drop(values);
                    connection.write_all(&[STOP_WAITING])?;
                }
                GET_NUM_KEYS => {
                    let keys = lock_ignoring_poison(&self.values).len() as i64;
                    connection.write_all(&keys.to_le_bytes())?;
                }
                DELETE_KEY => {
                    let key = read_bytes(&mut from, MAX_KEY_BYTES)?;
                    let deleted = i64::from(self.update_values(|values| values.remove(&key))?.is_some());
                    connection.write_all(&deleted.to_le_bytes())?;
                }
                _ => return Err(refuse("an unknown request")),
            }
        }
        Ok(())
    }

    fn update_values<T>(&self, change: impl FnOnce(&mut BTreeMap<StoreKey, Vec<u8>>) -> T) -> io::Result<T> {
        let mut values = lock_ignoring_poison(&self.values);
        let changed = change(&mut values);
        let full = values.len() > MAX_KEYS;
        drop(values);
        self.changed.notify_all();
        if full { Err(io::Error::new(io::ErrorKind::OutOfMemory, "too many keys")) } else { Ok(changed) }
    }
}

fn read_keys(from: &mut impl io::Read) -> io::Result<Vec<StoreKey>> {
    let count = u64::from_le_bytes(read_array(from)?);
    if count > MAX_KEYS as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many keys in one request"));
    }
    (0..count).map(|_| read_bytes(from, MAX_KEY_BYTES)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::super::{StoreAddress, StoreClient, StoreClientError};
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn started() -> (StoreServer, StoreAddress) {
        let server = StoreServer::start(([127, 0, 0, 1], 0).into()).unwrap();
        let meet = StoreAddress { host: "127.0.0.1".to_owned(), port: server.listen_address().port() };
        (server, meet)
    }

    #[test]
    fn clients_find_what_others_set() {
        let (server, meet) = started();
        let mut one = StoreClient::connect(&meet, SOON).unwrap();
        let mut other = one.reconnect(&meet).unwrap();
        assert_eq!(one.get("a").unwrap(), None);
        one.set("a", b"1234").unwrap();
        other.set("empty", b"").unwrap();
        assert_eq!(other.wait_for_keys(&["a".into()], SOON).unwrap(), Vec::<usize>::new());
        assert_eq!(other.get("a").unwrap().unwrap(), b"1234");
        assert_eq!(other.get("empty").unwrap().unwrap(), b"");
        assert_eq!((one.add("n", 2).unwrap(), other.add("n", -5).unwrap()), (2, -3));
        assert_eq!(one.wait_for_keys(&["b".into(), "a".into()], Duration::from_millis(30)).unwrap(), vec![0]);
        // A thread that sets a key wakes the threads that wait for it.
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| other.wait_for_keys(&["late".into()], SOON));
            std::thread::sleep(Duration::from_millis(30));
            one.set("late", &vec![7; MAX_VALUE_BYTES]).unwrap();
            assert!(waits.join().unwrap().unwrap().is_empty());
        });
        assert_eq!(one.get("late").unwrap().unwrap().len(), MAX_VALUE_BYTES);
        drop(server);
        assert!(matches!(one.get("a"), Err(StoreClientError::Gone { .. })));
        assert!(matches!(
            StoreClient::connect(&meet, Duration::from_millis(60)),
            Err(StoreClientError::Absent { .. })
        ));
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
            let mut stream = TcpStream::connect((meet.host.as_str(), meet.port)).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.write_all(&sent).unwrap();
            // A connection closed with unread bytes may be reset at the other end.
            match stream.read(&mut [0; 8]) {
                Ok(read) => assert_eq!(read, 0, "{sent:?}"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{sent:?}"),
            }
        }
        let mut still = StoreClient::connect(&meet, SOON).unwrap();
        still.set("a", b"b").unwrap();
        assert!(still.has_keys(&["a".into()]).unwrap());
    }

    #[test]
    fn what_listens_but_is_no_store_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let meet = StoreAddress { host: "127.0.0.1".to_owned(), port };
        let talks = std::thread::spawn(move || {
            for mut stream in listener.incoming().take(1).flatten() {
                stream.write_all(b"220 welcome\r\n").unwrap();
            }
        });
        let said = StoreClient::connect(&meet, Duration::ZERO).unwrap_err().to_string();
        assert!(said.contains("no store") && said.contains("MASTER_ADDR"), "{said}");
        talks.join().unwrap();
    }
}
