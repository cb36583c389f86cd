//! Rows that contradict others of the same table.
//!
//! In: the rows of a kernel. Out: a flag per row. A rank with no more experts and no wider share of each
//! does no more work on the same tokens. A row is broken if it takes more than 1.6 times as long as such a
//! larger rank, and 30 microseconds more. A curve over tokens with over 30 % of such rows is broken as a
//! whole. These are kernels whose tactics were not tuned; times of 3 to 9 times the tuned ones occur. The
//! rule knows no model.

use super::collector::LoadRule;
use super::measurements::Measurement;
use std::collections::HashMap;
use std::hash::Hash;

const MAX_RATIO: f64 = 1.6;
const MAX_EXCESS_US: f64 = 30.0;
const MAX_BROKEN_SHARE: f64 = 0.3;

/// Returns a flag per row: true if it is broken. `tuned` marks the rows of shapes with tuned tiles.
pub(super) fn find_broken_rows(rows: &[Measurement], tuned: &[bool]) -> Vec<bool> {
    let mut broken = vec![false; rows.len()];
    // The rows that other rules compute do not shrink with the number of ranks.
    let comparable = |row: &Measurement| {
        matches!(row.routing.rule, LoadRule::Local | LoadRule::LocalOlderSampler) && !row.routing.grouped
    };
    let same_work =
        |row: &Measurement| comparable(row).then_some((row.model, row.routing.exponent, row.tokens));
    for group in groups(rows, same_work).into_values() {
        for &at in &group {
            // A large rank with tuned tiles may be faster than a smaller one without.
            let larger = group.iter().filter(|&&other| {
                tuned[other] == tuned[at]
                    && rows[other].ranks <= rows[at].ranks
                    && rows[other].tensor_ranks <= rows[at].tensor_ranks
            });
            let least = larger.map(|&other| rows[other].time_us).fold(f64::INFINITY, f64::min);
            let time = rows[at].time_us;
            broken[at] = time > MAX_RATIO * least && time > least + MAX_EXCESS_US;
        }
    }
    for curve in groups(rows, |row| Some((row.shape_key(), row.routing.exponent))).into_values() {
        let share = curve.iter().filter(|&&at| broken[at]).count() as f64 / curve.len() as f64;
        if share > MAX_BROKEN_SHARE {
            curve.iter().for_each(|&at| broken[at] = true);
        }
    }
    broken
}

fn groups<K: Hash + Eq>(
    rows: &[Measurement],
    key: impl Fn(&Measurement) -> Option<K>,
) -> HashMap<K, Vec<usize>> {
    let mut groups: HashMap<K, Vec<usize>> = HashMap::new();
    for (at, row) in rows.iter().enumerate() {
        if let Some(key) = key(row) {
            groups.entry(key).or_default().push(at);
        }
    }
    groups
}
