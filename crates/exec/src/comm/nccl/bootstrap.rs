//! Bootstrap before the first exchange: the ranks meet, select their GPUs, and check whether they can run
//! together.

use super::{LEAVE_TIMEOUT, comm, heartbeat};
use crate::comm::gpu_selection::{self, BEFORE_EXCHANGES, OpenGpu, RankHello, joining_error};
use crate::comm::rendezvous::{Launch, StoreAddress, StoreClient, StoreServer};
use crate::comm::{CommError, format_ranks};
use evenkeel_cuda::nccl::NcclId;
use evenkeel_cuda::{GpuContext, probe_devices};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The state of a rank after it has met the others.
pub(super) struct BootstrapResult {
    pub(super) server: Option<StoreServer>,
    pub(super) store: StoreClient,
    pub(super) host: String,
    pub(super) device: usize,
    pub(super) gpu: Arc<GpuContext>,
    /// Ids of both communicators.
    pub(super) ids: [NcclId; 2],
}

/// Meets the other ranks; see [`super::NcclCommunicator::join`].
pub(super) fn meet_ranks(
    launch: &Launch,
    first: usize,
    timeout: Duration,
) -> Result<BootstrapResult, CommError> {
    let server =
        if launch.rank == 0 && !launch.has_store { Some(start_store(&launch.store_address)?) } else { None };
    let mut store = StoreClient::connect(&launch.store_address, timeout).map_err(joining_error)?;
    let opened = open_local_gpu(launch, first);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let met = exchange_hellos(launch, &mut store, &gpu_selection::hello_message(&host, &opened), timeout)
        .and_then(|all| check_hellos(&all))
        .and_then(|()| exchange_ids(launch, &mut store, timeout));
    // The other ranks must read this rank's message before the store goes.
    let ids =
        met.inspect_err(|_| heartbeat::leave_store(launch, &mut store, server.is_some(), LEAVE_TIMEOUT))?;
    let OpenGpu { device, gpu, .. } = opened?;
    Ok(BootstrapResult { server, store, host, device, gpu, ids })
}

/// Starts a store at the meeting point. Listens on that address alone if it belongs to this host, otherwise
/// on all addresses.
fn start_store(meet: &StoreAddress) -> Result<StoreServer, CommError> {
    let addresses = (meet.host.as_str(), meet.port).to_socket_addrs();
    let mut addresses: Vec<SocketAddr> =
        addresses.map_err(|error| joining_error(format!("MASTER_ADDR={}: {error}", meet.host)))?.collect();
    addresses.push(([0, 0, 0, 0], meet.port).into());
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
    Err(joining_error(format!(
        "cannot start a store at {}:{}: {why} (another MASTER_PORT may be free)",
        meet.host, meet.port
    )))
}

/// Opens this rank's GPU.
fn open_local_gpu(launch: &Launch, first: usize) -> Result<OpenGpu, CommError> {
    let nccl = comm::nccl_library()?.version;
    let devices = probe_devices().map_err(joining_error)?.len();
    // A launcher may show every process only its own GPU.
    let device = if devices == 1 { 0 } else { first + launch.local_rank };
    if device >= devices {
        return Err(joining_error(format!(
            "no GPU {device} for rank {} of the host, which has {devices}: NCCL takes one rank per GPU",
            launch.local_rank
        )));
    }
    gpu_selection::open_gpu(device, &format!("NCCL {nccl} and "))
}

/// Returns the first messages of all ranks, `[R]`.
fn exchange_hellos(
    launch: &Launch,
    store: &mut StoreClient,
    own: &RankHello,
    timeout: Duration,
) -> Result<Vec<RankHello>, CommError> {
    let begun = Instant::now();
    let key = |rank: usize| format!("{}hello/{rank}", launch.job);
    let own = serde_json::to_vec(own).map_err(joining_error)?;
    store.set(&key(launch.rank), &own).map_err(joining_error)?;
    let keys: Vec<String> = (0..launch.ranks).map(key).collect();
    let silent = store.wait_for_keys(&keys, timeout).map_err(joining_error)?;
    if !silent.is_empty() {
        return Err(CommError::Lost {
            at: BEFORE_EXCHANGES,
            silent,
            failed: Vec::new(),
            waited: begun.elapsed(),
        });
    }
    let read = |key: &String| {
        let stored = store.get(key).map_err(joining_error)?.unwrap_or_default();
        serde_json::from_slice(&stored)
            .map_err(|_| joining_error(format!("{key} in the store does not describe a rank")))
    };
    keys.iter().map(read).collect()
}

/// Rejects ranks that cannot join. The error is the same on all ranks.
fn check_hellos(all: &[RankHello]) -> Result<(), CommError> {
    gpu_selection::check_all_joined(all)?;
    if let Some((host, ranks)) = gpu_selection::shared_gpus(all).first() {
        return Err(joining_error(format!(
            "{} are on the same GPU of {host}: NCCL takes one rank per GPU (start one process per GPU)",
            format_ranks(ranks)
        )));
    }
    gpu_selection::check_same_kind(all)
}

/// Returns the ids of both communicators, which rank 0 creates.
fn exchange_ids(
    launch: &Launch,
    store: &mut StoreClient,
    timeout: Duration,
) -> Result<[NcclId; 2], CommError> {
    let key = format!("{}ids", launch.job);
    if launch.rank == 0 {
        let ids = [comm::create_id()?, comm::create_id()?];
        store.set(&key, &ids.map(|id| id.0).concat()).map_err(joining_error)?;
        return Ok(ids);
    }
    let begun = Instant::now();
    let silent = store.wait_for_keys(std::slice::from_ref(&key), timeout).map_err(joining_error)?;
    let stored: Option<Vec<u8>> = store.get(&key).map_err(joining_error)?;
    let Some(stored) = stored.filter(|_| silent.is_empty()) else {
        return Err(CommError::Lost {
            at: BEFORE_EXCHANGES,
            silent: vec![0],
            failed: Vec::new(),
            waited: begun.elapsed(),
        });
    };
    match stored.as_chunks::<128>() {
        (&[one, other], []) => Ok([NcclId(one), NcclId(other)]),
        _ => Err(joining_error("rank 0 stored no ids of communicators")),
    }
}
