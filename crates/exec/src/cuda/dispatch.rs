//! The steps between routing and experts: selection of slots, and transport of tokens.

use super::expert_slots::ExpertSlots;
use super::kernels::address;
use super::layer_pass::{LayerPass, buffers_and_tables, synchronize_streams};
use super::rank::{CudaRank, RankBuffers, copy_mirrors};
use super::remote::RemoteRanks;
use super::stage_timer::StageTimer;
use super::{LayerPlanners, StreamSharing};
use crate::backend::LayerStage;
use crate::error::ExecError;
use evenkeel_cuda::{CudaError, DeviceGather};

/// Runs a function on a rank and its buffers, which are taken out of the rank meanwhile.
pub(super) fn with_buffers<T>(
    rank: &mut CudaRank,
    work: impl FnOnce(&CudaRank, &mut RankBuffers) -> Result<T, CudaError>,
) -> Result<T, ExecError> {
    let Some(mut buffers) = rank.buffers.take() else {
        return Err(ExecError::Nothing("a rank without buffers".into()));
    };
    let done = work(rank, &mut buffers);
    rank.buffers = Some(buffers);
    Ok(done?)
}

/// Counts, gathers, splits and maps on the device, or selects first replicas. A split on the host has already
/// been made. `far` is true if other ranks are in other processes.
pub(super) fn split_batch(
    plan: &mut LayerPlanners,
    ranks: &mut [CudaRank],
    homes: &[ExpertSlots],
    board: &mut dyn DeviceGather,
    clock: &mut StageTimer,
    pass: &LayerPass,
    (streams, far): (StreamSharing, bool),
) -> Result<(), ExecError> {
    match plan {
        LayerPlanners::Host(_) => {}
        LayerPlanners::None => {
            for (at, rank) in ranks.iter().enumerate() {
                let (buffers, _) = buffers_and_tables(rank)?;
                let (_, firsts) = homes[at].layer_tables(pass.layer);
                clock.record_span(&rank.gpu, rank.own, LayerStage::Split, || {
                    let (ids, slots) = (address(&buffers.ids), address(&buffers.slots));
                    rank.launcher().first_replica(ids, buffers.room.max_choices(), address(firsts), slots)
                })?;
            }
        }
        LayerPlanners::Device(planners) => {
            for (rank, planner) in ranks.iter().zip(planners.iter_mut()) {
                let (at, (buffers, _)) = (rank.own, buffers_and_tables(rank)?);
                clock.record_span(&rank.gpu, at, LayerStage::Count, || planner.count_ids(&buffers.ids))?;
                clock.record_span(&rank.gpu, at, LayerStage::Split, || planner.offer_counts(board))?;
            }
            synchronize_streams(ranks, streams)?;
            for (rank, planner) in ranks.iter_mut().zip(planners) {
                let (at, gpu) = (rank.own, rank.gpu.clone());
                // The time of waiting for other processes is not this rank's work.
                if far {
                    planner.collect_counts(0, board)?;
                } else {
                    clock.record_span(&gpu, at, LayerStage::Split, || planner.collect_counts(0, board))?;
                }
                clock.record_span(&gpu, at, LayerStage::Split, || -> Result<(), ExecError> {
                    planner.solve(0)?;
                    planner.compute_shares(0)?;
                    with_buffers(rank, |_, buffers| planner.map_ids(0, &buffers.ids, &mut buffers.slots))
                })?;
            }
        }
    }
    Ok(())
}

/// Maps assignments to send buffers and packs tokens on every source, then reads the received send buffers
/// on every rank.
pub(super) fn dispatch_tokens(
    ranks: &mut [CudaRank],
    board: &mut dyn DeviceGather,
    clock: &mut StageTimer,
    pass: &LayerPass,
    streams: StreamSharing,
    far: Option<&RemoteRanks>,
) -> Result<(), ExecError> {
    for rank in ranks.iter() {
        let (at, (buffers, _)) = (rank.own, buffers_and_tables(rank)?);
        clock.record_span(&rank.gpu, at, LayerStage::Dispatch, || {
            let (n, all) = (buffers.room.max_choices(), buffers.room.ranks * buffers.room.per_rank);
            let (slots, counts) = (address(&buffers.slots), address(&buffers.own_counts));
            rank.launcher().count_slots(
                slots,
                n,
                all,
                address(&buffers.histograms),
                counts,
                address(&buffers.faults),
            )?;
            board.offer_counts(at, &buffers.own_counts, &rank.gpu)
        })?;
    }
    synchronize_streams(ranks, streams)?;
    for rank in ranks.iter_mut() {
        let (at, gpu) = (rank.own, rank.gpu.clone());
        let mut collect = || {
            with_buffers(rank, |rank, buffers| {
                board.collect_counts(
                    at,
                    &buffers.own_counts,
                    &mut buffers.all_counts.as_view_mut(),
                    &rank.gpu,
                )
            })
        };
        if far.is_some() {
            collect()?;
        } else {
            clock.record_span(&gpu, at, LayerStage::Dispatch, collect)?;
        }
        clock.record_span(&gpu, at, LayerStage::Dispatch, || -> Result<(), ExecError> {
            let (buffers, tables) = buffers_and_tables(rank)?;
            let (seat, size) = (rank.rank_position(&buffers.room), [pass.rows[at], pass.top_k]);
            let (slots, base) = (address(&buffers.slots), address(&buffers.base));
            rank.launcher().slot_bases(
                seat,
                address(&buffers.all_counts),
                base,
                address(&buffers.offsets),
            )?;
            let (befores, places) = (address(&buffers.histograms), address(&buffers.places));
            rank.launcher().place_choices(seat, slots, buffers.room.max_choices(), befores, base, places)?;
            if buffers.room.ranks == 1 || pass.rows[at] == 0 {
                return Ok(());
            }
            let (rows, tokens) = (address(&buffers.parcel_rows), address(&buffers.tokens));
            rank.launcher().number_rows(seat, slots, size, rows, address(&buffers.sizes))?;
            Ok(rank.launcher().pack_parcels(seat, tokens, slots, size, rows, address(&tables.parcels))?)
        })?;
    }
    synchronize_streams(ranks, streams)?;
    if let Some(far) = far {
        ranks.iter_mut().try_for_each(|rank| far.exchange_parcels(rank, pass))?;
    }
    for at in 0..ranks.len() {
        let (gpu, own) = (ranks[at].gpu.clone(), ranks[at].own);
        if ranks.iter().any(|rank| rank.device != ranks[at].device) {
            clock.record_span(&gpu, own, LayerStage::Dispatch, || copy_mirrors(ranks, at, false))?;
        }
        let rank = &ranks[at];
        let (buffers, tables) = buffers_and_tables(rank)?;
        clock.record_span(&rank.gpu, own, LayerStage::Dispatch, || {
            let (inboxes, counts) = (address(&tables.inboxes), address(&buffers.choices));
            let (rows, scales) = (address(&buffers.rows), address(&buffers.scales));
            rank.launcher().accept_parcels(
                rank.rank_position(&buffers.room),
                inboxes,
                counts,
                pass.top_k,
                rows,
                scales,
            )
        })?;
    }
    Ok(())
}
