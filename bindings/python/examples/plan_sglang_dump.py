import sys

import evenkeel

dump, folder = sys.argv[1:]
trace = evenkeel.read_trace(dump)  # expert_distribution_recorder_*.pt, as SGLang wrote it
for stack, split, file in [
    ("sglang", "sglang-static", "init.json"),  # --moe-a2a-backend deepep; "sglang-dynamic" without an all-to-all
    ("trtllm", "trtllm", "balancer.yaml"),
    ("vllm-ascend", "vllm-ascend", "map.json"),
]:
    plan = evenkeel.plan(trace, ranks=8, redundant=8, split=split)  # for the split that the stack does
    busiest, eplb = plan.figures[split]
    print(plan, f"{split} split, busiest rank over average: {busiest:.3f}, EPLB {eplb:.3f}")
    with open(f"{folder}/{file}", "w") as out:
        out.write(plan.export(stack))
