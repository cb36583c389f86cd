//! HiGHS as the referee.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use crate::common::referee::{compare_fluid, compare_integer};
use crate::common::{LAWS, Limits, SHAPES, Speeds};

const FLUID: Limits = Limits { ranks: 32, items: 120, load: 1 << 20, speeds: Speeds::Equal, base: true };
const INTEGER: Limits = Limits { ranks: 6, items: 12, load: 60, speeds: Speeds::Any(6), base: true };

#[test]
fn the_peak_is_the_lp_optimum_rounded_up_at_equal_speeds() {
    for seed in 0..4000 {
        let instance = common::draw(seed, FLUID);
        compare_fluid(&instance).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn the_peak_is_the_milp_optimum_at_unequal_speeds() {
    for seed in 0..1500 {
        let instance = common::draw(seed, INTEGER);
        compare_integer(&instance).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn every_family_agrees() {
    for shape in SHAPES {
        for law in LAWS {
            for seed in 0..4 {
                let instance = common::draw_as(shape, law, &mut common::rng(seed), FLUID).expect("valid");
                compare_fluid(&instance).unwrap_or_else(|why| panic!("{shape:?} {law:?} {seed}: {why}"));
                let instance = common::draw_as(shape, law, &mut common::rng(seed), INTEGER).expect("valid");
                compare_integer(&instance).unwrap_or_else(|why| panic!("{shape:?} {law:?} {seed}: {why}"));
            }
        }
    }
}
