//! Runs all layers in sequence: norm, experts, residual. Optionally compares each with the reference.
//!
//! Input: the tokens of every rank. Output: the same tokens after all layers, and a [`StepRun`].

use super::backend::{Backend, LayerInput, LayerRun, RoutingSource};
use super::error::ExecError;
use super::reference::{Reference, ReferenceCheck};
use std::time::{Duration, Instant};

/// The results of one step.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct StepRun {
    /// Results per layer. Their outputs have been added to the tokens and are empty.
    pub layers: Vec<LayerRun>,
    /// The deviation from the reference, if it was computed.
    pub check: Option<ReferenceCheck>,
    /// Time of the whole step with all ranks one after the other, without the check.
    pub wall: Duration,
}

impl StepRun {
    /// Returns the time of the step if all ranks ran at once; see [`LayerRun::modelled_time`].
    pub fn modelled_time(&self) -> Duration {
        self.layers.iter().map(LayerRun::modelled_time).sum()
    }
}

/// Runs `layers` layers on `tokens`, per rank `[token][H]`, in place. `routed` returns the routing of each
/// layer.
///
/// With a `reference`, every layer's output is compared with the result in one memory and `f64` of the same
/// input and routing.
///
/// # Errors
/// Fails if a layer cannot run. The tokens are then those before that layer.
pub fn run_step<'a>(
    backend: &mut dyn Backend,
    layers: usize,
    step: u64,
    tokens: &mut [Vec<f32>],
    routed: impl Fn(usize) -> RoutingSource<'a>,
    mut reference: Option<&mut Reference>,
) -> Result<StepRun, ExecError> {
    let mut done = StepRun { check: reference.is_some().then(ReferenceCheck::default), ..StepRun::default() };
    for layer in 0..layers {
        let begun = Instant::now();
        let mut run = backend.run_layer(&LayerInput { layer, step, tokens, routed: routed(layer) })?;
        done.wall += run.wall.unwrap_or_else(|| begun.elapsed());
        if let Some(reference) = reference.as_deref_mut() {
            let sources = tokens.iter().zip(&run.outputs).zip(&run.routed).enumerate();
            for (source, ((x, y), routed)) in sources {
                let check = reference.check_layer([step as usize, layer, source], x, y, routed)?;
                done.check = Some(done.check.unwrap_or_default().merge(check));
            }
        }
        let begun = Instant::now();
        for (x, y) in tokens.iter_mut().zip(std::mem::take(&mut run.outputs)) {
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
        done.wall += begun.elapsed();
        done.layers.push(run);
    }
    backend.gather_step_stats(&mut done)?;
    Ok(done)
}
