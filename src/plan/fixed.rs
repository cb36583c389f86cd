//! Fixed placements: read from a file, and judged like those of the policies.

use super::{LayerPlan, Plan, PlanProvenance};
use crate::cluster::{Cluster, ClusterError};
use crate::export::ImportedPlan;
use crate::forecast::History;
use crate::place::{PlaceError, PlaceRequest, PlaceResponse, Placement, Policy};
use crate::split::SplitMethod;
use std::collections::BTreeMap;

/// Policy that returns the same placement for any history, one per layer.
#[derive(Debug, Clone)]
pub struct FixedPlacement {
    name: String,
    /// Placements by real layer id.
    layers: BTreeMap<u32, Placement>,
}

impl FixedPlacement {
    /// Creates the policy from the placements of a plan, with the given name.
    pub fn from_plan(name: String, plan: &Plan) -> Self {
        let layers = plan.layers.iter().map(|layer| (layer.layer, layer.placement.clone()));
        Self { name, layers: layers.collect() }
    }

    /// Creates the policy from the placements of a stack's file, with the given name. `moe_layers` holds the
    /// real ids of the layers that route tokens, ascending. Dialects that count only those layers need it.
    pub fn from_imported(name: String, imported: &ImportedPlan, moe_layers: &[u32]) -> Self {
        Self { name, layers: real_layers(imported, moe_layers).collect() }
    }
}

impl Plan {
    /// Creates a plan from the placements of a stack's file, as a plan to start from. It has no figures.
    /// `name` describes its origin, and `moe_layers` is that of [`FixedPlacement::from_imported`].
    ///
    /// # Errors
    /// Fails if the file has no layer, or if its layers have different slots.
    pub fn from_imported(
        name: String,
        imported: &ImportedPlan,
        moe_layers: &[u32],
    ) -> Result<Self, ClusterError> {
        let shape = imported.layers.first().map(|first| &first.placement);
        let shape = shape.map(|first| (first.ranks(), first.slots().len()));
        let (ranks, slots) = shape.unwrap_or((0, 0));
        let cluster = Cluster::new(ranks, 1, imported.experts, slots.saturating_sub(imported.experts))?;
        let layers = real_layers(imported, moe_layers)
            .filter(|(_, placement)| (placement.ranks(), placement.slots().len()) == (ranks, slots))
            .map(|(layer, placement)| LayerPlan::new(layer, placement));
        let provenance = PlanProvenance::new(name, SplitMethod::Even);
        Ok(Self::new(cluster, imported.experts, layers.collect(), provenance))
    }
}

/// Returns the placements of a file by real layer id.
fn real_layers<'a>(
    imported: &'a ImportedPlan,
    moe_layers: &'a [u32],
) -> impl Iterator<Item = (u32, Placement)> + 'a {
    let counted = imported.dialect.counts_moe_layers_only();
    let real = move |id: u32| if counted { moe_layers.get(id as usize).copied() } else { Some(id) };
    imported.layers.iter().filter_map(move |one| Some((real(one.layer)?, one.placement.clone())))
}

impl Policy for FixedPlacement {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        request.respond_with(self.place_from_scratch(request.history, request.cluster)?)
    }
}

impl FixedPlacement {
    fn place_from_scratch(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        let layer = history.layer();
        let fail = |reason: String| Err(PlaceError::Shape { policy: self.name.clone(), reason });
        let Some(placement) = self.layers.get(&layer) else {
            return fail(format!("it has no placement for layer {layer}"));
        };
        let shape = (placement.experts(), placement.ranks(), placement.slots_per_rank());
        if shape != (history.experts(), cluster.ranks(), cluster.slots_per_rank()) {
            let (experts, ranks, slots) = shape;
            return fail(format!(
                "it places {experts} experts on {ranks} ranks x {slots} slots, expected {} on {} x {} (--redundant {} fits)",
                history.experts(),
                cluster.ranks(),
                cluster.slots_per_rank(),
                (ranks * slots).saturating_sub(experts),
            ));
        }
        Ok(placement.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{Dialect, read, write};
    use crate::place::Contiguous;
    use crate::plan::PlanRequest;
    use crate::trace::Trace;

    #[test]
    fn files_of_every_dialect_stand_for_the_plan() {
        // Layer 0 is dense, layers 1 and 2 route tokens.
        let loads = (0..48).map(|at| if at < 16 { 0 } else { at }).collect();
        let trace = Trace::from_loads(16, vec![0, 1, 2], vec!["0".into()], loads).unwrap();
        let cluster = Cluster::new(4, 1, 16, 0).unwrap();
        let made = PlanRequest::new(&trace, cluster, &Contiguous).run(&()).unwrap();
        let mut policies = vec![FixedPlacement::from_plan("plan".into(), &made.plan)];
        for dialect in Dialect::ALL {
            let imported = read(&write(&made.plan, dialect).unwrap(), 4).unwrap();
            policies.push(FixedPlacement::from_imported(dialect.to_string(), &imported, &[1, 2]));
        }
        for policy in policies {
            for (index, planned) in [1, 2].into_iter().zip(&made.plan.layers) {
                let history = History::from_trace(&trace, index);
                let placed = policy.place(&PlaceRequest::new(&history, &cluster)).unwrap().placement;
                assert_eq!(placed, planned.placement, "{}", policy.name());
            }
            let wrong = Cluster::new(2, 1, 16, 0).unwrap();
            let message = policy
                .place(&PlaceRequest::new(&History::from_trace(&trace, 1), &wrong))
                .unwrap_err()
                .to_string();
            assert!(message.contains("16 experts on 4 ranks x 4 slots, expected 16 on 2 x 8"), "{message}");
        }
        let none = FixedPlacement::from_imported(
            "none".into(),
            &read("{\"physical_to_logical_map\": [[0, 1]]}", 2).unwrap(),
            &[],
        );
        let message = none
            .place(&PlaceRequest::new(&History::from_trace(&trace, 2), &cluster))
            .unwrap_err()
            .to_string();
        assert!(message.contains("no placement for layer 2"), "{message}");
    }
}
