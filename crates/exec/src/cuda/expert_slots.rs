//! The experts on a rank: those in its slots, those staged for a switch, and spare cells for later ones.

use super::dynamic_slots::DynamicCells;
use super::expert_buffer::{ExpertBuffer, ExpertLayout};
use super::kernels::{DeviceAddress, upload};
use crate::error::ExecError;
use crate::placement_state::experts_of_rank;
use cudarc::driver::CudaSlice;
use evenkeel::place::Placement;
use evenkeel_cuda::{CudaError, GpuContext};
use std::collections::HashMap;
use std::sync::Arc;

/// Experts per slot.
pub(super) type SlotBuffers = Vec<Option<Arc<ExpertBuffer>>>;

/// One rank's experts.
#[derive(Debug, Default)]
pub(super) struct ExpertSlots {
    /// `[layer][S]`
    pub(super) slots: Vec<SlotBuffers>,
    /// Cells of the dynamic slots, which follow the slots of every layer.
    pub(super) dynamic: DynamicCells,
    /// Experts staged for a later switch, by layer and expert.
    pub(super) staged: HashMap<(usize, u32), Arc<ExpertBuffer>>,
    /// Unused cells.
    spare: Vec<ExpertBuffer>,
    /// Tables per layer: the address of every slot's cell, `[S + B]`, and the first slot of every expert,
    /// `[E]`.
    cells: Vec<CudaSlice<u64>>,
    firsts: Vec<CudaSlice<i32>>,
}

impl ExpertSlots {
    /// Returns the tables of a layer: the cells' addresses and the experts' first slots, as the kernels read
    /// them.
    pub(super) fn layer_tables(&self, layer: usize) -> (&CudaSlice<u64>, &CudaSlice<i32>) {
        (&self.cells[layer], &self.firsts[layer])
    }

    /// Returns the address of the cell of every slot of a layer, `[S + B]`; 0 for an empty static slot.
    pub(super) fn slot_addresses(&self, layer: usize) -> Vec<DeviceAddress> {
        self.addresses_with(layer, &self.slots[layer])
    }

    fn addresses_with(&self, layer: usize, slots: &SlotBuffers) -> Vec<DeviceAddress> {
        let statics = slots.iter().map(|cell| cell.as_ref().map_or(0, |cell| cell.address()));
        statics.chain(self.dynamic.addresses(layer)).collect()
    }

    fn first_slots(placement: &Placement) -> Vec<i32> {
        (0..placement.experts()).map(|expert| placement.replicas(expert)[0] as i32).collect()
    }

    /// Adds a layer.
    pub(super) fn push_layer(
        &mut self,
        gpu: &GpuContext,
        placement: &Placement,
        slots: SlotBuffers,
    ) -> Result<(), CudaError> {
        self.cells.push(upload(gpu, &self.addresses_with(self.slots.len(), &slots))?);
        self.firsts.push(upload(gpu, &Self::first_slots(placement))?);
        self.slots.push(slots);
        Ok(())
    }

    /// Returns a cell for an expert: a spare one, or new memory.
    pub(super) fn take_buffer(
        &mut self,
        gpu: &GpuContext,
        shape: &ExpertLayout,
    ) -> Result<ExpertBuffer, ExecError> {
        if let Some(cell) = self.spare.pop() {
            return Ok(cell);
        }
        let (needed, free) = (shape.bytes(), gpu.device_memory()?.free);
        if needed > free {
            let device = gpu.device().name.clone();
            return Err(ExecError::Memory { what: "a staging slot for an expert", device, needed, free });
        }
        Ok(ExpertBuffer::empty(gpu, shape)?)
    }

    /// Adds an unused cell to the spare ones.
    fn recycle_buffer(&mut self, cell: Arc<ExpertBuffer>) {
        // Another backend may share the cell. Then it is not spare.
        self.spare.extend(Arc::into_inner(cell));
    }

    /// Switches a layer. The tables keep their addresses, so that recorded graphs stay valid. The GPU must be
    /// synchronised first.
    pub(super) fn replace_layer(
        &mut self,
        gpu: &GpuContext,
        layer: usize,
        placement: &Placement,
        slots: SlotBuffers,
    ) -> Result<(), CudaError> {
        let failed = CudaError::driver_error("switching a layer");
        let addresses = self.addresses_with(layer, &slots);
        gpu.stream().memcpy_htod(&addresses, &mut self.cells[layer]).map_err(&failed)?;
        gpu.stream().memcpy_htod(&Self::first_slots(placement), &mut self.firsts[layer]).map_err(failed)?;
        let old = std::mem::replace(&mut self.slots[layer], slots);
        let gone: Vec<(usize, u32)> = self.staged.keys().filter(|key| key.0 == layer).copied().collect();
        for key in gone {
            if let Some(cell) = self.staged.remove(&key) {
                self.recycle_buffer(cell);
            }
        }
        old.into_iter().flatten().for_each(|cell| self.recycle_buffer(cell));
        Ok(())
    }

    /// Returns the cell of an expert in a layer's slots, of which a rank holds at most one.
    pub(super) fn find_buffer(
        &self,
        placement: &Placement,
        rank: usize,
        layer: usize,
        expert: u32,
    ) -> Option<Arc<ExpertBuffer>> {
        let at = experts_of_rank(placement, rank).iter().position(|&held| held == Some(expert))?;
        self.slots.get(layer)?.get(at)?.clone()
    }
}
