//! A rank's feed-forward networks, routed and shared, by our own grouped products or by cuBLAS.

use super::Path;
use super::blas::{Blas, Product};
use super::cells::CellShape;
use super::kernels::{Address, Job, On, address};
use super::layers::Layer;
use super::rank::{Buffers, Rank};
use crate::cuda::{Context, CudaError};
use crate::model::Activation;

/// Average rows per group up to which tiles of 16 and of 64 rows are taken.
const SMALL: [usize; 2] = [24, 96];

/// As the kernels number them.
fn code(activation: Activation) -> u32 {
    match activation {
        Activation::SwiGlu => 1,
        Activation::ClampedSwiGlu => 2,
        Activation::Relu => 3,
        Activation::Gelu => 4,
    }
}

/// Rows in groups, and where everything about them is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Groups {
    pub(super) shape: CellShape,
    pub(super) activation: Activation,
    pub(super) count: usize,
    pub(super) offsets: Address,
    pub(super) cells: Address,
    /// Addresses of rows, or 0 where they lie together at `base`.
    pub(super) rows: Address,
    pub(super) base: Address,
    pub(super) scale: Address,
    pub(super) inside: Address,
    pub(super) out: Address,
}

impl Groups {
    /// Gate and up, or up alone.
    pub(super) fn first(&self) -> Job {
        let shape = &self.shape;
        let [gate, up, _] = shape.bias();
        let (first, second, first_bias, second_bias) =
            if shape.gated { (0, shape.up(), gate, up) } else { (shape.up(), 0, up, 0) };
        Job {
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
            activation: code(self.activation),
        }
    }

    /// Down, weighted.
    pub(super) fn last(&self) -> Job {
        let shape = &self.shape;
        Job {
            offsets: self.offsets,
            cells: self.cells,
            rows: 0,
            base: self.inside,
            scale: self.scale,
            out: self.out,
            first: shape.down(),
            second: 0,
            first_bias: shape.bias()[2],
            second_bias: 0,
            groups: self.count as u32,
            inner: shape.inner as u32,
            columns: shape.hidden as u32,
            activation: 0,
        }
    }
}

/// Which tiles to take for groups of so many rows on average.
pub(super) fn tile(rows: usize, groups: usize) -> usize {
    let average = rows.div_ceil(groups.max(1));
    SMALL.iter().filter(|&&most| average > most).count()
}

/// The cells of a layer's slots on a rank: their addresses on the device, and on the host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cells<'a> {
    pub(super) table: Address,
    pub(super) host: &'a [Address],
}

impl Rank {
    /// The routed experts on what has come to this rank. `choices` are those of all sources.
    pub(super) fn routed(
        &self,
        path: Path,
        blas: Option<&Blas>,
        buffers: &Buffers,
        cells: Cells<'_>,
        (shape, activation): (CellShape, Activation),
        choices: usize,
    ) -> Result<(), CudaError> {
        let room = &buffers.room;
        let groups = Groups {
            shape,
            activation,
            count: room.per_rank,
            offsets: address(&buffers.offsets),
            cells: cells.table,
            rows: address(&buffers.rows),
            base: 0,
            scale: address(&buffers.scales),
            inside: address(&buffers.inside),
            out: address(&buffers.results),
        };
        if choices == 0 {
            return Ok(());
        }
        let Some(blas) = blas.filter(|_| path == Path::Cublas) else {
            return self.own(&groups, tile(choices, room.ranks * room.per_rank));
        };
        // The one synchronisation of this path: cuBLAS takes sizes from the host.
        let offsets = self.gpu.download(&buffers.offsets)?;
        let between = [address(&buffers.permuted), address(&buffers.gate), address(&buffers.up)];
        let rows = offsets.last().copied().unwrap_or(0) as usize;
        if rows == 0 {
            return Ok(());
        }
        self.on().permute(groups.rows, rows, room.hidden, between[0])?;
        dense(&self.gpu, self.on(), blas, &groups, &offsets, cells.host, between)
    }

    /// The shared expert on this rank's own tokens.
    pub(super) fn shared(
        &self,
        path: Path,
        blas: Option<&Blas>,
        buffers: &Buffers,
        layer: &Layer,
        activation: Activation,
        tokens: usize,
    ) -> Result<(), CudaError> {
        let Some(shared) = layer.shared.as_ref().filter(|_| tokens > 0) else { return Ok(()) };
        let groups = Groups {
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
        let Some(blas) = blas.filter(|_| path == Path::Cublas) else {
            return self.own(&groups, tile(tokens, 1));
        };
        let between = [address(&buffers.tokens), address(&buffers.shared_gate), address(&buffers.shared_up)];
        let cells = [shared.address()];
        dense(&self.gpu, self.on(), blas, &groups, &[0, tokens as u32], &cells, between)
    }

    fn own(&self, groups: &Groups, tile: usize) -> Result<(), CudaError> {
        self.on().grouped(&groups.first(), groups.shape.gated, tile)?;
        self.on().grouped(&groups.last(), false, tile)
    }
}

/// The experts of groups of known sizes by cuBLAS, on rows that lie together; `between` are these rows, and room for gate and up.
pub(super) fn dense(
    gpu: &Context,
    on: On<'_>,
    blas: &Blas,
    groups: &Groups,
    offsets: &[u32],
    cells: &[Address],
    [permuted, gate, up]: [Address; 3],
) -> Result<(), CudaError> {
    let (hidden, inner) = (groups.shape.hidden, groups.shape.inner);
    let product = |group: usize, from: (Address, usize), w: u64, to: (Address, usize)| {
        let begin = u64::from(offsets[group]);
        let rows = (offsets[group + 1] - offsets[group]) as usize;
        let at = |(base, width): (Address, usize)| base + 2 * begin * width as u64;
        Product { rows, columns: to.1, inner: from.1, x: at(from), w: cells[group] + w, out: at(to) }
    };
    let mut first = Vec::with_capacity(2 * cells.len());
    for group in 0..cells.len() {
        if groups.shape.gated {
            first.push(product(group, (permuted, hidden), 0, (gate, inner)));
        }
        first.push(product(group, (permuted, hidden), groups.shape.up(), (up, inner)));
    }
    blas.run(gpu, &first)?;
    let rows = offsets.last().copied().unwrap_or(0) as usize;
    on.activate(&groups.first(), if groups.shape.gated { gate } else { 0 }, up, rows)?;
    let down = |group| product(group, (groups.inside, inner), groups.shape.down(), (groups.out, hidden));
    blas.run(gpu, &(0..cells.len()).map(down).collect::<Vec<_>>())?;
    on.weigh(&groups.last(), rows)
}
