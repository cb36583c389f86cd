//! Experts in order without further replicas, as in a model without any balancing.

use super::{PlaceError, PlaceRequest, PlaceResponse, Placement, Policy};
use crate::cluster::Cluster;

/// Policy that places experts in order over the ranks, as evenly as they divide. Redundant slots stay empty.
///
/// The first `E mod R` ranks hold one expert more if `R` does not divide `E`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contiguous;

impl Contiguous {
    /// Returns the placement of `experts` experts in `cluster`.
    ///
    /// # Errors
    /// Fails if the slots cannot hold the experts.
    pub fn placement(experts: usize, cluster: &Cluster) -> Result<Placement, PlaceError> {
        let (ranks, per_rank) = (cluster.ranks(), cluster.slots_per_rank());
        let mut slots = vec![None; cluster.slots()];
        let mut expert = 0;
        for rank in 0..ranks {
            let here = experts / ranks + usize::from(rank < experts % ranks);
            if here > cluster.slots_of(rank) {
                let reason = format!("{experts} experts do not fit {ranks} ranks x {per_rank} slots");
                return Err(PlaceError::Shape { policy: "contiguous".into(), reason });
            }
            for slot in &mut slots[rank * per_rank..][..here] {
                *slot = Some(expert);
                expert += 1;
            }
        }
        Ok(Placement::new(experts, ranks, slots)?)
    }
}

impl Policy for Contiguous {
    fn name(&self) -> String {
        "contiguous".into()
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        request.respond_with(Self::placement(request.history.experts(), request.cluster)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redundant_slots_stay_empty() {
        let cluster = Cluster::new(2, 1, 4, 2).unwrap();
        let placement = Contiguous::placement(4, &cluster).unwrap();
        assert_eq!(placement.slots(), [Some(0), Some(1), None, Some(2), Some(3), None]);
    }

    #[test]
    fn experts_that_do_not_divide_are_spread() {
        let cluster = Cluster::new(4, 1, 6, 2).unwrap();
        let placement = Contiguous::placement(6, &cluster).unwrap();
        assert_eq!(placement.slots()[..4], [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(placement.slots()[4..], [Some(4), None, Some(5), None]);
    }
}
