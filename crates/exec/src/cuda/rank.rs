//! One rank: its own memory and stream on a GPU, and the work that it enqueues, phase by phase.
//!
//! In: its tokens; what the other ranks say by address ([`Inbox`]). Out: its tokens' outputs. Nothing here waits, and nothing
//! here knows how many rows a rank will get: buffers have room for the most that could come, and kernels read from device
//! memory what did.

use super::kernels::{Address, Kernels, On, address, upload, zeros};
use super::launch::{LogitShape, Seat};
use super::layers::Layer;
use crate::cuda::{Context, CudaError};
use crate::kernels::CHUNK;
use cudarc::driver::{CudaEvent, CudaSlice};
use std::sync::Arc;

/// What buffers have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Tokens (or mixtures) of one source.
    pub(super) tokens: usize,
    /// Choices per token.
    pub(super) top_k: usize,
    pub(super) ranks: usize,
    pub(super) per_rank: usize,
    pub(super) hidden: usize,
    pub(super) inner: usize,
    /// Of the shared expert; 0 for none.
    pub(super) shared: usize,
    /// Logits per token.
    pub(super) width: usize,
    /// Buffers for somebody else's products, which take rows that lie together.
    pub(super) dense: bool,
}

impl Room {
    pub(super) fn choices(&self) -> usize {
        self.tokens * self.top_k
    }

    /// The most rows that can come to one rank: all tokens of all sources, to as many of its slots as they have choices.
    pub(super) fn rows(&self) -> usize {
        self.ranks * self.tokens * self.top_k.min(self.per_rank)
    }

    fn slots(&self) -> usize {
        self.ranks * self.per_rank
    }

    fn parts(&self) -> usize {
        let shape = |tokens| LogitShape { tokens, width: self.width, hidden: self.hidden };
        // Fewer tokens are cut into more parts.
        (1..=self.tokens.div_ceil(64).max(1))
            .map(|tiles| (64 * tiles).min(self.tokens.max(1)) * shape(64 * tiles).parts()[0] * self.width)
            .max()
            .unwrap_or(0)
    }

    /// Bytes of a mirror of one rank on another's GPU.
    pub(super) fn mirror_bytes(&self) -> u64 {
        (12 * self.choices() + 4 * self.tokens + 4 * self.tokens * self.hidden) as u64
    }

    /// Bytes of one rank's buffers.
    pub(super) fn bytes(&self) -> u64 {
        let (tokens, rows, hidden) = (self.tokens, self.rows(), self.hidden);
        let of_tokens =
            tokens * (hidden * (4 + 4 + 4 + 2) + 4 * self.width + 4 * self.ranks) + 4 * self.parts();
        let of_choices = self.choices() * 16 + 4 * self.choices().div_ceil(CHUNK) * self.slots();
        let of_peers = 2 * self.ranks.saturating_sub(1) * 2 * tokens * hidden;
        let of_rows = rows * (12 + 2 * self.inner + 2 * hidden);
        let of_dense = if self.dense { rows * (2 * hidden + 4 * self.inner) } else { 0 };
        let of_shared = if self.shared > 0 {
            tokens * (2 * self.shared * if self.dense { 3 } else { 1 } + 2 * hidden)
        } else {
            0
        };
        (of_tokens + of_choices + of_peers + of_rows + of_dense + of_shared) as u64
            + 4 * (self.ranks * (self.slots() + self.ranks + 1)) as u64
    }
}

/// What a rank reads of a source, by address: `Inbox` of kernels/dispatch.cu.
pub(super) type Inbox = [Address; 5];

/// A rank's memory, but for its experts.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) room: Room,
    /// `[token][H]`: what comes in, normed, and normed and rounded.
    pub(super) x: CudaSlice<f32>,
    pub(super) exact: CudaSlice<f32>,
    pub(super) tokens: CudaSlice<u16>,
    pub(super) parts: CudaSlice<f32>,
    /// `[token][width]`
    pub(super) logits: CudaSlice<f32>,
    /// `[token][k]`, with no expert behind the last token.
    pub(super) ids: CudaSlice<i32>,
    pub(super) weights: CudaSlice<f32>,
    pub(super) slots: CudaSlice<i32>,
    pub(super) places: CudaSlice<u32>,
    pub(super) histograms: CudaSlice<u32>,
    /// Tokens per slot of this source, and of all of them.
    pub(super) own_counts: CudaSlice<u32>,
    pub(super) all_counts: CudaSlice<u32>,
    pub(super) base: CudaSlice<u32>,
    /// Where the rows of every slot begin, `[S + 1]`.
    pub(super) offsets: CudaSlice<u32>,
    /// `[rank][token]`: rows of the parcels.
    pub(super) parcel_rows: CudaSlice<u32>,
    /// Rows of the parcel for every rank, `[R]`, and of those of all ranks, `[R][R]`.
    pub(super) sizes: CudaSlice<u32>,
    pub(super) all_sizes: CudaSlice<u32>,
    /// Per rank but this one, `[row][H]`: what goes there, and the answers to what came from there.
    pub(super) parcels: Vec<Option<CudaSlice<u16>>>,
    pub(super) answers: Vec<Option<CudaSlice<u16>>>,
    /// Per row of the experts: its address and weight, what is between the matrices, and the result.
    pub(super) rows: CudaSlice<u64>,
    pub(super) scales: CudaSlice<f32>,
    pub(super) inside: CudaSlice<u16>,
    pub(super) results: CudaSlice<u16>,
    /// For somebody else's products: rows together, gate and up.
    pub(super) permuted: CudaSlice<u16>,
    pub(super) gate: CudaSlice<u16>,
    pub(super) up: CudaSlice<u16>,
    /// Of the shared expert: its row offsets, inside (and gate and up where products are somebody else's), and result.
    pub(super) shared_offsets: CudaSlice<u32>,
    pub(super) shared_inside: CudaSlice<u16>,
    pub(super) shared_gate: CudaSlice<u16>,
    pub(super) shared_up: CudaSlice<u16>,
    pub(super) shared_out: CudaSlice<u16>,
    pub(super) out: CudaSlice<f32>,
    /// Choices of every source, `[R]`.
    pub(super) choices: CudaSlice<u32>,
    pub(super) dropped: CudaSlice<u32>,
    /// The lowest token whose logits are no numbers.
    pub(super) bad: CudaSlice<u32>,
    pub(super) faults: CudaSlice<u32>,
    /// Per rank on another GPU, or in another process: what it sends, here.
    pub(super) mirrors: Vec<Option<Mirror>>,
    /// Addresses, `[R]` each, known once all ranks have their buffers.
    pub(super) tables: Option<Tables>,
}

/// What a rank on another GPU sends, copied to this one's memory: kernels read no other GPU's.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) slots: CudaSlice<i32>,
    pub(super) places: CudaSlice<u32>,
    pub(super) weights: CudaSlice<f32>,
    pub(super) rows: CudaSlice<u32>,
    pub(super) parcel: CudaSlice<u16>,
    pub(super) answers: CudaSlice<u16>,
}

/// What a rank knows of the others.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) inboxes: CudaSlice<u64>,
    /// Where this rank's parcels are, its answers to the others, and the others' answers to it.
    pub(super) parcels: CudaSlice<u64>,
    pub(super) own_answers: CudaSlice<u64>,
    pub(super) answers: CudaSlice<u64>,
}

impl Buffers {
    /// `devices` are those of all ranks; none where a rank is in another process.
    pub(super) fn new(
        gpu: &Context,
        room: Room,
        own: usize,
        devices: &[Option<usize>],
    ) -> Result<Self, CudaError> {
        let (tokens, rows, choices) = (room.tokens, room.rows(), room.choices());
        let dense = |n: usize| if room.dense { n } else { 0 };
        let peers = || {
            let one = |rank| if rank == own { Ok(None) } else { zeros(gpu, tokens * room.hidden).map(Some) };
            (0..room.ranks).map(one).collect::<Result<Vec<_>, _>>()
        };
        let mirror = |device: &Option<usize>| -> Result<Option<Mirror>, CudaError> {
            if *device == devices[own] {
                return Ok(None);
            }
            Ok(Some(Mirror {
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
            parts: zeros(gpu, room.parts())?,
            logits: zeros(gpu, tokens * room.width)?,
            ids: zeros(gpu, choices)?,
            weights: zeros(gpu, choices)?,
            slots: zeros(gpu, choices)?,
            places: zeros(gpu, choices)?,
            histograms: zeros(gpu, choices.div_ceil(CHUNK) * room.slots())?,
            own_counts: zeros(gpu, room.slots())?,
            all_counts: zeros(gpu, room.ranks * room.slots())?,
            base: zeros(gpu, room.slots())?,
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

/// Fills memory with ones in every bit: -1, or the highest number there is.
pub(super) fn fill_ones<T>(gpu: &Context, memory: &CudaSlice<T>) -> Result<(), CudaError> {
    gpu.stream().context().bind_to_thread().map_err(CudaError::driver("choosing a device"))?;
    #[allow(unsafe_code, reason = "the memory is as long as it says, and any bits are a whole number")]
    // SAFETY: as the reason says; the stream is of the memory's device.
    let filled = unsafe {
        let stream = gpu.stream().cu_stream();
        cudarc::driver::result::memset_d8_async(address(memory), 0xff, memory.num_bytes(), stream)
    };
    filled.map_err(CudaError::driver("filling memory"))
}

/// One rank: a stream, the kernels of its GPU, its memory.
#[derive(Debug)]
pub(super) struct Rank {
    pub(super) own: usize,
    /// Which of the backend's GPUs it is on.
    pub(super) device: usize,
    pub(super) gpu: Arc<Context>,
    pub(super) kernels: Arc<Kernels>,
    /// Where its stream is, for others to wait for.
    here: CudaEvent,
    pub(super) buffers: Option<Buffers>,
}

impl Rank {
    pub(super) fn new(
        own: usize,
        device: usize,
        gpu: Arc<Context>,
        kernels: Arc<Kernels>,
    ) -> Result<Self, CudaError> {
        let here = gpu.stream().context().new_event(None).map_err(CudaError::driver("making an event"))?;
        Ok(Self { own, device, gpu, kernels, here, buffers: None })
    }

    /// Marks where this rank's stream is.
    pub(super) fn mark(&self) -> Result<(), CudaError> {
        self.here.record(self.gpu.stream()).map_err(CudaError::driver("letting ranks wait for each other"))
    }

    /// Waits, on this rank's stream, for another one's last mark.
    pub(super) fn wait(&self, other: &Rank) -> Result<(), CudaError> {
        self.gpu.stream().wait(&other.here).map_err(CudaError::driver("letting ranks wait for each other"))
    }

    pub(super) fn on(&self) -> On<'_> {
        On { kernels: &self.kernels, stream: self.gpu.stream() }
    }

    pub(super) fn seat(&self, room: &Room) -> Seat {
        Seat {
            own: self.own as u32,
            ranks: room.ranks as u32,
            per_rank: room.per_rank as u32,
            hidden: room.hidden as u32,
            room: room.tokens as u32,
        }
    }

    /// Norms `tokens` tokens.
    pub(super) fn norm(&self, buffers: &Buffers, layer: &Layer, tokens: usize) -> Result<(), CudaError> {
        if tokens == 0 {
            return Ok(());
        }
        let (x, norm) = (address(&buffers.x), address(&layer.norm));
        let (exact, rounded) = (address(&buffers.exact), address(&buffers.tokens));
        self.on().norm(x, norm, [tokens, buffers.room.hidden], exact, rounded)
    }

    /// Logits of `tokens` tokens, in parts.
    pub(super) fn logits(
        &self,
        buffers: &Buffers,
        layer: &Layer,
        shape: LogitShape,
    ) -> Result<(), CudaError> {
        self.on().logits(address(&buffers.exact), address(&layer.gate), shape, address(&buffers.parts))
    }

    /// The tables of addresses, once all ranks have their buffers; those of other processes are not here.
    pub(super) fn tables(&self, mine: &Buffers, all: &[Option<&Buffers>]) -> Result<Tables, CudaError> {
        let own = self.own;
        let inbox = |(source, of): (usize, Option<&Buffers>)| -> Inbox {
            if let Some(Mirror { slots, places, weights, rows, parcel, .. }) = &mine.mirrors[source] {
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
        let answers = |(source, of): (usize, Option<&Buffers>)| match (&mine.mirrors[source], of) {
            (Some(mirror), _) => address(&mirror.answers),
            (None, Some(of)) => of.answers[own].as_ref().map_or(0, address),
            (None, None) => 0,
        };
        let of = |memory: &Option<CudaSlice<u16>>| memory.as_ref().map_or(0, address);
        let inboxes: Vec<u64> = all.iter().copied().enumerate().flat_map(inbox).collect();
        Ok(Tables {
            inboxes: upload(&self.gpu, &inboxes)?,
            parcels: upload(&self.gpu, &mine.parcels.iter().map(of).collect::<Vec<_>>())?,
            own_answers: upload(&self.gpu, &mine.answers.iter().map(of).collect::<Vec<_>>())?,
            answers: upload(&self.gpu, &all.iter().copied().enumerate().map(answers).collect::<Vec<_>>())?,
        })
    }
}

/// Copies, on the stream of rank `own`, what ranks on other GPUs have sent it: their visits and parcels, or their answers.
pub(super) fn mirror(ranks: &mut [Rank], own: usize, answers: bool) -> Result<(), CudaError> {
    let Some(mut mine) = ranks[own].buffers.take() else { return Ok(()) };
    let stream = ranks[own].gpu.stream().clone();
    let failed = CudaError::driver("copying between GPUs");
    let copied = mine.mirrors.iter_mut().zip(ranks.iter()).try_for_each(|(mirror, other)| {
        let (Some(to), Some(of)) = (mirror, &other.buffers) else { return Ok(()) };
        if answers {
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
