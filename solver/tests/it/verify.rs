//! `verify` accepts correct answers and names the defect of tampered ones.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use crate::common::{Instance, Limits, Speeds};
use evenkeel_solver::{Hosts, Peak, Problem, RankSplit, Violation, Workspace, solve, verify};

/// Returns seeded instances with load, and their answers.
fn answered() -> impl Iterator<Item = (Instance, RankSplit)> {
    (0..800).filter_map(|seed| {
        let speeds = if seed % 2 == 0 { Speeds::One } else { Speeds::Any(5) };
        let limits = Limits { ranks: 20, items: 60, load: 1000, speeds, base: true };
        let instance = common::draw(seed, limits);
        let split = solve(&instance.problem, &instance.loads, &mut Workspace::default()).expect("valid");
        (split.peak.load > 0).then_some((instance, split))
    })
}

fn tampered(split: &RankSplit, change: impl FnOnce(&mut RankSplit)) -> RankSplit {
    let mut copy = split.clone();
    change(&mut copy);
    copy
}

#[track_caller]
fn expect(instance: &Instance, split: &RankSplit, is_expected: impl Fn(&Violation) -> bool) {
    match verify(&instance.problem, &instance.loads, split) {
        Err(violation) if is_expected(&violation) => assert!(!violation.to_string().is_empty()),
        other => panic!("{other:?} for {split:?} of {instance:?}"),
    }
}

#[test]
fn a_token_that_appears_or_vanishes_is_found() {
    for (instance, mut split) in answered() {
        let Some(pair) = split.quotas.iter().position(|&quota| quota > 0) else { continue };
        split.quotas[pair] -= 1;
        expect(&instance, &split, |v| matches!(v, Violation::Conservation { .. }));
        split.quotas[pair] += 2;
        expect(&instance, &split, |v| matches!(v, Violation::Conservation { .. }));
    }
}

#[test]
fn a_moved_token_is_found_in_the_rank_loads() {
    for (instance, split) in answered() {
        let hosts = instance.problem.hosts();
        for item in (0..hosts.items()).filter(|&item| hosts.ranks_of(item).len() > 1) {
            let mut moved = split.clone();
            let first = hosts.offset(item);
            let (from, to) = if moved.quotas[first] > 0 { (first, first + 1) } else { (first + 1, first) };
            if moved.quotas[from] == 0 {
                continue;
            }
            moved.quotas[from] -= 1;
            moved.quotas[to] += 1;
            expect(&instance, &moved, |v| matches!(v, Violation::RankLoad { .. }));
        }
    }
}

#[test]
fn a_move_that_raises_the_peak_is_found_even_if_booked() {
    let mut tried = 0;
    for (instance, split) in answered() {
        let hosts = instance.problem.hosts();
        let speeds = instance.problem.speeds();
        let at_peak = |rank: u32| {
            let (load, speed) = (split.rank_loads[rank as usize], speeds[rank as usize]);
            Peak { load, speed } == split.peak
        };
        for item in 0..hosts.items() {
            let own = hosts.ranks_of(item);
            let Some(to) = own.iter().position(|&rank| at_peak(rank)) else { continue };
            let Some(from) = (0..own.len()).find(|&from| from != to && split.quotas_of(item)[from] > 0)
            else {
                continue;
            };
            let mut moved = split.clone();
            moved.quotas[hosts.offset(item) + from] -= 1;
            moved.quotas[hosts.offset(item) + to] += 1;
            moved.rank_loads[own[from] as usize] -= 1;
            moved.rank_loads[own[to] as usize] += 1;
            expect(&instance, &moved, |v| matches!(v, Violation::Peak { .. }));
            // If the peak is adjusted as well, the certificate no longer reaches it.
            moved.peak =
                Peak { load: split.rank_loads[own[to] as usize] + 1, speed: speeds[own[to] as usize] };
            expect(&instance, &moved, |v| matches!(v, Violation::Certificate { .. }));
            tried += 1;
        }
    }
    assert!(tried > 500, "only {tried} moves were tried");
}

#[test]
fn a_wrong_peak_is_found() {
    for (instance, split) in answered() {
        for peak in [
            Peak { load: split.peak.load + 1, ..split.peak },
            Peak { load: split.peak.load - 1, ..split.peak },
            Peak { speed: split.peak.speed + 1, ..split.peak },
            Peak { speed: 0, ..split.peak },
        ] {
            let wrong = tampered(&split, |s| s.peak = peak);
            expect(&instance, &wrong, |v| matches!(v, Violation::Peak { .. }));
        }
        // The same ratio in other numbers is the same peak.
        let doubled = Peak { load: 2 * split.peak.load, speed: 2 * split.peak.speed };
        let same = tampered(&split, |s| s.peak = doubled);
        assert_eq!(verify(&instance.problem, &instance.loads, &same), Ok(()));
    }
}

#[test]
fn a_malformed_certificate_is_found() {
    for (instance, split) in answered() {
        let beyond = instance.problem.hosts().ranks() as u32;
        let first = split.certificate[0];
        for certificate in [vec![], vec![beyond], vec![first, first], vec![u32::MAX], vec![1, 0]] {
            let wrong = tampered(&split, |s| s.certificate = certificate);
            expect(&instance, &wrong, |v| matches!(v, Violation::CertificateForm { .. }));
        }
    }
}

#[test]
fn a_certificate_that_proves_nothing_is_found() {
    // Rank 0 has a fixed load of 10, and the others are idle. Only {0} proves the peak.
    let problem = Problem::new(Hosts::new(3, [vec![0], vec![1, 2]]).expect("valid hosts"));
    let split = solve(&problem, &[10, 3], &mut Workspace::default()).expect("valid");
    assert_eq!(split.certificate, [0]);
    assert_eq!(verify(&problem, &[10, 3], &split), Ok(()));
    for certificate in [vec![1], vec![2], vec![0, 1], vec![1, 2], vec![0, 1, 2]] {
        let wrong = tampered(&split, |s| s.certificate = certificate);
        let verdict = verify(&problem, &[10, 3], &wrong);
        assert!(matches!(verdict, Err(Violation::Certificate { .. })), "{verdict:?}");
    }
}

#[test]
fn an_answer_to_another_problem_is_found() {
    for (instance, mut split) in answered() {
        let too_many = [instance.loads.as_slice(), &[1]].concat();
        let verdict = verify(&instance.problem, &too_many, &split);
        assert!(matches!(verdict, Err(Violation::Length { what: "loads", .. })));
        split.quotas.push(0);
        expect(&instance, &split, |v| matches!(v, Violation::Length { what: "quotas", .. }));
        split.quotas.pop();
        split.rank_loads.pop();
        expect(&instance, &split, |v| matches!(v, Violation::Length { what: "rank loads", .. }));
    }
}
