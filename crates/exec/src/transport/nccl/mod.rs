//! Ranks that are processes with a GPU each, over NCCL: one process, one rank.
//!
//! They meet at a store ([`rendezvous`](super::rendezvous)), where each says which GPU it has, and rank 0 names two communicators: one
//! for what a step waits for, one for the moves of weights beside it. All ranks begin what they exchange in the same order on both.
//! Bytes of the host ([`Transport`]) pass through device memory, those of the GPU ([`crate::exec::cuda`]) as they lie.
//!
//! NCCL is asked without blocking and streams are waited for with a deadline. Where it passes, where NCCL says that a rank is gone,
//! where another rank gives up, or where the launcher asks this process to end, the ranks call the roll through the store,
//! end their communicators, and name who gives no sign of life.

mod comm;
mod join;
mod library;
mod pulse;

use super::gpu::{BEFORE, joining};
use super::rendezvous::{Launch, StoreServer};
use super::{At, DeviceTransport, Memory, Part, Transport, TransportError};
use crate::cuda::Context;
use comm::Comm;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _};
use join::Met;
use pulse::Pulse;
use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The shortest and the longest wait for answers when the roll is called.
const GRACE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// How long the others have to hear that this rank gave up, and that nobody needs the store any more.
const HURRY: Duration = Duration::from_secs(1);
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The longest parcel between two ranks: longer ones are an error of this program, or of another.
const MOST: u64 = 1 << 40;

/// One process of a job, with one GPU. Clones are the same.
#[derive(Clone)]
pub struct Nccl(Rc<Process>);

struct Process {
    launch: Launch,
    host: String,
    device: usize,
    gpu: Arc<Context>,
    timeout: Duration,
    pulse: Pulse,
    /// What steps wait for, and moves.
    comms: OnceCell<[Comm; 2]>,
    server: Option<StoreServer>,
    /// Whether the launcher wants this process to end.
    ending: Arc<AtomicBool>,
    /// Whether the others have been told, or told us.
    told: Cell<bool>,
    /// Bytes of the host that are to go to ranks, and ranks that some are to come from.
    moves: RefCell<Moves>,
}

#[derive(Debug, Default)]
struct Moves {
    to: Vec<(usize, Vec<u8>)>,
    from: Vec<usize>,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nccl").field("launch", &self.0.launch).finish_non_exhaustive()
    }
}

fn driver(error: impl fmt::Display) -> TransportError {
    TransportError::Library { call: "an exchange of GPUs", reason: error.to_string() }
}

impl Nccl {
    /// Joins the job that this process was started in: `launch` says as what, and the GPU is the one behind `first` by as many as it
    /// has ranks before it on its host, or the only one that it sees. A rank that gives no sign of life for `timeout` is taken for lost.
    ///
    /// # Errors
    /// When a rank does not come, two have the same GPU, or one of them has none or no NCCL.
    pub fn join(launch: Launch, first: usize, timeout: Duration) -> Result<Self, TransportError> {
        let Met { server, store, host, device, gpu, ids } = join::meet(&launch, first, timeout)?;
        let ending = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&ending)).map_err(joining)?;
        let beats = store.again(&launch.meet).map_err(joining)?;
        let pulse = Pulse::begin(&launch, store, beats).map_err(joining)?;
        let process = Process {
            launch,
            host,
            device,
            gpu,
            timeout,
            pulse,
            comms: OnceCell::new(),
            server,
            ending,
            told: Cell::new(false),
            moves: RefCell::default(),
        };
        let mut comms = Vec::with_capacity(2);
        for id in ids {
            process.bind()?;
            let comm = Comm::begin(id, process.launch.rank, process.launch.ranks)?;
            process.pulse.doing("joining".into());
            process.wait(BEFORE, || comm.is_idle()).inspect_err(|_| {
                comm.abort();
                process.leave(LAST_WORDS);
            })?;
            comms.push(comm);
        }
        if let Ok(comms) = <[Comm; 2]>::try_from(comms) {
            let _ = process.comms.set(comms);
        }
        Ok(Self(Rc::new(process)))
    }

    /// The name of the host that this process runs on.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// Leaves the job; waits for the others to do so too.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn end(&self, at: At) -> Result<(), TransportError> {
        let process = &self.0;
        self.exchange(at, vec![Vec::new(); self.ranks()])?;
        for comm in process.comms() {
            comm.begin_to_leave();
            process.wait(at, || comm.is_idle())?;
            comm.destroy();
        }
        process.leave(LAST_WORDS);
        Ok(())
    }

    /// Gives up: tells all others why, where the roll has not been called, and ends what is under way. This process should end
    /// itself then.
    pub fn give_up(&self, why: &str) {
        let process = &self.0;
        process.comms().for_each(Comm::abort);
        if !process.told.replace(true) {
            // Where the store is gone they know.
            let _ = process.pulse.tell(why);
            std::thread::sleep(HURRY);
        }
        process.leave(process.grace() + HURRY);
    }

    /// Exchanges memory of [`Transport::exchange`].
    fn pass(&self, at: At, stream: &Arc<CudaStream>, parts: &[Part]) -> Result<(), TransportError> {
        // SAFETY: the caller's memory outlives this call, at whose end the stream is through or the communicators are aborted.
        #[allow(unsafe_code, reason = "as above")]
        unsafe {
            self.enqueue(false, at, stream, parts)?;
        }
        self.settle(at, stream)
    }
}

impl Process {
    fn comms(&self) -> impl Iterator<Item = &Comm> {
        self.comms.get().into_iter().flatten()
    }

    fn bind(&self) -> Result<(), TransportError> {
        self.gpu.stream().context().bind_to_thread().map_err(driver)
    }

    /// Says that this rank needs the store no more, and waits for the others to say so where this one keeps it.
    fn leave(&self, patience: Duration) {
        self.pulse.leave(&self.launch, self.server.is_some(), patience);
    }

    fn grace(&self) -> Duration {
        (self.timeout / 4).clamp(GRACE[0], GRACE[1])
    }

    /// Asks until it is done.
    fn wait(
        &self,
        at: At,
        mut done: impl FnMut() -> Result<bool, TransportError>,
    ) -> Result<(), TransportError> {
        let begun = Instant::now();
        let mut turns = 0u32;
        loop {
            match done() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(self.lost(at, begun.elapsed(), Some(error))),
            }
            if self.pulse.called() || self.ending.load(Ordering::Relaxed) || begun.elapsed() > self.timeout {
                return Err(self.lost(at, begun.elapsed(), None));
            }
            turns = turns.saturating_add(1);
            match turns {
                0..100 => std::hint::spin_loop(),
                // On a machine with fewer cores than ranks somebody else has to work.
                100..1000 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    /// Ends what is under way and calls the roll: who is lost?
    fn lost(&self, at: At, waited: Duration, error: Option<TransportError>) -> TransportError {
        if self.told.replace(true) {
            return error.unwrap_or(TransportError::Ended { at });
        }
        self.comms().for_each(Comm::abort);
        let roll = match self.pulse.roll(self.grace(), self.ending.load(Ordering::Relaxed)) {
            Ok(roll) => roll,
            // It went with who kept it.
            Err(_) if self.server.is_none() && !self.launch.kept => {
                return TransportError::Lost { at, silent: vec![0], failed: Vec::new(), waited };
            }
            Err(gone) => {
                return error.unwrap_or(TransportError::Library {
                    call: "calling the roll",
                    reason: gone.to_string(),
                });
            }
        };
        match error {
            _ if !roll.silent.is_empty() || !roll.failed.is_empty() => {
                TransportError::Lost { at, silent: roll.silent, failed: roll.failed, waited }
            }
            _ if roll.ended => TransportError::Ended { at },
            Some(error) => error,
            None => TransportError::Late { at, missing: roll.behind, waited },
        }
    }
}

fn address<T>(memory: &CudaSlice<T>) -> u64 {
    memory.device_ptr(memory.stream()).0
}

impl DeviceTransport for Nccl {
    fn device(&self) -> usize {
        self.0.device
    }

    fn memory(&self) -> Memory {
        Memory::Device
    }

    fn ordered(&self) -> bool {
        true
    }

    #[allow(unsafe_code, reason = "as the trait has it; NCCL keeps to the order of the stream")]
    unsafe fn enqueue(
        &self,
        beside: bool,
        at: At,
        stream: &Arc<CudaStream>,
        parts: &[Part],
    ) -> Result<(), TransportError> {
        let process = &self.0;
        let Some(comm) = process.comms().nth(usize::from(beside)).filter(|_| !parts.is_empty()) else {
            return Ok(());
        };
        process.bind()?;
        process.pulse.doing(at.to_string());
        comm.enqueue(stream, parts).map_err(|error| process.lost(at, Duration::ZERO, Some(error)))?;
        process.wait(at, || comm.is_idle())
    }

    fn settle(&self, at: At, stream: &Arc<CudaStream>) -> Result<(), TransportError> {
        let process = &self.0;
        let done = stream.record_event(None).map_err(driver)?;
        process.wait(at, || {
            if done.try_is_complete().map_err(driver)? {
                return Ok(true);
            }
            process.comms().try_for_each(|comm| comm.is_idle().map(drop))?;
            Ok(false)
        })
    }

    /// An aborted communicator lets go of everything.
    fn clings(&self) -> bool {
        false
    }
}

impl Transport for Nccl {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn rank(&self) -> usize {
        self.0.launch.rank
    }

    fn ranks(&self) -> usize {
        self.0.launch.ranks
    }

    fn exchange(&self, at: At, mut parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, TransportError> {
        let (gpu, me, ranks) = (&self.0.gpu, self.rank(), self.ranks());
        let stream = gpu.stream();
        let own = std::mem::take(&mut parcels[me]);
        let lengths: Vec<u64> = parcels.iter().map(|parcel| parcel.len() as u64).collect();
        let mine = gpu.upload(&lengths).map_err(driver)?;
        let all = stream.alloc_zeros::<u64>(ranks * ranks).map_err(driver)?;
        self.pass(at, stream, &[Part::All((address(&mine), 8 * ranks), address(&all))])?;
        let all = gpu.download(&all).map_err(driver)?;
        let sizes: Vec<u64> =
            (0..ranks).map(|from| if from == me { 0 } else { all[from * ranks + me] }).collect();
        if let Some(from) = sizes.iter().position(|&size| size > MOST) {
            return Err(TransportError::Malformed { from, at, reason: "a parcel longer than any can be" });
        }

        // One more, since there is no memory of nothing.
        let mut packed = parcels.concat();
        packed.push(0);
        let packed = gpu.upload(&packed).map_err(driver)?;
        let came = stream.alloc_zeros::<u8>(sizes.iter().sum::<u64>() as usize + 1).map_err(driver)?;
        let (mut out, mut into, mut parts) = (address(&packed), address(&came), Vec::new());
        for other in (0..ranks).filter(|&other| other != me) {
            let [to, from] = [lengths[other], sizes[other]];
            parts.extend((to > 0).then_some(Part::To(other, (out, to as usize))));
            parts.extend((from > 0).then_some(Part::From(other, (into, from as usize))));
            out += to;
            into += from;
        }
        self.pass(at, stream, &parts)?;
        let came = gpu.download(&came).map_err(driver)?;
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

    /// Bytes of the host wait for [`Transport::finish`], which all ranks call.
    fn send(&self, to: usize, bytes: Vec<u8>) -> Result<(), TransportError> {
        self.0.moves.borrow_mut().to.push((to, bytes));
        Ok(())
    }

    fn receive(&self, from: usize) -> Result<(), TransportError> {
        self.0.moves.borrow_mut().from.push(from);
        Ok(())
    }

    fn finish(&self, at: At) -> Result<Vec<Vec<u8>>, TransportError> {
        let Moves { to, from } = self.0.moves.take();
        let mut parcels = vec![Vec::new(); self.ranks()];
        for (to, bytes) in to {
            parcels[to].extend((bytes.len() as u64).to_le_bytes());
            parcels[to].extend(bytes);
        }
        let came = self.exchange(at, parcels)?;
        let mut rest: Vec<&[u8]> = came.iter().map(Vec::as_slice).collect();
        let next = |from: usize| {
            let short = || TransportError::Malformed { from, at, reason: "it ends early" };
            let (length, behind) = rest[from].split_first_chunk::<8>().ok_or_else(short)?;
            let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| short())?;
            let (bytes, behind) = behind.split_at_checked(length).ok_or_else(short)?;
            rest[from] = behind;
            Ok(bytes.to_vec())
        };
        from.into_iter().map(next).collect()
    }
}
