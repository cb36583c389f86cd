//! EPLB compared with a restatement in NumPy (`tests/data/eplb_reference.py`) on 300 random inputs:
//! hierarchical and global, ties, heavy tails.

use evenkeel::place::{Eplb, TieBreak};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    weights: Vec<f32>,
    slots: usize,
    groups: usize,
    nodes: usize,
    ranks: usize,
    phy2log: Vec<u32>,
}

#[test]
fn same_placement_as_the_reference() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/eplb_reference.json")).unwrap();
    assert_eq!(cases.len(), 300);
    for case in &cases {
        let eplb = Eplb::new(case.groups, TieBreak::LowestExpert);
        let placed = eplb.physical_to_logical(&case.weights, case.slots, case.nodes, case.ranks).unwrap();
        assert_eq!(
            placed, case.phy2log,
            "{} slots, {} groups, {} nodes, {} ranks, {:?}",
            case.slots, case.groups, case.nodes, case.ranks, case.weights
        );
    }
}
