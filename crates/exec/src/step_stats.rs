//! Exchanges the results of a step between the ranks, as numbers.
//!
//! Input: this rank's [`StepRun`]. Output: the results of all ranks, the same on all of them.

use crate::backend::{LayerRun, LayerStage};
use crate::comm::{ProcessGroup, Purpose};
use crate::error::ExecError;
use crate::forward::StepRun;
use crate::reference::ReferenceCheck;
use evenkeel::planner::TokenCopies;
use std::time::Duration;

/// Numbers of a layer before its counts.
const VALUES_PER_LAYER: usize = 1 + LayerStage::ALL.len() + 4 + 4 + 1;
/// Numbers of a step after its layers.
const VALUES_PER_STEP: usize = 4;

/// Replaces the results of one rank by those of all, unless all are in this process. The time of the step is
/// that of the slowest rank.
pub(crate) fn gather_step_stats(
    group: &ProcessGroup,
    experts: usize,
    run: &mut StepRun,
) -> Result<(), ExecError> {
    if group.is_complete() {
        return Ok(());
    }
    let (me, ranks) = (group.rank(), group.ranks());
    let mut own = Vec::with_capacity(run.layers.len() * (VALUES_PER_LAYER + experts) + VALUES_PER_STEP);
    for layer in &run.layers {
        encode_layer(layer, me, &mut own);
    }
    let check = run.check.unwrap_or_default();
    own.extend([run.wall.as_nanos() as u64, check.output.to_bits(), check.logits.to_bits(), check.misrouted]);

    let all = group.all_gather_u64(Purpose::Control, &own)?;
    for layer in &mut run.layers {
        layer.counts = vec![0; experts];
        layer.counts_by_source = Vec::with_capacity(ranks * experts);
        layer.copies = TokenCopies::default();
        layer.rank_loads = vec![0; ranks];
    }
    for (rank, numbers) in all.chunks_exact(own.len()).enumerate() {
        let (of_layers, of_step) = numbers.split_at(own.len() - VALUES_PER_STEP);
        for (layer, numbers) in run.layers.iter_mut().zip(of_layers.chunks_exact(VALUES_PER_LAYER + experts))
        {
            decode_layer(layer, rank, rank == me, numbers);
        }
        run.wall = run.wall.max(Duration::from_nanos(of_step[0]));
        let [output, logits] = [of_step[1], of_step[2]].map(f64::from_bits);
        let other = ReferenceCheck { output, logits, misrouted: of_step[3] };
        // This rank's own check is already included.
        run.check = run.check.map(|check| if rank == me { check } else { check.merge(other) });
    }
    Ok(())
}

fn encode_layer(layer: &LayerRun, me: usize, out: &mut Vec<u64>) {
    let (copies, routed) = (layer.copies, &layer.routed[me]);
    out.push(layer.rank_loads[me]);
    out.extend(layer.times[me].map(|time| time.as_nanos() as u64));
    out.extend([copies.tokens, copies.pairs, copies.to_ranks, copies.to_nodes]);
    let loss = routed.routing.loss;
    out.extend([
        u64::from(!routed.logits.is_empty()),
        routed.routing.dropped,
        loss.balance.to_bits(),
        loss.z.to_bits(),
        layer.copy_waits.get(me).map_or(0, |wait| wait.as_nanos() as u64),
    ]);
    out.extend(&layer.counts);
}

fn decode_layer(layer: &mut LayerRun, rank: usize, own: bool, numbers: &[u64]) {
    let (fixed, counts) = numbers.split_at(VALUES_PER_LAYER);
    let (times, rest) = fixed[1..].split_at(LayerStage::ALL.len());
    layer.rank_loads[rank] = fixed[0];
    layer.times[rank].iter_mut().zip(times).for_each(|(time, &nanos)| *time = Duration::from_nanos(nanos));
    layer.copies.tokens += rest[0];
    layer.copies.pairs += rest[1];
    layer.copies.to_ranks += rest[2];
    layer.copies.to_nodes += rest[3];
    if !own {
        let routed = &mut layer.routed[rank];
        routed.is_remote = rest[4] == 1;
        routed.routing.dropped = rest[5];
        routed.routing.loss.balance = f64::from_bits(rest[6]);
        routed.routing.loss.z = f64::from_bits(rest[7]);
    }
    if let Some(wait) = layer.copy_waits.get_mut(rank) {
        *wait = Duration::from_nanos(rest[8]);
    }
    layer.counts_by_source.extend(counts);
    layer.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
}
