//! Splits of all layers of a model at once, on all cores.
//!
//! In: one placement per layer (once), and one batch's loads of every layer, `[L][E]`. Out: one [`Split`] per
//! layer, the same as layer by layer. Threads change the time, never the result.

use super::{Split, SplitError, SplitMethod, Splitter};
use crate::place::Placement;
use rayon::prelude::*;

/// Fewest layers per thread. A split takes microseconds, so that fewer layers do not repay the hand-over.
const MIN_LAYERS_PER_THREAD: usize = 8;

/// Splitter of the batches of many layers in parallel, in the thread pool of rayon.
#[derive(Debug)]
pub struct LayerSplitters {
    splitters: Vec<Splitter>,
    splits: Vec<Split>,
    experts: usize,
}

impl LayerSplitters {
    /// Prepares a method for the placements of all layers, which have the same number of experts.
    ///
    /// # Errors
    /// Fails if layers differ in their number of experts, or if the solver refuses the shape of a placement.
    pub fn new(
        placements: impl IntoIterator<Item = Placement>,
        method: SplitMethod,
    ) -> Result<Self, SplitError> {
        let splitters: Vec<Splitter> = placements
            .into_iter()
            .map(|placement| Splitter::new(placement, method))
            .collect::<Result<_, _>>()?;
        let experts = splitters.first().map_or(0, |splitter| splitter.placement().experts());
        if let Some(other) = splitters.iter().find(|other| other.placement().experts() != experts) {
            return Err(SplitError::Shape { given: other.placement().experts(), experts });
        }
        let splits = vec![Split::default(); splitters.len()];
        Ok(Self { splitters, splits, experts })
    }

    /// Splits one batch of every layer. `loads` is `[L][E]`.
    ///
    /// # Errors
    /// Fails if the loads are not `[L][E]`, and as [`Splitter::split`] does. It returns one of several
    /// errors.
    pub fn split(&mut self, loads: &[u64]) -> Result<&[Split], SplitError> {
        if loads.len() != self.splitters.len() * self.experts {
            return Err(SplitError::Shape {
                given: loads.len(),
                experts: self.splitters.len() * self.experts,
            });
        }
        self.splitters
            .par_iter_mut()
            .zip(&mut self.splits)
            .zip(loads.par_chunks(self.experts.max(1)))
            .with_min_len(MIN_LAYERS_PER_THREAD)
            .try_for_each(|((splitter, split), loads)| splitter.split(loads, split))?;
        Ok(&self.splits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_in_parallel_are_layers_one_by_one() {
        let placement = |layer: usize| {
            let slots = (0..40).map(|slot| Some(((slot * 7 + layer) % 32) as u32));
            Placement::new(32, 8, slots.collect()).unwrap()
        };
        let loads: Vec<u64> = (0..58 * 32).map(|i: u64| (i * i * 7919) % 1013).collect();
        let mut layers = LayerSplitters::new((0..58).map(placement), SplitMethod::Exact).unwrap();
        let splits = layers.split(&loads).unwrap();
        for (layer, split) in splits.iter().enumerate() {
            let mut alone = Split::default();
            let mut splitter = Splitter::new(placement(layer), SplitMethod::Exact).unwrap();
            splitter.split(&loads[layer * 32..(layer + 1) * 32], &mut alone).unwrap();
            assert_eq!(*split, alone, "layer {layer}");
        }
        assert!(matches!(layers.split(&loads[1..]), Err(SplitError::Shape { given: 1855, experts: 1856 })));
        assert!(LayerSplitters::new([], SplitMethod::Exact).unwrap().split(&[]).unwrap().is_empty());
    }
}
