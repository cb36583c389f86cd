//! What a rank holds as one column: parts instead of single slots.
//!
//! Equal ranks that hold the same part are the same, so a placement is *how many* ranks hold each part: no two ways of
//! writing one placement are left, which is all the symmetry there is.

use crate::cluster::Cluster;

/// All parts that ranks with so many usable slots can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    /// The ranks.
    pub(super) ranks: Vec<usize>,
    /// Sets of experts, as bits.
    pub(super) parts: Vec<u32>,
}

/// The kinds of ranks of a cluster, for few experts; `None` where there are more than `most` parts.
pub(super) fn kinds(experts: usize, cluster: &Cluster, most: usize) -> Option<Vec<Kind>> {
    let mut kinds: Vec<(usize, Kind)> = Vec::new();
    for rank in 0..cluster.ranks() {
        let size = cluster.usable(rank).min(experts);
        if let Some((_, kind)) = kinds.iter_mut().find(|(known, _)| *known == size) {
            kind.ranks.push(rank);
            continue;
        }
        let parts = (0..1u32 << experts).filter(|part| part.count_ones() as usize == size).collect();
        kinds.push((size, Kind { ranks: vec![rank], parts }));
    }
    let all: usize = kinds.iter().map(|(_, kind)| kind.parts.len()).sum();
    (all <= most).then(|| kinds.into_iter().map(|(_, kind)| kind).collect())
}

/// Points where the chords of `load / n` over whole `n` have to be known: from the fewest ranks that can hold the set to
/// where the peak would be at most `floor` anyway.
pub(super) fn chords(load: u64, floor: u64, fewest: usize, ranks: usize) -> std::ops::Range<usize> {
    let enough = load.div_ceil(floor.max(1)) as usize;
    fewest.max(1)..enough.min(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_one_size_share_their_parts() {
        let cluster = Cluster::uneven(3, 1, 4, 1).unwrap();
        let kinds = kinds(4, &cluster, 100).unwrap();
        assert_eq!(
            kinds.iter().map(|k| (k.ranks.clone(), k.parts.len())).collect::<Vec<_>>(),
            [(vec![0, 1], 6), (vec![2], 4)]
        );
        assert!(super::kinds(4, &cluster, 9).is_none());
    }

    #[test]
    fn chords_end_where_the_mean_takes_over() {
        // 100 tokens, no peak below 30: 1, 2, 3 ranks matter, with 4 the peak is below the floor.
        assert_eq!(chords(100, 30, 1, 8), 1..4);
        assert_eq!(chords(100, 30, 2, 3), 2..3);
        assert!(chords(20, 30, 1, 8).is_empty());
    }
}
