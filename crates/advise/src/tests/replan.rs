//! The gain of renewed plans, where no plan can gain anything.

use crate::search::search;
use crate::{AdviceRequest, BalancePolicy, Deployment, ModelSpec, Serving, StepTimes, Workload};
use evenkeel::trace::Trace;

#[test]
fn renewed_plans_gain_nothing_if_experts_stay_in_order() {
    let model = ModelSpec::of_known("mixtral-8x7b".parse().unwrap()).unwrap();
    let times = StepTimes::of_gpu(&model, "l40s".parse().unwrap(), None, "vllm", 2.0).unwrap();
    let loads: Vec<u64> = (0..8u64 * 2 * 8).map(|at| 50 + at * at % 41).collect();
    let steps = (0..8).map(|step| step.to_string()).collect();
    let trace = Trace::from_loads(8, vec![0, 1], steps, loads).unwrap();
    // Uneven requests and streamed experts lengthen a step, whichever plan it has.
    let workload = Workload {
        input: 2_000,
        output: 1_000,
        tpot_ms: None,
        ttft_ms: None,
        verified: 1.0,
        accepted: 1.0,
        length_spread: 1.0,
        kv_bytes: 2.0,
        stream_gb_s: Some(20.0),
        serving: Serving::Disaggregated,
    };
    let request = AdviceRequest {
        model: &model,
        times: &times,
        trace: &trace,
        workload,
        gpus: vec![2, 4],
        max_redundant: 0,
        seed: 7,
    };
    let found = search(&request, &()).unwrap();
    let in_order: Vec<&Deployment> = found
        .deployments
        .iter()
        .filter(|found| found.choice.policy == BalancePolicy::Nothing && found.parallel.is_expert_parallel())
        .collect();
    assert!(in_order.iter().any(|found| found.decode.streaming_ms > 0.0));
    assert!(
        in_order.iter().any(|found| found.decode.streaming_ms <= 0.0 && found.parallel.attention_dp() > 1)
    );
    for found in in_order {
        let gain = request.replan_gain(found).unwrap().unwrap();
        assert!(gain.abs() < 1e-9, "{gain}: {found:?}");
    }
}
