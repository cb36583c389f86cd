//! The feed-forward networks of a rank, routed and shared, by the kernels' grouped products or by cuBLAS.

use super::cublas::{CublasGemm, GemmProblem};
use super::expert_buffer::ExpertLayout;
use super::kernels::{DeviceAddress, GroupedGemm, KernelLauncher, address};
use super::rank::{CudaRank, RankBuffers};
use super::replicated::DeviceLayer;
use evenkeel::model::Activation;
use evenkeel_cuda::{CudaError, GpuContext};
use std::ops::Range;

/// Largest average number of rows per group for tiles of 16 and of 64 rows.
const MAX_TILE_AVERAGE: [usize; 2] = [24, 96];

/// Returns the number of an activation in the kernels.
fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::SwiGlu => 1,
        Activation::ClampedSwiGlu => 2,
        Activation::Relu => 3,
        Activation::Gelu => 4,
    }
}

/// Rows in groups, with the addresses of their data.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowGroups {
    pub(super) shape: ExpertLayout,
    pub(super) activation: Activation,
    pub(super) count: usize,
    pub(super) offsets: DeviceAddress,
    pub(super) cells: DeviceAddress,
    /// Addresses of rows, or 0 if the rows are consecutive at `base`.
    pub(super) rows: DeviceAddress,
    pub(super) base: DeviceAddress,
    pub(super) scale: DeviceAddress,
    pub(super) inside: DeviceAddress,
    pub(super) out: DeviceAddress,
}

impl RowGroups {
    /// Returns the job of gate and up, or of up alone.
    pub(super) fn gate_up_gemm(&self) -> GroupedGemm {
        let shape = &self.shape;
        let [gate, up, _] = shape.bias_offsets();
        let (first, second, first_bias, second_bias) =
            if shape.gated { (0, shape.up_offset(), gate, up) } else { (shape.up_offset(), 0, up, 0) };
        GroupedGemm {
            offsets: self.offsets,
            cells: self.cells,
            rows: self.rows,
            base: self.base,
            scale: 0,
            out: self.inside,
            first,
            second,
            first_bias,
            second_bias,
            groups: self.count as u32,
            inner: shape.hidden as u32,
            columns: shape.inner as u32,
            activation: activation_code(self.activation),
        }
    }

    /// Returns the job of down, with weights.
    pub(super) fn down_gemm(&self) -> GroupedGemm {
        let shape = &self.shape;
        GroupedGemm {
            offsets: self.offsets,
            cells: self.cells,
            rows: 0,
            base: self.inside,
            scale: self.scale,
            out: self.out,
            first: shape.down_offset(),
            second: 0,
            first_bias: shape.bias_offsets()[2],
            second_bias: 0,
            groups: self.count as u32,
            inner: shape.inner as u32,
            columns: shape.hidden as u32,
            activation: 0,
        }
    }
}

/// Returns the index of the tile size for groups with this average number of rows.
pub(super) fn tile_index(rows: usize, groups: usize) -> usize {
    let average = rows.div_ceil(groups.max(1));
    MAX_TILE_AVERAGE.iter().filter(|&&most| average > most).count()
}

/// The cells of a layer's slots on a rank: their addresses on the device, and on the host.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotAddresses<'a> {
    pub(super) table: DeviceAddress,
    pub(super) host: &'a [DeviceAddress],
}

impl CudaRank {
    /// Puts received rows next to each other for cuBLAS, and returns the first row of every slot, for which
    /// the host waits. Own kernels need neither. `choices` are those of all sources.
    pub(super) fn prepare_routed(
        &self,
        buffers: &RankBuffers,
        choices: usize,
    ) -> Result<Option<Vec<u32>>, CudaError> {
        if self.blas.is_none() || choices == 0 {
            return Ok(None);
        }
        // This is the only synchronisation of this path: cuBLAS takes sizes from the host.
        let offsets = self.gpu.download(&buffers.offsets)?;
        let rows = offsets.last().copied().unwrap_or(0) as usize;
        if rows > 0 {
            let permuted = address(&buffers.permuted);
            self.launcher().permute_rows(address(&buffers.rows), rows, buffers.room.hidden, permuted)?;
        }
        Ok(Some(offsets))
    }

    /// Runs the routed experts of some slots on the rows received by this rank. `offsets` are the result of
    /// [`Self::prepare_routed`].
    pub(super) fn run_routed(
        &self,
        buffers: &RankBuffers,
        (cells, slots): (SlotAddresses<'_>, Range<usize>),
        offsets: Option<&[u32]>,
        (shape, activation): (ExpertLayout, Activation),
        choices: usize,
    ) -> Result<(), CudaError> {
        let room = &buffers.room;
        let groups = RowGroups {
            shape,
            activation,
            count: slots.len(),
            offsets: address(&buffers.offsets) + 4 * slots.start as u64,
            cells: cells.table + 8 * slots.start as u64,
            rows: address(&buffers.rows),
            base: 0,
            scale: address(&buffers.scales),
            inside: address(&buffers.inside),
            out: address(&buffers.results),
        };
        if choices == 0 || slots.is_empty() {
            return Ok(());
        }
        let (Some(blas), Some(offsets)) = (&self.blas, offsets) else {
            return self.run_own_kernels(&groups, tile_index(choices, room.ranks * room.per_rank));
        };
        let between = [address(&buffers.permuted), address(&buffers.gate), address(&buffers.up)];
        let (offsets, cells) = (&offsets[slots.start..=slots.end], &cells.host[slots]);
        run_cublas(&self.gpu, self.launcher(), blas, &groups, offsets, cells, between)
    }

    /// Runs the shared expert on this rank's own tokens.
    pub(super) fn run_shared(
        &self,
        buffers: &RankBuffers,
        layer: &DeviceLayer,
        activation: Activation,
        tokens: usize,
    ) -> Result<(), CudaError> {
        let Some(shared) = layer.shared.as_ref().filter(|_| tokens > 0) else { return Ok(()) };
        let groups = RowGroups {
            shape: shared.shape,
            activation,
            count: 1,
            offsets: address(&buffers.shared_offsets),
            cells: address(&shared.cells),
            rows: 0,
            base: address(&buffers.tokens),
            scale: 0,
            inside: address(&buffers.shared_inside),
            out: address(&buffers.shared_out),
        };
        let Some(blas) = &self.blas else {
            return self.run_own_kernels(&groups, tile_index(tokens, 1));
        };
        let between = [address(&buffers.tokens), address(&buffers.shared_gate), address(&buffers.shared_up)];
        let cells = [shared.address()];
        run_cublas(&self.gpu, self.launcher(), blas, &groups, &[0, tokens as u32], &cells, between)
    }

    fn run_own_kernels(&self, groups: &RowGroups, tile: usize) -> Result<(), CudaError> {
        self.launcher().grouped_gemm(&groups.gate_up_gemm(), groups.shape.gated, tile)?;
        self.launcher().grouped_gemm(&groups.down_gemm(), false, tile)
    }
}

/// Runs the experts of groups of known sizes by cuBLAS, on consecutive rows. `offsets` are the first rows of
/// the groups and the end of the last one. `between` contains the rows, and space for gate and up.
pub(super) fn run_cublas(
    gpu: &GpuContext,
    on: KernelLauncher<'_>,
    blas: &CublasGemm,
    groups: &RowGroups,
    offsets: &[u32],
    cells: &[DeviceAddress],
    [permuted, gate, up]: [DeviceAddress; 3],
) -> Result<(), CudaError> {
    let (hidden, inner) = (groups.shape.hidden, groups.shape.inner);
    let product = |group: usize, from: (DeviceAddress, usize), w: u64, to: (DeviceAddress, usize)| {
        let begin = u64::from(offsets[group]);
        let rows = (offsets[group + 1] - offsets[group]) as usize;
        let at = |(base, width): (DeviceAddress, usize)| base + 2 * begin * width as u64;
        GemmProblem { rows, columns: to.1, inner: from.1, x: at(from), w: cells[group] + w, out: at(to) }
    };
    let mut first = Vec::with_capacity(2 * cells.len());
    for group in 0..cells.len() {
        if groups.shape.gated {
            first.push(product(group, (permuted, hidden), 0, (gate, inner)));
        }
        first.push(product(group, (permuted, hidden), groups.shape.up_offset(), (up, inner)));
    }
    let rows = (offsets[cells.len()] - offsets[0]) as usize;
    if rows == 0 {
        return Ok(());
    }
    blas.run_products(gpu, &first)?;
    on.apply_activation(&groups.gate_up_gemm(), if groups.shape.gated { gate } else { 0 }, up, rows)?;
    let down =
        |group| product(group, (groups.inside, inner), groups.shape.down_offset(), (groups.out, hidden));
    blas.run_products(gpu, &(0..cells.len()).map(down).collect::<Vec<_>>())?;
    on.weigh_rows(&groups.down_gemm(), rows)
}
