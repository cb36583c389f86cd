//! The plan file: a written plan reads back the same, and no damaged file is accepted.

#![allow(clippy::unwrap_used)]

use evenkeel::cluster::Cluster;
use evenkeel::evaluate::SummaryStats;
use evenkeel::place::Placement;
use evenkeel::plan::{LayerPlan, Plan, PlanProvenance, SplitFigure, TraceFile};
use evenkeel::split::SplitMethod;
use proptest::prelude::*;

/// Returns any plan: experts dealt to slots in a random order, some slots empty, any finite figures.
fn plans() -> impl Strategy<Value = Plan> {
    (
        1usize..9,
        1usize..12,
        0usize..3,
        prop::collection::btree_set(0u32..500, 1..6),
        any::<u64>(),
        1.0f64..9.0,
    )
        .prop_flat_map(|(ranks, experts, spare, layers, seed, figure)| {
            let per_rank = experts.div_ceil(ranks) + spare;
            let slots = ranks * per_rank;
            let layer = (
                Just((0..slots).collect::<Vec<_>>()).prop_shuffle(),
                prop::collection::vec(0..2 * experts, slots),
            );
            (prop::collection::vec(layer, layers.len()), Just((ranks, experts, slots, layers, seed, figure)))
        })
        .prop_map(|(drawn, (ranks, experts, slots, ids, seed, figure))| {
            let layers = ids.iter().zip(drawn).map(|(&layer, (order, extra))| {
                // The first E slots of the order are homes. The others hold a replica or nothing.
                let mut map = vec![None; slots];
                for (k, &slot) in order.iter().enumerate() {
                    let expert = if k < experts { k } else { extra[k] };
                    map[slot] = (expert < experts).then_some(expert as u32);
                }
                let placement = Placement::new(experts, ranks, map).unwrap();
                LayerPlan::new(layer, placement)
                    .imbalance(figure + f64::from(layer) / 7.0)
                    .bound(figure / 3.0)
            });
            let mut provenance = PlanProvenance::new("lplb:a \"file\".json", SplitMethod::Exact);
            provenance.target = (seed % 2 == 0).then(|| "sglang:static".to_owned());
            provenance.seed = seed;
            provenance.batches = "one batch\nper step".into();
            provenance.judged = 3;
            provenance.imbalance =
                SummaryStats::from_values(vec![figure, 1.0 / 3.0, 2.0 / 3.0, figure * 0.1]);
            let mut even = SplitFigure::new(SplitMethod::Even, SummaryStats::from_values(vec![figure]));
            even.eplb = (seed % 3 == 0).then(SummaryStats::default);
            provenance.figures = vec![even];
            provenance.trace = vec![TraceFile { file: "a\u{1F600}.csv".into(), sha256: "00".into() }];
            let cluster = Cluster::new(ranks, 1, experts, slots - experts).unwrap();
            let mut plan = Plan::new(cluster, experts, layers.collect(), provenance);
            plan.idle_layers = vec![500, 502];
            plan
        })
}

proptest! {
    #[test]
    fn reads_back_as_written(plan in plans()) {
        let text = plan.to_json().unwrap();
        let again = Plan::from_json(&text).unwrap();
        prop_assert_eq!(&again, &plan);
        prop_assert_eq!(again.to_json().unwrap(), text);
    }

    #[test]
    fn truncated_or_altered_text_is_an_error_or_a_valid_plan(plan in plans(), at in any::<prop::sample::Index>(), byte in 0x20u8..0x7f) {
        let text = plan.to_json().unwrap();
        let cut = (0..=at.index(text.len() - 3)).rev().find(|&i| text.is_char_boundary(i)).unwrap();
        prop_assert!(Plan::from_json(&text[..cut]).is_err());
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = Plan::from_json(&text); // any text must be handled without a panic
        }
    }
}
