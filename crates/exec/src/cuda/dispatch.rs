//! Between routing and experts: who serves which token, and tokens on their way there.

use super::clock::Clock;
use super::far::Far;
use super::home::Home;
use super::kernels::address;
use super::rank::{Buffers, Rank, mirror};
use super::step::{Pass, meet, parts};
use super::{Plan, Streams};
use crate::cuda::{CudaError, DeviceGather};
use crate::exec::backend::Phase;
use crate::exec::error::ExecError;

/// Does something with a rank and its buffers, which are taken out of it for that long.
pub(super) fn with_buffers<T>(
    rank: &mut Rank,
    work: impl FnOnce(&Rank, &mut Buffers) -> Result<T, CudaError>,
) -> Result<T, ExecError> {
    let Some(mut buffers) = rank.buffers.take() else {
        return Err(ExecError::Nothing("a rank without buffers".into()));
    };
    let done = work(rank, &mut buffers);
    rank.buffers = Some(buffers);
    Ok(done?)
}

/// Counts, gathers, splits and maps, or takes first copies; a split on the host has been made already. `far` is whether other ranks are
/// in other processes.
pub(super) fn split(
    plan: &mut Plan,
    ranks: &mut [Rank],
    homes: &[Home],
    board: &mut dyn DeviceGather,
    clock: &mut Clock,
    pass: &Pass,
    (streams, far): (Streams, bool),
) -> Result<(), ExecError> {
    match plan {
        Plan::Host(_) => {}
        Plan::None => {
            for (at, rank) in ranks.iter().enumerate() {
                let (buffers, _) = parts(rank)?;
                let (_, firsts) = homes[at].tables(pass.layer);
                clock.span(&rank.gpu, rank.own, Phase::Split, || {
                    let (ids, slots) = (address(&buffers.ids), address(&buffers.slots));
                    rank.on().first_copy(ids, buffers.room.choices(), address(firsts), slots)
                })?;
            }
        }
        Plan::Device(planners) => {
            for (rank, planner) in ranks.iter().zip(planners.iter_mut()) {
                let (at, (buffers, _)) = (rank.own, parts(rank)?);
                clock.span(&rank.gpu, at, Phase::Count, || planner.count(&buffers.ids))?;
                clock.span(&rank.gpu, at, Phase::Split, || planner.offer(board))?;
            }
            meet(ranks, streams)?;
            for (rank, planner) in ranks.iter_mut().zip(planners) {
                let (at, gpu) = (rank.own, rank.gpu.clone());
                // Waiting for other processes is no work of this rank's.
                if far {
                    planner.collect(0, board)?;
                } else {
                    clock.span(&gpu, at, Phase::Split, || planner.collect(0, board))?;
                }
                clock.span(&gpu, at, Phase::Split, || -> Result<(), ExecError> {
                    planner.solve(0)?;
                    planner.share(0)?;
                    with_buffers(rank, |_, buffers| planner.map(0, &buffers.ids, &mut buffers.slots))
                })?;
            }
        }
    }
    Ok(())
}

/// Every source says where its visits go and packs its tokens; every rank takes in what came.
pub(super) fn dispatch(
    ranks: &mut [Rank],
    board: &mut dyn DeviceGather,
    clock: &mut Clock,
    pass: &Pass,
    streams: Streams,
    far: Option<&Far>,
) -> Result<(), ExecError> {
    for rank in ranks.iter() {
        let (at, (buffers, _)) = (rank.own, parts(rank)?);
        clock.span(&rank.gpu, at, Phase::Dispatch, || {
            let (n, all) = (buffers.room.choices(), buffers.room.ranks * buffers.room.per_rank);
            let (slots, counts) = (address(&buffers.slots), address(&buffers.own_counts));
            rank.on().count_slots(
                slots,
                n,
                all,
                address(&buffers.histograms),
                counts,
                address(&buffers.faults),
            )?;
            board.offer(at, &buffers.own_counts, &rank.gpu)
        })?;
    }
    meet(ranks, streams)?;
    for rank in ranks.iter_mut() {
        let (at, gpu) = (rank.own, rank.gpu.clone());
        let mut collect = || {
            with_buffers(rank, |rank, buffers| {
                board.collect(at, &buffers.own_counts, &mut buffers.all_counts.as_view_mut(), &rank.gpu)
            })
        };
        if far.is_some() {
            collect()?;
        } else {
            clock.span(&gpu, at, Phase::Dispatch, collect)?;
        }
        clock.span(&gpu, at, Phase::Dispatch, || -> Result<(), ExecError> {
            let (buffers, tables) = parts(rank)?;
            let (seat, size) = (rank.seat(&buffers.room), [pass.rows[at], pass.top_k]);
            let (slots, base) = (address(&buffers.slots), address(&buffers.base));
            rank.on().bases(seat, address(&buffers.all_counts), base, address(&buffers.offsets))?;
            let (befores, places) = (address(&buffers.histograms), address(&buffers.places));
            rank.on().place(seat, slots, buffers.room.choices(), befores, base, places)?;
            if buffers.room.ranks == 1 || pass.rows[at] == 0 {
                return Ok(());
            }
            let (rows, tokens) = (address(&buffers.parcel_rows), address(&buffers.tokens));
            rank.on().number_rows(seat, slots, size, rows, address(&buffers.sizes))?;
            Ok(rank.on().pack(seat, tokens, slots, size, rows, address(&tables.parcels))?)
        })?;
    }
    meet(ranks, streams)?;
    if let Some(far) = far {
        ranks.iter_mut().try_for_each(|rank| far.parcels(rank, pass))?;
    }
    for at in 0..ranks.len() {
        let (gpu, own) = (ranks[at].gpu.clone(), ranks[at].own);
        if ranks.iter().any(|rank| rank.device != ranks[at].device) {
            clock.span(&gpu, own, Phase::Dispatch, || mirror(ranks, at, false))?;
        }
        let rank = &ranks[at];
        let (buffers, tables) = parts(rank)?;
        clock.span(&rank.gpu, own, Phase::Dispatch, || {
            let (inboxes, counts) = (address(&tables.inboxes), address(&buffers.choices));
            let (rows, scales) = (address(&buffers.rows), address(&buffers.scales));
            rank.on().accept(rank.seat(&buffers.room), inboxes, counts, pass.top_k, rows, scales)
        })?;
    }
    Ok(())
}
