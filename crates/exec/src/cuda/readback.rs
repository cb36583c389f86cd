//! Copies the results of a layer back to the host.

use super::Cuda;
use super::layer_pass::{LayerPass, buffers_and_tables};
use super::rank::LayerPlanner;
use super::route::{ChoiceSource, choose_on_host};
use crate::backend::LayerRun;
use crate::error::ExecError;
use crate::router::RouterError;

impl Cuda {
    /// Waits for the device, and adds its results to those of the host.
    pub(super) fn read_results(&mut self, pass: &LayerPass, run: &mut LayerRun) -> Result<(), ExecError> {
        if let Some(far) = &self.remote {
            // Copies come first: the ranks that receive them answer later.
            for rank in &mut self.ranks {
                rank.finish_copies(far, &self.sides[rank.device].gpu)?;
            }
            self.ranks.iter().try_for_each(|rank| far.synchronize(rank))?;
            far.record_times()?;
        }
        self.synchronize()?;
        let (model, cluster) = (&self.config.model, &self.config.widened_cluster()?);
        let (hidden, k) = (model.hidden as usize, pass.top_k);
        let layer = &self.device_layers()[pass.layer];
        run.counts = vec![0; model.experts];
        run.outputs = vec![vec![]; cluster.ranks()];
        run.rank_loads = vec![0; cluster.ranks()];
        for rank in &self.ranks {
            let (at, (buffers, _)) = (rank.own, buffers_and_tables(rank)?);
            let (tokens, rows, gpu) = (pass.tokens[at], pass.rows[at], &rank.gpu);
            let args = self.config.route_args(pass.step, pass.layer, at);
            if pass.chooser == ChoiceSource::Device && tokens > 0 {
                let bad = gpu.download(&buffers.bad)?.first().copied().unwrap_or(u32::MAX);
                if bad != u32::MAX {
                    return Err(RouterError::NotFinite { token: bad as usize }.into());
                }
                let logits = gpu.download(&buffers.logits.slice(..tokens * buffers.room.width))?;
                // Losses are statistics, so the host computes them from the same logits.
                let mut of_source = choose_on_host(&layer.router, logits, &args)?;
                of_source.routing.ids = gpu.download(&buffers.ids.slice(..tokens * k))?;
                of_source.routing.weights = gpu.download(&buffers.weights.slice(..tokens * k))?;
                of_source.routing.dropped =
                    u64::from(gpu.download(&buffers.dropped)?.first().copied().unwrap_or(0));
                run.routed[at] = of_source;
            } else if pass.chooser == ChoiceSource::Device {
                run.routed[at] = choose_on_host(&layer.router, vec![], &args)?;
            }
            for &id in &run.routed[at].routing.ids {
                if let Some(count) = usize::try_from(id).ok().and_then(|id| run.counts.get_mut(id)) {
                    *count += 1;
                }
            }
            let offsets = gpu.download(&buffers.offsets)?;
            run.rank_loads[at] = u64::from(offsets.last().copied().unwrap_or(0));
            if rows == 0 {
                continue;
            }
            let slots = gpu.download(&buffers.slots.slice(..rows * k))?;
            run.copies.add_source(&slots, k, at, cluster);
            if let Some(far) = &self.remote {
                far.record_local(&slots, &buffers.room, k);
            }
            let mut out = gpu.download(&buffers.out.slice(..rows * hidden))?;
            if let Some(soft) = &run.routed[at].soft {
                out = soft.unmix_results(&out, hidden);
                if layer.shared.is_some() {
                    let shared = gpu.download(&buffers.shared_out.slice(..tokens * hidden))?;
                    out.iter_mut().zip(shared).for_each(|(y, s)| *y += f32::from_bits(u32::from(s) << 16));
                }
            }
            run.outputs[at] = out;
        }
        for rank in &mut self.ranks {
            if let LayerPlanner::Device(planner) = &mut rank.planners[pass.layer] {
                planner.check_faults()?;
            }
        }
        Ok(())
    }
}
