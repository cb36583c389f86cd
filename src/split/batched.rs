//! All layers of a model at once, over the cores there are.
//!
//! In: one placement per layer (once), and one batch's loads of every layer, `[L][E]`. Out: one [`Split`] per layer, the
//! same as layer by layer: threads change the time, never the answer.

use super::{Method, Split, SplitError, Splitter};
use crate::place::Placement;
use rayon::prelude::*;

/// A split takes microseconds: fewer than this many layers are not worth handing to another thread.
const LEAST_PER_THREAD: usize = 8;

/// Splits the batches of many layers in parallel, in the thread pool of rayon.
#[derive(Debug)]
pub struct Layers {
    splitters: Vec<Splitter>,
    splits: Vec<Split>,
    experts: usize,
}

impl Layers {
    /// Prepares a method for the placements of all layers, which have the same experts.
    ///
    /// # Errors
    /// When a layer has another number of experts than the first, or the solver cannot take a placement's shape.
    pub fn new(placements: impl IntoIterator<Item = Placement>, method: Method) -> Result<Self, SplitError> {
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

    /// Shares out one batch of every layer; `loads` is `[L][E]`.
    ///
    /// # Errors
    /// When the loads are not `[L][E]`, or as [`Splitter::split`]: of several errors, one.
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
            .with_min_len(LEAST_PER_THREAD)
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
        let mut layers = Layers::new((0..58).map(placement), Method::Exact).unwrap();
        let splits = layers.split(&loads).unwrap();
        for (layer, split) in splits.iter().enumerate() {
            let mut alone = Split::default();
            let mut splitter = Splitter::new(placement(layer), Method::Exact).unwrap();
            splitter.split(&loads[layer * 32..(layer + 1) * 32], &mut alone).unwrap();
            assert_eq!(*split, alone, "layer {layer}");
        }
        assert!(matches!(layers.split(&loads[1..]), Err(SplitError::Shape { given: 1855, experts: 1856 })));
        assert!(Layers::new([], Method::Exact).unwrap().split(&[]).unwrap().is_empty());
    }
}
