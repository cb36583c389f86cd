//! How the executor's kernels are launched.
//!
//! In: addresses and sizes. Out: work on a stream. Nothing here waits. Arguments are in the order of `kernels/*.cu`; what they
//! must be is said there. Addresses are device memory that outlives the work: a [`super::rank::Rank`] and a
//! [`super::layers::Layer`] keep theirs as long as they live, and are synchronised with before they go.

use super::kernels::{Address, Job, Kernels, LANES, On, Rule, TILES};
use crate::cuda::CudaError;
use crate::kernels::CHUNK;
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// Enqueues a kernel; `[x, y, z]` blocks.
macro_rules! launch {
    ($on:expr, $kernel:ident $([$which:expr])?, $grid:expr, $lanes:expr, $shared:expr, $($argument:expr),+ $(,)?) => {{
        let [x, y, z]: [u32; 3] = $grid;
        let mut launch = $on.stream.launch_builder(&$on.kernels.$kernel $([$which])?);
        $(launch.arg($argument);)+
        let shape = LaunchConfig { grid_dim: (x, y, z), block_dim: ($lanes, 1, 1), shared_mem_bytes: $shared };
        #[allow(unsafe_code, reason = "arguments and sizes are those of the kernel of this name in kernels/")]
        // SAFETY: the module's promise about addresses; the callers' about sizes.
        let launched = unsafe { launch.launch(shape) };
        launched.map_err(CudaError::driver(concat!("launching ", stringify!($kernel))))?;
        Ok(())
    }};
}

/// Blocks for so many things, each block's share being `each`: none too many, and no more than keep a GPU busy.
fn spread(things: usize, each: usize) -> u32 {
    things.div_ceil(each).clamp(1, 4096) as u32
}

/// Sizes of a router's product.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitShape {
    pub(super) tokens: usize,
    pub(super) width: usize,
    pub(super) hidden: usize,
}

impl LogitShape {
    /// Parts that the inner width is cut into, and how much of it each has: as many as keep a GPU busy with few tokens.
    pub(super) fn parts(self) -> [usize; 2] {
        let tiles = self.tokens.div_ceil(64).max(1) * self.width.div_ceil(64);
        let wanted = 256usize.div_ceil(tiles).clamp(1, 16);
        let part = self.hidden.div_ceil(wanted).next_multiple_of(16);
        [self.hidden.div_ceil(part), part]
    }
}

/// Where a rank's slots are, and which rank it is: what dispatch and combine ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    pub(super) own: u32,
    pub(super) ranks: u32,
    pub(super) per_rank: u32,
    pub(super) hidden: u32,
    /// Tokens that its buffers have room for.
    pub(super) room: u32,
}

impl On<'_> {
    pub(super) fn norm(
        self,
        x: Address,
        weight: Address,
        [tokens, hidden]: [usize; 2],
        exact: Address,
        rounded: Address,
    ) -> Result<(), CudaError> {
        let (n, width) = (tokens as u32, hidden as u32);
        launch!(self, norm, [spread(tokens, 8), 1, 1], LANES, 0, &x, &weight, &n, &width, &exact, &rounded)
    }

    /// Logits in parts.
    pub(super) fn logits(
        self,
        x: Address,
        weight: Address,
        shape: LogitShape,
        parts: Address,
    ) -> Result<(), CudaError> {
        let [count, part] = shape.parts().map(|n| n as u32);
        let [tokens, width, hidden] = [shape.tokens, shape.width, shape.hidden].map(|n| n as u32);
        let grid = [tokens.div_ceil(64), width.div_ceil(64), count];
        launch!(self, logits, grid, LANES, 0, &x, &weight, &tokens, &width, &hidden, &part, &parts)
    }

    #[allow(clippy::too_many_arguments, reason = "as many as the kernel has")]
    pub(super) fn choose(
        self,
        rule: &Rule,
        parts: Address,
        shape: LogitShape,
        logits: Address,
        ids: Address,
        weights: Address,
        bad: Address,
    ) -> Result<(), CudaError> {
        let (count, tokens) = (shape.parts()[0] as u32, shape.tokens as u32);
        launch!(
            self,
            choose,
            [tokens, 1, 1],
            32,
            rule.shared(),
            rule,
            &parts,
            &count,
            &tokens,
            &logits,
            &ids,
            &weights,
            &bad
        )
    }

    pub(super) fn add_up(
        self,
        parts: Address,
        bias: Address,
        shape: LogitShape,
        logits: Address,
    ) -> Result<(), CudaError> {
        let [count, tokens, width] = [shape.parts()[0], shape.tokens, shape.width].map(|n| n as u32);
        let grid = [spread(shape.tokens * shape.width, 256), 1, 1];
        launch!(self, add_up, grid, LANES, 0, &parts, &bias, &count, &tokens, &width, &logits)
    }

    pub(super) fn room(
        self,
        [tokens, top_k, experts]: [usize; 3],
        room: u64,
        ids: Address,
        weights: Address,
        dropped: Address,
    ) -> Result<(), CudaError> {
        let (tokens, top_k) = (tokens as u32, top_k as u32);
        launch!(self, room, [experts as u32, 1, 1], 32, 0, &tokens, &top_k, &room, &ids, &weights, &dropped)
    }

    pub(super) fn first_copy(
        self,
        ids: Address,
        n: usize,
        first: Address,
        slots: Address,
    ) -> Result<(), CudaError> {
        let many = n as u64;
        launch!(self, first_copy, [spread(n, 256), 1, 1], LANES, 0, &ids, &many, &first, &slots)
    }

    /// Tokens per slot of one source's choices, and per chunk those before it.
    pub(super) fn count_slots(
        self,
        slots: Address,
        n: usize,
        all: usize,
        histograms: Address,
        counts: Address,
        faults: Address,
    ) -> Result<(), CudaError> {
        let (many, width, chunks) = (n as u64, all as u32, n.div_ceil(CHUNK));
        let grid = [chunks as u32, 1, 1];
        let counted: Result<(), CudaError> = (|| {
            launch!(self, count, grid, CHUNK as u32, 4 * width, &slots, &many, &width, &histograms, &faults)
        })();
        counted?;
        let chunks = chunks as u64;
        launch!(self, count_before, [width, 1, 1], 32, 0, &histograms, &chunks, &width, &counts)
    }

    pub(super) fn bases(
        self,
        seat: Seat,
        all: Address,
        base: Address,
        offsets: Address,
    ) -> Result<(), CudaError> {
        let shared = 8 * seat.ranks * seat.per_rank;
        launch!(
            self,
            bases,
            [1, 1, 1],
            LANES,
            shared,
            &all,
            &seat.ranks,
            &seat.per_rank,
            &seat.own,
            &base,
            &offsets
        )
    }

    pub(super) fn place(
        self,
        seat: Seat,
        slots: Address,
        n: usize,
        befores: Address,
        base: Address,
        places: Address,
    ) -> Result<(), CudaError> {
        let (many, all) = (n as u64, seat.ranks * seat.per_rank);
        let grid = [n.div_ceil(CHUNK) as u32, 1, 1];
        launch!(self, place, grid, CHUNK as u32, 0, &slots, &many, &all, &befores, &base, &places)
    }

    pub(super) fn number_rows(
        self,
        seat: Seat,
        slots: Address,
        [tokens, top_k]: [usize; 2],
        rows: Address,
        sizes: Address,
    ) -> Result<(), CudaError> {
        let (tokens, top_k) = (tokens as u32, top_k as u32);
        launch!(
            self,
            number_rows,
            [seat.ranks, 1, 1],
            LANES,
            0,
            &slots,
            &tokens,
            &top_k,
            &seat.per_rank,
            &seat.own,
            &seat.room,
            &rows,
            &sizes
        )
    }

    pub(super) fn pack(
        self,
        seat: Seat,
        tokens: Address,
        slots: Address,
        [count, top_k]: [usize; 2],
        rows: Address,
        parcels: Address,
    ) -> Result<(), CudaError> {
        let (many, k) = ((count * top_k) as u64, top_k as u32);
        launch!(
            self,
            pack,
            [spread(count * top_k, 8), 1, 1],
            LANES,
            0,
            &tokens,
            &slots,
            &many,
            &k,
            &seat.per_rank,
            &seat.own,
            &seat.hidden,
            &rows,
            &seat.room,
            &parcels
        )
    }

    pub(super) fn accept(
        self,
        seat: Seat,
        inboxes: Address,
        counts: Address,
        top_k: usize,
        rows: Address,
        scales: Address,
    ) -> Result<(), CudaError> {
        let k = top_k as u32;
        let grid = [spread(seat.room as usize * top_k, 256).min(64), seat.ranks, 1];
        launch!(
            self,
            accept,
            grid,
            LANES,
            0,
            &inboxes,
            &counts,
            &k,
            &seat.per_rank,
            &seat.own,
            &seat.hidden,
            &rows,
            &scales
        )
    }

    pub(super) fn answer(
        self,
        seat: Seat,
        inboxes: Address,
        counts: Address,
        top_k: usize,
        results: Address,
        answers: Address,
    ) -> Result<(), CudaError> {
        let k = top_k as u32;
        let grid = [spread(seat.room as usize, 8).min(256), seat.ranks, 1];
        launch!(
            self,
            answer,
            grid,
            LANES,
            0,
            &inboxes,
            &counts,
            &k,
            &seat.per_rank,
            &seat.own,
            &seat.hidden,
            &results,
            &answers
        )
    }

    #[allow(clippy::too_many_arguments, reason = "as many as the kernel has")]
    pub(super) fn combine(
        self,
        seat: Seat,
        slots: Address,
        places: Address,
        [tokens, top_k]: [usize; 2],
        results: Address,
        rows: Address,
        answers: Address,
        shared: Address,
        residual: Address,
        out: Address,
    ) -> Result<(), CudaError> {
        let (n, k) = (tokens as u32, top_k as u32);
        launch!(
            self,
            combine,
            [spread(tokens, 8), 1, 1],
            LANES,
            0,
            &slots,
            &places,
            &n,
            &k,
            &seat.per_rank,
            &seat.own,
            &seat.hidden,
            &results,
            &rows,
            &seat.room,
            &answers,
            &shared,
            &residual,
            &out
        )
    }

    /// A grouped product of our own; `pair` where two matrices make one result. `tile` is an index into [`TILES`].
    pub(super) fn grouped(self, job: &Job, pair: bool, tile: usize) -> Result<(), CudaError> {
        let shared = Kernels::ffn_shared(TILES[tile], job.groups);
        let grid = [self.kernels.blocks[tile], 1, 1];
        if pair {
            launch!(self, pair[tile], grid, LANES, shared, job)
        } else {
            launch!(self, single[tile], grid, LANES, shared, job)
        }
    }

    pub(super) fn permute(
        self,
        rows: Address,
        count: usize,
        width: usize,
        out: Address,
    ) -> Result<(), CudaError> {
        let (n, wide) = (count as u32, width as u32);
        launch!(self, permute, [spread(count, 8), 1, 1], LANES, 0, &rows, &n, &wide, &out)
    }

    /// `gate` is 0 where there is none.
    pub(super) fn activate(
        self,
        job: &Job,
        gate: Address,
        up: Address,
        count: usize,
    ) -> Result<(), CudaError> {
        let n = count as u32;
        launch!(self, activate, [spread(count, 8), 1, 1], LANES, 0, job, &gate, &up, &n)
    }

    pub(super) fn weigh(self, job: &Job, count: usize) -> Result<(), CudaError> {
        let n = count as u32;
        launch!(self, weigh, [spread(count, 8), 1, 1], LANES, 0, job, &n)
    }
}
