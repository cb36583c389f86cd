//! Content of a rank as one column: parts instead of single slots.
//!
//! Equal ranks with the same part are interchangeable. A placement is therefore the *number* of ranks that
//! hold each part. Each placement has only one such form, which removes all symmetry.

use crate::cluster::Cluster;

/// All parts that ranks with the same number of usable slots can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RankKind {
    /// Ranks of this kind.
    pub(super) ranks: Vec<usize>,
    /// Parts, as sets of experts in bits.
    pub(super) parts: Vec<u32>,
}

/// Returns the kinds of ranks of a cluster, for few experts. Returns `None` if there are more than `most`
/// parts.
pub(super) fn rank_kinds(experts: usize, cluster: &Cluster, most: usize) -> Option<Vec<RankKind>> {
    let mut kinds: Vec<(usize, RankKind)> = Vec::new();
    for rank in 0..cluster.ranks() {
        let size = cluster.slots_of(rank).min(experts);
        if let Some((_, kind)) = kinds.iter_mut().find(|(known, _)| *known == size) {
            kind.ranks.push(rank);
            continue;
        }
        let parts = (0..1u32 << experts).filter(|part| part.count_ones() as usize == size).collect();
        kinds.push((size, RankKind { ranks: vec![rank], parts }));
    }
    let all: usize = kinds.iter().map(|(_, kind)| kind.parts.len()).sum();
    (all <= most).then(|| kinds.into_iter().map(|(_, kind)| kind).collect())
}

/// Returns the whole numbers `n` at which the chords of `load / n` are needed. They begin with the lowest
/// number of ranks that can hold the set. They end where the peak would be at most `floor` anyway.
pub(super) fn chord_range(load: u64, floor: u64, fewest: usize, ranks: usize) -> std::ops::Range<usize> {
    let enough = load.div_ceil(floor.max(1)) as usize;
    fewest.max(1)..enough.min(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_one_size_share_their_parts() {
        let cluster = Cluster::with_uneven_slots(3, 1, 4, 1).unwrap();
        let kinds = rank_kinds(4, &cluster, 100).unwrap();
        assert_eq!(
            kinds.iter().map(|k| (k.ranks.clone(), k.parts.len())).collect::<Vec<_>>(),
            [(vec![0, 1], 6), (vec![2], 4)]
        );
        assert!(super::rank_kinds(4, &cluster, 9).is_none());
    }

    #[test]
    fn chords_end_where_the_mean_takes_over() {
        // 100 tokens with no peak below 30: 1, 2 and 3 ranks matter. With 4 ranks the peak is below the
        // floor.
        assert_eq!(chord_range(100, 30, 1, 8), 1..4);
        assert_eq!(chord_range(100, 30, 2, 3), 2..3);
        assert!(chord_range(20, 30, 1, 8).is_empty());
    }
}
