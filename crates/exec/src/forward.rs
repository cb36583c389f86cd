//! All layers, one after the other: norm, experts, residual; checked against the reference where wanted.
//!
//! In: the tokens of every rank. Out: the same tokens after all layers, and a [`StepRun`].

use super::backend::{Backend, LayerInput, LayerRun, Routed};
use super::error::ExecError;
use super::reference::{Check, Reference};
use std::time::{Duration, Instant};

/// What one step did.
#[derive(Debug, Clone, Default)]
pub struct StepRun {
    /// Layer by layer; the outputs are in the tokens by now.
    pub layers: Vec<LayerRun>,
    /// What the reference says, where it was asked.
    pub check: Option<Check>,
    /// From the first token in to the last one out, all ranks one after the other, without the check.
    pub wall: Duration,
}

impl StepRun {
    /// The step's time if all ranks ran at once; see [`LayerRun::modelled`].
    pub fn modelled(&self) -> Duration {
        self.layers.iter().map(LayerRun::modelled).sum()
    }
}

/// Runs `layers` layers on `tokens`, per rank `[token][H]`, in place; `routed` says how each layer's tokens get their experts.
///
/// With a `reference` every layer's output is compared with what one memory in `f64` makes of the same input and routing.
///
/// # Errors
/// When a layer cannot be run; tokens are those before that layer then.
pub fn step<'a>(
    backend: &mut dyn Backend,
    layers: usize,
    step: u64,
    tokens: &mut [Vec<f32>],
    routed: impl Fn(usize) -> Routed<'a>,
    mut reference: Option<&mut Reference>,
) -> Result<StepRun, ExecError> {
    let mut done = StepRun { check: reference.is_some().then(Check::default), ..StepRun::default() };
    for layer in 0..layers {
        let begun = Instant::now();
        let mut run = backend.layer(&LayerInput { layer, step, tokens, routed: routed(layer) })?;
        done.wall += run.wall.unwrap_or_else(|| begun.elapsed());
        if let Some(reference) = reference.as_deref_mut() {
            let sources = tokens.iter().zip(&run.outputs).zip(&run.routed).enumerate();
            for (source, ((x, y), routed)) in sources {
                let check = reference.check([step as usize, layer, source], x, y, routed)?;
                done.check = Some(done.check.unwrap_or_default().and(check));
            }
        }
        let begun = Instant::now();
        for (x, y) in tokens.iter_mut().zip(std::mem::take(&mut run.outputs)) {
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
        done.wall += begun.elapsed();
        done.layers.push(run);
    }
    backend.complete(&mut done)?;
    Ok(done)
}
