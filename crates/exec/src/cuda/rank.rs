//! One rank: its own memory and stream on a GPU, and the work that it enqueues in each phase.
//!
//! Input: its tokens, and the data of the other ranks by address ([`InboxAddresses`]). Output: the outputs of
//! its tokens. Nothing here waits, and the host does not know how many rows a rank will receive. Buffers have
//! room for the largest possible number, and kernels read the actual one from device memory.

use super::cublas::CublasGemm;
use super::dynamic_slots::RankCopies;
use super::expert_slots::ExpertSlots;
use super::kernels::{DeviceAddress, ExecKernels, KernelLauncher, address, upload, zeros};
use super::launch::{LogitShape, RankPosition};
use super::replicated::DeviceLayer;
use crate::backend::LayerStage;
use cudarc::driver::{CudaEvent, CudaSlice};
use evenkeel::planner::Planner;
use evenkeel_cuda::tables::CHUNK_IDS;
use evenkeel_cuda::{CudaError, DevicePlanner, GpuContext};
use std::sync::Arc;

/// The capacity of buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BufferSizes {
    /// Tokens (or mixtures) of one source.
    pub(super) tokens: usize,
    /// Choices per token.
    pub(super) top_k: usize,
    pub(super) ranks: usize,
    pub(super) per_rank: usize,
    pub(super) hidden: usize,
    pub(super) inner: usize,
    /// Inner width of the shared expert; 0 without one.
    pub(super) shared: usize,
    /// Logits per token.
    pub(super) width: usize,
    /// True for additional buffers with consecutive rows, which cuBLAS needs.
    pub(super) dense: bool,
}

impl BufferSizes {
    pub(super) fn max_choices(&self) -> usize {
        self.tokens * self.top_k
    }

    /// Returns the largest number of rows that one rank can receive: all tokens of all sources, times the
    /// slots here that one token can visit.
    pub(super) fn max_rows(&self) -> usize {
        self.ranks * self.tokens * self.top_k.min(self.per_rank)
    }

    fn slot_count(&self) -> usize {
        self.ranks * self.per_rank
    }

    fn max_logit_parts(&self) -> usize {
        let shape = |tokens| LogitShape { tokens, width: self.width, hidden: self.hidden };
        // Fewer tokens are divided into more parts, so the maximum over all sizes counts.
        (1..=self.tokens.div_ceil(64).max(1))
            .map(|tiles| {
                (64 * tiles).min(self.tokens.max(1)) * shape(64 * tiles).split_width()[0] * self.width
            })
            .max()
            .unwrap_or(0)
    }

    /// Returns the bytes of a mirror of one rank on another's GPU.
    pub(super) fn mirror_bytes(&self) -> u64 {
        (12 * self.max_choices() + 4 * self.tokens + 4 * self.tokens * self.hidden) as u64
    }

    /// Returns the bytes of one rank's buffers.
    pub(super) fn bytes(&self) -> u64 {
        let (tokens, rows, hidden) = (self.tokens, self.max_rows(), self.hidden);
        let of_tokens = tokens * (hidden * (4 + 4 + 4 + 2) + 4 * self.width + 4 * self.ranks)
            + 4 * self.max_logit_parts();
        let of_choices =
            self.max_choices() * 16 + 4 * self.max_choices().div_ceil(CHUNK_IDS) * self.slot_count();
        let of_peers = 2 * self.ranks.saturating_sub(1) * 2 * tokens * hidden;
        let of_rows = rows * (12 + 2 * self.inner + 2 * hidden);
        let of_dense = if self.dense { rows * (2 * hidden + 4 * self.inner) } else { 0 };
        let of_shared = if self.shared > 0 {
            tokens * (2 * self.shared * if self.dense { 3 } else { 1 } + 2 * hidden)
        } else {
            0
        };
        (of_tokens + of_choices + of_peers + of_rows + of_dense + of_shared) as u64
            + 4 * (self.ranks * (self.slot_count() + self.ranks + 1)) as u64
    }
}

/// The addresses at which a rank reads a source's data: `Inbox` of crates/cuda/kernels/dispatch.cu.
pub(super) type InboxAddresses = [DeviceAddress; 5];

/// The memory of a rank apart from its experts.
#[derive(Debug)]
pub(super) struct RankBuffers {
    pub(super) room: BufferSizes,
    /// Tokens `[token][H]`: the input, its norm, and its norm in bf16.
    pub(super) x: CudaSlice<f32>,
    pub(super) exact: CudaSlice<f32>,
    pub(super) tokens: CudaSlice<u16>,
    pub(super) parts: CudaSlice<f32>,
    /// `[token][width]`
    pub(super) logits: CudaSlice<f32>,
    /// Experts `[token][k]`; -1 after the last token.
    pub(super) ids: CudaSlice<i32>,
    pub(super) weights: CudaSlice<f32>,
    pub(super) slots: CudaSlice<i32>,
    pub(super) places: CudaSlice<u32>,
    pub(super) histograms: CudaSlice<u32>,
    /// Tokens per slot of this source, and of all sources.
    pub(super) own_counts: CudaSlice<u32>,
    pub(super) all_counts: CudaSlice<u32>,
    pub(super) base: CudaSlice<u32>,
    /// First row of every slot, `[S + 1]`.
    pub(super) offsets: CudaSlice<u32>,
    /// Rows of the send buffers, `[rank][token]`.
    pub(super) parcel_rows: CudaSlice<u32>,
    /// Rows of the send buffer for every rank, `[R]`, and of the send buffers of all ranks, `[R][R]`.
    pub(super) sizes: CudaSlice<u32>,
    pub(super) all_sizes: CudaSlice<u32>,
    /// Send buffers to every other rank, and answers to the send buffers from there, `[row][H]` each.
    pub(super) parcels: Vec<Option<CudaSlice<u16>>>,
    pub(super) answers: Vec<Option<CudaSlice<u16>>>,
    /// Per row of the experts: its address, its weight, the value between the matrices, and the result.
    pub(super) rows: CudaSlice<u64>,
    pub(super) scales: CudaSlice<f32>,
    pub(super) inside: CudaSlice<u16>,
    pub(super) results: CudaSlice<u16>,
    /// Buffers for cuBLAS: consecutive rows, gate and up.
    pub(super) permuted: CudaSlice<u16>,
    pub(super) gate: CudaSlice<u16>,
    pub(super) up: CudaSlice<u16>,
    /// Buffers of the shared expert: row offsets, the value between the matrices (with gate and up for
    /// cuBLAS), and the result.
    pub(super) shared_offsets: CudaSlice<u32>,
    pub(super) shared_inside: CudaSlice<u16>,
    pub(super) shared_gate: CudaSlice<u16>,
    pub(super) shared_up: CudaSlice<u16>,
    pub(super) shared_out: CudaSlice<u16>,
    pub(super) out: CudaSlice<f32>,
    /// Choices of every source, `[R]`.
    pub(super) choices: CudaSlice<u32>,
    pub(super) dropped: CudaSlice<u32>,
    /// The lowest token whose logits are not finite.
    pub(super) bad: CudaSlice<u32>,
    pub(super) faults: CudaSlice<u32>,
    /// Local copies of the data that ranks on other GPUs or in other processes send, per rank.
    pub(super) mirrors: Vec<Option<RemoteMirror>>,
    /// Address tables, `[R]` each, known after all ranks have their buffers.
    pub(super) tables: Option<AddressTables>,
}

/// The data that a rank on another GPU sends, copied to this GPU, because kernels read no other GPU's memory.
#[derive(Debug)]
pub(super) struct RemoteMirror {
    pub(super) slots: CudaSlice<i32>,
    pub(super) places: CudaSlice<u32>,
    pub(super) weights: CudaSlice<f32>,
    pub(super) rows: CudaSlice<u32>,
    pub(super) parcel: CudaSlice<u16>,
    pub(super) answers: CudaSlice<u16>,
}

/// Addresses of the other ranks' data.
#[derive(Debug)]
pub(super) struct AddressTables {
    pub(super) inboxes: CudaSlice<u64>,
    /// Addresses of this rank's send buffers, its answers to the others, and the others' answers to it.
    pub(super) parcels: CudaSlice<u64>,
    pub(super) own_answers: CudaSlice<u64>,
    pub(super) answers: CudaSlice<u64>,
}

impl RankBuffers {
    /// Allocates buffers. `devices` are the GPUs of all ranks; `None` for a rank in another process.
    pub(super) fn new(
        gpu: &GpuContext,
        room: BufferSizes,
        own: usize,
        devices: &[Option<usize>],
    ) -> Result<Self, CudaError> {
        let (tokens, rows, choices) = (room.tokens, room.max_rows(), room.max_choices());
        let dense = |n: usize| if room.dense { n } else { 0 };
        let peers = || {
            let one = |rank| if rank == own { Ok(None) } else { zeros(gpu, tokens * room.hidden).map(Some) };
            (0..room.ranks).map(one).collect::<Result<Vec<_>, _>>()
        };
        let mirror = |device: &Option<usize>| -> Result<Option<RemoteMirror>, CudaError> {
            if *device == devices[own] {
                return Ok(None);
            }
            Ok(Some(RemoteMirror {
                slots: zeros(gpu, choices)?,
                places: zeros(gpu, choices)?,
                weights: zeros(gpu, choices)?,
                rows: zeros(gpu, tokens)?,
                parcel: zeros(gpu, tokens * room.hidden)?,
                answers: zeros(gpu, tokens * room.hidden)?,
            }))
        };
        Ok(Self {
            room,
            x: zeros(gpu, tokens * room.hidden)?,
            exact: zeros(gpu, tokens * room.hidden)?,
            tokens: zeros(gpu, tokens * room.hidden)?,
            parts: zeros(gpu, room.max_logit_parts())?,
            logits: zeros(gpu, tokens * room.width)?,
            ids: zeros(gpu, choices)?,
            weights: zeros(gpu, choices)?,
            slots: zeros(gpu, choices)?,
            places: zeros(gpu, choices)?,
            histograms: zeros(gpu, choices.div_ceil(CHUNK_IDS) * room.slot_count())?,
            own_counts: zeros(gpu, room.slot_count())?,
            all_counts: zeros(gpu, room.ranks * room.slot_count())?,
            base: zeros(gpu, room.slot_count())?,
            offsets: zeros(gpu, room.per_rank + 1)?,
            parcel_rows: zeros(gpu, room.ranks * tokens)?,
            sizes: zeros(gpu, room.ranks)?,
            all_sizes: zeros(gpu, room.ranks * room.ranks)?,
            parcels: peers()?,
            answers: peers()?,
            rows: zeros(gpu, rows)?,
            scales: zeros(gpu, rows)?,
            inside: zeros(gpu, rows * room.inner)?,
            results: zeros(gpu, rows * room.hidden)?,
            permuted: zeros(gpu, dense(rows * room.hidden))?,
            gate: zeros(gpu, dense(rows * room.inner))?,
            up: zeros(gpu, dense(rows * room.inner))?,
            shared_offsets: zeros(gpu, 2)?,
            shared_inside: zeros(gpu, tokens * room.shared)?,
            shared_gate: zeros(gpu, dense(tokens * room.shared))?,
            shared_up: zeros(gpu, dense(tokens * room.shared))?,
            shared_out: zeros(gpu, if room.shared > 0 { tokens * room.hidden } else { 0 })?,
            out: zeros(gpu, tokens * room.hidden)?,
            choices: zeros(gpu, room.ranks)?,
            dropped: zeros(gpu, 1)?,
            bad: zeros(gpu, 1)?,
            faults: zeros(gpu, 1)?,
            mirrors: devices.iter().map(mirror).collect::<Result<_, _>>()?,
            tables: None,
        })
    }
}

/// Sets every bit of an allocation: -1, or the highest unsigned number.
pub(super) fn fill_ones<T>(gpu: &GpuContext, memory: &CudaSlice<T>) -> Result<(), CudaError> {
    gpu.stream().context().bind_to_thread().map_err(CudaError::driver_error("choosing a device"))?;
    #[allow(unsafe_code, reason = "the memory has its stated length, and any bits are a whole number")]
    // SAFETY: as the reason says; the stream belongs to the device of the memory.
    let filled = unsafe {
        let stream = gpu.stream().cu_stream();
        cudarc::driver::result::memset_d8_async(address(memory), 0xff, memory.num_bytes(), stream)
    };
    filled.map_err(CudaError::driver_error("filling memory"))
}

/// One rank: a stream, the kernels of its GPU, and its memory.
#[derive(Debug)]
pub(super) struct CudaRank {
    pub(super) own: usize,
    /// Index of its GPU among those of the backend.
    pub(super) device: usize,
    pub(super) gpu: Arc<GpuContext>,
    pub(super) kernels: Arc<ExecKernels>,
    /// A mark on its stream, for which other ranks can wait.
    here: CudaEvent,
    pub(super) experts: ExpertSlots,
    /// Copies into dynamic slots in the layer that runs.
    pub(super) copies: RankCopies,
    /// One planner per layer, created together with the buffers.
    pub(super) planners: Vec<LayerPlanner>,
    /// The products of cuBLAS, with [`GemmPath::Cublas`](super::GemmPath).
    pub(super) blas: Option<CublasGemm>,
    pub(super) buffers: Option<RankBuffers>,
}

/// The planner of a layer's batches on one rank. All ranks have the same kind.
#[derive(Debug)]
pub(super) enum LayerPlanner {
    /// No split: first replicas serve all tokens.
    FirstReplica,
    /// A planner on the device.
    Device(Box<DevicePlanner>),
    /// A planner on the host.
    Host(Box<Planner>),
}

impl CudaRank {
    pub(super) fn new(
        own: usize,
        device: usize,
        gpu: Arc<GpuContext>,
        kernels: Arc<ExecKernels>,
    ) -> Result<Self, CudaError> {
        let here =
            gpu.stream().context().new_event(None).map_err(CudaError::driver_error("creating an event"))?;
        let (experts, copies, planners) = (ExpertSlots::default(), RankCopies::default(), Vec::new());
        Ok(Self { own, device, gpu, kernels, here, experts, copies, planners, blas: None, buffers: None })
    }

    /// Moves the mark to the current end of this rank's stream.
    pub(super) fn record_mark(&self) -> Result<(), CudaError> {
        self.here.record(self.gpu.stream()).map_err(CudaError::driver_error("ordering the streams of ranks"))
    }

    /// Makes this rank's stream wait for another rank's mark.
    pub(super) fn wait_for(&self, other: &CudaRank) -> Result<(), CudaError> {
        self.gpu.stream().wait(&other.here).map_err(CudaError::driver_error("ordering the streams of ranks"))
    }

    /// Makes another stream wait for this rank's mark.
    pub(super) fn hold_back(&self, other: &GpuContext) -> Result<(), CudaError> {
        other.stream().wait(&self.here).map_err(CudaError::driver_error("ordering the streams of ranks"))
    }

    pub(super) fn launcher(&self) -> KernelLauncher<'_> {
        KernelLauncher { kernels: &self.kernels, stream: self.gpu.stream() }
    }

    pub(super) fn rank_position(&self, room: &BufferSizes) -> RankPosition {
        RankPosition {
            own: self.own as u32,
            ranks: room.ranks as u32,
            per_rank: room.per_rank as u32,
            hidden: room.hidden as u32,
            room: room.tokens as u32,
        }
    }

    /// Enqueues the norm of `tokens` tokens.
    pub(super) fn enqueue_norm(
        &self,
        buffers: &RankBuffers,
        layer: &DeviceLayer,
        tokens: usize,
    ) -> Result<(), CudaError> {
        if tokens == 0 {
            return Ok(());
        }
        let (x, norm) = (address(&buffers.x), address(&layer.norm));
        let (exact, rounded) = (address(&buffers.exact), address(&buffers.tokens));
        self.launcher().normalise_tokens(x, norm, [tokens, buffers.room.hidden], exact, rounded)
    }

    /// Enqueues partial sums of the logits of `tokens` tokens.
    pub(super) fn enqueue_logits(
        &self,
        buffers: &RankBuffers,
        layer: &DeviceLayer,
        shape: LogitShape,
    ) -> Result<(), CudaError> {
        self.launcher().logit_parts(
            address(&buffers.exact),
            address(&layer.gate),
            shape,
            address(&buffers.parts),
        )
    }

    /// Builds the address tables after all ranks have their buffers. Addresses in other processes are 0.
    pub(super) fn build_tables(
        &self,
        mine: &RankBuffers,
        all: &[Option<&RankBuffers>],
    ) -> Result<AddressTables, CudaError> {
        let own = self.own;
        let inbox = |(source, of): (usize, Option<&RankBuffers>)| -> InboxAddresses {
            if let Some(RemoteMirror { slots, places, weights, rows, parcel, .. }) = &mine.mirrors[source] {
                return [address(slots), address(places), address(weights), address(rows), address(parcel)];
            }
            let Some(of) = of else { return [0; 5] };
            let (rows, tokens) = match &of.parcels[own] {
                None => (0, address(&of.tokens)),
                Some(parcel) => {
                    (address(&of.parcel_rows) + 4 * (own * of.room.tokens) as u64, address(parcel))
                }
            };
            [address(&of.slots), address(&of.places), address(&of.weights), rows, tokens]
        };
        let answers = |(source, of): (usize, Option<&RankBuffers>)| match (&mine.mirrors[source], of) {
            (Some(mirror), _) => address(&mirror.answers),
            (None, Some(of)) => of.answers[own].as_ref().map_or(0, address),
            (None, None) => 0,
        };
        let of = |memory: &Option<CudaSlice<u16>>| memory.as_ref().map_or(0, address);
        let inboxes: Vec<u64> = all.iter().copied().enumerate().flat_map(inbox).collect();
        Ok(AddressTables {
            inboxes: upload(&self.gpu, &inboxes)?,
            parcels: upload(&self.gpu, &mine.parcels.iter().map(of).collect::<Vec<_>>())?,
            own_answers: upload(&self.gpu, &mine.answers.iter().map(of).collect::<Vec<_>>())?,
            answers: upload(&self.gpu, &all.iter().copied().enumerate().map(answers).collect::<Vec<_>>())?,
        })
    }
}

/// Copies the data that ranks on other GPUs have sent to rank `own`, on its stream: their assignments and
/// send buffers to dispatch, or their answers to combine.
pub(super) fn copy_mirrors(ranks: &mut [CudaRank], own: usize, stage: LayerStage) -> Result<(), CudaError> {
    let Some(mut mine) = ranks[own].buffers.take() else { return Ok(()) };
    let stream = ranks[own].gpu.stream().clone();
    let failed = CudaError::driver_error("copying between GPUs");
    let copied = mine.mirrors.iter_mut().zip(ranks.iter()).try_for_each(|(mirror, other)| {
        let (Some(to), Some(of)) = (mirror, &other.buffers) else { return Ok(()) };
        if stage == LayerStage::Combine {
            return of.answers[own].as_ref().map_or(Ok(()), |from| stream.memcpy_dtod(from, &mut to.answers));
        }
        let tokens = of.room.tokens;
        stream.memcpy_dtod(&of.slots, &mut to.slots)?;
        stream.memcpy_dtod(&of.places, &mut to.places)?;
        stream.memcpy_dtod(&of.weights, &mut to.weights)?;
        stream.memcpy_dtod(&of.parcel_rows.slice(own * tokens..(own + 1) * tokens), &mut to.rows)?;
        of.parcels[own].as_ref().map_or(Ok(()), |from| stream.memcpy_dtod(from, &mut to.parcel))
    });
    ranks[own].buffers = Some(mine);
    copied.map_err(failed)
}
