//! Classification of layers without tokens in the trace as dense or unrecorded.
//!
//! A recorder may leave MoE layers out. Their rows are then zero, like those of dense layers. Serving stacks
//! count MoE layers by position, so that a missing layer shifts all later ones.

use super::{Plan, PlanError};
use crate::model::MoeModel;
use crate::trace::{LayerSet, MAX_LAYERS};

impl Plan {
    /// Sorts the layers without tokens into dense and unrecorded ones, as far as the plan shows it.
    ///
    /// If a known model has exactly the planned layers, there are no others. Otherwise layers before the
    /// first planned one are taken as dense, because models begin with dense layers. All others are taken as
    /// unrecorded MoE layers.
    pub fn guess_moe_layers(&mut self) {
        let planned = self.layers.len();
        if MoeModel::find_by_shape(self.experts, planned..=planned, |model| model.layers).is_some() {
            return;
        }
        let first = self.layers.first().map_or(0, |layer| layer.layer);
        let (dense, unrecorded) =
            std::mem::take(&mut self.idle_layers).into_iter().partition(|&id| id < first);
        (self.idle_layers, self.unrecorded_layers) = (dense, unrecorded);
    }

    /// Sets the layers of the model that route tokens. Named layers without a plan count as unrecorded. All
    /// others up to the last named one count as dense.
    ///
    /// # Errors
    /// Fails if a planned layer is not named, or if a named number is no layer id.
    pub fn set_moe_layers(&mut self, named: &LayerSet) -> Result<(), PlanError> {
        let value = |reason: String| Err(PlanError::Value { key: "MoE layers".into(), reason });
        if let Some(last) = named.last().filter(|&last| last as usize >= MAX_LAYERS) {
            return value(format!("layer {last}: expected ids below {MAX_LAYERS}"));
        }
        let mut planned = self.layers.iter().map(|layer| layer.layer);
        if let Some(id) = planned.find(|&id| !named.contains(id)) {
            return value(format!("layer {id} routes tokens but is not among {named}"));
        }
        let is_planned = |id: &u32| self.layers.binary_search_by_key(id, |layer| layer.layer).is_ok();
        let last = named.last().unwrap_or(0);
        let (unrecorded, dense) = (0..=last).filter(|id| !is_planned(id)).partition(|&id| named.contains(id));
        (self.unrecorded_layers, self.idle_layers) = (unrecorded, dense);
        Ok(())
    }

    /// Returns the first layer between the MoE layers of the plan that is neither planned, unrecorded nor
    /// dense.
    pub fn unknown_layer(&self) -> Option<u32> {
        let moe = self.moe_layers();
        let (first, last) = (*moe.first()?, *moe.last()?);
        let known = |id: &u32| moe.binary_search(id).is_ok() || self.idle_layers.binary_search(id).is_ok();
        (first..=last).find(|id| !known(id))
    }

    /// Returns the ids of all layers that route tokens, planned or not, ascending.
    pub fn moe_layers(&self) -> Vec<u32> {
        let planned = self.layers.iter().map(|layer| layer.layer);
        let mut ids: Vec<u32> = planned.chain(self.unrecorded_layers.iter().copied()).collect();
        ids.sort_unstable();
        ids
    }
}
