//! Device memory over MPI: ranks of an MPI job with a GPU each, or several ranks with one.
//!
//! MPI knows nothing of streams, so the host keeps the order: before the first message of an exchange it waits for what the stream has
//! to do, and what a step waits for has come when [`DeviceTransport::enqueue`] returns. What is `beside` is begun there, travels
//! while the library is called for something else, and is waited for in [`DeviceTransport::settle`]. A CUDA-aware library is handed
//! device memory as it lies; for any other one it goes through memory of the host.
//!
//! All waiting is [`Process::wait`]'s: it notices a called roll, the deadline, and that the launcher wants this process to end.

#![allow(unsafe_code, reason = "copies between device and host, and messages from device memory")]

use super::message::Message;
use super::{DEVICE, DEVICE_MOVE, Mpi};
use crate::cuda::{Context, CudaError, probe};
use crate::exec::transport::gpu::{self, BEFORE, Hello, Opened, joining};
use crate::exec::transport::{At, DeviceTransport, Memory, Part, Piece, Transport as _, TransportError};
use cudarc::driver::{CudaStream, DriverError, result};
use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::fmt;
use std::iter::repeat_n;
use std::rc::Rc;
use std::sync::Arc;

/// The longest message; longer pieces are cut. MPI counts with 31 bits.
const LONGEST: usize = 1 << 30;

/// One process of an MPI job with its GPU. Clones are the same.
#[derive(Clone)]
pub struct MpiDevice(Rc<Inner>);

struct Inner {
    mpi: Mpi,
    device: usize,
    gpu: Arc<Context>,
    shared: Vec<(String, Vec<usize>)>,
    memory: Memory,
    /// What was begun beside the steps.
    begun: RefCell<Vec<UnderWay>>,
    /// Whether an exchange has failed.
    failed: Cell<bool>,
}

/// Messages that were begun behind the work of a stream.
struct UnderWay {
    stream: usize,
    sent: Vec<Message>,
    wanted: Vec<Wanted>,
}

struct Wanted {
    from: usize,
    message: Message,
    /// Where in device memory it goes from the host's.
    to: Option<u64>,
}

impl UnderWay {
    /// Whether all is through.
    fn is_through(&mut self) -> Result<bool, TransportError> {
        let mut all = true;
        for message in self.sent.iter_mut().chain(self.wanted.iter_mut().map(|wanted| &mut wanted.message)) {
            all &= message.is_through()?;
        }
        Ok(all)
    }

    /// Ranks from which something is still to come.
    fn missing(&mut self) -> Vec<usize> {
        let late =
            |wanted: &mut Wanted| (!matches!(wanted.message.is_through(), Ok(true))).then_some(wanted.from);
        let mut ranks: Vec<usize> = self.wanted.iter_mut().filter_map(late).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }
}

impl fmt::Debug for MpiDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiDevice")
            .field("mpi", &self.0.mpi)
            .field("device", &self.0.device)
            .field("memory", &self.0.memory)
            .finish_non_exhaustive()
    }
}

fn driver(call: &'static str) -> impl Fn(DriverError) -> TransportError {
    move |error| TransportError::Library { call, reason: format!("{:?}", error.0) }
}

/// A piece in messages.
fn cut((at, bytes): Piece, longest: usize) -> impl Iterator<Item = Piece> {
    (0..bytes).step_by(longest.max(1)).map(move |begin| (at + begin as u64, longest.min(bytes - begin)))
}

/// The GPU of the rank that is the `local`-th of its host: of those from `first` on, in turn, or the only one that this process sees,
/// as launchers may show every process its own.
fn choose(devices: usize, first: usize, local: usize) -> Result<usize, CudaError> {
    match devices {
        1 => Ok(0),
        _ if first >= devices => Err(CudaError::Ordinal { ordinal: first, devices }),
        _ => Ok(first + local % (devices - first)),
    }
}

impl MpiDevice {
    /// Whether the MPI library of this process says that it takes device memory (`MPIX_Query_cuda_support`); one that has no such
    /// call does not.
    pub fn is_cuda_aware() -> bool {
        #[cfg(unix)]
        {
            // SAFETY: the symbol, where there is one, is a function without arguments that returns an int, in all libraries that have it;
            // and the library is loaded as long as this process runs.
            unsafe {
                let here = libloading::os::unix::Library::this();
                let query = here.get::<unsafe extern "C" fn() -> c_int>(b"MPIX_Query_cuda_support\0");
                query.is_ok_and(|query| query() == 1)
            }
        }
        #[cfg(not(unix))]
        false
    }

    /// Gives every rank of a job a GPU: those from `first` on, dealt to the ranks of each host in turn. All ranks call it; they hand
    /// their device memory to the library as it lies where all say [`Memory::Device`].
    ///
    /// # Errors
    /// When a rank has none, or not one of the same kind; the same on all ranks. When one is gone.
    pub fn join(mpi: &Mpi, first: usize, memory: Memory) -> Result<Self, TransportError> {
        let (rank, ranks, host) = (mpi.rank(), mpi.ranks(), mpi.host());
        let gather = |own: Vec<u8>| mpi.exchange(BEFORE, vec![own; ranks]);
        let hosts = gather(host.as_bytes().to_vec())?;
        let local = hosts[..rank].iter().filter(|other| **other == hosts[rank]).count();
        let opened = probe()
            .and_then(|devices| choose(devices.len(), first, local))
            .map_err(joining)
            .and_then(|device| gpu::open(device, ""));
        let told =
            serde_json::to_vec(&(gpu::hello(host, &opened), memory == Memory::Device)).map_err(joining)?;
        let read = |(from, told): (usize, Vec<u8>)| {
            let reason = "it says nothing of its GPU";
            serde_json::from_slice(&told).map_err(|_| TransportError::Malformed { from, at: BEFORE, reason })
        };
        let told: Vec<(Hello, bool)> =
            gather(told)?.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        let (hellos, aware): (Vec<Hello>, Vec<bool>) = told.into_iter().unzip();
        gpu::all_have_one(&hellos)?;
        gpu::alike(&hellos)?;
        let shared = gpu::shared(&hellos).into_iter().map(|(host, ranks)| (host.to_owned(), ranks)).collect();
        let Opened { device, gpu, .. } = opened?;
        let memory = if aware.into_iter().all(|aware| aware) { Memory::Device } else { Memory::Staged };
        let inner = Inner {
            mpi: mpi.clone(),
            device,
            gpu,
            shared,
            memory,
            begun: RefCell::default(),
            failed: Cell::new(false),
        };
        Ok(Self(Rc::new(inner)))
    }

    /// Ranks that have one GPU together, with the names of their hosts; the same on all ranks.
    pub fn shared(&self) -> &[(String, Vec<usize>)] {
        &self.0.shared
    }
}

impl Inner {
    /// Waits until the stream has done what was enqueued so far.
    fn reach(&self, at: At, stream: &Arc<CudaStream>) -> Result<(), TransportError> {
        let failed = driver("waiting for a stream");
        self.gpu.stream().context().bind_to_thread().map_err(&failed)?;
        let done = stream.record_event(None).map_err(&failed)?;
        let process = &self.mpi.0;
        match process.wait(|| done.try_is_complete().map_err(&failed))? {
            None => Ok(()),
            // Nobody but this rank's own GPU is late.
            Some(waited) => Err(process.roll(at, waited, (waited > process.timeout).then_some(process.rank))),
        }
    }

    /// Begins all messages of an exchange.
    ///
    /// # Safety
    /// As [`DeviceTransport::enqueue`]; the stream has done what comes before it.
    unsafe fn begin(
        &self,
        tag: c_int,
        stream: &Arc<CudaStream>,
        parts: &[Part],
    ) -> Result<UnderWay, TransportError> {
        let (comm, me) = (self.mpi.0.comm, self.mpi.rank());
        let others = (0..self.mpi.ranks()).filter(|&rank| rank != me);
        let aware = self.memory == Memory::Device;
        let mut begun = UnderWay { stream: key(stream), sent: Vec::new(), wanted: Vec::new() };
        // Where something goes is known before it comes.
        for part in parts {
            let pieces: Vec<(usize, Piece)> = match *part {
                Part::To(..) => continue,
                Part::From(from, piece) => vec![(from, piece)],
                Part::All((_, bytes), all) => {
                    others.clone().map(|from| (from, (all + (from * bytes) as u64, bytes))).collect()
                }
            };
            for (from, piece) in pieces {
                for (at, bytes) in cut(piece, LONGEST) {
                    let (message, to) = if aware {
                        // SAFETY: the caller's promise, for as long as the message is not through.
                        (unsafe { Message::receive_at(comm, from, tag, at, bytes) }?, None)
                    } else {
                        (Message::receive(comm, from, tag, bytes)?, Some(at))
                    };
                    begun.wanted.push(Wanted { from, message, to });
                }
            }
        }
        for part in parts {
            let (to, piece): (Vec<usize>, Piece) = match *part {
                Part::From(..) => continue,
                Part::To(to, piece) => (vec![to], piece),
                Part::All(piece, _) => (others.clone().collect(), piece),
            };
            if let Part::All((from, bytes @ 1..), all) = *part {
                // SAFETY: the caller's promise; the stream is the one that follows.
                unsafe {
                    result::memcpy_dtod_async(all + (me * bytes) as u64, from, bytes, stream.cu_stream())
                }
                .map_err(driver("copying what is this rank's own"))?;
            }
            for piece @ (at, bytes) in cut(piece, LONGEST).filter(|_| !to.is_empty()) {
                if aware {
                    // SAFETY: the caller's promise, for as long as the messages are not through.
                    let send = |&to| unsafe { Message::send_at(comm, to, tag, at, bytes) };
                    begun.sent.extend(to.iter().map(send).collect::<Result<Vec<_>, _>>()?);
                } else {
                    // SAFETY: the caller's promise.
                    let host = repeat_n(unsafe { fetch(stream, piece) }?, to.len());
                    let send = |(&to, host)| Message::send(comm, to, tag, host);
                    begun.sent.extend(to.iter().zip(host).map(send).collect::<Result<Vec<_>, _>>()?);
                }
            }
        }
        Ok(begun)
    }

    /// Waits for messages, and puts what came where it belongs, on the stream.
    fn end(&self, at: At, stream: &Arc<CudaStream>, mut begun: UnderWay) -> Result<(), TransportError> {
        let process = &self.mpi.0;
        if let Some(waited) = process.wait(|| begun.is_through())? {
            let missing = if waited > process.timeout { begun.missing() } else { Vec::new() };
            return Err(process.roll(at, waited, missing));
        }
        let staged = begun.wanted.into_iter().filter_map(|wanted| Some((wanted.to?, wanted.message)));
        for (to, message) in staged {
            // SAFETY: memory of the device, as the caller of `begin` promised; what the driver copies from, memory that it does not
            // know, it has read when it returns.
            unsafe { result::memcpy_htod_async(to, &message.into_bytes(), stream.cu_stream()) }
                .map_err(driver("copying what came to the device"))?;
        }
        Ok(())
    }

    /// Remembers that something failed.
    fn noting<T>(&self, done: Result<T, TransportError>) -> Result<T, TransportError> {
        self.failed.set(self.failed.get() || done.is_err());
        done
    }
}

fn key(stream: &Arc<CudaStream>) -> usize {
    stream.cu_stream() as usize
}

/// What lies in device memory.
///
/// # Safety
/// It is there.
unsafe fn fetch(stream: &Arc<CudaStream>, (at, bytes): Piece) -> Result<Vec<u8>, TransportError> {
    let failed = driver("copying what is sent to the host");
    let mut host = vec![0u8; bytes];
    // SAFETY: the caller's promise, and room for it, which nobody lets go of before the copy is done: it is to memory that the driver
    // does not know, which it waits for by itself; and the host waits once more.
    unsafe { result::memcpy_dtoh_async(&mut host, at, stream.cu_stream()) }.map_err(&failed)?;
    stream.synchronize().map_err(failed)?;
    Ok(host)
}

impl DeviceTransport for MpiDevice {
    fn device(&self) -> usize {
        self.0.device
    }

    fn memory(&self) -> Memory {
        self.0.memory
    }

    fn ordered(&self) -> bool {
        false
    }

    unsafe fn enqueue(
        &self,
        beside: bool,
        at: At,
        stream: &Arc<CudaStream>,
        parts: &[Part],
    ) -> Result<(), TransportError> {
        let inner = &self.0;
        if parts.is_empty() {
            return Ok(());
        }
        let tag = if beside { DEVICE_MOVE } else { DEVICE };
        inner.noting(inner.reach(at, stream))?;
        // SAFETY: the caller's promise, and the line before.
        let begun = inner.noting(unsafe { inner.begin(tag, stream, parts) })?;
        if beside {
            inner.begun.borrow_mut().push(begun);
            return Ok(());
        }
        inner.noting(inner.end(at, stream, begun))
    }

    fn settle(&self, at: At, stream: &Arc<CudaStream>) -> Result<(), TransportError> {
        let inner = &self.0;
        let (here, others): (Vec<_>, Vec<_>) =
            inner.begun.take().into_iter().partition(|begun| begun.stream == key(stream));
        inner.begun.replace(others);
        let mut all = UnderWay { stream: key(stream), sent: Vec::new(), wanted: Vec::new() };
        for begun in here {
            all.sent.extend(begun.sent);
            all.wanted.extend(begun.wanted);
        }
        inner.noting(inner.end(at, stream, all).and_then(|()| inner.reach(at, stream)))
    }

    /// A message from or to device memory cannot be taken back: a receive that has begun may not be cancelled, and what a hung rank
    /// was sent is read when it goes on. Messages in memory of the host keep that themselves.
    fn clings(&self) -> bool {
        self.0.memory == Memory::Device && self.0.failed.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_into_messages() {
        assert_eq!(cut((10, 5), 2).collect::<Vec<_>>(), [(10, 2), (12, 2), (14, 1)]);
        assert_eq!(cut((10, 4), 4).collect::<Vec<_>>(), [(10, 4)]);
        assert_eq!(cut((10, 0), 4).count(), 0);
        // More than MPI can count.
        let pieces: Vec<Piece> = cut((0, (5 << 30) + 1), LONGEST).collect();
        assert_eq!((pieces.len(), pieces[5]), (6, (5 << 30, 1)));
    }

    #[test]
    fn gpus_are_dealt_to_the_ranks_of_a_host() {
        let dealt =
            |devices, first| (0..4).map(|local| choose(devices, first, local).ok()).collect::<Vec<_>>();
        assert_eq!(dealt(4, 0), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(dealt(2, 0), [Some(0), Some(1), Some(0), Some(1)]);
        assert_eq!(dealt(4, 2), [Some(2), Some(3), Some(2), Some(3)]);
        assert_eq!(dealt(1, 3), [Some(0); 4]);
        assert_eq!(dealt(2, 2), [None; 4]);
    }
}
