//! Which experts are on a rank: those in its slots, those staged for a switch, and spare cells for the next ones.

use super::cells::{Cell, CellShape};
use super::kernels::{Address, upload};
use crate::cuda::{Context, CudaError};
use crate::exec::error::ExecError;
use crate::place::Placement;
use cudarc::driver::CudaSlice;
use std::collections::HashMap;
use std::sync::Arc;

/// Experts per slot.
pub(super) type Slots = Vec<Option<Arc<Cell>>>;

/// One rank's experts.
#[derive(Debug, Default)]
pub(super) struct Home {
    /// `[layer][S]`
    pub(super) slots: Vec<Slots>,
    /// By layer and expert: there for a switch to come.
    pub(super) staged: HashMap<(usize, u32), Arc<Cell>>,
    /// Cells that nobody uses any more.
    spare: Vec<Cell>,
    /// Per layer: the address of every slot's cell, `[S]`, and every expert's first slot, `[E]`.
    cells: Vec<CudaSlice<u64>>,
    firsts: Vec<CudaSlice<i32>>,
}

/// The experts in one rank's slots, `[S]`.
pub(super) fn of_rank(placement: &Placement, rank: usize) -> &[Option<u32>] {
    let per_rank = placement.slots_per_rank();
    placement.slots().get(rank * per_rank..(rank + 1) * per_rank).unwrap_or_default()
}

impl Home {
    /// The cells' addresses and the experts' first slots of a layer, as the kernels read them.
    pub(super) fn tables(&self, layer: usize) -> (&CudaSlice<u64>, &CudaSlice<i32>) {
        (&self.cells[layer], &self.firsts[layer])
    }

    /// Where the cell of every slot is; 0 for none.
    pub(super) fn addresses(slots: &Slots) -> Vec<Address> {
        slots.iter().map(|cell| cell.as_ref().map_or(0, |cell| cell.address())).collect()
    }

    fn firsts(placement: &Placement) -> Vec<i32> {
        (0..placement.experts()).map(|expert| placement.copies(expert)[0] as i32).collect()
    }

    /// One more layer.
    pub(super) fn push(
        &mut self,
        gpu: &Context,
        placement: &Placement,
        slots: Slots,
    ) -> Result<(), CudaError> {
        self.cells.push(upload(gpu, &Self::addresses(&slots))?);
        self.firsts.push(upload(gpu, &Self::firsts(placement))?);
        self.slots.push(slots);
        Ok(())
    }

    /// A cell for an expert: a spare one, or new memory.
    pub(super) fn cell(&mut self, gpu: &Context, shape: &CellShape) -> Result<Cell, ExecError> {
        if let Some(cell) = self.spare.pop() {
            return Ok(cell);
        }
        let (needed, (free, _)) = (shape.bytes(), gpu.memory()?);
        if needed > free {
            let device = gpu.device().name.clone();
            return Err(ExecError::Memory {
                what: "a staging slot for an expert would",
                device,
                needed,
                free,
            });
        }
        Ok(Cell::empty(gpu, shape)?)
    }

    /// A cell that is needed no more.
    fn retire(&mut self, cell: Arc<Cell>) {
        // Another backend may have it too.
        self.spare.extend(Arc::into_inner(cell));
    }

    /// Switches a layer: the tables keep their addresses, so that recorded graphs stay right about them. The GPU has been
    /// waited for.
    pub(super) fn switch(
        &mut self,
        gpu: &Context,
        layer: usize,
        placement: &Placement,
        slots: Slots,
    ) -> Result<(), CudaError> {
        let failed = CudaError::driver("switching a layer");
        gpu.stream().memcpy_htod(&Self::addresses(&slots), &mut self.cells[layer]).map_err(&failed)?;
        gpu.stream().memcpy_htod(&Self::firsts(placement), &mut self.firsts[layer]).map_err(failed)?;
        let old = std::mem::replace(&mut self.slots[layer], slots);
        let gone: Vec<(usize, u32)> = self.staged.keys().filter(|key| key.0 == layer).copied().collect();
        for key in gone {
            if let Some(cell) = self.staged.remove(&key) {
                self.retire(cell);
            }
        }
        old.into_iter().flatten().for_each(|cell| self.retire(cell));
        Ok(())
    }

    /// The one weight cell that a rank holds of an expert in a layer's slots.
    pub(super) fn held(
        &self,
        placement: &Placement,
        rank: usize,
        layer: usize,
        expert: u32,
    ) -> Option<Arc<Cell>> {
        let at = of_rank(placement, rank).iter().position(|&held| held == Some(expert))?;
        self.slots.get(layer)?.get(at)?.clone()
    }
}
