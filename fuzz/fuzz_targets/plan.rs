//! Any text as a plan: a plan or an error, never a panic. Plans that are read, written and read again stay
//! the same, also in every dialect.
#![no_main]
use evenkeel::plan::Plan;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(plan) = Plan::from_json(text) else { return };
    assert!(Plan::is_plan_document(text));
    let written = plan.to_json().expect("figures that are read are finite");
    assert_eq!(Plan::from_json(&written).expect("what is written reads"), plan);
    evenkeel_fuzz::write_and_read(&plan);
});
