//! Dynamic slots on the CUDA backend: cells in device memory, and the copies of experts into them.
//!
//! The host has chosen the copies of a layer from the counts of all ranks. A copy runs on the background
//! stream of its GPU, behind the dispatch of the rank that receives it. The rank's stream waits for it after
//! the static experts. An expert is copied as its cell holds it.

use super::expert_buffer::{ExpertBuffer, ExpertLayout};
use super::kernels::DeviceAddress;
use super::layer_pass::LayerContext;
use super::rank::{CudaRank, LayerPlanner};
use super::remote::RemoteRanks;
use crate::backend::{ExecConfig, LayerStage};
use crate::clock::time_work;
use crate::comm::{DeviceOperation, Purpose};
use crate::copy_exchange::{CopyExchange, LocalCopies, RankCopy};
use crate::error::ExecError;
use cudarc::driver::CudaEvent;
use evenkeel_cuda::{CudaError, GpuContext};
use std::ops::Range;
use std::sync::Arc;

/// Copies between ranks of this process.
pub(super) type LocalCells = LocalCopies<Arc<ExpertBuffer>>;

/// The cells of a rank's dynamic slots: one set for all layers, or one per layer.
#[derive(Debug, Default)]
pub(super) struct DynamicCells {
    /// Static slots of a rank, which come first.
    statics: usize,
    per_rank: usize,
    cells: Vec<ExpertBuffer>,
}

impl DynamicCells {
    /// Allocates the cells of one rank for `layers` layers. They are empty.
    pub(super) fn new(
        gpu: &GpuContext,
        shape: &ExpertLayout,
        config: &ExecConfig,
        layers: usize,
    ) -> Result<Self, CudaError> {
        let per_rank = config.dynamic_slots().map_or(0, |slots| slots.per_rank);
        let one = |_| ExpertBuffer::empty(gpu, shape);
        let cells = (0..config.dynamic_cells(layers)).map(one).collect::<Result<_, _>>()?;
        Ok(Self { statics: config.cluster.slots_per_rank(), per_rank, cells })
    }

    /// Returns the positions of a layer's cells.
    fn of_layer(&self, layer: usize) -> Range<usize> {
        let first = if self.cells.len() > self.per_rank { layer * self.per_rank } else { 0 };
        first..first + self.per_rank
    }

    /// Returns the address of the cell of every dynamic slot of a layer.
    pub(super) fn addresses(&self, layer: usize) -> impl Iterator<Item = DeviceAddress> + '_ {
        self.cells[self.of_layer(layer)].iter().map(ExpertBuffer::address)
    }

    /// Returns the position of the cell of a slot of the rank in a layer.
    fn position(&self, layer: usize, slot: usize) -> Result<usize, ExecError> {
        let at = slot.checked_sub(self.statics).filter(|&at| at < self.per_rank);
        let expected = self.statics + self.per_rank;
        let beyond = ExecError::Shape { what: "slot of a copied expert", given: slot, expected };
        Ok(self.of_layer(layer).start + at.ok_or(beyond)?)
    }
}

/// The copies of one rank in the layer that runs.
#[derive(Debug, Default)]
pub(super) struct RankCopies {
    exchange: CopyExchange,
    /// Messages to and from other processes.
    messages: Vec<DeviceOperation>,
    /// End of the copies into slots of this rank, on the background stream. It lives until the next layer,
    /// because streams may still wait for it.
    arrival: Option<CudaEvent>,
}

impl CudaRank {
    /// Collects the copies that this rank sends, and those from other processes.
    pub(super) fn collect_copies(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let LayerContext { group, placement, shape, .. } = *context;
        let (layer, own, bytes) = (context.pass.layer, self.own, shape.bytes() as usize);
        let LayerPlanner::Host(planner) = &self.planners[layer] else { return Ok(()) };
        let (experts, local) = (&self.experts, &mut context.copies);
        let held = |expert| {
            let missing = ExecError::NotStaged { layer, rank: own, expert };
            experts.find_buffer(placement, own, layer, expert).ok_or(missing)
        };
        let (mut exchange, mut messages) = (CopyExchange::default(), Vec::new());
        exchange.start(own, planner, group, |copy| {
            match copy {
                RankCopy::Local { expert, to, slot } => {
                    group.record_bytes(Purpose::Moves, [own, to], bytes);
                    local.push(to, slot, held(expert)?);
                }
                RankCopy::Sent { expert, to } => {
                    messages.push(DeviceOperation::To(to, (held(expert)?.address(), bytes)));
                }
                RankCopy::Received { from, slot } => {
                    let at = experts.dynamic.position(layer, slot)?;
                    let cell = experts.dynamic.cells[at].address();
                    messages.push(DeviceOperation::From(from, (cell, bytes)));
                }
            }
            Ok(())
        })?;
        context.run.expert_copies = exchange.copies();
        self.copies = RankCopies { exchange, messages, arrival: None };
        Ok(())
    }

    /// Enqueues this rank's copies on the background stream of its GPU, behind the dispatch.
    pub(super) fn start_copies(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (layer, own) = (context.pass.layer, self.own);
        let (local, side) = (context.copies.take(own), &context.sides[self.device].gpu);
        let messages = &self.copies.messages;
        let receives =
            !local.is_empty() || messages.iter().any(|part| matches!(part, DeviceOperation::From(..)));
        if !receives && messages.is_empty() {
            return Ok(());
        }
        self.record_mark()?;
        self.hold_back(side)?;
        // All earlier work on these cells is complete, because every layer ends with a synchronisation.
        if !local.is_empty() {
            let dynamic = &mut self.experts.dynamic;
            context.clock.record_span(side, own, LayerStage::Copy, || -> Result<(), ExecError> {
                for (slot, from) in local {
                    let at = dynamic.position(layer, slot)?;
                    dynamic.cells[at].copy_from(side, &from)?;
                }
                Ok(())
            })?;
        }
        if let Some(remote) = context.remote {
            time_work(&mut context.run.times[own][LayerStage::Copy as usize], || {
                remote.start_copies(side, messages)
            })?;
        }
        if receives {
            let failed = CudaError::driver_error("ordering copies");
            self.copies.arrival = Some(side.stream().record_event(None).map_err(failed)?);
        }
        Ok(())
    }

    /// Makes this rank's stream wait for the copies into its slots.
    pub(super) fn wait_for_copies(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let Some(arrival) = &self.copies.arrival else { return Ok(()) };
        let (gpu, side) = (&self.gpu, &context.sides[self.device].gpu);
        let (exchange, has_blas) = (&mut self.copies.exchange, self.blas.is_some());
        context.clock.record_wait(gpu, self.own, || {
            // The host waits if the library completes messages only then. It also waits before cuBLAS, whose
            // calls may wait for the stream and would not notice a lost rank.
            if let Some(remote) = context.remote.filter(|remote| has_blas || !remote.is_stream_ordered())
                && exchange.finish().is_some()
            {
                remote.wait_for_copies(side)?;
            }
            Ok(gpu.stream().wait(arrival).map_err(CudaError::driver_error("ordering copies"))?)
        })
    }

    /// Waits for the messages of this rank's copies, unless that has happened.
    pub(super) fn finish_copies(&mut self, remote: &RemoteRanks, side: &GpuContext) -> Result<(), ExecError> {
        self.copies.exchange.finish().map_or(Ok(()), |_| remote.wait_for_copies(side))
    }
}
