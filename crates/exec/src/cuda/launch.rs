//! Launches the executor's kernels.
//!
//! Input: addresses and sizes. Output: work on a stream. Nothing here waits. Arguments are in the order of
//! `kernels/*.cu`, which documents their requirements. Addresses are device memory that outlives the work. A
//! [`super::rank::CudaRank`] and a [`super::replicated::DeviceLayer`] own it, and are synchronised before
//! they are dropped.

use super::kernels::{
    BLOCK_THREADS, DeviceAddress, ExecKernels, GroupedGemm, KernelLauncher, RouterRule, TILE_ROWS,
};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use evenkeel_cuda::CudaError;
use evenkeel_cuda::tables::CHUNK_IDS;

/// Enqueues a kernel with `[x, y, z]` blocks.
macro_rules! launch {
    ($on:expr, $kernel:ident $([$which:expr])?, $grid:expr, $lanes:expr, $shared:expr, $($argument:expr),+ $(,)?) => {{
        let [x, y, z]: [u32; 3] = $grid;
        let mut launch = $on.stream.launch_builder(&$on.kernels.$kernel $([$which])?);
        $(launch.arg($argument);)+
        let shape = LaunchConfig { grid_dim: (x, y, z), block_dim: ($lanes, 1, 1), shared_mem_bytes: $shared };
        #[allow(unsafe_code, reason = "arguments and sizes are those of the kernel of this name in kernels/")]
        // SAFETY: the module's documentation states the requirements on addresses; callers ensure the sizes.
        let launched = unsafe { launch.launch(shape) };
        launched.map_err(CudaError::driver_error(concat!("launching ", stringify!($kernel))))?;
        Ok(())
    }};
}

/// Returns the number of blocks for `things` items with `each` items per block, at least 1 and at most enough
/// to keep a GPU busy.
fn block_count(things: usize, each: usize) -> u32 {
    things.div_ceil(each).clamp(1, 4096) as u32
}

/// The sizes of a router's product.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitShape {
    pub(super) tokens: usize,
    pub(super) width: usize,
    pub(super) hidden: usize,
}

impl LogitShape {
    /// Divides the inner width into parts, so that few tokens still keep a GPU busy. Returns the number of
    /// parts and the width of each.
    pub(super) fn split_width(self) -> [usize; 2] {
        let tiles = self.tokens.div_ceil(64).max(1) * self.width.div_ceil(64);
        let wanted = 256usize.div_ceil(tiles).clamp(1, 16);
        let part = self.hidden.div_ceil(wanted).next_multiple_of(16);
        [self.hidden.div_ceil(part), part]
    }
}

/// The rank and the positions of its slots, for dispatch and combine.
#[derive(Debug, Clone, Copy)]
pub(super) struct RankPosition {
    pub(super) own: u32,
    pub(super) ranks: u32,
    pub(super) per_rank: u32,
    pub(super) hidden: u32,
    /// Tokens for which its buffers have room.
    pub(super) room: u32,
}

impl KernelLauncher<'_> {
    pub(super) fn normalise_tokens(
        self,
        x: DeviceAddress,
        weight: DeviceAddress,
        [tokens, hidden]: [usize; 2],
        exact: DeviceAddress,
        rounded: DeviceAddress,
    ) -> Result<(), CudaError> {
        let (n, width) = (tokens as u32, hidden as u32);
        launch!(
            self,
            norm,
            [block_count(tokens, 8), 1, 1],
            BLOCK_THREADS,
            0,
            &x,
            &weight,
            &n,
            &width,
            &exact,
            &rounded
        )
    }

    /// Enqueues partial sums of logits.
    pub(super) fn logit_parts(
        self,
        x: DeviceAddress,
        weight: DeviceAddress,
        shape: LogitShape,
        parts: DeviceAddress,
    ) -> Result<(), CudaError> {
        let [count, part] = shape.split_width().map(|n| n as u32);
        let [tokens, width, hidden] = [shape.tokens, shape.width, shape.hidden].map(|n| n as u32);
        let grid = [tokens.div_ceil(64), width.div_ceil(64), count];
        launch!(self, logits, grid, BLOCK_THREADS, 0, &x, &weight, &tokens, &width, &hidden, &part, &parts)
    }

    #[allow(clippy::too_many_arguments, reason = "as many as the kernel has")]
    pub(super) fn choose_experts(
        self,
        rule: &RouterRule,
        parts: DeviceAddress,
        shape: LogitShape,
        logits: DeviceAddress,
        ids: DeviceAddress,
        weights: DeviceAddress,
        bad: DeviceAddress,
    ) -> Result<(), CudaError> {
        let (count, tokens) = (shape.split_width()[0] as u32, shape.tokens as u32);
        launch!(
            self,
            choose,
            [tokens, 1, 1],
            32,
            rule.shared_bytes(),
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

    pub(super) fn sum_logit_parts(
        self,
        parts: DeviceAddress,
        bias: DeviceAddress,
        shape: LogitShape,
        logits: DeviceAddress,
    ) -> Result<(), CudaError> {
        let [count, tokens, width] = [shape.split_width()[0], shape.tokens, shape.width].map(|n| n as u32);
        let grid = [block_count(shape.tokens * shape.width, 256), 1, 1];
        launch!(self, add_up, grid, BLOCK_THREADS, 0, &parts, &bias, &count, &tokens, &width, &logits)
    }

    pub(super) fn apply_capacity(
        self,
        [tokens, top_k, experts]: [usize; 3],
        room: u64,
        ids: DeviceAddress,
        weights: DeviceAddress,
        dropped: DeviceAddress,
    ) -> Result<(), CudaError> {
        let (tokens, top_k) = (tokens as u32, top_k as u32);
        launch!(self, room, [experts as u32, 1, 1], 32, 0, &tokens, &top_k, &room, &ids, &weights, &dropped)
    }

    pub(super) fn first_replica(
        self,
        ids: DeviceAddress,
        n: usize,
        first: DeviceAddress,
        slots: DeviceAddress,
    ) -> Result<(), CudaError> {
        let many = n as u64;
        launch!(self, first_copy, [block_count(n, 256), 1, 1], BLOCK_THREADS, 0, &ids, &many, &first, &slots)
    }

    /// Counts the tokens per slot of one source's choices, and for each chunk those before it.
    pub(super) fn count_slots(
        self,
        slots: DeviceAddress,
        n: usize,
        all: usize,
        histograms: DeviceAddress,
        counts: DeviceAddress,
        faults: DeviceAddress,
    ) -> Result<(), CudaError> {
        let (many, width, chunks) = (n as u64, all as u32, n.div_ceil(CHUNK_IDS));
        let grid = [chunks as u32, 1, 1];
        let counted: Result<(), CudaError> = (|| {
            launch!(
                self,
                count,
                grid,
                CHUNK_IDS as u32,
                4 * width,
                &slots,
                &many,
                &width,
                &histograms,
                &faults
            )
        })();
        counted?;
        let chunks = chunks as u64;
        launch!(self, count_before, [width, 1, 1], 32, 0, &histograms, &chunks, &width, &counts)
    }

    pub(super) fn slot_bases(
        self,
        seat: RankPosition,
        all: DeviceAddress,
        base: DeviceAddress,
        offsets: DeviceAddress,
    ) -> Result<(), CudaError> {
        let shared = 8 * seat.ranks * seat.per_rank;
        launch!(
            self,
            bases,
            [1, 1, 1],
            BLOCK_THREADS,
            shared,
            &all,
            &seat.ranks,
            &seat.per_rank,
            &seat.own,
            &base,
            &offsets
        )
    }

    pub(super) fn place_choices(
        self,
        seat: RankPosition,
        slots: DeviceAddress,
        n: usize,
        befores: DeviceAddress,
        base: DeviceAddress,
        places: DeviceAddress,
    ) -> Result<(), CudaError> {
        let (many, all) = (n as u64, seat.ranks * seat.per_rank);
        let grid = [n.div_ceil(CHUNK_IDS) as u32, 1, 1];
        launch!(self, place, grid, CHUNK_IDS as u32, 0, &slots, &many, &all, &befores, &base, &places)
    }

    pub(super) fn number_rows(
        self,
        seat: RankPosition,
        slots: DeviceAddress,
        [tokens, top_k]: [usize; 2],
        rows: DeviceAddress,
        sizes: DeviceAddress,
    ) -> Result<(), CudaError> {
        let (tokens, top_k) = (tokens as u32, top_k as u32);
        launch!(
            self,
            number_rows,
            [seat.ranks, 1, 1],
            BLOCK_THREADS,
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

    pub(super) fn pack_parcels(
        self,
        seat: RankPosition,
        tokens: DeviceAddress,
        slots: DeviceAddress,
        [count, top_k]: [usize; 2],
        rows: DeviceAddress,
        parcels: DeviceAddress,
    ) -> Result<(), CudaError> {
        let (many, k) = ((count * top_k) as u64, top_k as u32);
        launch!(
            self,
            pack,
            [block_count(count * top_k, 8), 1, 1],
            BLOCK_THREADS,
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

    pub(super) fn accept_parcels(
        self,
        seat: RankPosition,
        inboxes: DeviceAddress,
        counts: DeviceAddress,
        top_k: usize,
        rows: DeviceAddress,
        scales: DeviceAddress,
    ) -> Result<(), CudaError> {
        let k = top_k as u32;
        let grid = [block_count(seat.room as usize * top_k, 256).min(64), seat.ranks, 1];
        launch!(
            self,
            accept,
            grid,
            BLOCK_THREADS,
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

    pub(super) fn answer_parcels(
        self,
        seat: RankPosition,
        inboxes: DeviceAddress,
        counts: DeviceAddress,
        top_k: usize,
        results: DeviceAddress,
        answers: DeviceAddress,
    ) -> Result<(), CudaError> {
        let k = top_k as u32;
        let grid = [block_count(seat.room as usize, 8).min(256), seat.ranks, 1];
        launch!(
            self,
            answer,
            grid,
            BLOCK_THREADS,
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
    pub(super) fn combine_answers(
        self,
        seat: RankPosition,
        slots: DeviceAddress,
        places: DeviceAddress,
        [tokens, top_k]: [usize; 2],
        results: DeviceAddress,
        rows: DeviceAddress,
        answers: DeviceAddress,
        shared: DeviceAddress,
        residual: DeviceAddress,
        out: DeviceAddress,
    ) -> Result<(), CudaError> {
        let (n, k) = (tokens as u32, top_k as u32);
        launch!(
            self,
            combine,
            [block_count(tokens, 8), 1, 1],
            BLOCK_THREADS,
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

    /// Enqueues a grouped product. With `pair` two matrices produce one result. `tile` is an index into
    /// [`TILE_ROWS`].
    pub(super) fn grouped_gemm(self, job: &GroupedGemm, pair: bool, tile: usize) -> Result<(), CudaError> {
        let shared = ExecKernels::gemm_shared_bytes(TILE_ROWS[tile], job.groups);
        let grid = [self.kernels.blocks[tile], 1, 1];
        if pair {
            launch!(self, pair[tile], grid, BLOCK_THREADS, shared, job)
        } else {
            launch!(self, single[tile], grid, BLOCK_THREADS, shared, job)
        }
    }

    pub(super) fn permute_rows(
        self,
        rows: DeviceAddress,
        count: usize,
        width: usize,
        out: DeviceAddress,
    ) -> Result<(), CudaError> {
        let (n, wide) = (count as u32, width as u32);
        launch!(self, permute, [block_count(count, 8), 1, 1], BLOCK_THREADS, 0, &rows, &n, &wide, &out)
    }

    /// Enqueues the activation. `gate` is 0 if there is none.
    pub(super) fn apply_activation(
        self,
        job: &GroupedGemm,
        gate: DeviceAddress,
        up: DeviceAddress,
        count: usize,
    ) -> Result<(), CudaError> {
        let n = count as u32;
        launch!(self, activate, [block_count(count, 8), 1, 1], BLOCK_THREADS, 0, job, &gate, &up, &n)
    }

    pub(super) fn weigh_rows(self, job: &GroupedGemm, count: usize) -> Result<(), CudaError> {
        let n = count as u32;
        launch!(self, weigh, [block_count(count, 8), 1, 1], BLOCK_THREADS, 0, job, &n)
    }
}
