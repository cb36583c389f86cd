//! The executor on any shape, placement and batch, with products of all sizes. It must never access foreign
//! memory.
#![no_main]
use evenkeel::cluster::Cluster;
use evenkeel_exec::activations::ActivationGenerator;
use evenkeel_exec::cpu::Cpu;
use evenkeel_exec::forward::run_step;
use evenkeel_exec::reference::Reference;
use evenkeel_exec::router::Router;
use evenkeel_exec::weights::{Dtype, RandomWeights, WeightSource};
use evenkeel_exec::{Aggregate, ExecConfig, RoutingSource};
use evenkeel::model::MoeModel;
use evenkeel::place::Placement;
use evenkeel::split::SplitMethod;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let mut at = bytes.iter().map(|&byte| usize::from(byte));
    let mut pick = |from: usize, to: usize| from + at.next().unwrap_or(0) % (to - from + 1);
    let (ranks, experts) = (pick(1, 4), pick(1, 10));
    let name = ["qwen3-30b-a3b", "deepseek-v2-lite", "gpt-oss-20b", "switch-c"][pick(0, 3)];
    let named: MoeModel = name.parse().unwrap();
    let (hidden, intermediate) = (pick(1, 160) as u64, pick(1, 160) as u64);
    let model = MoeModel { hidden, intermediate, experts, top_k: pick(1, experts.min(4)), ..named };
    let slots = experts.div_ceil(ranks) * ranks + ranks * pick(0, 2);
    let Ok(cluster) = Cluster::new(ranks, 1, experts, slots - experts) else { return };
    // Every expert has one slot. Each remaining slot holds any expert or none.
    let placed = (0..slots).map(|slot| if slot < experts { slot } else { pick(0, experts) });
    let placed = placed.map(|expert| (expert < experts).then_some(expert as u32)).collect();
    let Ok(placement) = Placement::new(experts, ranks, placed) else { return };
    let dtype = [Dtype::F32, Dtype::Bf16][pick(0, 1)];
    let exec = ExecConfig {
        model,
        cluster,
        router: Router::TopkSoftmax,
        capacity: None,
        method: Some(SplitMethod::Exact),
        tie_break: None,
        aggregate: Aggregate::None,
        dynamic: None,
        dtype,
        seed: 1,
    };
    let weights: Arc<dyn WeightSource> = Arc::new(RandomWeights { model, width: experts, dtype, seed: 2 });
    let Ok(mut cpu) = Cpu::new(exec.clone(), weights.as_ref(), vec![placement]) else { return };
    let mut reference = Reference::new(exec, weights);
    let tokens = ActivationGenerator::new(hidden as usize, 3);
    for number in 0..2 {
        let mut x: Vec<Vec<f32>> = (0..ranks).map(|rank| tokens.token_vectors(number, rank, pick(0, 40))).collect();
        let run = run_step(&mut cpu, 1, number, &mut x, |_| RoutingSource::Router, Some(&mut reference)).unwrap();
        // Tests check the bounds at widths of real models. This target checks memory, and only large
        // deviations are errors. Sums of a few rounded products can deviate: their errors do not cancel,
        // while their terms may.
        let output = run.check.unwrap().output;
        assert!(hidden.min(intermediate) < 48 || output <= 5e-2, "{output}");
    }
});
