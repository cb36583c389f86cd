//! The way from this process' rank to those of others, from device memory to device memory.
//!
//! In: what the kernels have counted and packed. Out: the [`Mirror`](super::rank::Mirror)s of the other ranks filled, as between GPUs
//! of one process. A [`DeviceTransport`] takes sizes from the host, so once per layer the host waits: for how many rows every rank
//! sends every other. Over NCCL nothing else of a layer waits for it before its end; over MPI every exchange does.

use super::kernels::address;
use super::rank::{Rank, Room};
use super::step::{Pass, parts};
use crate::cuda::{Context, CudaError, DeviceGather, DevicePlanner};
use crate::exec::error::ExecError;
use crate::exec::transport::{DeviceTransport, Part, Purpose, TransportError, Wire, digest};
use crate::place::Placement;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaEvent, CudaSlice, CudaViewMut, DevicePtr as _, DevicePtrMut as _};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// Visits are numbered by 32 bits.
const MOST_TOKENS: u64 = 1 << 28;

/// The group, from this rank.
pub(super) struct Far {
    pub(super) wire: Rc<Wire>,
    gpus: Rc<dyn DeviceTransport>,
    prove: bool,
    /// What an exchange failed of that was begun where only errors of CUDA can be told.
    failed: RefCell<Option<TransportError>>,
    /// What the layer exchanged, and when.
    spans: RefCell<Vec<(Purpose, [CudaEvent; 2])>>,
    /// Step and layer of the last pass, and the tokens that all ranks have in this step.
    pass: Cell<Option<[usize; 2]>>,
    tokens: RefCell<Vec<usize>>,
    /// Rows from every rank to every other in this layer, `[R][R]`.
    sizes: RefCell<Vec<u32>>,
}

impl fmt::Debug for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Far").field("wire", &self.wire).finish_non_exhaustive()
    }
}

impl Far {
    pub(super) fn new(wire: Rc<Wire>, gpus: Rc<dyn DeviceTransport>, prove: bool) -> Rc<Self> {
        Rc::new(Self {
            wire,
            gpus,
            prove,
            failed: RefCell::default(),
            spans: RefCell::default(),
            pass: Cell::default(),
            tokens: RefCell::default(),
            sizes: RefCell::default(),
        })
    }

    /// This process' rank.
    pub(super) fn rank(&self) -> usize {
        self.wire.rank()
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let me = self.rank();
        (0..self.wire.ranks()).filter(move |&rank| rank != me)
    }

    /// The same way, for another backend of this process.
    pub(super) fn again(&self) -> Rc<Self> {
        Self::new(Rc::clone(&self.wire), Rc::clone(&self.gpus), self.prove)
    }

    /// The error that a layer failed of, rather than what CUDA's errors could say of it.
    pub(super) fn in_full(&self, error: ExecError) -> ExecError {
        self.failed.take().map_or(error, ExecError::Transport)
    }

    /// Tokens of all ranks, where only this one's are known; the same through all layers of a step. All ranks ask alike, whatever
    /// they have.
    pub(super) fn tokens(&self, [step, layer]: [usize; 2], known: &[usize]) -> Result<Vec<usize>, ExecError> {
        let me = self.rank();
        let own = known[me];
        self.wire.doing(Some(step as u64), Some(layer));
        let goes_on = self.pass.get().is_some_and(|[last, before]| last == step && before < layer);
        self.pass.set(Some([step, layer]));
        if !goes_on {
            let all = self.wire.all_numbers(Purpose::Control, &[own as u64])?;
            if let Some(from) = all.iter().position(|&tokens| tokens > MOST_TOKENS) {
                let reason = "more tokens than a rank can have";
                return Err(self.wire.malformed(Purpose::Control, from, reason).into());
            }
            *self.tokens.borrow_mut() = all.into_iter().map(|tokens| tokens as usize).collect();
        }
        let all = self.tokens.borrow().clone();
        ExecError::expect("tokens of this rank in one step", own, all[me])?;
        Ok(all)
    }

    /// Tokens per expert of all ranks, `[R][E]`, of splits on the host.
    pub(super) fn all_counts(&self, own: &[u64]) -> Result<Vec<u64>, ExecError> {
        Ok(self.wire.all_numbers(Purpose::Counts, own)?)
    }

    /// Compares the quotas of a batch with those of all other ranks, where that is asked for.
    pub(super) fn prove(&self, placement: &Placement, quotas: &[u64]) -> Result<(), ExecError> {
        if self.prove {
            self.wire.agree("the split", digest(placement, quotas))?;
        }
        Ok(())
    }

    /// The same of quotas on the device.
    pub(super) fn prove_device(
        &self,
        placement: &Placement,
        planners: &[DevicePlanner],
    ) -> Result<(), ExecError> {
        for planner in planners.iter().filter(|_| self.prove) {
            self.gpus.settle(self.wire.at(Purpose::Counts), planner.gpu().stream())?;
            self.prove(placement, &planner.download(0)?.quotas)?;
        }
        Ok(())
    }

    /// Begins an exchange between two events.
    fn exchange(&self, purpose: Purpose, gpu: &Context, exchange: &[Part]) -> Result<(), ExecError> {
        if exchange.is_empty() {
            return Ok(());
        }
        let (stream, failed) = (gpu.stream(), CudaError::driver("timing an exchange"));
        let begin = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(&failed)?;
        #[allow(unsafe_code, reason = "the way out of this process")]
        // SAFETY: callers give memory of this rank's buffers, boards and planners, which is there until the stream has been waited for,
        // and for good where `clings` says so; sizes are those that all ranks were told.
        unsafe {
            self.gpus.enqueue(false, self.wire.at(purpose), stream, exchange)?;
        }
        let end = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(&failed)?;
        self.spans.borrow_mut().push((purpose, [begin, end]));
        Ok(())
    }

    /// Waits for everything on a rank's stream.
    pub(super) fn settle(&self, rank: &Rank) -> Result<(), ExecError> {
        Ok(self.gpus.settle(self.wire.at(Purpose::Combine), rank.gpu.stream())?)
    }

    /// Counts how long the layer's exchanges took. They have been waited for.
    pub(super) fn took(&self) -> Result<(), ExecError> {
        for (purpose, [begin, end]) in self.spans.take() {
            let ms = begin.elapsed_ms(&end).map_err(CudaError::driver("reading a time"))?;
            self.wire
                .took_beside(purpose, Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default());
        }
        Ok(())
    }

    /// Where ranks learn each other's counts.
    pub(super) fn board(self: &Rc<Self>) -> Board {
        Board(Rc::clone(self))
    }

    /// Sends the parcels, and what says where their rows go, and receives those for this rank.
    pub(super) fn parcels(&self, rank: &mut Rank, pass: &Pass) -> Result<(), ExecError> {
        let (me, ranks, gpu) = (rank.own, self.wire.ranks(), rank.gpu.clone());
        let (buffers, _) = parts(rank)?;
        let own = (address(&buffers.sizes), 4 * ranks);
        self.others().for_each(|other| self.wire.count(Purpose::Counts, other, 4 * ranks));
        self.exchange(Purpose::Counts, &gpu, &[Part::All(own, address(&buffers.all_sizes))])?;
        self.gpus.settle(self.wire.at(Purpose::Dispatch), gpu.stream())?;
        let sizes = gpu.download(&buffers.all_sizes)?;
        if let Some(from) = sizes.iter().position(|&size| size as usize > buffers.room.tokens) {
            let reason = "more rows than it has tokens";
            return Err(self.wire.malformed(Purpose::Counts, from / ranks.max(1), reason).into());
        }

        let hidden = buffers.room.hidden;
        let rows = |from: usize, to: usize| sizes[from * ranks + to] as usize;
        let choices = |source: usize| pass.rows[source] * pass.top_k;
        let mut exchange = Vec::with_capacity(10 * ranks);
        for other in self.others() {
            if rows(me, other) > 0 {
                let (n, tokens) = (4 * choices(me), 4 * pass.rows[me]);
                let begin = address(&buffers.parcel_rows) + 4 * (other * buffers.room.tokens) as u64;
                let bytes = 2 * rows(me, other) * hidden;
                exchange.extend([
                    Part::To(other, (address(&buffers.slots), n)),
                    Part::To(other, (address(&buffers.places), n)),
                    Part::To(other, (address(&buffers.weights), n)),
                    Part::To(other, (begin, tokens)),
                    Part::To(other, (parcel(&buffers.parcels, other), bytes)),
                ]);
                self.wire.count(Purpose::Dispatch, other, 3 * n + tokens + bytes);
            }
            if let (Some(mirror), true) = (&buffers.mirrors[other], rows(other, me) > 0) {
                let n = 4 * choices(other);
                exchange.extend([
                    Part::From(other, (address(&mirror.slots), n)),
                    Part::From(other, (address(&mirror.places), n)),
                    Part::From(other, (address(&mirror.weights), n)),
                    Part::From(other, (address(&mirror.rows), 4 * pass.rows[other])),
                    Part::From(other, (address(&mirror.parcel), 2 * rows(other, me) * hidden)),
                ]);
            }
        }
        // What nothing came from has no choices for this rank, whatever a mirror still holds.
        let heard = |source| if source == me || rows(source, me) > 0 { choices(source) as u32 } else { 0 };
        let heard: Vec<u32> = (0..ranks).map(heard).collect();
        if let Some(buffers) = &mut rank.buffers {
            let failed = CudaError::driver("copying numbers of choices to the device");
            gpu.stream().memcpy_htod(&heard, &mut buffers.choices).map_err(failed)?;
        }
        *self.sizes.borrow_mut() = sizes;
        self.exchange(Purpose::Dispatch, &gpu, &exchange)
    }

    /// Sends the answers and receives those to this rank's tokens.
    pub(super) fn answers(&self, rank: &Rank) -> Result<(), ExecError> {
        let (me, ranks) = (rank.own, self.wire.ranks());
        let (buffers, _) = parts(rank)?;
        let sizes = self.sizes.borrow();
        let bytes = |from: usize, to: usize| 2 * sizes[from * ranks + to] as usize * buffers.room.hidden;
        let mut exchange = Vec::with_capacity(2 * ranks);
        for other in self.others() {
            if bytes(other, me) > 0 {
                exchange.push(Part::To(other, (parcel(&buffers.answers, other), bytes(other, me))));
                self.wire.count(Purpose::Combine, other, bytes(other, me));
            }
            if let (Some(mirror), true) = (&buffers.mirrors[other], bytes(me, other) > 0) {
                exchange.push(Part::From(other, (address(&mirror.answers), bytes(me, other))));
            }
        }
        drop(sizes);
        self.exchange(Purpose::Combine, &rank.gpu, &exchange)
    }

    /// Counts what this rank's tokens find on it: rows that go nowhere, as a parcel would have them.
    pub(super) fn stays(&self, slots: &[i32], room: &Room, top_k: usize) {
        let first = (self.rank() * room.per_rank) as i32;
        let here = |slot: &&i32| **slot >= first && **slot < first + room.per_rank as i32;
        let rows =
            slots.chunks_exact(top_k.max(1)).filter(|slots| slots.iter().any(|slot| here(&slot))).count();
        self.wire.stays(Purpose::Dispatch, (2 * rows * room.hidden) as u64);
        self.wire.stays(Purpose::Combine, (2 * rows * room.hidden) as u64);
    }

    /// Begins to move an expert to another rank, or from one, beside the steps.
    pub(super) fn begin_move(&self, gpu: &Context, part: Part) -> Result<(), ExecError> {
        if let Part::To(to, (_, bytes)) = part {
            self.wire.count(Purpose::Moves, to, bytes);
        }
        #[allow(unsafe_code, reason = "the way out of this process")]
        // SAFETY: callers keep the expert's memory until `moved` has returned, and for good where `clings` says so.
        unsafe {
            Ok(self.gpus.enqueue(true, self.wire.at(Purpose::Moves), gpu.stream(), &[part])?)
        }
    }

    /// Whether events around a move say how long it took; see [`DeviceTransport::ordered`].
    pub(super) fn ordered(&self) -> bool {
        self.gpus.ordered()
    }

    /// Whether memory of this rank must not be freed; see [`DeviceTransport::clings`].
    pub(super) fn clings(&self) -> bool {
        self.gpus.clings()
    }

    /// Waits for the moves that were begun.
    pub(super) fn moved(&self, gpu: &Context) -> Result<(), ExecError> {
        let begun = std::time::Instant::now();
        self.gpus.settle(self.wire.at(Purpose::Moves), gpu.stream())?;
        self.wire.took_beside(Purpose::Moves, begun.elapsed());
        Ok(())
    }
}

fn parcel(parcels: &[Option<CudaSlice<u16>>], other: usize) -> u64 {
    parcels[other].as_ref().map_or(0, address)
}

/// Counts of all ranks, gathered from all processes.
#[derive(Debug)]
pub(super) struct Board(Rc<Far>);

impl DeviceGather for Board {
    fn offer(&mut self, _: usize, _: &CudaSlice<u32>, _: &Context) -> Result<(), CudaError> {
        Ok(())
    }

    fn collect(
        &mut self,
        _: usize,
        own: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        gpu: &Context,
    ) -> Result<(), CudaError> {
        let (far, stream) = (&self.0, gpu.stream());
        let bytes = own.num_bytes();
        far.others().for_each(|other| far.wire.count(Purpose::Counts, other, bytes));
        // Nothing is tracked by events, so the guards do nothing.
        let (from, to) = (own.device_ptr(stream).0, all.device_ptr_mut(stream).0);
        far.exchange(Purpose::Counts, gpu, &[Part::All((from, bytes), to)]).map_err(|error| {
            let code = error.to_string();
            if let ExecError::Transport(error) = error {
                *far.failed.borrow_mut() = Some(error);
            }
            CudaError::Nccl { doing: "gathering counts", code }
        })
    }
}
