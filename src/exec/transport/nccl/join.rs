//! Before the first exchange: where ranks meet, which GPU each has, and whether they can run together.

use super::library::Id;
use super::{BEFORE, LAST_WORDS, comm, pulse};
use crate::cuda::{Context, CudaError, probe};
use crate::exec::transport::rendezvous::{Launch, Store, StoreServer};
use crate::exec::transport::{TransportError, ranks_in_words};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a rank says of itself before all others: its host, GPU and what that is, or why it cannot join.
type Hello = BTreeMap<String, String>;

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

pub(super) fn joining(error: impl fmt::Display) -> TransportError {
    TransportError::Joining(error.to_string())
}

/// Meets the others; see [`super::Nccl::join`].
pub(super) fn meet(launch: &Launch, first: usize, timeout: Duration) -> Result<Met, TransportError> {
    let server = if launch.rank == 0 && !launch.kept { Some(keep(&launch.meet)?) } else { None };
    let mut store = Store::connect(&launch.meet, timeout).map_err(joining)?;
    let opened = open(launch, first);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let mut hello: Hello = [("host".to_owned(), host.clone())].into();
    match &opened {
        Ok((_, _, [gpu, kind])) => {
            hello.extend([("gpu", gpu), ("kind", kind)].map(|(name, fact)| (name.to_owned(), fact.clone())));
        }
        Err(error) => {
            hello.insert("why".into(), error.to_string());
        }
    }
    let met = hear(launch, &mut store, &hello, timeout)
        .and_then(|all| compare(&all, launch))
        .and_then(|()| ids(launch, &mut store, timeout));
    // The others are still to hear what was said here.
    let ids = met.inspect_err(|_| pulse::leave(launch, &mut store, server.is_some(), LAST_WORDS))?;
    let (device, gpu, _) = opened?;
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

/// This rank's GPU: which, ready, and what tells it from others.
fn open(launch: &Launch, first: usize) -> Result<(usize, Arc<Context>, [String; 2]), TransportError> {
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
    let gpu = Context::open(device).map_err(joining)?;
    let uuid = gpu
        .stream()
        .context()
        .uuid()
        .map_err(CudaError::driver("asking which GPU this is"))
        .map_err(joining)?;
    let name = format!("{:032x}", u128::from_be_bytes(uuid.bytes.map(|byte| byte as u8)));
    let (major, minor) = gpu.device().capability;
    // What decides whether the device splits has to be the same on all.
    let shared = gpu.device().shared_memory;
    let kind =
        format!("NCCL {nccl} and compute capability {major}.{minor} with {shared} bytes of shared memory");
    Ok((device, gpu, [name, kind]))
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
fn compare(all: &[Hello], launch: &Launch) -> Result<(), TransportError> {
    let of = |names: &[&str]| {
        let mut ranks: BTreeMap<Vec<&str>, Vec<usize>> = BTreeMap::new();
        for (rank, hello) in all.iter().enumerate() {
            let facts = names.iter().map(|&name| hello.get(name).map_or("", String::as_str)).collect();
            ranks.entry(facts).or_default().push(rank);
        }
        ranks
    };
    if let Some((why, ranks)) = of(&["why"]).into_iter().find(|(why, _)| !why[0].is_empty()) {
        let whose =
            if ranks.len() == launch.ranks { String::new() } else { format!("{}: ", ranks_in_words(&ranks)) };
        return Err(joining(format!("{whose}{}", why[0])));
    }
    if let Some((gpu, ranks)) = of(&["host", "gpu"]).into_iter().find(|(_, ranks)| ranks.len() > 1) {
        return Err(joining(format!(
            "{} are on the same GPU of {}: NCCL takes one rank per GPU (as many processes per host as it has GPUs)",
            ranks_in_words(&ranks),
            gpu[0]
        )));
    }
    let kinds = of(&["kind"]);
    if kinds.len() > 1 {
        let one =
            |(kind, ranks): (&Vec<&str>, &Vec<usize>)| format!("{} on {}", kind[0], ranks_in_words(ranks));
        let all: Vec<String> = kinds.iter().map(one).collect();
        return Err(joining(format!("ranks find {}: expected the same on all", all.join("; "))));
    }
    Ok(())
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
