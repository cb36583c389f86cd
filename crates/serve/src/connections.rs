//! The list of open connections, and the choice of the one that makes room for a new one.
//!
//! A connection is *waiting* while the server waits for its client: for headers, for a body, or for the
//! client to take a reply. At a limit, the server closes the connection that has waited longest, so that
//! stalled clients cannot block others. Connections without a valid token go first. If no connection is
//! waiting, the new one is refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Returns the unit of the limits per address. An IPv6 client has at least a /64 network.
pub(crate) fn client_network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => IpAddr::V4(four),
            None => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX))),
        },
    }
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct ClientConnection {
    address: IpAddr,
    waits: Mutex<WaitTimes>,
    /// Flag that is set once a request with a valid token came over it.
    authenticated: AtomicBool,
    eviction: Notify,
}

#[derive(Debug, Default)]
struct WaitTimes {
    /// The time since which the server waits for a request.
    request: Option<Instant>,
    /// The time since which it waits for the client to take a reply.
    reply: Option<Instant>,
}

impl ClientConnection {
    fn lock_waits(&self) -> MutexGuard<'_, WaitTimes> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the server waits for headers or a body, or that it no longer does.
    pub(crate) fn set_waiting_request(&self, waits: bool) {
        self.lock_waits().request = waits.then(Instant::now);
    }

    /// Notes that the server waits for the client to take a reply, or that it no longer does.
    pub(crate) fn set_waiting_reader(&self, waits: bool) {
        self.lock_waits().reply = waits.then(Instant::now);
    }

    /// Notes that the client has a valid token.
    pub(crate) fn mark_authenticated(&self) {
        self.authenticated.store(true, Ordering::Relaxed);
    }

    /// Returns once the connection has to make room.
    pub(super) async fn wait_for_eviction(&self) {
        self.eviction.notified().await;
    }

    fn waiting_since(&self) -> Option<Instant> {
        let waits = self.lock_waits();
        [waits.request, waits.reply].into_iter().flatten().min()
    }
}

/// All open connections.
#[derive(Debug, Default)]
pub(super) struct ConnectionList(Mutex<OpenConnections>);

#[derive(Debug, Default)]
struct OpenConnections {
    next: u64,
    all: BTreeMap<u64, Arc<ClientConnection>>,
}

/// A connection in the list. Its drop removes it from the list.
pub(super) struct ListedConnection {
    list: Arc<ConnectionList>,
    number: u64,
    pub(super) connection: Arc<ClientConnection>,
}

impl Drop for ListedConnection {
    fn drop(&mut self) {
        self.list.lock_list().all.remove(&self.number);
    }
}

impl ConnectionList {
    fn lock_list(&self) -> MutexGuard<'_, OpenConnections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a new connection. At a limit, it replaces one that is waiting. Returns whether it replaced one,
    /// or `None` if there is no room.
    pub(super) fn admit_connection(
        self: &Arc<Self>,
        address: IpAddr,
        most: usize,
        most_per_address: usize,
    ) -> Option<(ListedConnection, bool)> {
        let address = client_network(address);
        let mut open = self.lock_list();
        let own = open.all.values().filter(|connection| connection.address == address).count();
        let victim = match (own >= most_per_address, open.all.len() >= most) {
            (true, _) => Some(open.longest_waiting(Some(address))?),
            (false, true) => Some(open.longest_waiting(None)?),
            (false, false) => None,
        };
        let cut = victim.and_then(|number| open.all.remove(&number));
        if let Some(victim) = &cut {
            victim.eviction.notify_one();
        }
        let waits = Mutex::new(WaitTimes { request: Some(Instant::now()), reply: None });
        let connection = Arc::new(ClientConnection {
            address,
            waits,
            authenticated: AtomicBool::new(false),
            eviction: Notify::new(),
        });
        let number = open.next;
        open.next += 1;
        open.all.insert(number, connection.clone());
        Some((ListedConnection { list: self.clone(), number, connection }, cut.is_some()))
    }
}

impl OpenConnections {
    /// Returns the connection that makes room. Connections without a token come first, then those of the
    /// address with most connections, then the one that has waited longest.
    fn longest_waiting(&self, address: Option<IpAddr>) -> Option<u64> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        self.all.values().for_each(|connection| *counts.entry(connection.address).or_default() += 1);
        let eligible =
            self.all.iter().filter(|(_, connection)| address.is_none_or(|a| a == connection.address));
        let waiting = eligible.filter_map(|(&number, connection)| {
            let since = connection.waiting_since()?;
            let proven = connection.authenticated.load(Ordering::Relaxed);
            let crowd = counts.get(&connection.address).copied().unwrap_or(0);
            Some(((proven, std::cmp::Reverse(crowd), since), number))
        });
        waiting.min().map(|(_, number)| number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn address_of(list: &ConnectionList) -> Vec<IpAddr> {
        list.lock_list().all.values().map(|connection| connection.address).collect()
    }

    #[test]
    fn the_crowd_makes_room_and_the_busy_are_left_alone() {
        let list = Arc::new(ConnectionList::default());
        let mut open: Vec<ListedConnection> =
            (0..3).map(|_| list.admit_connection(A, 4, 3).unwrap().0).collect();
        open.push(list.admit_connection(B, 4, 3).unwrap().0);
        // A fifth connection of any address replaces the first one of A.
        let (fifth, cut) = list.admit_connection(B, 4, 3).unwrap();
        assert!(cut);
        assert_eq!(address_of(&list), [A, A, B, B]);
        // Connections that are being served keep their place.
        for connection in open.iter().chain([&fifth]) {
            connection.connection.set_waiting_request(false);
        }
        assert!(list.admit_connection(A, 4, 3).is_none());
        open[2].connection.set_waiting_reader(true);
        let (_sixth, cut) = list.admit_connection(A, 4, 3).unwrap();
        assert!(cut && address_of(&list) == [A, B, B, A]);
        drop(open);
        assert_eq!(address_of(&list), [B, A]);
    }

    #[test]
    fn one_address_has_its_own_limit_and_tokens_keep_a_place() {
        let list = Arc::new(ConnectionList::default());
        let first = list.admit_connection(A, 10, 2).unwrap().0;
        first.connection.mark_authenticated();
        let second = list.admit_connection(A, 10, 2).unwrap().0;
        let (_third, cut) = list.admit_connection(A, 10, 2).unwrap();
        assert!(
            cut && list.lock_list().all.contains_key(&first.number)
                && !list.lock_list().all.contains_key(&second.number)
        );
        assert!(!list.admit_connection(B, 10, 2).unwrap().1);
    }

    #[test]
    fn a_network_counts_as_one_address() {
        let six = |text: &str| client_network(text.parse().unwrap());
        assert_eq!(six("2001:db8::1"), six("2001:db8::ffff:1:2:3"));
        assert_ne!(six("2001:db8::1"), six("2001:db8:0:1::1"));
        assert_eq!(six("::ffff:10.0.0.1"), A);
        assert_eq!(client_network(B), B);
    }
}
