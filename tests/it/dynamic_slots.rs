//! Dynamic slots: every batch is served, copies are those of the contents, and all ranks agree.

use evenkeel::cluster::Cluster;
use evenkeel::place::{ExpertMove, Placement};
use evenkeel::planner::{Planner, PlannerError, ThreadGather};
use evenkeel::split::{
    CopyAim, CopyTimes, DynamicSlots, SlotMemory, Split, SplitError, SplitMethod, Splitter,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Case {
    placement: Placement,
    slots: DynamicSlots,
    /// Loads of successive batches.
    batches: Vec<Vec<u64>>,
}

fn slots() -> impl Strategy<Value = DynamicSlots> {
    let times = CopyTimes { token: 10, receive: 300, send: 200, hidden: 100, read: 0 };
    let aims = [
        CopyAim::Imbalance(0),
        CopyAim::Imbalance(200_000),
        CopyAim::Copies(0),
        CopyAim::Copies(2),
        CopyAim::Time(times),
    ];
    let memories = [SlotMemory::Shared, SlotMemory::Kept];
    (1usize..4, prop::sample::select(memories.to_vec()), prop::sample::select(aims.to_vec()))
        .prop_map(|(per_rank, memory, aim)| DynamicSlots::new(per_rank, memory).aim(aim))
}

fn cases() -> impl Strategy<Value = Case> {
    (2usize..7, 2usize..12, 0usize..3, slots()).prop_flat_map(|(ranks, experts, spare, slots)| {
        let count = ranks * (experts.div_ceil(ranks) + spare);
        let order = Just((0..count).collect::<Vec<_>>()).prop_shuffle();
        let extra = prop::collection::vec(prop::option::of(0..experts as u32), count);
        let load = prop_oneof![Just(0u64), 0u64..20, 0u64..2000];
        let batches = prop::collection::vec(prop::collection::vec(load, experts), 1..6);
        (order, extra, batches).prop_map(move |(order, extra, batches)| {
            let mut map = vec![None; count];
            for (k, &slot) in order.iter().enumerate() {
                map[slot] = if k < experts { Some(k as u32) } else { extra[k] };
            }
            Case { placement: Placement::new(experts, ranks, map).unwrap(), slots, batches }
        })
    })
}

/// Returns the copies that lead from the contents before a batch to those after it.
fn arrivals(before: &Placement, after: &Placement) -> Vec<ExpertMove> {
    let mut moves = after.moves(before);
    moves.sort_by_key(|copy| copy.slot);
    moves
}

proptest! {
    #[test]
    fn every_batch_is_served_and_copies_are_the_change_of_contents(case in cases()) {
        let build = || Splitter::builder(case.placement.clone()).dynamic_slots(case.slots).build().unwrap();
        let (mut splitter, mut again) = (build(), build());
        let (mut split, mut repeated) = (Split::default(), Split::default());
        let empty = splitter.placement().clone();
        let width = case.placement.slots_per_rank();
        let per_rank = case.slots.per_rank;
        prop_assert_eq!(empty.slots_per_rank(), width + per_rank);
        for loads in &case.batches {
            let before = match case.slots.memory {
                SlotMemory::Shared => empty.clone(),
                SlotMemory::Kept => splitter.placement().clone(),
            };
            splitter.split(loads, &mut split).unwrap();
            splitter.check(loads, &split).unwrap();
            again.split(loads, &mut repeated).unwrap();
            prop_assert_eq!(&split, &repeated);
            let after = splitter.placement();
            prop_assert_eq!(after.slots_per_rank(), width + per_rank);
            // Static slots never change.
            for (rank, own) in after.slots().chunks(width + per_rank).enumerate() {
                prop_assert_eq!(&own[..width], &case.placement.slots()[rank * width..(rank + 1) * width]);
            }
            let batch = split.copies.clone().unwrap();
            let made: Vec<_> = batch.copies.iter().map(|copy| (copy.expert, copy.to, copy.slot)).collect();
            let changed: Vec<_> =
                arrivals(&before, after).iter().map(|copy| (copy.expert, copy.to, copy.slot)).collect();
            prop_assert_eq!(made, changed);
            for copy in &batch.copies {
                let hosts = before.ranks_of(copy.expert as usize);
                prop_assert!(copy.from.is_some_and(|from| hosts.contains(&from)));
            }
            prop_assert!(batch.least_copies as usize <= batch.copies.len());
            prop_assert!(batch.least_peak <= split.peak());
            if let CopyAim::Copies(most) = case.slots.aim {
                prop_assert!(batch.copies.len() <= most as usize);
            }
            // The split is the exact one on the contents, unless the aim is satisfied with more.
            let mut exact = Splitter::new(after.clone(), SplitMethod::Exact).unwrap();
            exact.split(loads, &mut repeated).unwrap();
            prop_assert!(repeated.peak() <= split.peak());
            if matches!(case.slots.aim, CopyAim::Copies(_)) {
                prop_assert_eq!(repeated.peak(), split.peak());
            }
        }
    }

    #[test]
    fn prepared_copies_are_the_only_ones_and_the_split_follows_the_true_loads(case in cases()) {
        let mut splitter =
            Splitter::builder(case.placement.clone()).dynamic_slots(case.slots).build().unwrap();
        let mut split = Split::default();
        for pair in case.batches.windows(2) {
            let before = splitter.placement().clone();
            let copies = splitter.prepare_copies(&pair[0]).unwrap().to_vec();
            prop_assert_eq!(splitter.placement(), &before);
            splitter.split(&pair[1], &mut split).unwrap();
            splitter.check(&pair[1], &split).unwrap();
            prop_assert_eq!(&split.copies.as_ref().unwrap().copies, &copies);
            for copy in &copies {
                prop_assert_eq!(splitter.placement().slots()[copy.slot as usize], Some(copy.expert));
            }
            let mut exact = Splitter::new(splitter.placement().clone(), SplitMethod::Exact).unwrap();
            let mut best = Split::default();
            exact.split(&pair[1], &mut best).unwrap();
            prop_assert_eq!(best.peak(), split.peak());
        }
    }

    #[test]
    fn tokens_meet_the_quotas_of_dynamic_slots_and_ranks_agree(case in cases()) {
        let (ranks, experts) = (case.placement.ranks(), case.placement.experts());
        // Ids whose counts are small, spread over the sources.
        let ids: Vec<Vec<i32>> = (0..ranks)
            .map(|source| {
                let own = |expert: usize| {
                    let load = case.batches[0][expert] % 50;
                    (load / ranks as u64 + u64::from((load % ranks as u64) as usize > source)) as usize
                };
                (0..experts).flat_map(|expert| std::iter::repeat_n(expert as i32, own(expert))).collect()
            })
            .collect();
        let slots = case.placement.slots().len().max(experts);
        let cluster = Cluster::with_uneven_slots(ranks, 1, experts, slots - experts).unwrap();
        let group = ThreadGather::new(ranks, experts);
        let results: Vec<(Vec<i32>, Split)> = std::thread::scope(|scope| {
            let run = |source: usize| {
                let (mut group, case, ids) = (group.clone(), &case, &ids);
                scope.spawn(move || {
                    let mut planner =
                        Planner::with_dynamic_slots(case.placement.clone(), cluster, case.slots).unwrap();
                    // Two batches, so that kept copies are used.
                    planner.run(&ids[source], source, &mut group).unwrap();
                    let slots = planner.run(&ids[source], source, &mut group).unwrap();
                    for (&id, &slot) in ids[source].iter().zip(&slots) {
                        assert_eq!(planner.placement().slots()[slot as usize], Some(id as u32));
                    }
                    (slots, planner.last_split().clone())
                })
            };
            let threads: Vec<_> = (0..ranks).map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let split = &results[0].1;
        let mut served = vec![0u64; split.quotas.len()];
        for (slots, of_thread) in &results {
            prop_assert_eq!(of_thread, split);
            slots.iter().for_each(|&slot| served[slot as usize] += 1);
        }
        prop_assert_eq!(&served, &split.quotas);
    }
}

#[test]
fn tokens_are_redirected_by_the_last_split_while_copies_are_prepared() {
    let placement = Placement::new(4, 2, vec![Some(0), Some(1), Some(2), Some(3)]).unwrap();
    let cluster = Cluster::new(2, 1, 4, 0).unwrap();
    let slots = DynamicSlots::new(1, SlotMemory::Shared);
    let mut planner = Planner::with_dynamic_slots(placement, cluster, slots).unwrap();
    planner.split(&[40, 5, 5, 5, 40, 5, 5, 5]).unwrap();
    let before = planner.redirect(&[0i64; 40], 1).unwrap();
    assert!(before.contains(&5) && planner.last_copies().len() == 1);
    planner.prepare_copies(&[5, 5, 80, 5]).unwrap();
    assert_eq!(planner.redirect(&[0i64; 40], 1).unwrap(), before);
    assert_eq!(planner.last_copies()[0].expert, 2);
    let error = planner.check(&[40, 5, 5, 5, 40, 5, 5, 5]).unwrap_err();
    assert!(matches!(error, PlannerError::Split(SplitError::Combination(_))), "{error}");
    planner.split(&[5, 5, 40, 5, 5, 5, 40, 5]).unwrap();
    assert!(planner.redirect(&[2i64; 40], 0).unwrap().contains(&2));
}

#[test]
fn balanced_batches_need_no_copy_and_kept_copies_serve_again() {
    let placement = Placement::new(4, 2, vec![Some(0), Some(1), Some(2), Some(3)]).unwrap();
    let build = |memory| {
        let slots = DynamicSlots::new(1, memory);
        Splitter::builder(placement.clone()).dynamic_slots(slots).build().unwrap()
    };
    let mut split = Split::default();
    let mut copies = |splitter: &mut Splitter, loads: &[u64]| {
        splitter.split(loads, &mut split).unwrap();
        (split.copies.as_ref().unwrap().copies.len(), split.peak())
    };
    let (mut shared, mut kept) = (build(SlotMemory::Shared), build(SlotMemory::Kept));
    for splitter in [&mut shared, &mut kept] {
        assert_eq!(copies(splitter, &[10, 10, 10, 10]), (0, 20));
        assert_eq!(copies(splitter, &[30, 10, 5, 5]), (1, 25));
    }
    assert_eq!(copies(&mut shared, &[40, 10, 5, 5]), (1, 30));
    assert_eq!(copies(&mut kept, &[40, 10, 5, 5]), (0, 30));
}

#[test]
fn wrong_input_is_refused() {
    let placement = Placement::new(2, 2, vec![Some(0), Some(1)]).unwrap();
    let slots = DynamicSlots::new(1, SlotMemory::Kept);
    let build = |slots| Splitter::builder(placement.clone()).dynamic_slots(slots).build();
    let mut splitter = build(slots).unwrap();
    let mut split = Split::default();
    assert!(matches!(splitter.split(&[1], &mut split), Err(SplitError::Shape { .. })));
    assert!(matches!(splitter.prepare_copies(&[1, 2, 3]), Err(SplitError::Shape { .. })));
    for loads in [[u64::MAX, 1], [1 << 32, 0], [u64::from(u32::MAX), 1]] {
        let error = splitter.split(&loads, &mut split).unwrap_err();
        assert!(error.to_string().contains("2^32"), "{error}");
    }
    let many = build(DynamicSlots::new(usize::MAX, SlotMemory::Kept)).unwrap_err();
    assert!(matches!(many, SplitError::DynamicSlots { .. }), "{many}");
    let even = Splitter::builder(placement.clone()).method(SplitMethod::Even).dynamic_slots(slots);
    assert!(matches!(even.build(), Err(SplitError::Combination(_))));
    let mut fixed = Splitter::new(placement.clone(), SplitMethod::Exact).unwrap();
    assert!(matches!(fixed.prepare_copies(&[1, 1]), Err(SplitError::Combination(_))));
    let cluster = Cluster::new(4, 1, 2, 2).unwrap();
    let wrong = Planner::with_dynamic_slots(placement, cluster, slots).unwrap_err();
    assert!(matches!(wrong, PlannerError::Ranks { .. }));
}
