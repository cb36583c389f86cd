//! A communicator over NCCL between processes with a GPU each: one process is one rank.
//!
//! The ranks meet at a store ([`rendezvous`](super::rendezvous)), where each publishes its GPU. Rank 0
//! creates two communicators: one for the exchanges of a step, one for moves of weights in the background.
//! All ranks begin their exchanges in the same order on both. Bytes of the host ([`Communicator`]) pass
//! through device memory; data of the GPU ([`crate::cuda`]) is sent directly.
//!
//! NCCL calls do not block, and streams are waited for with a deadline. The ranks call the roll through the
//! store in four cases:
//!
//! - The deadline passes.
//! - NCCL reports a lost rank.
//! - Another rank gives up.
//! - The launcher asks this process to end.
//!
//! They then abort their communicators, and name the ranks without a heartbeat.

mod bootstrap;
mod comm;
mod heartbeat;

use super::gpu_selection::{BEFORE_EXCHANGES, joining_error};
use super::rendezvous::{Launch, StoreServer};
use super::{
    CallContext, CommError, Communicator, DeviceCommunicator, DeviceOperation, MessageMemory, RankDevice,
};
use bootstrap::BootstrapResult;
use comm::NcclHandle;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _};
use evenkeel_cuda::GpuContext;
use heartbeat::Heartbeat;
use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The shortest and the longest wait for answers to a roll call.
const GRACE_LIMITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// The time that the others have to read that this rank gave up, and to report that they no longer need the
/// store.
const NOTICE_TIME: Duration = Duration::from_secs(1);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest send buffer between two ranks. A longer one is a defect of this program or of another.
const MAX_PARCEL_BYTES: u64 = 1 << 40;

/// One process of a job, with one GPU. Clones share the connection.
#[derive(Clone)]
pub struct NcclCommunicator(Rc<NcclProcess>);

struct NcclProcess {
    launch: Launch,
    host: String,
    device: usize,
    gpu: Arc<GpuContext>,
    timeout: Duration,
    heartbeat: Heartbeat,
    /// The communicators of steps and of moves.
    comms: OnceCell<[NcclHandle; 2]>,
    server: Option<StoreServer>,
    /// True if the launcher has asked this process to end.
    ending: Arc<AtomicBool>,
    /// True if this rank has called the roll or given up.
    has_reported: Cell<bool>,
    /// Moves of host bytes: sends with their ranks, and ranks from which bytes are expected.
    moves: RefCell<PendingMoves>,
}

#[derive(Debug, Default)]
struct PendingMoves {
    to: Vec<(usize, Vec<u8>)>,
    from: Vec<usize>,
}

impl fmt::Debug for NcclCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nccl").field("launch", &self.0.launch).finish_non_exhaustive()
    }
}

fn driver_error(error: impl fmt::Display) -> CommError {
    CommError::Library { call: "an exchange between GPUs", reason: error.to_string() }
}

impl NcclCommunicator {
    /// Joins the job that `launch` describes. The GPU is the one at `first` plus the rank's index on its
    /// host, or the only one that the process sees. A rank without a heartbeat for `timeout` counts as lost.
    ///
    /// # Errors
    /// Fails if a rank does not arrive, if two ranks have the same GPU, or if a rank has no GPU or no NCCL.
    pub fn join(launch: Launch, first: usize, timeout: Duration) -> Result<Self, CommError> {
        let BootstrapResult { server, store, host, device, gpu, ids } =
            bootstrap::meet_ranks(&launch, first, timeout)?;
        let ending = Arc::new(AtomicBool::new(false));
        #[expect(
            clippy::disallowed_methods,
            reason = "the transport sets a flag, and the program ends the job"
        )]
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&ending))
            .map_err(joining_error)?;
        let beats = store.reconnect(&launch.store_address).map_err(joining_error)?;
        let pulse = Heartbeat::start(&launch, store, beats).map_err(joining_error)?;
        let process = NcclProcess {
            launch,
            host,
            device,
            gpu,
            timeout,
            heartbeat: pulse,
            comms: OnceCell::new(),
            server,
            ending,
            has_reported: Cell::new(false),
            moves: RefCell::default(),
        };
        let mut comms = Vec::with_capacity(2);
        for id in ids {
            process.bind_context()?;
            let comm = NcclHandle::start_join(id, process.launch.rank, process.launch.ranks)?;
            process.heartbeat.record_activity("joining".into());
            process.wait_until(BEFORE_EXCHANGES, || comm.is_idle()).inspect_err(|_| {
                comm.abort();
                process.leave_store(LEAVE_TIMEOUT);
            })?;
            comms.push(comm);
        }
        if let Ok(comms) = <[NcclHandle; 2]>::try_from(comms) {
            let _ = process.comms.set(comms);
        }
        Ok(Self(Rc::new(process)))
    }

    /// Runs one exchange for [`Communicator::all_to_all_v`] and waits for it.
    fn run_exchange(
        &self,
        at: CallContext,
        stream: &Arc<CudaStream>,
        parts: &[DeviceOperation],
    ) -> Result<(), CommError> {
        // SAFETY: the caller's memory outlives this call. When it returns, the stream is complete or the
        // communicators are aborted.
        #[allow(unsafe_code, reason = "as above")]
        unsafe {
            self.enqueue(false, at, stream, parts)?;
        }
        self.synchronize(at, stream)
    }
}

impl NcclProcess {
    fn communicators(&self) -> impl Iterator<Item = &NcclHandle> {
        self.comms.get().into_iter().flatten()
    }

    fn bind_context(&self) -> Result<(), CommError> {
        self.gpu.stream().context().bind_to_thread().map_err(driver_error)
    }

    /// Reports that this rank no longer needs the store. If this process runs the store, waits for the other
    /// ranks to report the same.
    fn leave_store(&self, patience: Duration) {
        self.heartbeat.leave_store(&self.launch, self.server.is_some(), patience);
    }

    fn grace_period(&self) -> Duration {
        (self.timeout / 4).clamp(GRACE_LIMITS[0], GRACE_LIMITS[1])
    }

    /// Tests until `done` returns true.
    fn wait_until(
        &self,
        at: CallContext,
        mut done: impl FnMut() -> Result<bool, CommError>,
    ) -> Result<(), CommError> {
        let begun = Instant::now();
        let mut turns = 0u32;
        loop {
            match done() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(self.lost_error(at, begun.elapsed(), Some(error))),
            }
            if self.heartbeat.should_stop_waiting()
                || self.ending.load(Ordering::Relaxed)
                || begun.elapsed() > self.timeout
            {
                return Err(self.lost_error(at, begun.elapsed(), None));
            }
            turns = turns.saturating_add(1);
            match turns {
                0..100 => std::hint::spin_loop(),
                // On a machine with fewer cores than ranks, another rank needs the core.
                100..1000 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    /// Aborts all exchanges, calls the roll, and returns the error that names the lost ranks.
    fn lost_error(&self, at: CallContext, waited: Duration, error: Option<CommError>) -> CommError {
        if self.has_reported.replace(true) {
            return error.unwrap_or(CommError::Ended { at });
        }
        self.communicators().for_each(NcclHandle::abort);
        let roll = match self.heartbeat.call_roll(self.grace_period(), self.ending.load(Ordering::Relaxed)) {
            Ok(roll) => roll,
            // The store is gone with rank 0, which ran it.
            Err(_) if self.server.is_none() && !self.launch.has_store => {
                return CommError::Lost { at, silent: vec![0], failed: Vec::new(), waited };
            }
            Err(gone) => {
                return error
                    .unwrap_or(CommError::Library { call: "calling the roll", reason: gone.to_string() });
            }
        };
        match error {
            _ if !roll.silent.is_empty() || !roll.failed.is_empty() => {
                CommError::Lost { at, silent: roll.silent, failed: roll.failed, waited }
            }
            _ if roll.ended => CommError::Ended { at },
            Some(error) => error,
            None => CommError::Late { at, missing: roll.behind, waited },
        }
    }
}

fn device_address<T>(memory: &CudaSlice<T>) -> u64 {
    memory.device_ptr(memory.stream()).0
}

impl Communicator for NcclCommunicator {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn ranks(&self) -> usize {
        self.0.launch.ranks
    }

    fn local_ranks(&self) -> Range<usize> {
        self.0.launch.rank..self.0.launch.rank + 1
    }

    fn host(&self) -> String {
        self.0.host.clone()
    }

    fn leave(&self, at: CallContext) -> Result<(), CommError> {
        let process = &self.0;
        self.all_to_all_v(at, vec![Vec::new(); self.ranks()])?;
        for comm in process.communicators() {
            comm.start_leave();
            process.wait_until(at, || comm.is_idle())?;
            comm.destroy();
        }
        process.leave_store(LEAVE_TIMEOUT);
        Ok(())
    }

    /// Notifies all others of the reason unless the roll has been called, and aborts all exchanges.
    fn abort(&self, reason: &str) {
        let process = &self.0;
        process.communicators().for_each(NcclHandle::abort);
        if !process.has_reported.replace(true) {
            // If the store is gone, the other ranks know.
            let _ = process.heartbeat.report_failure(reason);
            std::thread::sleep(NOTICE_TIME);
        }
        process.leave_store(process.grace_period() + NOTICE_TIME);
    }

    fn devices(&self) -> Result<&dyn DeviceCommunicator, CommError> {
        Ok(self)
    }

    fn all_to_all_v(&self, at: CallContext, mut parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError> {
        let (gpu, me, ranks) = (&self.0.gpu, self.rank(), self.ranks());
        let stream = gpu.stream();
        let own = std::mem::take(&mut parcels[me]);
        let lengths: Vec<u64> = parcels.iter().map(|parcel| parcel.len() as u64).collect();
        let mine = gpu.upload(&lengths).map_err(driver_error)?;
        let all = stream.alloc_zeros::<u64>(ranks * ranks).map_err(driver_error)?;
        self.run_exchange(
            at,
            stream,
            &[DeviceOperation::All((device_address(&mine), 8 * ranks), device_address(&all))],
        )?;
        let all = gpu.download(&all).map_err(driver_error)?;
        let sizes: Vec<u64> =
            (0..ranks).map(|from| if from == me { 0 } else { all[from * ranks + me] }).collect();
        if let Some(from) = sizes.iter().position(|&size| size > MAX_PARCEL_BYTES) {
            return Err(CommError::Malformed { from, at, reason: "it is longer than any parcel" });
        }

        // One additional byte, because device memory cannot be empty.
        let mut packed = parcels.concat();
        packed.push(0);
        let packed = gpu.upload(&packed).map_err(driver_error)?;
        let came = stream.alloc_zeros::<u8>(sizes.iter().sum::<u64>() as usize + 1).map_err(driver_error)?;
        let (mut out, mut into, mut parts) = (device_address(&packed), device_address(&came), Vec::new());
        for other in (0..ranks).filter(|&other| other != me) {
            let [to, from] = [lengths[other], sizes[other]];
            parts.extend((to > 0).then_some(DeviceOperation::To(other, (out, to as usize))));
            parts.extend((from > 0).then_some(DeviceOperation::From(other, (into, from as usize))));
            out += to;
            into += from;
        }
        self.run_exchange(at, stream, &parts)?;
        let came = gpu.download(&came).map_err(driver_error)?;
        let mut rest = came.as_slice();
        let mut cut = |size: u64| {
            let (of_rank, behind) = rest.split_at(size as usize);
            rest = behind;
            of_rank.to_vec()
        };
        let mut came: Vec<Vec<u8>> = sizes.iter().map(|&size| cut(size)).collect();
        came[me] = own;
        Ok(came)
    }

    /// Queues the bytes until [`Communicator::wait_all`], which all ranks call.
    fn isend(&self, to: usize, bytes: Vec<u8>) -> Result<(), CommError> {
        self.0.moves.borrow_mut().to.push((to, bytes));
        Ok(())
    }

    fn irecv(&self, from: usize) -> Result<(), CommError> {
        self.0.moves.borrow_mut().from.push(from);
        Ok(())
    }

    fn wait_all(&self, at: CallContext) -> Result<Vec<Vec<u8>>, CommError> {
        let PendingMoves { to, from } = self.0.moves.take();
        let mut parcels = vec![Vec::new(); self.ranks()];
        for (to, bytes) in to {
            parcels[to].extend((bytes.len() as u64).to_le_bytes());
            parcels[to].extend(bytes);
        }
        let came = self.all_to_all_v(at, parcels)?;
        let mut rest: Vec<&[u8]> = came.iter().map(Vec::as_slice).collect();
        let next = |from: usize| {
            let short = || CommError::Malformed { from, at, reason: "it ends early" };
            let (length, behind) = rest[from].split_first_chunk::<8>().ok_or_else(short)?;
            let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| short())?;
            let (bytes, behind) = behind.split_at_checked(length).ok_or_else(short)?;
            rest[from] = behind;
            Ok(bytes.to_vec())
        };
        from.into_iter().map(next).collect()
    }
}

impl DeviceCommunicator for NcclCommunicator {
    /// Returns the GPU with which this rank has joined.
    fn open_devices(&self, _: usize, _: Option<bool>) -> Result<RankDevice, CommError> {
        let (index, memory) = (self.0.device, MessageMemory::Device);
        Ok(RankDevice { index, memory, notices: Vec::new() })
    }

    fn is_stream_ordered(&self) -> bool {
        true
    }

    #[allow(unsafe_code, reason = "the trait requires it; NCCL keeps the order of the stream")]
    unsafe fn enqueue(
        &self,
        background: bool,
        at: CallContext,
        stream: &Arc<CudaStream>,
        parts: &[DeviceOperation],
    ) -> Result<(), CommError> {
        let process = &self.0;
        let Some(comm) = process.communicators().nth(usize::from(background)).filter(|_| !parts.is_empty())
        else {
            return Ok(());
        };
        process.bind_context()?;
        process.heartbeat.record_activity(at.to_string());
        comm.enqueue(stream, parts).map_err(|error| process.lost_error(at, Duration::ZERO, Some(error)))?;
        process.wait_until(at, || comm.is_idle())
    }

    fn synchronize(&self, at: CallContext, stream: &Arc<CudaStream>) -> Result<(), CommError> {
        let process = &self.0;
        let done = stream.record_event(None).map_err(driver_error)?;
        process.wait_until(at, || {
            if done.try_is_complete().map_err(driver_error)? {
                return Ok(true);
            }
            process.communicators().try_for_each(|comm| comm.is_idle().map(drop))?;
            Ok(false)
        })
    }

    /// An aborted communicator releases all memory.
    fn must_leak(&self) -> bool {
        false
    }
}
