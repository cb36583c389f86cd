//! Exchanges with ranks in other processes, from device memory to device memory.
//!
//! Input: counts and send buffers that the kernels have packed. Output: the filled
//! [`RemoteMirror`](super::rank::RemoteMirror)s of the other ranks, as between GPUs of one process. A
//! communicator takes sizes from the host. So the host waits once per layer for the number of rows
//! that every rank sends to every other. Over NCCL no other part of a layer waits for the host before its
//! end; over MPI every exchange does.

use super::kernels::address;
use super::layer_pass::{LayerPass, buffers_and_tables};
use super::rank::{BufferSizes, CudaRank};
use crate::comm::{CommError, DeviceCommunicator, DeviceOperation, ProcessGroup, Purpose, placement_digest};
use crate::error::ExecError;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaEvent, CudaSlice, CudaViewMut, DevicePtr as _, DevicePtrMut as _};
use evenkeel::place::Placement;
use evenkeel_cuda::{CudaError, DeviceGather, DevicePlanner, GpuContext};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// Largest number of tokens of a rank, because assignments are numbered with 32 bits.
const MAX_TOKENS_PER_RANK: u64 = 1 << 28;

/// The other ranks of the group, as this rank reaches them.
pub(super) struct RemoteRanks {
    group: Rc<ProcessGroup>,
    verifies_splits: bool,
    /// Communication error of an exchange started inside a CUDA callback, which can only return
    /// [`CudaError`].
    failed: RefCell<Option<CommError>>,
    /// Purpose and events of the layer's exchanges.
    spans: RefCell<Vec<(Purpose, [CudaEvent; 2])>>,
    /// Step and layer of the last pass. `tokens` are those of all ranks in this step.
    pass: Cell<Option<[usize; 2]>>,
    tokens: RefCell<Vec<usize>>,
    /// Rows from every rank to every other in this layer, `[R][R]`.
    sizes: RefCell<Vec<u32>>,
}

impl fmt::Debug for RemoteRanks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteRanks").field("group", &self.group).finish_non_exhaustive()
    }
}

impl RemoteRanks {
    pub(super) fn new(group: Rc<ProcessGroup>, verifies_splits: bool) -> Rc<Self> {
        Rc::new(Self {
            group,
            verifies_splits,
            failed: RefCell::default(),
            spans: RefCell::default(),
            pass: Cell::default(),
            tokens: RefCell::default(),
            sizes: RefCell::default(),
        })
    }

    /// Returns the rank of this process.
    pub(super) fn rank(&self) -> usize {
        self.group.rank()
    }

    fn other_ranks(&self) -> impl Iterator<Item = usize> {
        let me = self.rank();
        (0..self.group.ranks()).filter(move |&rank| rank != me)
    }

    /// Creates the same connection for another backend of this process.
    pub(super) fn clone_for(&self) -> Rc<Self> {
        Self::new(Rc::clone(&self.group), self.verifies_splits)
    }

    /// Returns the communicator error that made a layer fail, if there is one, instead of the CUDA error that
    /// replaced it.
    pub(super) fn full_error(&self, error: ExecError) -> ExecError {
        self.failed.take().map_or(error, ExecError::Comm)
    }

    /// Returns the tokens of all ranks, from this rank's own. They are equal in all layers of a step. All
    /// ranks must call it alike, with or without tokens.
    pub(super) fn gather_tokens(
        &self,
        [step, layer]: [usize; 2],
        known: &[usize],
    ) -> Result<Vec<usize>, ExecError> {
        let me = self.rank();
        let own = known[me];
        self.group.set_context(Some(step as u64), Some(layer));
        let goes_on = self.pass.get().is_some_and(|[last, before]| last == step && before < layer);
        self.pass.set(Some([step, layer]));
        if !goes_on {
            let all = self.group.all_gather_u64(Purpose::Control, &[own as u64])?;
            if let Some(from) = all.iter().position(|&tokens| tokens > MAX_TOKENS_PER_RANK) {
                let reason = "more tokens than a rank can have";
                return Err(self.group.malformed_message(Purpose::Control, from, reason).into());
            }
            *self.tokens.borrow_mut() = all.into_iter().map(|tokens| tokens as usize).collect();
        }
        let all = self.tokens.borrow().clone();
        ExecError::expect_size("tokens of this rank in one step", own, all[me])?;
        Ok(all)
    }

    /// Gathers the tokens per expert of all ranks, `[R][E]`, for splits on the host.
    pub(super) fn gather_counts(&self, own: &[u64]) -> Result<Vec<u64>, ExecError> {
        Ok(self.group.all_gather_u64(Purpose::Counts, own)?)
    }

    /// Compares the quotas of a batch with those of all other ranks, if enabled.
    pub(super) fn verify_split(&self, placement: &Placement, quotas: &[u64]) -> Result<(), ExecError> {
        if self.verifies_splits {
            self.group.assert_identical("the split", || placement_digest(placement, quotas))?;
        }
        Ok(())
    }

    /// Compares quotas on the device with those of all other ranks, if enabled.
    pub(super) fn verify_device_split(
        &self,
        placement: &Placement,
        planner: &DevicePlanner,
    ) -> Result<(), ExecError> {
        if !self.verifies_splits {
            return Ok(());
        }
        let context = self.group.context(Purpose::Counts);
        self.group.devices()?.synchronize(context, planner.gpu().stream())?;
        self.verify_split(placement, &planner.download(0)?.quotas)
    }

    /// Begins an exchange between two events. Moves run in the background.
    fn enqueue_exchange(
        &self,
        purpose: Purpose,
        gpu: &GpuContext,
        exchange: &[DeviceOperation],
    ) -> Result<(), ExecError> {
        if exchange.is_empty() {
            return Ok(());
        }
        let (stream, failed) = (gpu.stream(), CudaError::driver_error("timing an exchange"));
        let begin = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(&failed)?;
        #[allow(unsafe_code, reason = "device memory passes to another process")]
        // SAFETY: callers pass memory of this rank's buffers, boards, planners and experts. It stays
        // allocated until the stream is synchronised, and forever if `must_leak` returns true. All ranks have
        // agreed on the sizes.
        unsafe {
            let (devices, at) = (self.group.devices()?, self.group.context(purpose));
            devices.enqueue(purpose == Purpose::Moves, at, stream, exchange)?;
        }
        let end = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(&failed)?;
        self.spans.borrow_mut().push((purpose, [begin, end]));
        Ok(())
    }

    /// Waits for all work on a rank's stream.
    pub(super) fn synchronize(&self, rank: &CudaRank) -> Result<(), ExecError> {
        Ok(self.group.devices()?.synchronize(self.group.context(Purpose::Combine), rank.gpu.stream())?)
    }

    /// Adds the times of the layer's exchanges, which must be complete.
    pub(super) fn record_times(&self) -> Result<(), ExecError> {
        for (purpose, [begin, end]) in self.spans.take() {
            let ms = begin.elapsed_ms(&end).map_err(CudaError::driver_error("reading a time"))?;
            self.group.record_background(
                purpose,
                Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default(),
            );
        }
        Ok(())
    }

    /// Returns the board through which ranks gather each other's counts.
    pub(super) fn create_gather(self: &Rc<Self>) -> RemoteGather {
        RemoteGather(Rc::clone(self))
    }

    /// Sends the send buffers with the positions of their rows, and receives those for this rank.
    pub(super) fn exchange_parcels(&self, rank: &mut CudaRank, pass: &LayerPass) -> Result<(), ExecError> {
        let (me, ranks, gpu) = (rank.own, self.group.ranks(), rank.gpu.clone());
        let (buffers, _) = buffers_and_tables(rank)?;
        let own = (address(&buffers.sizes), 4 * ranks);
        self.other_ranks().for_each(|other| self.group.record_bytes(Purpose::Counts, [me, other], 4 * ranks));
        self.enqueue_exchange(
            Purpose::Counts,
            &gpu,
            &[DeviceOperation::All(own, address(&buffers.all_sizes))],
        )?;
        self.group.devices()?.synchronize(self.group.context(Purpose::Dispatch), gpu.stream())?;
        let sizes = gpu.download(&buffers.all_sizes)?;
        if let Some(from) = sizes.iter().position(|&size| size as usize > buffers.room.tokens) {
            let reason = "more rows than the rank has tokens";
            return Err(self.group.malformed_message(Purpose::Counts, from / ranks.max(1), reason).into());
        }

        let hidden = buffers.room.hidden;
        let rows = |from: usize, to: usize| sizes[from * ranks + to] as usize;
        let choices = |source: usize| pass.rows[source] * pass.top_k;
        let mut exchange = Vec::with_capacity(10 * ranks);
        for other in self.other_ranks() {
            if rows(me, other) > 0 {
                let (n, tokens) = (4 * choices(me), 4 * pass.rows[me]);
                let begin = address(&buffers.parcel_rows) + 4 * (other * buffers.room.tokens) as u64;
                let bytes = 2 * rows(me, other) * hidden;
                exchange.extend([
                    DeviceOperation::To(other, (address(&buffers.slots), n)),
                    DeviceOperation::To(other, (address(&buffers.places), n)),
                    DeviceOperation::To(other, (address(&buffers.weights), n)),
                    DeviceOperation::To(other, (begin, tokens)),
                    DeviceOperation::To(other, (parcel_address(&buffers.parcels, other), bytes)),
                ]);
                self.group.record_bytes(Purpose::Dispatch, [me, other], 3 * n + tokens + bytes);
            }
            if let (Some(mirror), true) = (&buffers.mirrors[other], rows(other, me) > 0) {
                let n = 4 * choices(other);
                exchange.extend([
                    DeviceOperation::From(other, (address(&mirror.slots), n)),
                    DeviceOperation::From(other, (address(&mirror.places), n)),
                    DeviceOperation::From(other, (address(&mirror.weights), n)),
                    DeviceOperation::From(other, (address(&mirror.rows), 4 * pass.rows[other])),
                    DeviceOperation::From(other, (address(&mirror.parcel), 2 * rows(other, me) * hidden)),
                ]);
            }
        }
        // A source that sent nothing has no choices for this rank, although its mirror may hold old ones.
        let heard = |source| if source == me || rows(source, me) > 0 { choices(source) as u32 } else { 0 };
        let heard: Vec<u32> = (0..ranks).map(heard).collect();
        if let Some(buffers) = &mut rank.buffers {
            let failed = CudaError::driver_error("copying numbers of choices to the device");
            gpu.stream().memcpy_htod(&heard, &mut buffers.choices).map_err(failed)?;
        }
        *self.sizes.borrow_mut() = sizes;
        self.enqueue_exchange(Purpose::Dispatch, &gpu, &exchange)
    }

    /// Sends the answers, and receives those to this rank's tokens.
    pub(super) fn exchange_answers(&self, rank: &CudaRank) -> Result<(), ExecError> {
        let (me, ranks) = (rank.own, self.group.ranks());
        let (buffers, _) = buffers_and_tables(rank)?;
        let sizes = self.sizes.borrow();
        let bytes = |from: usize, to: usize| 2 * sizes[from * ranks + to] as usize * buffers.room.hidden;
        let mut exchange = Vec::with_capacity(2 * ranks);
        for other in self.other_ranks() {
            if bytes(other, me) > 0 {
                exchange.push(DeviceOperation::To(
                    other,
                    (parcel_address(&buffers.answers, other), bytes(other, me)),
                ));
                self.group.record_bytes(Purpose::Combine, [me, other], bytes(other, me));
            }
            if let (Some(mirror), true) = (&buffers.mirrors[other], bytes(me, other) > 0) {
                exchange.push(DeviceOperation::From(other, (address(&mirror.answers), bytes(me, other))));
            }
        }
        drop(sizes);
        self.enqueue_exchange(Purpose::Combine, &rank.gpu, &exchange)
    }

    /// Counts the bytes of this rank's tokens with local experts, as if they were in a send buffer.
    pub(super) fn record_local(&self, slots: &[i32], room: &BufferSizes, top_k: usize) {
        let first = (self.rank() * room.per_rank) as i32;
        let here = |slot: &&i32| **slot >= first && **slot < first + room.per_rank as i32;
        let rows =
            slots.chunks_exact(top_k.max(1)).filter(|slots| slots.iter().any(|slot| here(&slot))).count();
        for purpose in [Purpose::Dispatch, Purpose::Combine] {
            self.group.record_bytes(purpose, [self.rank(); 2], 2 * rows * room.hidden);
        }
    }

    /// Begins to move an expert to another rank, or from one, in the background of the steps.
    pub(super) fn start_move(&self, gpu: &GpuContext, part: DeviceOperation) -> Result<(), ExecError> {
        if let DeviceOperation::To(to, (_, bytes)) = part {
            self.group.record_bytes(Purpose::Moves, [self.rank(), to], bytes);
        }
        #[allow(unsafe_code, reason = "device memory passes to another process")]
        // SAFETY: callers keep the expert's memory until `wait_for_moves` has returned, and forever if
        // `must_leak` returns true.
        unsafe {
            Ok(self.group.devices()?.enqueue(
                true,
                self.group.context(Purpose::Moves),
                gpu.stream(),
                &[part],
            )?)
        }
    }

    /// Begins the copies of a layer to and from other ranks, whose cells stay as long as this rank's buffers.
    pub(super) fn start_copies(&self, gpu: &GpuContext, parts: &[DeviceOperation]) -> Result<(), ExecError> {
        for part in parts {
            if let DeviceOperation::To(to, (_, bytes)) = *part {
                self.group.record_bytes(Purpose::Moves, [self.rank(), to], bytes);
            }
        }
        self.enqueue_exchange(Purpose::Moves, gpu, parts)
    }

    /// Waits for the copies of a layer.
    pub(super) fn wait_for_copies(&self, gpu: &GpuContext) -> Result<(), ExecError> {
        if !self.is_stream_ordered() {
            return self.wait_for_moves(gpu);
        }
        // The events around the copies measure their time.
        Ok(self.group.devices()?.synchronize(self.group.context(Purpose::Moves), gpu.stream())?)
    }

    /// Returns whether events around a move measure its time; see [`DeviceCommunicator::is_stream_ordered`].
    pub(super) fn is_stream_ordered(&self) -> bool {
        self.group.devices().is_ok_and(DeviceCommunicator::is_stream_ordered)
    }

    /// Returns whether memory of this rank must not be freed; see [`DeviceCommunicator::must_leak`].
    pub(super) fn must_leak(&self) -> bool {
        self.group.devices().is_ok_and(DeviceCommunicator::must_leak)
    }

    /// Waits for all moves.
    pub(super) fn wait_for_moves(&self, gpu: &GpuContext) -> Result<(), ExecError> {
        let begun = std::time::Instant::now();
        self.group.devices()?.synchronize(self.group.context(Purpose::Moves), gpu.stream())?;
        self.group.record_background(Purpose::Moves, begun.elapsed());
        Ok(())
    }
}

fn parcel_address(parcels: &[Option<CudaSlice<u16>>], other: usize) -> u64 {
    parcels[other].as_ref().map_or(0, address)
}

/// A board that gathers the counts of all ranks from all processes.
#[derive(Debug)]
pub(super) struct RemoteGather(Rc<RemoteRanks>);

impl DeviceGather for RemoteGather {
    fn offer_counts(&mut self, _: usize, _: &CudaSlice<u32>, _: &GpuContext) -> Result<(), CudaError> {
        Ok(())
    }

    fn collect_counts(
        &mut self,
        _: usize,
        own: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        gpu: &GpuContext,
    ) -> Result<(), CudaError> {
        let (far, stream) = (&self.0, gpu.stream());
        let bytes = own.num_bytes();
        far.other_ranks()
            .for_each(|other| far.group.record_bytes(Purpose::Counts, [far.rank(), other], bytes));
        // Event tracking is off, so the guards do nothing.
        let (from, to) = (own.device_ptr(stream).0, all.device_ptr_mut(stream).0);
        far.enqueue_exchange(Purpose::Counts, gpu, &[DeviceOperation::All((from, bytes), to)]).map_err(
            |error| {
                let code = error.to_string();
                if let ExecError::Comm(error) = error {
                    *far.failed.borrow_mut() = Some(error);
                }
                CudaError::Nccl { doing: "gathering counts", code }
            },
        )
    }
}
