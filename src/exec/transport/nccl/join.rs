//! Before the first exchange: where ranks meet, which GPU each has, and whether they can run together.

use super::library::Id;
use super::{LAST_WORDS, comm, pulse};
use crate::cuda::{Context, probe};
use crate::exec::transport::gpu::{self, BEFORE, Hello, Opened, joining};
use crate::exec::transport::rendezvous::{Launch, Store, StoreServer};
use crate::exec::transport::{TransportError, ranks_in_words};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a rank has when it has met the others.
pub(super) struct Met {
    pub(super) server: Option<StoreServer>,
    pub(super) store: Store,
    pub(super) host: String,
    pub(super) device: usize,
    pub(super) gpu: Arc<Context>,
    /// Names of both communicators.
    pub(super) ids: [Id; 2],
}

/// Meets the others; see [`super::Nccl::join`].
pub(super) fn meet(launch: &Launch, first: usize, timeout: Duration) -> Result<Met, TransportError> {
    let server = if launch.rank == 0 && !launch.kept { Some(keep(&launch.meet)?) } else { None };
    let mut store = Store::connect(&launch.meet, timeout).map_err(joining)?;
    let opened = open(launch, first);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let met = hear(launch, &mut store, &gpu::hello(&host, &opened), timeout)
        .and_then(|all| compare(&all))
        .and_then(|()| ids(launch, &mut store, timeout));
    // The others are still to hear what was said here.
    let ids = met.inspect_err(|_| pulse::leave(launch, &mut store, server.is_some(), LAST_WORDS))?;
    let Opened { device, gpu, .. } = opened?;
    Ok(Met { server, store, host, device, gpu, ids })
}

/// Keeps a store where the ranks meet: at that address alone where it is this host's own, else at all of them.
fn keep(meet: &(String, u16)) -> Result<StoreServer, TransportError> {
    let addresses = (meet.0.as_str(), meet.1).to_socket_addrs();
    let mut addresses: Vec<SocketAddr> =
        addresses.map_err(|error| joining(format!("MASTER_ADDR={}: {error}", meet.0)))?.collect();
    addresses.push(([0, 0, 0, 0], meet.1).into());
    let mut last = None;
    for address in addresses {
        match StoreServer::start(address) {
            Ok(server) => return Ok(server),
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => last = Some(error),
            Err(error) => {
                last = Some(error);
                break;
            }
        }
    }
    let why = last.map_or_else(String::new, |error| error.to_string());
    Err(joining(format!("a store at {}:{}: {why} (another MASTER_PORT may be free)", meet.0, meet.1)))
}

/// This rank's GPU.
fn open(launch: &Launch, first: usize) -> Result<Opened, TransportError> {
    let nccl = comm::library()?.version;
    let devices = probe().map_err(joining)?.len();
    // A launcher may show every process its own GPU alone.
    let device = if devices == 1 { 0 } else { first + launch.local_rank };
    if device >= devices {
        return Err(joining(format!(
            "it is rank {} of its host and wants GPU {device}, of {devices}: NCCL takes one rank per GPU",
            launch.local_rank
        )));
    }
    gpu::open(device, &format!("NCCL {nccl} and "))
}

/// What all ranks say of themselves, `[R]`.
fn hear(
    launch: &Launch,
    store: &mut Store,
    own: &Hello,
    timeout: Duration,
) -> Result<Vec<Hello>, TransportError> {
    let begun = Instant::now();
    let key = |rank: usize| format!("{}hello/{rank}", launch.job);
    let own = serde_json::to_vec(own).map_err(joining)?;
    store.set(&key(launch.rank), &own).map_err(joining)?;
    let keys: Vec<String> = (0..launch.ranks).map(key).collect();
    let silent = store.wait(&keys, timeout).map_err(joining)?;
    if !silent.is_empty() {
        return Err(TransportError::Lost { at: BEFORE, silent, failed: Vec::new(), waited: begun.elapsed() });
    }
    let read = |key: &String| {
        let told = store.get(key).map_err(joining)?.unwrap_or_default();
        serde_json::from_slice(&told)
            .map_err(|_| joining(format!("{key} in the store is not what a rank says")))
    };
    keys.iter().map(read).collect()
}

/// Refuses ranks that cannot join; the same error on all of them.
fn compare(all: &[Hello]) -> Result<(), TransportError> {
    gpu::all_have_one(all)?;
    if let Some((host, ranks)) = gpu::shared(all).first() {
        return Err(joining(format!(
            "{} are on the same GPU of {host}: NCCL takes one rank per GPU (as many processes per host as it has GPUs)",
            ranks_in_words(ranks)
        )));
    }
    gpu::alike(all)
}

/// The names of both communicators, by rank 0.
fn ids(launch: &Launch, store: &mut Store, timeout: Duration) -> Result<[Id; 2], TransportError> {
    let key = format!("{}ids", launch.job);
    if launch.rank == 0 {
        let ids = [comm::name()?, comm::name()?];
        store.set(&key, &ids.map(|id| id.0).concat()).map_err(joining)?;
        return Ok(ids);
    }
    let begun = Instant::now();
    let silent = store.wait(std::slice::from_ref(&key), timeout).map_err(joining)?;
    let told: Option<Vec<u8>> = store.get(&key).map_err(joining)?;
    let Some(told) = told.filter(|_| silent.is_empty()) else {
        return Err(TransportError::Lost {
            at: BEFORE,
            silent: vec![0],
            failed: Vec::new(),
            waited: begun.elapsed(),
        });
    };
    match told.as_chunks::<128>() {
        (&[one, other], []) => Ok([Id(one), Id(other)]),
        _ => Err(joining("what rank 0 says in the store names no communicators")),
    }
}
