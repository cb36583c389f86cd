import sys

import evenkeel

dump, folder = sys.argv[1:]
trace = evenkeel.read_trace(dump)  # expert_distribution_recorder_*.pt, as SGLang wrote it
plan = evenkeel.plan(trace, ranks=8, redundant=8)
print(plan, f"busiest rank over average: {plan.imbalance.mean():.3f}")
for stack, file in [("sglang", "init.json"), ("trtllm", "balancer.yaml"), ("vllm-ascend", "map.json")]:
    with open(f"{folder}/{file}", "w") as out:
        out.write(plan.export(stack))
