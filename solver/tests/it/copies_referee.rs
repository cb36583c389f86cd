//! Plans of copies against HiGHS on small cases. `examples/copies_referee.rs` compares more of them.

use evenkeel_solver::copies::CopyEffort;

use crate::common::copy_cases::{compare, draw_case};

#[test]
fn plans_are_near_the_optimum_and_bounds_below_it() {
    let mut gaps = [0.0; 3];
    let mut cases = [0; 3];
    for seed in 0..30 {
        let case = draw_case(seed);
        // Larger cases take HiGHS seconds.
        if case.loads.len() > 18 {
            continue;
        }
        let Some(result) = compare(&case, CopyEffort::THOROUGH, 20.0) else { continue };
        // HiGHS proves within tolerances, so its peak may be a token too high.
        assert!(result.bound <= result.optimum, "{result:?} of seed {seed}");
        let kind = (seed % 3) as usize;
        gaps[kind] += result.gap;
        cases[kind] += 1;
    }
    assert!(cases.iter().all(|&count| count >= 3), "{cases:?}");
    let [copies, peak, time] = [0, 1, 2].map(|kind| gaps[kind] / f64::from(cases[kind]));
    assert!(copies <= 0.04 && peak <= 0.003 && time <= 0.01, "{copies} {peak} {time}");
}
