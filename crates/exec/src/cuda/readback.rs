//! What came out of a layer, brought back to the host.

use super::route::{Chooser, on_host};
use super::step::{Pass, parts};
use super::{Cuda, Plan};
use crate::cuda::DevicePlanner;
use crate::exec::backend::{LayerRun, SourceRouting};
use crate::exec::error::ExecError;
use crate::exec::router::{RouteArgs, RouterError};

impl Cuda {
    /// What came out, once it is there.
    pub(super) fn collect(
        &mut self,
        pass: &Pass,
        mut routed: Vec<SourceRouting>,
        args: &[RouteArgs],
    ) -> Result<LayerRun, ExecError> {
        if let Some(far) = &self.far {
            self.ranks.iter().try_for_each(|rank| far.settle(rank))?;
            far.took()?;
        }
        self.synchronize()?;
        let (model, cluster) = (&self.config.model, &self.config.cluster);
        let (hidden, k) = (model.hidden as usize, pass.top_k);
        let layer = &self.layers()[pass.layer];
        let mut run = LayerRun {
            counts: vec![0; model.experts],
            outputs: vec![vec![]; cluster.ranks()],
            rank_loads: vec![0; cluster.ranks()],
            ..LayerRun::default()
        };
        for rank in &self.ranks {
            let (at, (buffers, _)) = (rank.own, parts(rank)?);
            let (tokens, rows, gpu) = (pass.tokens[at], pass.rows[at], &rank.gpu);
            if pass.chooser == Chooser::Device && tokens > 0 {
                let bad = gpu.download(&buffers.bad)?.first().copied().unwrap_or(u32::MAX);
                if bad != u32::MAX {
                    return Err(RouterError::NotFinite { token: bad as usize }.into());
                }
                let logits = gpu.download(&buffers.logits.slice(..tokens * buffers.room.width))?;
                // Losses are statistics: the host makes them of the same logits.
                let mut of_source = on_host(&layer.router, logits, &args[at])?;
                of_source.routing.ids = gpu.download(&buffers.ids.slice(..tokens * k))?;
                of_source.routing.weights = gpu.download(&buffers.weights.slice(..tokens * k))?;
                of_source.routing.dropped =
                    u64::from(gpu.download(&buffers.dropped)?.first().copied().unwrap_or(0));
                routed[at] = of_source;
            } else if pass.chooser == Chooser::Device {
                routed[at] = on_host(&layer.router, vec![], &args[at])?;
            }
            for &id in &routed[at].routing.ids {
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
            run.copies.add(&slots, k, at, cluster);
            if let Some(far) = &self.far {
                far.stays(&slots, &buffers.room, k);
            }
            let mut out = gpu.download(&buffers.out.slice(..rows * hidden))?;
            if let Some(soft) = &routed[at].soft {
                out = soft.unmix(&out, hidden);
                if layer.shared.is_some() {
                    let shared = gpu.download(&buffers.shared_out.slice(..tokens * hidden))?;
                    out.iter_mut().zip(shared).for_each(|(y, s)| *y += f32::from_bits(u32::from(s) << 16));
                }
            }
            run.outputs[at] = out;
        }
        if let Plan::Device(planners) = &mut self.plans[pass.layer] {
            planners.iter_mut().try_for_each(DevicePlanner::check_faults)?;
        }
        run.routed = routed;
        Ok(run)
    }
}
