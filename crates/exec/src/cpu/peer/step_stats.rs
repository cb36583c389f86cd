//! What a step did on one rank, as numbers for the others.
//!
//! In: this rank's [`StepRun`]. Out: everybody's, the same on all of them.

use crate::exec::backend::{LayerRun, Phase};
use crate::exec::error::ExecError;
use crate::exec::forward::StepRun;
use crate::exec::reference::Check;
use crate::exec::transport::{Purpose, Wire};
use crate::planner::Copies;
use std::time::Duration;

/// Numbers of a layer before its counts.
const OF_LAYER: usize = 1 + Phase::ALL.len() + 4 + 4;
/// Numbers of a step behind its layers.
const OF_STEP: usize = 4;

/// Replaces what one rank knows by what all know together; the step took as long as on the slowest.
pub(in crate::exec) fn complete(wire: &Wire, experts: usize, run: &mut StepRun) -> Result<(), ExecError> {
    let (me, ranks) = (wire.rank(), wire.ranks());
    let mut own = Vec::with_capacity(run.layers.len() * (OF_LAYER + experts) + OF_STEP);
    for layer in &run.layers {
        tell(layer, me, &mut own);
    }
    let check = run.check.unwrap_or_default();
    own.extend([run.wall.as_nanos() as u64, check.output.to_bits(), check.logits.to_bits(), check.misrouted]);

    let all = wire.all_numbers(Purpose::Control, &own)?;
    for layer in &mut run.layers {
        layer.counts = vec![0; experts];
        layer.by_source = Vec::with_capacity(ranks * experts);
        layer.copies = Copies::default();
        layer.rank_loads = vec![0; ranks];
    }
    for (rank, numbers) in all.chunks_exact(own.len()).enumerate() {
        let (of_layers, of_step) = numbers.split_at(own.len() - OF_STEP);
        for (layer, numbers) in run.layers.iter_mut().zip(of_layers.chunks_exact(OF_LAYER + experts)) {
            hear(layer, rank, rank == me, numbers);
        }
        run.wall = run.wall.max(Duration::from_nanos(of_step[0]));
        let [output, logits] = [of_step[1], of_step[2]].map(f64::from_bits);
        let other = Check { output, logits, misrouted: of_step[3] };
        // This rank's own is in it already.
        run.check = run.check.map(|check| if rank == me { check } else { check.and(other) });
    }
    Ok(())
}

fn tell(layer: &LayerRun, me: usize, out: &mut Vec<u64>) {
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
    ]);
    out.extend(&layer.counts);
}

fn hear(layer: &mut LayerRun, rank: usize, own: bool, numbers: &[u64]) {
    let (fixed, counts) = numbers.split_at(OF_LAYER);
    let (times, rest) = fixed[1..].split_at(Phase::ALL.len());
    layer.rank_loads[rank] = fixed[0];
    layer.times[rank].iter_mut().zip(times).for_each(|(time, &nanos)| *time = Duration::from_nanos(nanos));
    layer.copies.tokens += rest[0];
    layer.copies.pairs += rest[1];
    layer.copies.to_ranks += rest[2];
    layer.copies.to_nodes += rest[3];
    if !own {
        let routed = &mut layer.routed[rank];
        routed.elsewhere = rest[4] == 1;
        routed.routing.dropped = rest[5];
        routed.routing.loss.balance = f64::from_bits(rest[6]);
        routed.routing.loss.z = f64::from_bits(rest[7]);
    }
    layer.by_source.extend(counts);
    layer.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
}
