//! Splits under change: after every step the peaks are those of a cold exact split, with a certificate that
//! proves them.

use evenkeel_solver::{
    Hosts, IncrementalSplits, Problem, ProvedPeak, SlotChange, SolverError, Workspace, solve,
};
use proptest::prelude::*;

/// Slots of every rank, items, the item in every slot, and batches of loads.
type Start = (Vec<usize>, usize, Vec<u32>, Vec<Vec<u32>>);

/// Returns up to 7 ranks with up to 4 slots each. Every item has a slot, and some slots may be empty.
fn starts() -> impl Strategy<Value = Start> {
    (prop::collection::vec(0usize..=4, 1..=7), any::<prop::sample::Index>())
        .prop_filter("there is a slot", |(slots, _)| slots.iter().sum::<usize>() > 0)
        .prop_flat_map(|(slots, items)| {
            let count: usize = slots.iter().sum();
            let items = 1 + items.index(count);
            let rest = prop::collection::vec(0..=items as u32, count - items);
            let all =
                rest.prop_map(move |rest| (0..items as u32).chain(rest).collect::<Vec<u32>>()).prop_shuffle();
            let batches = prop::collection::vec(prop::collection::vec(0u32..60, items), 1..5);
            (Just(slots), Just(items), all, batches)
        })
}

/// Returns the peak by the exact solver, and checks that the certificate proves the answer.
fn check(
    (slots, items, item_in): (&[usize], usize, &[u32]),
    loads: &[u32],
    at_least: u32,
    ProvedPeak { load: peak, certificate, .. }: ProvedPeak<'_>,
) {
    let mut hosts = vec![vec![]; items];
    let mut rank_of = vec![];
    for (rank, &count) in slots.iter().enumerate() {
        rank_of.extend(std::iter::repeat_n(rank as u32, count));
    }
    for (&item, &rank) in item_in.iter().zip(&rank_of) {
        if (item as usize) < items && !hosts[item as usize].contains(&rank) {
            hosts[item as usize].push(rank);
        }
    }
    let confined: u32 = (0..items)
        .filter(|&item| hosts[item].iter().all(|rank| certificate.contains(rank)))
        .map(|item| loads[item])
        .sum();
    let problem = Problem::new(Hosts::new(slots.len(), hosts).expect("every item has a slot"));
    let loads: Vec<u64> = loads.iter().map(|&load| u64::from(load)).collect();
    let cold = solve(&problem, &loads, &mut Workspace::new(&problem)).expect("valid loads");
    assert_eq!(u64::from(peak), cold.peak.load.max(u64::from(at_least)));
    if certificate.is_empty() {
        assert_eq!(peak, at_least);
    } else {
        assert_eq!(peak, confined.div_ceil(certificate.len() as u32));
        assert!(certificate.is_sorted());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn peaks_are_exact_after_every_change(
        (slots, items, mut item_in, batches) in starts(),
        steps in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..8, 0u32..40), 1..30),
    ) {
        let mut splits =
            IncrementalSplits::new(&slots, items, &item_in, batches.iter().map(Vec::as_slice)).expect("valid");
        for (a, b, kind, at_least) in steps {
            let (a, b) = (a.index(item_in.len()), b.index(item_in.len()));
            let before = item_in.clone();
            let change = if kind % 2 == 0 {
                item_in.swap(a, b);
                SlotChange::Swap(a, b)
            } else {
                let item = b as u32 % (items as u32 + 1);
                item_in[a] = item;
                SlotChange::Replace(a, item)
            };
            let homeless = (0..items as u32).find(|item| !item_in.contains(item));
            let changed = splits.change(change);
            prop_assert_eq!(changed.clone().err(), homeless.map(|item| SolverError::NoHost { item: item as usize }));
            if changed.is_err() {
                item_in = before;
                continue;
            }
            // Some changes are kept after a part of the batches was split.
            for (batch, loads) in batches.iter().enumerate().skip(usize::from(kind == 7)) {
                let answer = splits.peak(batch, at_least);
                check((&slots, items, &item_in), loads, at_least, answer);
            }
            if kind < 4 {
                splits.take_back();
                item_in = before;
            } else {
                splits.keep();
            }
        }
        for (batch, loads) in batches.iter().enumerate() {
            check((&slots, items, &item_in), loads, 0, splits.peak(batch, 0));
        }
    }
}

#[test]
fn wrong_input_is_named() {
    let new = |slots: &[usize], items, item_in: &[u32], loads: &[u32]| {
        IncrementalSplits::new(slots, items, item_in, [loads]).err()
    };
    assert_eq!(new(&[], 0, &[], &[]), Some(SolverError::RankCount { ranks: 0 }));
    assert_eq!(new(&[2], 1, &[0], &[1]), Some(SolverError::Length { what: "slots", expected: 2, got: 1 }));
    assert_eq!(new(&[2], 2, &[0, 2], &[1, 1]), Some(SolverError::NoHost { item: 1 }));
    assert_eq!(new(&[2], 1, &[0, 1], &[]), Some(SolverError::Length { what: "loads", expected: 1, got: 0 }));
    assert_eq!(new(&[2], 2, &[0, 1], &[u32::MAX, 1]), Some(SolverError::Overflow));
    assert_eq!(new(&[2], 2, &[0, 1], &[u32::MAX, 0]), None);
}
