//! Moves weights while the forward pass runs. Its results must not change.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::exec_support::{backend, config, placement, small, tokens};
use evenkeel::cluster::Cluster;
use evenkeel_exec::forward::run_step;
use evenkeel_exec::migration::ExpertMigrator;
use evenkeel_exec::router::Router;
use evenkeel_exec::weights::Dtype;
use evenkeel_exec::{Backend, ExecError, RoutingSource};

#[test]
fn placements_switch_at_every_step_for_a_hundred_steps() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let cluster = Cluster::new(4, 1, 10, 6).unwrap();
        let config = config(small("deepseek-v2-lite", 10, 3), cluster, Router::TopkSoftmax, dtype);
        let (mut cpu, mut reference) = backend(&config, vec![placement(10, &cluster, 0); 2]);
        let mut mover = ExpertMigrator::new(u64::MAX);
        for at in 0..100u64 {
            let before = [0, 1].map(|layer| cpu.placement(layer).clone());
            for layer in 0..2 {
                mover.set_target(&cpu, layer, placement(10, &cluster, 1000 + 2 * at + layer as u64));
            }
            mover.between_steps(&mut cpu).unwrap();
            // The transfers run during this step, and have arrived afterwards.
            let moved = mover.between_steps(&mut cpu).unwrap();
            assert_eq!(moved.switched, [0, 1], "step {at}");
            assert!(mover.is_done());
            assert!([0, 1].iter().all(|&layer| *cpu.placement(layer) != before[layer]));
            let mut x = tokens(64, &[3, 0, 5, 1], at);
            let run =
                run_step(&mut cpu, 2, at, &mut x, |_| RoutingSource::Router, Some(&mut reference)).unwrap();
            assert!(run.check.unwrap().within_bounds(dtype), "step {at}: {:?}", run.check);
        }
        assert!(cpu.memory().iter().all(|memory| memory.staged == 0), "staging slots are empty again");
    }
}

#[test]
fn a_budget_is_kept_and_the_old_slots_serve_until_then() {
    let cluster = Cluster::new(4, 1, 10, 6).unwrap();
    let config = config(small("qwen3-30b-a3b", 10, 3), cluster, Router::TopkSoftmax, Dtype::F32);
    let (old, new) = (placement(10, &cluster, 1), placement(10, &cluster, 2));
    let (mut cpu, mut reference) = backend(&config, vec![old.clone()]);
    let expert = cpu.expert_bytes(0, 0).unwrap();
    // The budget allows two experts in three steps.
    let mut mover = ExpertMigrator::new(expert * 2 / 3);
    mover.set_target(&cpu, 0, new.clone());
    let wanted = new.moves_from(&old);
    let (mut begun, mut steps) = (0, 0);
    while !mover.is_done() {
        let moved = mover.between_steps(&mut cpu).unwrap();
        begun += moved.copies;
        steps += 1;
        assert!(begun as u64 * expert <= steps * mover.bytes_per_step(), "step {steps}");
        let on_the_way: u64 = cpu.memory().iter().map(|memory| memory.staged).sum();
        let expected = if mover.is_done() { &new } else { &old };
        assert_eq!(cpu.placement(0), expected);
        assert_eq!(on_the_way, if mover.is_done() { 0 } else { begun as u64 * expert }, "staging is counted");
        let mut x = tokens(64, &[3, 2, 5, 1], steps);
        let run =
            run_step(&mut cpu, 1, steps, &mut x, |_| RoutingSource::Router, Some(&mut reference)).unwrap();
        assert!(run.check.unwrap().within_bounds(Dtype::F32));
    }
    assert_eq!(begun, wanted);
    assert!(steps as usize >= wanted * 3 / 2, "{steps} steps for {wanted} experts");
}

#[test]
fn a_switch_to_what_is_not_there_is_refused_and_changes_nothing() {
    let cluster = Cluster::new(4, 1, 10, 6).unwrap();
    let config = config(small("qwen3-30b-a3b", 10, 3), cluster, Router::TopkSoftmax, Dtype::F32);
    let old = placement(10, &cluster, 1);
    let (mut cpu, _) = backend(&config, vec![old.clone()]);
    let refused = cpu.activate_placement(0, placement(10, &cluster, 2)).unwrap_err();
    assert!(matches!(refused, ExecError::NotStaged { layer: 0, .. }), "{refused}");
    assert_eq!(*cpu.placement(0), old);
    assert!(
        cpu.start_copy(0, 9, 0).is_err()
            && cpu.start_copy(0, 0, 10).is_err()
            && cpu.start_copy(1, 0, 0).is_err()
    );
}

#[test]
fn a_later_aim_takes_the_place_of_an_earlier_one() {
    let cluster = Cluster::new(4, 1, 10, 6).unwrap();
    let config = config(small("qwen3-30b-a3b", 10, 3), cluster, Router::TopkSoftmax, Dtype::F32);
    let (mut cpu, _) = backend(&config, vec![placement(10, &cluster, 1)]);
    let mut mover = ExpertMigrator::new(cpu.expert_bytes(0, 0).unwrap());
    mover.set_target(&cpu, 0, placement(10, &cluster, 2));
    mover.between_steps(&mut cpu).unwrap();
    mover.set_target(&cpu, 0, placement(10, &cluster, 3));
    while !mover.is_done() {
        mover.between_steps(&mut cpu).unwrap();
    }
    assert_eq!(*cpu.placement(0), placement(10, &cluster, 3));
    mover.set_target(&cpu, 0, placement(10, &cluster, 3));
    assert!(mover.is_done(), "it is there already");
}
