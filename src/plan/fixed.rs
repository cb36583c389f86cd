//! Fixed placements: read from a file, and judged like those of the policies.

use super::Plan;
use crate::cluster::Cluster;
use crate::export::ImportedPlan;
use crate::forecast::History;
use crate::place::{PlaceError, Placement, Policy};
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
        let counted = imported.dialect.counts_moe_layers_only();
        let real = |id: u32| if counted { moe_layers.get(id as usize).copied() } else { Some(id) };
        let layers =
            imported.layers.iter().filter_map(|(id, placement)| Some((real(*id)?, placement.clone())));
        Self { name, layers: layers.collect() }
    }
}

impl Policy for FixedPlacement {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn place(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
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
    use crate::plan::BatchProvenance;
    use crate::trace::Trace;

    #[test]
    fn files_of_every_dialect_stand_for_the_plan() {
        // Layer 0 is dense, layers 1 and 2 route tokens.
        let loads = (0..48).map(|at| if at < 16 { 0 } else { at }).collect();
        let trace = Trace::from_loads(16, vec![0, 1, 2], vec!["0".into()], loads).unwrap();
        let cluster = Cluster::new(4, 1, 16, 0).unwrap();
        let made = Plan::build(&trace, &cluster, &Contiguous, BatchProvenance::default(), &()).unwrap();
        let mut policies = vec![FixedPlacement::from_plan("plan".into(), &made.plan)];
        for dialect in Dialect::ALL {
            let imported = read(&write(&made.plan, dialect).unwrap(), 4).unwrap();
            policies.push(FixedPlacement::from_imported(dialect.to_string(), &imported, &[1, 2]));
        }
        for policy in policies {
            for (index, planned) in [1, 2].into_iter().zip(&made.plan.layers) {
                let placed = policy.place(&History::from_trace(&trace, index), &cluster).unwrap();
                assert_eq!(placed, planned.placement, "{}", policy.name());
            }
            let wrong = Cluster::new(2, 1, 16, 0).unwrap();
            let message = policy.place(&History::from_trace(&trace, 1), &wrong).unwrap_err().to_string();
            assert!(message.contains("16 experts on 4 ranks x 4 slots, expected 16 on 2 x 8"), "{message}");
        }
        let none = FixedPlacement::from_imported(
            "none".into(),
            &read("{\"physical_to_logical_map\": [[0, 1]]}", 2).unwrap(),
            &[],
        );
        let message = none.place(&History::from_trace(&trace, 2), &cluster).unwrap_err().to_string();
        assert!(message.contains("no placement for layer 2"), "{message}");
    }
}
