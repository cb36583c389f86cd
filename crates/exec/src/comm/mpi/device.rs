//! Exchanges of device memory over MPI: ranks of an MPI job with a GPU each, or several ranks that share
//! one.
//!
//! MPI ignores streams, so the host keeps the order: it waits for the stream before the first message of an
//! exchange. Data that a step needs has arrived when [`MpiDevice::enqueue`] returns. Background exchanges are
//! begun there, travel during other calls of the library, and are waited for in [`MpiDevice::synchronize`]. A
//! CUDA-aware library receives device addresses; for any other library the data passes through host memory.
//!
//! [`MpiProcess::wait_until`] does all waiting. It notices a roll call, the deadline, and a request of the
//! launcher to end this process.

#![allow(unsafe_code, reason = "copies between device and host, and messages from device memory")]

use super::request::MpiRequest;
use super::{DEVICE_MOVE_TAG, DEVICE_TAG, MpiCommunicator, MpiProcess};
use crate::comm::gpu_selection::{self, BEFORE_EXCHANGES, OpenGpu, RankHello, joining_error};
use crate::comm::{
    CallContext, CommError, Communicator as _, DeviceCommunicator, DeviceOperation, DevicePiece,
    MessageMemory, RankDevice, format_ranks,
};
use cudarc::driver::{CudaStream, DriverError, result};
use evenkeel_cuda::{CudaError, GpuContext, probe_devices};
use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::iter::repeat_n;
use std::sync::Arc;

/// The longest message in bytes, because MPI counts with 31 bits. Longer pieces are divided.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// The GPU of this process, and its exchanges.
pub(super) struct MpiDevice {
    gpu: Arc<GpuContext>,
    memory: MessageMemory,
    /// Exchanges that were begun in the background of the steps.
    begun: RefCell<Vec<DeviceExchange>>,
    /// True after the first failed exchange.
    failed: Cell<bool>,
}

/// The messages of an exchange that follow the work of a stream.
struct DeviceExchange {
    stream: usize,
    sent: Vec<MpiRequest>,
    wanted: Vec<DeviceReceive>,
}

struct DeviceReceive {
    from: usize,
    message: MpiRequest,
    /// Destination in device memory of a message that arrives in host memory.
    to: Option<u64>,
}

impl DeviceExchange {
    /// Returns whether all messages are complete.
    fn test(&mut self) -> Result<bool, CommError> {
        let mut all = true;
        for message in self.sent.iter_mut().chain(self.wanted.iter_mut().map(|wanted| &mut wanted.message)) {
            all &= message.test()?;
        }
        Ok(all)
    }

    /// Returns the ranks whose messages are still missing.
    fn missing_ranks(&mut self) -> Vec<usize> {
        let late =
            |wanted: &mut DeviceReceive| (!matches!(wanted.message.test(), Ok(true))).then_some(wanted.from);
        let mut ranks: Vec<usize> = self.wanted.iter_mut().filter_map(late).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }
}

fn driver_error(call: &'static str) -> impl Fn(DriverError) -> CommError {
    move |error| CommError::Library { call, reason: format!("{:?}", error.0) }
}

/// Divides a piece into messages.
fn split_piece((at, bytes): DevicePiece, longest: usize) -> impl Iterator<Item = DevicePiece> {
    (0..bytes).step_by(longest.max(1)).map(move |begin| (at + begin as u64, longest.min(bytes - begin)))
}

/// Selects the GPU of the rank with index `local` on its host, in turn among those from `first` on. If the
/// process sees only one GPU it takes that one, because launchers may show every process its own.
fn choose_gpu(devices: usize, first: usize, local: usize) -> Result<usize, CudaError> {
    match devices {
        1 => Ok(0),
        _ if first >= devices => Err(CudaError::Ordinal { ordinal: first, devices }),
        _ => Ok(first + local % (devices - first)),
    }
}

impl MpiDevice {
    /// Returns whether the MPI library reports that it accepts device memory (`MPIX_Query_cuda_support`). A
    /// library without this call does not.
    fn is_cuda_aware() -> bool {
        #[cfg(unix)]
        {
            // SAFETY: if the symbol exists, it is a function without arguments that returns an int, in every
            // library that has it. The library stays loaded as long as this process runs.
            unsafe {
                let here = libloading::os::unix::Library::this();
                let query = here.get::<unsafe extern "C" fn() -> c_int>(b"MPIX_Query_cuda_support\0");
                query.is_ok_and(|query| query() == 1)
            }
        }
        #[cfg(not(unix))]
        false
    }

    /// Assigns a GPU to every rank of a job: those from `first` on, in turn to the ranks of each host. All
    /// ranks must call it. The library receives device addresses if it takes them on all ranks.
    ///
    /// # Errors
    /// Fails if a rank has no GPU or one of another kind, with the same error on all ranks. Fails if a rank
    /// is lost.
    pub(super) fn open(
        mpi: &MpiCommunicator,
        first: usize,
        cuda_aware: Option<bool>,
    ) -> Result<(Self, RankDevice), CommError> {
        let takes_device_memory = cuda_aware.unwrap_or_else(Self::is_cuda_aware);
        let (rank, ranks, host) = (mpi.rank(), mpi.ranks(), mpi.host());
        let gather = |own: Vec<u8>| mpi.all_to_all_v(BEFORE_EXCHANGES, vec![own; ranks]);
        let hosts = gather(host.clone().into_bytes())?;
        let local = hosts[..rank].iter().filter(|other| **other == hosts[rank]).count();
        let opened = probe_devices()
            .and_then(|devices| choose_gpu(devices.len(), first, local))
            .map_err(joining_error)
            .and_then(|device| gpu_selection::open_gpu(device, ""));
        let hello = gpu_selection::hello_message(&host, &opened);
        let hello = serde_json::to_vec(&(hello, takes_device_memory)).map_err(joining_error)?;
        let read = |(from, bytes): (usize, Vec<u8>)| {
            let reason = "it does not describe the GPU of the rank";
            serde_json::from_slice(&bytes).map_err(|_| CommError::Malformed {
                from,
                at: BEFORE_EXCHANGES,
                reason,
            })
        };
        let joined: Vec<(RankHello, bool)> =
            gather(hello)?.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        let (hellos, aware): (Vec<RankHello>, Vec<bool>) = joined.into_iter().unzip();
        gpu_selection::check_all_joined(&hellos)?;
        gpu_selection::check_same_kind(&hellos)?;
        let mut notices = Vec::new();
        let shared = gpu_selection::shared_gpus(&hellos);
        if !shared.is_empty() {
            let of_gpu = |(host, ranks): &(&str, Vec<usize>)| format!("{} of {host}", format_ranks(ranks));
            let all: Vec<String> = shared.iter().map(of_gpu).collect();
            notices.push(format!("ranks share a GPU, and wait for each other on it: {}", all.join("; ")));
        }
        if cuda_aware == Some(true) && !Self::is_cuda_aware() {
            notices.push("--cuda-aware yes: the MPI library does not say that it takes device memory".into());
        }
        let OpenGpu { device, gpu, .. } = opened?;
        let memory =
            if aware.into_iter().all(|aware| aware) { MessageMemory::Device } else { MessageMemory::Staged };
        let (begun, failed) = (RefCell::default(), Cell::new(false));
        Ok((Self { gpu, memory, begun, failed }, RankDevice { index: device, memory, notices }))
    }

    /// Waits until the stream has completed its current work.
    fn wait_for_stream(
        &self,
        process: &MpiProcess,
        at: CallContext,
        stream: &Arc<CudaStream>,
    ) -> Result<(), CommError> {
        let failed = driver_error("waiting for a stream");
        self.gpu.stream().context().bind_to_thread().map_err(&failed)?;
        let done = stream.record_event(None).map_err(&failed)?;
        match process.wait_until(|| done.try_is_complete().map_err(&failed))? {
            None => Ok(()),
            // Only this rank's own GPU is late.
            Some(waited) => {
                Err(process.call_roll(at, waited, (waited > process.timeout).then_some(process.rank)))
            }
        }
    }

    /// Begins all messages of an exchange.
    ///
    /// # Safety
    /// The caller must keep the promises of [`MpiDevice::enqueue`], and the stream must have completed
    /// its earlier work.
    unsafe fn start_exchange(
        &self,
        process: &MpiProcess,
        tag: c_int,
        stream: &Arc<CudaStream>,
        parts: &[DeviceOperation],
    ) -> Result<DeviceExchange, CommError> {
        let (comm, me) = (process.comm, process.rank);
        let others = (0..process.ranks).filter(|&rank| rank != me);
        let aware = self.memory == MessageMemory::Device;
        let mut begun = DeviceExchange { stream: stream_key(stream), sent: Vec::new(), wanted: Vec::new() };
        // Receives are posted before sends, so that the destination of a message is known when it arrives.
        for part in parts {
            let pieces: Vec<(usize, DevicePiece)> = match *part {
                DeviceOperation::To(..) => continue,
                DeviceOperation::From(from, piece) => vec![(from, piece)],
                DeviceOperation::All((_, bytes), all) => {
                    others.clone().map(|from| (from, (all + (from * bytes) as u64, bytes))).collect()
                }
            };
            for (from, piece) in pieces {
                for (at, bytes) in split_piece(piece, MAX_MESSAGE_BYTES) {
                    let (message, to) = if aware {
                        // SAFETY: the caller keeps the memory until the message is complete.
                        (unsafe { MpiRequest::irecv_device(comm, from, tag, at, bytes) }?, None)
                    } else {
                        (MpiRequest::irecv(comm, from, tag, bytes)?, Some(at))
                    };
                    begun.wanted.push(DeviceReceive { from, message, to });
                }
            }
        }
        for part in parts {
            let (to, piece): (Vec<usize>, DevicePiece) = match *part {
                DeviceOperation::From(..) => continue,
                DeviceOperation::To(to, piece) => (vec![to], piece),
                DeviceOperation::All(piece, _) => (others.clone().collect(), piece),
            };
            if let DeviceOperation::All((from, bytes @ 1..), all) = *part {
                // SAFETY: the caller keeps the memory; the copy runs on the stream whose later work reads it.
                unsafe {
                    result::memcpy_dtod_async(all + (me * bytes) as u64, from, bytes, stream.cu_stream())
                }
                .map_err(driver_error("copying this rank's own piece"))?;
            }
            for piece @ (at, bytes) in split_piece(piece, MAX_MESSAGE_BYTES).filter(|_| !to.is_empty()) {
                if aware {
                    // SAFETY: the caller keeps the memory until the messages are complete.
                    let send = |&to| unsafe { MpiRequest::isend_device(comm, to, tag, at, bytes) };
                    begun.sent.extend(to.iter().map(send).collect::<Result<Vec<_>, _>>()?);
                } else {
                    // SAFETY: the caller keeps the memory.
                    let host = repeat_n(unsafe { copy_to_host(stream, piece) }?, to.len());
                    let send = |(&to, host)| MpiRequest::isend(comm, to, tag, host);
                    begun.sent.extend(to.iter().zip(host).map(send).collect::<Result<Vec<_>, _>>()?);
                }
            }
        }
        Ok(begun)
    }

    /// Waits for messages, and copies received ones to their destination, on the stream.
    fn finish_exchange(
        process: &MpiProcess,
        at: CallContext,
        stream: &Arc<CudaStream>,
        mut begun: DeviceExchange,
    ) -> Result<(), CommError> {
        if let Some(waited) = process.wait_until(|| begun.test())? {
            let missing = if waited > process.timeout { begun.missing_ranks() } else { Vec::new() };
            return Err(process.call_roll(at, waited, missing));
        }
        let staged = begun.wanted.into_iter().filter_map(|wanted| Some((wanted.to?, wanted.message)));
        for (to, message) in staged {
            // SAFETY: the destination is device memory, as the caller of `begin` promised. The source is
            // memory that the driver does not know, so the driver has read it when the call returns.
            unsafe { result::memcpy_htod_async(to, &message.into_bytes(), stream.cu_stream()) }
                .map_err(driver_error("copying received bytes to the device"))?;
        }
        Ok(())
    }

    /// Enqueues an exchange; see [`Communicator::enqueue`](crate::comm::Communicator::enqueue).
    ///
    /// # Safety
    /// The caller must keep the promises of that function.
    pub(super) unsafe fn enqueue(
        &self,
        process: &MpiProcess,
        background: bool,
        at: CallContext,
        stream: &Arc<CudaStream>,
        parts: &[DeviceOperation],
    ) -> Result<(), CommError> {
        if parts.is_empty() {
            return Ok(());
        }
        let tag = if background { DEVICE_MOVE_TAG } else { DEVICE_TAG };
        self.note_failure(self.wait_for_stream(process, at, stream))?;
        // SAFETY: the caller's promise covers the memory, and the stream has just been waited for.
        let begun = self.note_failure(unsafe { self.start_exchange(process, tag, stream, parts) })?;
        if background {
            self.begun.borrow_mut().push(begun);
            return Ok(());
        }
        self.note_failure(Self::finish_exchange(process, at, stream, begun))
    }

    /// Waits for all work on a stream and for the exchanges enqueued on it.
    pub(super) fn synchronize(
        &self,
        process: &MpiProcess,
        at: CallContext,
        stream: &Arc<CudaStream>,
    ) -> Result<(), CommError> {
        let (here, others): (Vec<_>, Vec<_>) =
            self.begun.take().into_iter().partition(|begun| begun.stream == stream_key(stream));
        self.begun.replace(others);
        let mut all = DeviceExchange { stream: stream_key(stream), sent: Vec::new(), wanted: Vec::new() };
        for begun in here {
            all.sent.extend(begun.sent);
            all.wanted.extend(begun.wanted);
        }
        self.note_failure(
            Self::finish_exchange(process, at, stream, all)
                .and_then(|()| self.wait_for_stream(process, at, stream)),
        )
    }

    /// Returns true after an error with device addresses, because such messages cannot be withdrawn. MPI may
    /// not cancel a receive that has begun, and a hung rank reads its messages when it resumes. Messages in
    /// host memory own their memory.
    pub(super) fn must_leak(&self) -> bool {
        self.memory == MessageMemory::Device && self.failed.get()
    }

    /// Records that an exchange failed.
    fn note_failure<T>(&self, done: Result<T, CommError>) -> Result<T, CommError> {
        self.failed.set(self.failed.get() || done.is_err());
        done
    }
}

fn stream_key(stream: &Arc<CudaStream>) -> usize {
    stream.cu_stream() as usize
}

/// Copies a piece of device memory to the host.
///
/// # Safety
/// The piece must be allocated device memory.
unsafe fn copy_to_host(stream: &Arc<CudaStream>, (at, bytes): DevicePiece) -> Result<Vec<u8>, CommError> {
    let failed = driver_error("copying bytes to send to the host");
    let mut host = vec![0u8; bytes];
    // SAFETY: the caller promises that the piece exists. The destination has its size and outlives the copy.
    // The driver itself waits for copies to memory that it does not know, and the host waits again.
    unsafe { result::memcpy_dtoh_async(&mut host, at, stream.cu_stream()) }.map_err(&failed)?;
    stream.synchronize().map_err(failed)?;
    Ok(host)
}

impl DeviceCommunicator for MpiCommunicator {
    fn open_devices(&self, first: usize, cuda_aware: Option<bool>) -> Result<RankDevice, CommError> {
        let (device, assigned) = MpiDevice::open(self, first, cuda_aware)?;
        // A second call would assign the same GPU.
        let _ = self.0.device.set(device);
        Ok(assigned)
    }

    fn is_stream_ordered(&self) -> bool {
        false
    }

    unsafe fn enqueue(
        &self,
        background: bool,
        at: CallContext,
        stream: &Arc<CudaStream>,
        parts: &[DeviceOperation],
    ) -> Result<(), CommError> {
        // SAFETY: the caller keeps the promises.
        unsafe { self.0.opened_device()?.enqueue(&self.0, background, at, stream, parts) }
    }

    fn synchronize(&self, at: CallContext, stream: &Arc<CudaStream>) -> Result<(), CommError> {
        self.0.opened_device()?.synchronize(&self.0, at, stream)
    }

    fn must_leak(&self) -> bool {
        self.0.device.get().is_some_and(MpiDevice::must_leak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_into_messages() {
        assert_eq!(split_piece((10, 5), 2).collect::<Vec<_>>(), [(10, 2), (12, 2), (14, 1)]);
        assert_eq!(split_piece((10, 4), 4).collect::<Vec<_>>(), [(10, 4)]);
        assert_eq!(split_piece((10, 0), 4).count(), 0);
        // More bytes than MPI can count.
        let pieces: Vec<DevicePiece> = split_piece((0, (5 << 30) + 1), MAX_MESSAGE_BYTES).collect();
        assert_eq!((pieces.len(), pieces[5]), (6, (5 << 30, 1)));
    }

    #[test]
    fn gpus_are_dealt_to_the_ranks_of_a_host() {
        let dealt =
            |devices, first| (0..4).map(|local| choose_gpu(devices, first, local).ok()).collect::<Vec<_>>();
        assert_eq!(dealt(4, 0), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(dealt(2, 0), [Some(0), Some(1), Some(0), Some(1)]);
        assert_eq!(dealt(4, 2), [Some(2), Some(3), Some(2), Some(3)]);
        assert_eq!(dealt(1, 3), [Some(0); 4]);
        assert_eq!(dealt(2, 2), [None; 4]);
    }
}
